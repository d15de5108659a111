"""ID and OOD evaluation: accuracy of a network on a split, features of a split."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from daft import progress
from daft.data.loader import Loader
from daft.files import write_atomically

Autocast = Callable[[], AbstractContextManager[object]]
"""Context of the run's precision, one per forward pass."""


def autocast(device: torch.device, precision: str) -> Autocast:
    """Forward passes in `fp32` or `bf16`; BN statistics stay float32 in both."""
    enabled = precision == "bf16"
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@torch.no_grad()
def accuracy(model: nn.Module, loader: Loader, precision: Autocast) -> float:
    """Percentage of images classified rightly in test mode; NaN if any logit is NaN or infinite."""
    model.eval()
    correct = torch.zeros((), device=loader.device)
    for images, labels in loader.epoch():
        with precision():
            logits = model(images)
        correct += _correct(logits, labels)
    return 100 * float(correct) / len(loader)


@torch.no_grad()
def head_accuracy(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    """The same from features [N, D] of the split."""
    return 100 * float(_correct(head(features), labels)) / len(labels)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of right answers, a float; NaN (contagious in sums) if a logit is not finite."""
    right = (logits.argmax(1) == labels).sum().float()
    return torch.where(logits.isfinite().all(), right, torch.nan)


@torch.no_grad()
def features(
    backbone: nn.Module, loader: Loader, precision: Autocast, *, epoch: int = 0, name: str = ""
) -> tuple[Tensor, Tensor]:
    """Test-mode features [N, D] float32 and labels [N] of a split, in the loader's order."""
    backbone.eval()
    batches: list[tuple[Tensor, Tensor]] = []

    def passes() -> Iterator[None]:
        for images, labels in loader.epoch(epoch):
            with precision():
                batches.append((backbone(images).float(), labels))
            yield

    for _ in progress.track(passes(), f"features {name}".strip(), loader.batches):
        pass
    extracted, labels = zip(*batches, strict=True)
    return torch.cat(extracted), torch.cat(labels)


def cached_features(
    file: Path, backbone: nn.Module, loader: Loader, precision: Autocast, *, name: str = ""
) -> tuple[Tensor, Tensor]:
    """`features`, kept in a file whose name says of what network and images they are."""
    if not file.exists():
        extracted, labels = features(backbone, loader, precision, name=name)
        tensors = {"features": extracted.cpu(), "labels": labels.cpu()}
        write_atomically(file, lambda path: safetensors.torch.save_file(tensors, path))
        return extracted, labels
    tensors = safetensors.torch.load_file(file, device=str(loader.device))
    return tensors["features"], tensors["labels"]
