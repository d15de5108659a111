"""Cosine similarity of each image's features before and after, measured once for a finished run."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from daft.common.errors import UserError, first_line
from daft.common.files import Content, cached, is_damage, require_regular
from daft.config.operations import Resize
from daft.data.images import Resident
from daft.data.loader import Loader
from daft.data.transforms import NO_UNIFORMS, apply, transform
from daft.runs.reopened import FinishedRun
from daft.training import evaluation

FILE = "similarity.safetensors"
"""Beside the record: of every evaluation image its similarity, and the pixels of the extreme ones."""

KEPT = 5
"""Images of each end that are kept per class."""


@dataclass(frozen=True)
class Similarity:
    """How far a run moved the features of each image of one split."""

    cosine: Tensor
    """float32 [N], of an image's features before and after"""
    labels: Tensor
    """int64 [N]"""
    ranked: Tensor
    """int64 [classes, 2, KEPT]: per class the images of highest, and of lowest, similarity, the extreme one
    first; -1 where a class has no more"""
    images: Tensor
    """uint8 [classes, 2, KEPT, 3, h, w]: those, as the network sees them"""

    def is_consistent(self) -> bool:
        """Whether the tensors have these shapes, and places are of these images."""
        images, (classes, *ends) = len(self.cosine), self.ranked.shape
        shapes = [self.cosine.ndim, self.labels.shape, ends, self.images.shape[:3], self.images.ndim]
        places = -1 <= int(self.ranked.min()) <= int(self.ranked.max()) < images
        return places and shapes == [1, (images,), [2, KEPT], (classes, 2, KEPT), 6]


Similarities = dict[str, Similarity]
"""By evaluation split."""


def read(directory: Path) -> Similarities:
    """What is kept beside a run's record; nothing if nothing is. Raises UserError if it is damaged."""
    file = directory / FILE
    try:
        require_regular(file)
        return _kept(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # what a damaged file raises can be anything
        if not is_damage(error):
            raise
        raise UserError(f"{file}: damaged ({first_line(error)}); figures.py makes it anew") from error


def _kept(file: Path) -> Similarities:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        split, _, key = name.rpartition("/")
        found.setdefault(split, {})[key] = tensor
    similarities = {split: Similarity(**tensors) for split, tensors in found.items()}
    for split, kept in similarities.items():
        if not kept.is_consistent():
            raise ValueError(f"the tensors of {split} do not belong together")
    return similarities


def extremes(cosine: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`Similarity.ranked` of similarities and labels [N]; of equal ones the earlier image stands first."""
    ranked = torch.full((classes, 2, KEPT), -1)
    for label in range(classes):
        of_class = (labels == label).nonzero()[:, 0]
        for end, descending in enumerate((True, False)):
            order = cosine[of_class].argsort(descending=descending, stable=True)[:KEPT]
            ranked[label, end, : len(order)] = of_class[order]
    return ranked


SIDE = 96
"""Pixels that a kept image has at most."""


def similarities(run: FinishedRun, device: torch.device) -> Similarities:
    """By evaluation split, as kept beside the run's record, else measured and then kept there.

    Raises UserError if the run's weights or images, or the pretrained weights, are not there.
    """
    return cached(run.directory / FILE, lambda: _content(_measured(run, device)), _kept)


def _content(found: Similarities) -> Content:
    tensors = {f"{name}/{key}": t for name, split in found.items() for key, t in vars(split).items()}
    return lambda path: safetensors.torch.save_file(tensors, path)


def _measured(run: FinishedRun, device: torch.device) -> Similarities:
    after, before, images = run.network(device).backbone, run.pretrained_features(device), run.images(device)
    found = {}
    for name, loader in images.evaluation.items():
        old, new = before(loader), evaluation.features(after, loader, run.autocast(device))
        cosine, labels = F.cosine_similarity(old, new).clamp(-1, 1).cpu(), loader.labels
        ranked = extremes(cosine, labels, len(images.classes))
        found[name] = Similarity(cosine, labels, ranked, _pictured(loader, ranked))
    return found


def _pictured(loader: Loader, ranked: Tensor) -> Tensor:
    """The images of these places as the network sees them, black where there is none."""
    pixels = {place: _pixels(loader, place) for place in ranked.unique().tolist() if place >= 0}
    blank = torch.zeros_like(next(iter(pixels.values())))
    images = torch.stack([pixels.get(place, blank) for place in ranked.flatten().tolist()])
    return images.view(*ranked.shape, *blank.shape)


def _pixels(loader: Loader, place: int) -> Tensor:
    """One image after the split's operations, no larger than SIDE."""
    held = loader.images
    if isinstance(held, Resident):
        image = transform(held.pixels[place : place + 1], loader.operations[held.applied :], NO_UNIFORMS)
    else:
        image = transform(held.read(place)[None], loader.operations, NO_UNIFORMS)
    shrink = min(SIDE / max(image.shape[-2:]), 1)
    height, width = (max(round(side * shrink), 1) for side in image.shape[-2:])
    return apply(Resize(size=(height, width)), image, NO_UNIFORMS)[0].cpu()
