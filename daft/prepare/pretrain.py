"""Training of a small backbone of this repository's own results."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from daft.common import devices
from daft.common.errors import UserError
from daft.common.files import checksum
from daft.config.check import validate_section
from daft.config.compose import composed
from daft.config.schema import DatasetConfig
from daft.data import datasets
from daft.data.images import ImageStore, Resident
from daft.data.labelled import Labelled
from daft.data.sources.shapes import CLASSES, generate

SIZE = 64
BATCH, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 64, 0.1, 0.9, 5e-4
STYLE, COUNT, HELD_OUT_COUNT, HELD_OUT_SEED = "photo", 20_000, 2000, 1001


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how its pixels are normalised."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epochs: int
    model_args: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "shapes": Recipe(
        (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8, {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    ),
    "tiny_imagenet": Recipe((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 5),
}

Images = tuple[Tensor, Tensor]
"""uint8 [N, 3, 64, 64] and labels int64 [N]"""


def load_shapes(seed: int) -> tuple[Images, Images, int]:
    """Training and held-out photos, drawn, and the number of classes."""
    drawn = generate(STYLE, COUNT, seed, SIZE), generate(STYLE, HELD_OUT_COUNT, HELD_OUT_SEED, SIZE)
    train, held_out = ((torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in drawn)
    return train, held_out, len(CLASSES)


def load_tiny_imagenet(overrides: list[str]) -> tuple[Images, Images, int]:
    """Training and validation images, decoded, and the number of classes."""
    config = composed("dataset=tiny_imagenet", *overrides)
    cfg = validate_section(config, "dataset", DatasetConfig)
    classes = datasets.class_names(cfg)
    store = ImageStore(float("inf"), 2, Path(config.paths.cache), torch.device("cpu"))

    def decoded(name: str, split: Labelled) -> Images:
        images, kept = store.load(split, [], name)
        if unreadable := store.unreadable.get(name):
            count = len(unreadable.paths)
            raise UserError(f"dataset.{name}: {count:,} image(s) cannot be read; {unreadable.problem(0)}")
        if not isinstance(images, Resident):
            raise UserError(f"dataset.{name}: the images differ in size")
        return images.pixels, kept.labels

    train, held_out = (
        decoded(name, datasets.read_split(cfg, split, name, classes))
        for name, split in (("train", cfg.train), ("id", cfg.id))
    )
    return train, held_out, len(classes)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """Network input, float32 and channels last, of images [n, 3, h, w] in 0 … 255."""
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    inputs = (images.float() / 255 - mean) / std
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
def accuracy(model: nn.Module, held_out: Images, recipe: Recipe, device: torch.device) -> float:
    """Share of images classified as labelled, in [0, 1]."""
    model.eval()
    images, labels = held_out
    batches = (normalise(batch.to(device), recipe) for batch in images.split(BATCH))
    predictions = torch.cat([model(batch).argmax(1).cpu() for batch in batches])
    return (predictions == labels).float().mean().item()


def pretrain(
    data: str, out: Path, seed: int, epochs: int | None, device_name: str | None, overrides: list[str]
) -> None:
    """Train on `shapes` or `tiny_imagenet`, measure on held-out images, save without the head.

    epochs: None for the recipe's. device_name: None for a GPU if there is one. overrides: of the dataset.
    """
    if seed == HELD_OUT_SEED:
        raise UserError(f"--seed {seed}: the held-out images are drawn from it; take another")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    device = devices.find(device_name, "--device")
    torch.use_deterministic_algorithms(device.type == "cpu")
    recipe = RECIPES[data]
    epochs = epochs or recipe.epochs
    load = load_shapes(seed) if data == "shapes" else load_tiny_imagenet(overrides)
    (images, labels), held_out, classes = load

    model = timm.create_model("resnet18", num_classes=classes, **recipe.model_args)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * steps)
    held_out_accuracy = float("nan")
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH)
        for batch in track(order, f"epoch {epoch + 1}/{epochs}"):
            logits = model(normalise(augment(images[batch]).to(device), recipe))
            loss = F.cross_entropy(logits, labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held_out_accuracy = accuracy(model, held_out, recipe, device)
        print(f"epoch {epoch + 1}: held-out accuracy {held_out_accuracy:.4f}", flush=True)

    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items() if not k.startswith("fc.")}
    facts = {
        "arch": f"timm resnet18 {recipe.model_args or ''}".strip(),
        "source": f"{data} images={len(images)} seed={seed} size={SIZE}",
        "normalisation": f"(image / 255 - {recipe.mean}) / {recipe.std}",
        "epochs": str(epochs),
        "held_out": f"{len(held_out[0])} images",
        "held_out_accuracy": f"{held_out_accuracy:.4f}",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    # One entry, because safetensors writes several in random order, and the checksum would vary.
    save_file(state, out, {"pretraining": json.dumps(facts)})
    print(f"{out}: held-out accuracy {held_out_accuracy:.4f}")
    print(f"{checksum(out)}: with the backbone's YAML set backbone.checksum to this, or to null")
