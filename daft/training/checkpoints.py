"""The state of an unfinished run on disk: after its last epoch, or within one that a signal interrupted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from daft.common.errors import UserError
from daft.common.files import is_damage, require_regular, write_atomically
from daft.networks import soundness, weight_files

LAST = "last.pt"

HISTORY = TypeAdapter(list[dict[str, float]])


@dataclass
class TrainingState:
    """How training went so far."""

    history: list[dict[str, float]] = field(default_factory=list)
    """per epoch: epoch (from 1), step (how many so far, if they are counted), train/loss, selection/<metric>
    (percent), lr/*, seconds, images/s"""
    best_epoch: int | None = None
    diverged: bool = False


@dataclass
class EpochProgress:
    """What an epoch has done so far."""

    loss: Tensor
    """sum over images"""
    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    rng_state: list[Tensor] = field(default_factory=list)
    """of the CPU's generator and the GPU's after its last step, for dropout and the like"""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """sums over images of what is recorded beside the loss"""

    @property
    def mean_loss(self) -> float:
        """Mean over images; waits for the device."""
        return float(self.loss) / self.images

    def add(self, loss: Tensor, images: int, seconds: float, **others: Tensor) -> None:
        """Count a step that ended so many seconds after the first one began, with other terms than loss."""
        self.loss += loss * images
        for name, value in others.items():
            self.terms[name] = self.terms.get(name, 0) + value * images
        self.images, self.steps, self.seconds = self.images + images, self.steps + 1, seconds

    def save_rng_state(self) -> None:
        """Keep the generators' states as they are now."""
        on_gpu = self.loss.device.type == "cuda"
        gpu = [torch.cuda.get_rng_state(self.loss.device)] if on_gpu else []
        self.rng_state = [torch.get_rng_state(), *gpu]

    def restore_rng_state(self) -> None:
        """Set the generators as they were kept; nothing for an epoch that begins."""
        setters = (torch.set_rng_state, partial(torch.cuda.set_rng_state, device=self.loss.device))
        for state, put in zip(self.rng_state, setters, strict=False):
            put(state.cpu())


class Checkpoints:
    """A folder with `last.pt` and the weights of the best epoch so far.

    modules: what is trained beside the model.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        modules: nn.ModuleDict | None = None,
    ) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.modules = modules or nn.ModuleDict()
        self.device = next(model.parameters()).device

    def save(self, fitted: TrainingState, progress: EpochProgress | None = None) -> None:
        """Write new best weights first, then the checkpoint that names them; then remove the old ones.

        progress: of an epoch that is not at its end.
        """
        best = self._best(fitted)
        if progress is None and fitted.best_epoch == len(fitted.history):
            state = {key: value.contiguous() for key, value in self.model.state_dict().items()}
            write_atomically(best, lambda path: safetensors.torch.save_file(state, path))
        if progress is not None:
            progress.save_rng_state()
        checkpoint = {
            "model": self.model.state_dict(),
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "fit": vars(fitted),
            "epoch_progress": progress and vars(progress),
        }
        write_atomically(self.folder / LAST, lambda path: torch.save(checkpoint, path))
        for file in self.folder.glob("best-*.safetensors"):
            if file != best:
                file.unlink(missing_ok=True)

    def resume(self) -> tuple[TrainingState, EpochProgress]:
        """Load the state after the last whole epoch, and of the one after it, if that had begun.

        Raises UserError if a file of the folder is damaged, or of another network: nothing goes on from it.
        """
        file = self.folder / LAST
        progress = EpochProgress(torch.zeros((), device=self.device))
        if not os.path.lexists(file):
            return TrainingState(), progress
        with self._mendable(file):
            checkpoint = _with_present_names(torch.load(file, map_location=self.device, weights_only=True))
            fitted = TrainingState(**checkpoint["fit"])
            HISTORY.validate_python(fitted.history, strict=True)
            self.model.load_state_dict(checkpoint["model"])
            self.modules.load_state_dict(checkpoint.get("modules", {}))  # older ones have none
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self._require_momentum_fits()
            if begun := checkpoint.get("epoch_progress"):
                progress = EpochProgress(**begun)
                progress.restore_rng_state()
            elif not fitted.diverged:
                soundness.require_own(self.model, self.model.state_dict())
        self._read_best(fitted)  # now, not at the end of the training
        return fitted, progress

    def load_best(self, fitted: TrainingState) -> None:
        """Give the model the weights of the best epoch, if there is one; raises UserError as `resume`."""
        if best := self._read_best(fitted):
            self.model.load_state_dict(best)

    def _read_best(self, fitted: TrainingState) -> dict[str, Tensor]:
        """The weights of the best epoch; empty if there is none."""
        if fitted.best_epoch is None:
            return {}
        with self._mendable(file := self._best(fitted)):
            best = safetensors.torch.load_file(file)
            soundness.require_own(self.model, best)
            return best

    def _best(self, fitted: TrainingState) -> Path:
        return self.folder / f"best-{fitted.best_epoch or 0:04d}.safetensors"

    def _require_momentum_fits(self) -> None:
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape != parameter.shape:
                    raise ValueError(f"{name} is of another network")

    @contextmanager
    def _mendable(self, file: Path) -> Iterator[None]:
        """Turn what a damaged file raises into a UserError that says how the run can start anew."""
        try:
            require_regular(file)
            yield
        except Exception as error:  # what a damaged file raises can be anything
            absent = isinstance(error, FileNotFoundError)
            if isinstance(error, torch.OutOfMemoryError) or not (absent or is_damage(error)):
                raise
            reason = "it is not there" if absent else weight_files.reason(error)
            raise UserError(
                f"{file}: the run cannot go on from it ({reason}); remove the folder {self.folder} to start "
                "the run anew: what is lost are its epochs so far"
            ) from error


def _with_present_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as it is written now: first it had no progress in an epoch, then `part` with `luck`."""
    if "part" in checkpoint:
        part = checkpoint["part"] and dict(checkpoint["part"])
        if part:
            part["rng_state"] = part.pop("luck")
        checkpoint = checkpoint | {"epoch_progress": part}
    return checkpoint
