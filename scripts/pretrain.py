"""Pretrain the embedded ResNet-10 on the source style of `shapes`, and save it without its head.

python scripts/pretrain.py --out daft/weights/shapes_resnet10.safetensors

About eight minutes on one core. It runs on one thread, so that the same machine gives the same file.
"""

import argparse
import hashlib
import json
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from daft.data.shapes import CLASSES, generate

LAYERS, CHANNELS = (1, 1, 1, 1), (16, 32, 64, 128)
STYLE, SIZE, MEAN, STD = "photo", 64, 0.5, 0.25
BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 64, 0.1, 0.9, 5e-4
HELD_OUT_COUNT, HELD_OUT_SEED = 2000, 1001
# The splits of the dataset are drawn from seeds below this one.
FIRST_SEED = 1000


def load(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 3, size, size] and labels int64 [count]."""
    images, labels = generate(STYLE, count, seed, SIZE)
    return torch.from_numpy(images), torch.from_numpy(labels)


def normalise(images: Tensor) -> Tensor:
    """Network input, float32 and channels last, of uint8 images [n, 3, h, w]."""
    inputs = (images.float() / 255 - MEAN) / STD
    return inputs.to(memory_format=torch.channels_last)


def augment(images: Tensor) -> Tensor:
    """Flip each image at random; shift and recolour the batch [n, 3, h, w] of uint8."""
    flip = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    dy, dx = torch.randint(-4, 5, (2,)).tolist()
    images = F.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    images = images[..., 4 + dy : 4 + dy + SIZE, 4 + dx : 4 + dx + SIZE]
    gain = 1 + 0.2 * (2 * torch.rand(len(images), 3, 1, 1) - 1)
    return (images * gain).clamp(0, 255)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images [n, 3, h, w] classified as labelled [n], in [0, 1]."""
    model.eval()
    predictions = torch.cat([model(normalise(batch)).argmax(1) for batch in images.split(BATCH)])
    return (predictions == labels).float().mean().item()


def main() -> None:
    """Train, measure on held-out photos, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"at least {FIRST_SEED}")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    args = parser.parse_args()
    if args.seed < FIRST_SEED or args.seed == HELD_OUT_SEED:
        parser.error(f"--seed must be at least {FIRST_SEED} and not {HELD_OUT_SEED}")

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    images, labels = load(args.count, args.seed)
    held_out = load(HELD_OUT_COUNT, HELD_OUT_SEED)

    model = timm.create_model("resnet18", layers=LAYERS, channels=CHANNELS, num_classes=len(CLASSES))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = args.count // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, args.epochs * steps)
    held_out_accuracy = float("nan")
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(args.count)[: steps * BATCH].view(steps, BATCH)
        for batch in track(order, f"epoch {epoch + 1}/{args.epochs}"):
            logits = model(normalise(augment(images[batch])))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held_out_accuracy = accuracy(model, *held_out)
        print(f"epoch {epoch + 1}: held-out accuracy {held_out_accuracy:.4f}", flush=True)

    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("fc.")}
    facts = {
        "arch": f"timm resnet18 layers={LAYERS} channels={CHANNELS}",
        "source": f"shapes style={STYLE} count={args.count} seed={args.seed} size={SIZE}",
        "normalisation": f"(image / 255 - {MEAN}) / {STD}",
        "epochs": str(args.epochs),
        "held_out": f"style={STYLE} count={HELD_OUT_COUNT} seed={HELD_OUT_SEED} size={SIZE}",
        "held_out_accuracy": f"{held_out_accuracy:.4f}",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry, because safetensors writes several in random order, and the checksum would vary.
    save_file(state, args.out, {"pretraining": json.dumps(facts)})
    print(f"{args.out}: held-out accuracy {held_out_accuracy:.4f}")
    print(f"sha256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
