"""The images that a run is wrong about, read from where they are: the few that a picture shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from daft.common.errors import UserError
from daft.config.operations import CenterCrop, Operation, Resize
from daft.data import datasets
from daft.data.decoding import read_image
from daft.data.labelled import Labelled
from daft.data.transforms import NO_UNIFORMS, RGB, transform
from daft.report.figures.errors import MISTAKES, Mistakes, text_of
from daft.runs import mistakes, reopened
from daft.training.predictions import Predictions

SIDE = 96
"""Pixels of an image, which is square."""

SQUARE = [Resize(size=SIDE), CenterCrop(size=SIDE)]


def pictures(
    directory: Path,
    found: Mapping[str, Predictions],
    classes: Sequence[str],
    listed: dict[str, dict[str, Labelled]],
) -> dict[str, Mistakes]:
    """By split the surest mistakes of a run, as its network sees them; none where its images are not here.

    listed: what was listed before, by dataset, which is filled here.
    """
    try:
        run = reopened.open_run(directory)
        images = run.record["identity"]["dataset"]["images"]
        if (key := repr(sorted(images.items()))) not in listed:
            listed[key] = datasets.listing(run.config).evaluation
    except UserError:  # they are elsewhere, or others by now
        return {}
    dataset, shown = run.config.dataset, {}
    for split, of in found.items():
        there = listed[key].get(split)
        # Images that were left out as unreadable would move the places of all after them.
        if (
            there is None
            or there.fingerprint != images.get(split)
            or not torch.equal(there.labels, of.labels)
        ):
            continue
        places = mistakes.most_confident(of, MISTAKES)
        shift = dataset.ood[split].shift if split in dataset.ood else []
        pixels = [_square(there, place, [*shift, *dataset.eval_transform]) for place in places]
        texts = [
            text_of(classes[int(of.labels[i])], classes[int(of.predicted[i])], float(of.confidence[i]))
            for i in places
        ]
        if places:
            shown[split] = Mistakes(torch.stack(pixels), texts)
    return shown


def _square(split: Labelled, place: int, operations: Sequence[Operation]) -> Tensor:
    """uint8 [3, SIDE, SIDE], the middle of what the network sees if that is no square."""
    files = split.images
    image = files[place] if isinstance(files, Tensor) else read_image(files[place], split.decoding)
    return transform(image[None, :RGB], [*operations, *SQUARE], NO_UNIFORMS)[0]
