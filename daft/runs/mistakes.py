"""What a run says of each evaluation image, kept beside its record; and the images it is wrong about."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import safetensors.torch
from torch import Tensor

from daft.common.errors import UserError, first_line
from daft.common.files import is_damage, require_regular, write_atomically
from daft.training.predictions import Predictions

FILE = "predictions.safetensors"
"""Beside the record: label, predicted class, its confidence and the loss, of every evaluation image."""


def write(directory: Path, found: Mapping[str, Predictions]) -> None:
    """Keep the predictions of each split."""
    tensors = {f"{split}/{key}": tensor for split, of in found.items() for key, tensor in vars(of).items()}
    if tensors:
        write_atomically(directory / FILE, lambda path: safetensors.torch.save_file(tensors, path))


def read(directory: Path) -> dict[str, Predictions]:
    """By split what is kept; nothing if nothing is. Raises UserError if it is damaged."""
    file = directory / FILE
    try:
        require_regular(file)
        return _by_split(safetensors.torch.load_file(file))
    except FileNotFoundError:
        return {}
    except Exception as error:  # what a damaged file raises can be anything
        if not is_damage(error):
            raise
        raise UserError(f"{file}: damaged ({first_line(error)}); remove it") from error


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
