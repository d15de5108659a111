"""What a run says of each evaluation image, kept beside its record; and the images it is wrong about."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from daft.common.errors import UserError, first_line
from daft.common.files import is_damage, require_regular, write_atomically
from daft.runs.reopened import FinishedRun
from daft.training import evaluation, tasks
from daft.training.predictions import Predictions

FILE = "predictions{}.safetensors"
"""Beside the record: label, predicted class, its confidence and the loss, of every evaluation image; one for
the run itself, and one for each set that it was evaluated on later."""


def write(directory: Path, found: Mapping[str, Predictions], of: str = "") -> None:
    """Keep the predictions of each split; of: what tells them from those of the run itself."""
    tensors = {f"{split}/{key}": tensor for split, of in found.items() for key, tensor in vars(of).items()}
    if tensors:
        file = directory / FILE.format(of and f"-{of}")
        write_atomically(file, lambda path: safetensors.torch.save_file(tensors, path))


def read(directory: Path) -> dict[str, Predictions]:
    """By split what is kept, the run's own first; raises UserError if it is damaged."""
    found: dict[str, Predictions] = {}
    for file in sorted(directory.glob(FILE.format("*")), key=lambda file: file.name != FILE.format("")):
        try:
            require_regular(file)
            found = _by_split(safetensors.torch.load_file(file)) | found
        except Exception as error:  # what a damaged file raises can be anything
            if not is_damage(error):
                raise
            raise UserError(f"{file}: damaged ({first_line(error)}); remove it") from error
    return found


def _by_split(tensors: Mapping[str, Tensor]) -> dict[str, Predictions]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split, _, key = name.rpartition("/")
        found.setdefault(split, {})[key] = tensor
    known = {field.name for field in fields(Predictions)}
    for split, of in found.items():
        if of.keys() != known:
            raise ValueError(f"{split} has {', '.join(of)}, not {', '.join(sorted(known))}")
    return {split: Predictions(**of) for split, of in found.items()}


def most_confident(found: Predictions, most: int) -> list[int]:
    """Places of the wrong images of highest confidence; of equal ones the earlier image stands first."""
    wrong = (~found.correct).nonzero()[:, 0]
    return wrong[found.confidence[wrong].argsort(descending=True, stable=True)[:most]].tolist()


def measured(run: FinishedRun, device: torch.device) -> dict[str, Predictions]:
    """By evaluation split, by the run's weights, and kept; raises UserError without them or the images."""
    model, images = run.network(device), run.images(device)
    task = tasks.of(run.config, images.classes)
    backbone, cast = task.features(model.backbone), run.autocast(device)
    found: dict[str, Predictions] = {}
    for name, loader in images.evaluation.items():
        features = evaluation.features(backbone, loader, cast)
        if (of := task.predictions(model, features, loader)) is not None:
            found[name] = of
    write(run.directory, found)
    return found
