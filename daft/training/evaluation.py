"""ID and OOD evaluation: a network's accuracy on a split, and its features there."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from daft.common import progress
from daft.common.errors import UserError, first_line
from daft.common.files import Content, cached, digest
from daft.data.loader import Batch, Loader
from daft.networks.backbones import FeatureExtractor

Autocast = Callable[[], AbstractContextManager[object]]
"""Context of the run's precision, one per forward pass."""


class Batches(Protocol):
    """What accuracy is measured on: a Loader, or whatever else gives labelled images on a device."""

    @property
    def device(self) -> torch.device: ...
    @property
    def epoch(self) -> Callable[[], Iterator[Batch]]: ...
    def __len__(self) -> int: ...


def require_size(backbone: FeatureExtractor, name: str, loader: Loader) -> None:
    """Raise UserError unless the backbone of this name takes images of a loader's size."""
    shape, side = loader.shape(), backbone.input_size
    size = f"{shape[1]} x {shape[2]}"
    if side is not None and shape[1:] != (side, side):
        raise UserError(
            f"backbone={name} takes images of {side} x {side} pixels only, not of {size}, as "
            f"dataset.{loader.name} has after its transform; resize or crop them to {side} there"
        )
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, *shape, dtype=torch.uint8, device=loader.device))
    except RuntimeError as error:
        raise UserError(
            f"backbone={name} does not take images of {size} pixels, as dataset.{loader.name} has "
            f"after its transform ({first_line(error)})"
        ) from error


def autocast(device: torch.device, precision: str) -> Autocast:
    """Forward passes in `fp32` or `bf16`; BN statistics stay float32 in both."""
    enabled = precision == "bf16"
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def logits(backbone: nn.Module, head: nn.Module, images: Tensor, cast: Autocast) -> Tensor:
    """Logits [B, K] of images as `FeatureExtractor` takes them.

    The head is always float32: of bf16 logits several are often equal, and the first would win.
    """
    with cast():
        features = backbone(images)
    return head(features.float())


@torch.no_grad()
def accuracy(backbone: nn.Module, head: nn.Module, loader: Batches, cast: Autocast) -> float:
    """Percentage of images classified rightly in test mode; NaN if any logit is NaN or infinite."""
    backbone.eval()
    head.eval()
    correct = torch.zeros((), device=loader.device)
    for images, labels in loader.epoch():
        correct += _correct(logits(backbone, head, images, cast), labels)
    return 100 * float(correct) / len(loader)


@torch.no_grad()
def head_accuracy(head: nn.Module, features: Tensor, loader: Loader) -> float:
    """The same from the features [N, D] of the loader's images, batch by batch as above."""
    head.eval()
    correct = torch.zeros((), device=loader.device)
    labels = loader.labels.to(loader.device)
    for x, y in zip(features.split(loader.batch_size), labels.split(loader.batch_size), strict=True):
        correct += _correct(head(x), y)
    return 100 * float(correct) / len(loader)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of right answers; NaN, which no sum forgets, if a logit is not finite."""
    right = (logits.argmax(1) == labels).sum().float()
    return torch.where(logits.isfinite().all(), right, torch.nan)


@torch.no_grad()
def features(backbone: nn.Module, loader: Loader, cast: Autocast, batches: int | None = None) -> Tensor:
    """Test-mode features [N, D] float32 of the pass before training, or of its first batches, in order."""
    backbone.eval()

    def extracted() -> Iterator[Tensor]:
        for images, _ in loader.epoch(0, slice(batches)):
            with cast():
                yield backbone(images).float()

    total = min(batches or loader.num_batches, loader.num_batches)
    return torch.cat([*progress.track(extracted(), f"features {loader.name}", total)])


@dataclass(frozen=True)
class KeptFeatures:
    """Features of a network (whose `identity` is plain data), extracted once and kept on disk."""

    backbone: nn.Module
    width: int
    """of its features"""
    identity: Any
    cast: Autocast
    folder: Path

    def __call__(self, loader: Loader) -> Tensor:
        """As `features`; the backbone must still be that of the identity, unless they are there already."""
        file = self.folder / f"{loader.name}-{digest([self.identity, loader.identity])}.safetensors"

        def content() -> Content:
            extracted = {"features": features(self.backbone, loader, self.cast).cpu()}
            return lambda path: safetensors.torch.save_file(extracted, path)

        def kept(path: Path) -> Tensor:
            found = safetensors.torch.load_file(path)["features"]
            if (found.dtype, found.shape) != (torch.float32, (len(loader), self.width)):
                raise ValueError(f"{found.dtype} {list(found.shape)} for {[len(loader), self.width]}")
            return found

        return cached(file, content, kept).to(loader.device)


class PretrainedFeatures(KeptFeatures):
    """Those of the network as it was before training.

    They are what the probe is fitted on and what distortion is measured from, in every run that
    shares the network and the images.
    """
