"""Claims about the files of an unfinished run: what is damaged is named, with how the run starts anew."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from daft.common.errors import UserError
from daft.training.checkpoints import LAST, Checkpoints, EpochProgress, TrainingState

ROW = {"epoch": 1, "train/loss": 0.5, "selection/accuracy": 90.0}


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


def checkpoints(folder: Path, model: nn.Module | None = None) -> Checkpoints:
    """Of a network that has taken a step."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return Checkpoints(folder, model, optimizer)


def begun() -> EpochProgress:
    """An epoch with a step."""
    progress = EpochProgress(torch.tensor(0.0))
    progress.add(torch.tensor(1.0), 2, 0.1)
    return progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that was cut off in its second epoch; the first one is the best."""
    made, fitted = checkpoints(tmp_path / "run" / "checkpoints"), TrainingState([ROW], 1)
    made.save(fitted)
    made.save(fitted, begun())
    return made.folder


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A damage of what torch wrote."""

    def damage(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return damage


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def spoil(content: dict[str, Any]) -> None:
    content["epoch_progress"] = None
    content["model"]["1.running_var"][0] = torch.nan


def lengthen(content: dict[str, Any]) -> None:
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(7)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


COMMON: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: os.truncate(file, 0),
    "cut": cut,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("<html>"),
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a link to nothing": replaced(lambda file: file.symlink_to("nothing")),
}
LAST_DAMAGED = COMMON | {
    "malicious": lambda file: torch.save({"fit": Malice(file.parent / "trace")}, file),
    "of another program": lambda file: torch.save({"state_dict": {}}, file),
    "of another network": rewritten(lambda content: content.update(model=network(5).state_dict())),
    "without an optimizer": rewritten(lambda content: content["optimizer"].clear()),
    "of another momentum": rewritten(lengthen),
    "NaN after a whole epoch": rewritten(spoil),
    "text for numbers": rewritten(lambda content: content["fit"]["history"][0].update(epoch="one")),
    "unknown states": rewritten(lambda content: content["fit"].update(more=1)),
    "wrong generators": rewritten(
        lambda content: content["epoch_progress"].update(rng_state=[torch.zeros(3)])
    ),
}
BEST_DAMAGED = COMMON | {
    "absent": Path.unlink,
    "of another network": lambda file: safetensors.torch.save_file(network(5).state_dict(), file),
    "NaN": lambda file: safetensors.torch.save_file(
        network().state_dict() | {"0.bias": torch.full((4,), torch.nan)}, file
    ),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(pytest.param(LAST, damage, id=f"last.pt {kind}") for kind, damage in LAST_DAMAGED.items()),
        *(
            pytest.param("best-0001.safetensors", damage, id=f"best {kind}")
            for kind, damage in BEST_DAMAGED.items()
        ),
    ],
)
def test_a_damaged_file_is_named_before_any_step_with_the_folder_to_remove(
    folder: Path, name: str, damage: Callable[[Path], object]
) -> None:
    checkpoints(folder).resume()
    damage(folder / name)
    file, where = re.escape(str(folder / name)), re.escape(str(folder))
    with pytest.raises(UserError, match=rf"^{file}: .* \(.+\); remove the folder {where} to start") as caught:
        checkpoints(folder).resume()
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "trace").exists()
    shutil.rmtree(folder)
    assert checkpoints(folder).resume()[0] == TrainingState()


def test_the_best_weights_are_read_once_more_at_the_end_and_then_named_too(folder: Path) -> None:
    fitted, _ = (resumed := checkpoints(folder)).resume()
    cut(folder / "best-0001.safetensors")
    with pytest.raises(UserError, match=r"best-0001\.safetensors: the run cannot go on from it"):
        resumed.load_best(fitted)


def test_a_run_that_has_diverged_is_resumed_with_its_weights_as_they_are(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    with torch.no_grad():
        made.model.get_parameter("0.weight").fill_(torch.nan)
    made.save(TrainingState([ROW | {"selection/accuracy": torch.nan}], None, diverged=True))
    resumed = checkpoints(tmp_path)
    assert resumed.resume()[0].diverged
    assert resumed.model.get_parameter("0.weight").isnan().all()


def test_a_run_that_is_diverging_within_an_epoch_goes_on_to_find_it_out(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    with torch.no_grad():
        made.model.get_parameter("0.weight").fill_(torch.nan)
    made.save(TrainingState(), begun())
    fitted, progress = checkpoints(tmp_path).resume()
    assert (fitted.diverged, progress.steps) == (False, 1)


def test_what_the_machine_refuses_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), OSError(5, "Input/output error")):

        def failing(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "load", failing)
        with pytest.raises(type(error)):
            checkpoints(folder).resume()
