"""Checkpoints with random values in exactly the formats in which the paper's networks are published.

Layouts: facebookresearch/moco (main_moco.py, moco/builder.py), facebookresearch/swav (src/resnet50.py,
hubconf.py) and openai/CLIP (clip/model.py).
"""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> None:
    """Noise in every tensor, BN statistics included, of a size at which features depend on the images."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        else:
            tensor.normal_(0.8 if name.endswith("weight") else 0, 0.1, generator=generator)


def resnet50(seed: int = 0) -> torchvision.models.ResNet:
    """torchvision's ResNet-50 without a head, in test mode."""
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    network = network.to_empty(device="cpu")
    network.set_submodule("fc", nn.Identity())
    randomise(network, seed)
    return network.eval()


def moco(path: Path, encoder: State, zipped: bool = True) -> None:
    """A MoCo-v2 checkpoint (MoCo-TP's too): two encoders, the queue and the optimiser's state.

    The momentum encoder is all zeros in the right shapes. zipped: False for torch's format before 1.6.
    """
    head = {
        "fc.0.weight": torch.zeros(()).expand(2048, 2048),
        "fc.0.bias": torch.zeros(2048),
        "fc.2.weight": torch.zeros(128, 2048),
        "fc.2.bias": torch.zeros(128),
    }
    query = {f"module.encoder_q.{key}": value for key, value in {**encoder, **head}.items()}
    momentum = {
        key.replace("_q.", "_k.", 1): torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in query.items()
    }
    queue = {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = {
        "state": {0: {"momentum_buffer": torch.zeros(3)}},
        "param_groups": [{"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "params": [0]}],
    }
    content = {"epoch": 800, "arch": "resnet50", "state_dict": OrderedDict({**query, **momentum, **queue})}
    torch.save({**content, "optimizer": optimizer}, path, _use_new_zipfile_serialization=zipped)


def swav(path: Path, encoder: State, wrapped: bool = False) -> None:
    """A SwAV checkpoint: flat as published, or wrapped as its training writes it."""
    head = {
        "projection_head.0.weight": torch.zeros(()).expand(2048, 2048),
        "projection_head.0.bias": torch.zeros(2048),
        "projection_head.1.weight": torch.ones(2048),
        "projection_head.1.bias": torch.zeros(2048),
        "projection_head.1.running_mean": torch.zeros(2048),
        "projection_head.1.running_var": torch.ones(2048),
        "projection_head.1.num_batches_tracked": torch.tensor(7),
        "projection_head.3.weight": torch.zeros(128, 2048),
        "projection_head.3.bias": torch.zeros(128),
        "prototypes.weight": torch.zeros(3000, 128),
    }
    flat = OrderedDict((f"module.{key}", value) for key, value in {**encoder, **head}.items())
    content: dict[str, Any] = {"epoch": 800, "state_dict": flat, "optimizer": {}} if wrapped else flat
    torch.save(content, path)


class _Bottleneck(nn.Module):
    def __init__(self, wide: int, narrow: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = nn.Conv2d(narrow, 4 * narrow, 1, bias=False), nn.BatchNorm2d(4 * narrow)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = nn.Sequential()
        if stride > 1 or wide != 4 * narrow:
            conv, bn = nn.Conv2d(wide, 4 * narrow, 1, bias=False), nn.BatchNorm2d(4 * narrow)
            layers: dict[str, nn.Module] = {"-1": nn.AvgPool2d(stride), "0": conv, "1": bn}
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        z = self.pool(F.relu(self.bn2(self.conv2(z))))
        return F.relu(self.bn3(self.conv3(z)) + self.downsample(x))


class _AttentionPool(nn.Module):
    def __init__(self, positions: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.k_proj, self.q_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        # Attention as the sum over positions that it is, the mean token being the only query.
        q = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, -1))
        k = self.k_proj(x).unflatten(-1, (self.heads, -1))
        v = self.v_proj(x).unflatten(-1, (self.heads, -1))
        weights = (torch.einsum("bhd,bnhd->bnh", q, k) / q.shape[-1] ** 0.5).softmax(1)
        return self.c_proj(torch.einsum("bnh,bnhd->bhd", weights, v).flatten(1))


class ClipVisual(nn.Module):
    """CLIP's modified ResNet-50 with OpenAI's names: normalised images [B, 3, 224, 224] to [B, 1024]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)

        def stage(wide: int, narrow: int, blocks: int, stride: int) -> nn.Sequential:
            rest = [_Bottleneck(4 * narrow, narrow, 1) for _ in range(blocks - 1)]
            return nn.Sequential(_Bottleneck(wide, narrow, stride), *rest)

        self.layer1, self.layer2 = stage(64, 64, 3, 1), stage(256, 128, 4, 2)
        self.layer3, self.layer4 = stage(512, 256, 6, 2), stage(1024, 512, 3, 2)
        self.attnpool = _AttentionPool(49, 2048, 32, 1024)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x)


class Clip(nn.Module):
    """The image encoder beside a token of a text encoder and the three numbers about the images and text."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(5, 8)
        self.ln_final = nn.LayerNorm(8)
        self.positional_embedding = nn.Parameter(torch.zeros(7, 8))
        self.text_projection = nn.Parameter(torch.zeros(8, 1024))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name, number in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


def clip_visual(seed: int = 0) -> ClipVisual:
    """Random weights in the precision in which they are stored: halves in convolutions and linear layers."""
    with torch.device("meta"):
        visual = ClipVisual()
    visual = visual.to_empty(device="cpu")
    randomise(visual, seed)
    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.half()
    return visual.eval()


def clip(path: Path, visual: nn.Module) -> None:
    """CLIP as OpenAI publishes it: a TorchScript archive of the whole model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but it is what the file is
        torch.jit.save(torch.jit.script(Clip(visual)), path)
