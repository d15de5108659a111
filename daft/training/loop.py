"""The training loop: epochs, selection of one of them, checkpoint, resume."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daft.common import progress
from daft.common.files import write_atomically
from daft.data.loader import Batch, Loader, derive_seed
from daft.training.interruption import SavesFirst
from daft.training.schedules import cosine, polynomial, share

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""What a step minimises: a dict with `loss` in it, and any further terms to look at."""

LAST = "last.pt"
CHECK_SECONDS = 1.0
"""Between looks at the loss: each one waits for the device."""


@dataclass
class Fit:
    """How training went; the model holds the weights of `best_epoch`."""

    history: list[dict[str, float]] = field(default_factory=list)
    """per epoch: epoch (from 1), step (how many so far, if they are counted), train/loss, selection/<metric>
    (percent), lr/*, seconds, images/s"""
    best_epoch: int | None = None
    diverged: bool = False


@dataclass
class Part:
    """What an epoch has done so far."""

    loss: Tensor
    """sum over images"""
    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    luck: list[Tensor] = field(default_factory=list)
    """states of the generators after it, for dropout and the like"""

    @property
    def mean(self) -> float:
        """Mean loss; waits for the device."""
        return float(self.loss) / self.images

    def add(self, loss: Tensor, images: int, seconds: float) -> None:
        """Count a step that ended so long after the first began."""
        self.loss += loss * images
        self.images, self.steps, self.seconds = self.images + images, self.steps + 1, seconds


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropy of one batch."""
    images, labels = batch
    return {"loss": F.cross_entropy(model(images), labels)}


def _set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _best(folder: Path, epoch: int | None) -> Path:
    return folder / f"best-{epoch or 0:04d}.safetensors"


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fitted: Fit, part: Part | None = None
) -> None:
    """The new best weights first, then the checkpoint that names them, then the old ones go."""
    if part is None and fitted.best_epoch == len(fitted.history):
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        best = _best(folder, fitted.best_epoch)
        write_atomically(best, lambda path: safetensors.torch.save_file(state, path))
    if part is not None:
        part.luck = _luck(part.loss.device)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "fit": vars(fitted),
        "part": part and vars(part),
    }
    write_atomically(folder / LAST, lambda path: torch.save(checkpoint, path))
    for file in folder.glob("best-*.safetensors"):
        if file != _best(folder, fitted.best_epoch):
            file.unlink(missing_ok=True)


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Fit, Part | None]:
    """The state after the last whole epoch, or where a signal stopped the one after it."""
    file = folder / LAST
    if not file.exists():
        return Fit(), None
    device = next(model.parameters()).device
    checkpoint = torch.load(file, map_location=device, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    part = checkpoint.get("part")
    return Fit(**checkpoint["fit"]), part and Part(**part)


def _luck(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_luck(states: list[Tensor], device: torch.device) -> None:
    setters = (torch.set_rng_state, partial(torch.cuda.set_rng_state, device=device))
    for state, put in zip(states, setters, strict=False):
        put(state.cpu())


def fit(
    model: nn.Module,
    loader: Loader,
    groups: list[dict[str, Any]],
    *,
    epochs: int,
    momentum: float,
    weight_decay: float,
    set_train_mode: Callable[[nn.Module], None],
    evaluate: Callable[[nn.Module], float],
    folder: Path,
    autocast: Callable[[], AbstractContextManager[object]],
    steps: int | None = None,
    poly_power: float | None = None,
    keep: Literal["best", "last"] = "best",
    metric: str = "accuracy",
    step: Step = cross_entropy,
    before_epoch: Callable[[int, torch.optim.Optimizer], None] = lambda epoch, optimizer: None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> Fit:
    """Train with SGD; keep the epoch that evaluates best, or the last one.

    steps: of all epochs, in equal shares; by default an epoch is a pass over the loader's images.
    poly_power: learning rates fall as (1 - step / steps) to this power, set before every step; by default
    as a half cosine, set before every epoch and its hook.

    A run that was cut off goes on after the last epoch that `folder` holds, or within one that a signal
    interrupted, with the same result as if it had not been. Nothing is evaluated before training, ties
    keep the earlier epoch, and a loss or logit that is not finite ends the run as diverged.
    """
    if not groups:
        return Fit()
    optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    fitted, begun = _resume(folder, model, optimizer)
    first, total_steps, measured = (
        len(fitted.history) + 1,
        steps or epochs * loader.batches,
        f"selection/{metric}",
    )
    with progress.bar("loss {task.fields[loss]:.3f}", "ID {task.fields[id]:.2f} %") as bar:
        task = bar.add_task(
            "training",
            total=total_steps,
            completed=share(first, epochs, total_steps).start + (begun.steps if begun else 0),
            loss=math.nan,
            id=fitted.history[-1][measured] if fitted.history else math.nan,
        )
        for epoch in range(first, epochs + 1):
            if fitted.diverged:
                break
            torch.manual_seed(derive_seed(loader.seed, epoch))  # for dropout and the like
            _set_rates(optimizer, cosine(epoch, epochs))
            before_epoch(epoch, optimizer)
            set_train_mode(model)
            part, begun = begun or Part(torch.zeros((), device=loader.device)), None
            _set_luck(part.luck, loader.device)
            looked = time.perf_counter()
            started = looked - part.seconds
            span = share(epoch, epochs, total_steps)
            with SavesFirst(partial(_save, folder, model, optimizer, fitted, part)) as interruption:
                rest = span[part.steps :]
                for number, batch in zip(rest, loader.steps(rest), strict=True):
                    with interruption.step():
                        if poly_power is not None:
                            _set_rates(optimizer, polynomial(number, total_steps, poly_power))
                        with autocast():
                            terms = step(model, batch)
                        optimizer.zero_grad(set_to_none=True)
                        terms["loss"].backward()
                        optimizer.step()
                        part.add(terms["loss"].detach(), len(batch[1]), time.perf_counter() - started)
                    bar.advance(task)
                    if time.perf_counter() - looked > CHECK_SECONDS:
                        bar.update(task, loss=part.mean)
                        looked = time.perf_counter()
                        if not part.loss.isfinite():
                            break
                loss, seconds = part.mean, time.perf_counter() - started
                score = evaluate(model) if math.isfinite(loss) else math.nan
            fitted.diverged = math.isnan(score)
            row = {
                "epoch": epoch,
                **({"step": span.stop} if steps else {}),
                "train/loss": loss,
                measured: score,
                **{f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups},
                "seconds": seconds,
                "images/s": part.images / seconds,
            }
            fitted.history.append(row)
            best = fitted.history[fitted.best_epoch - 1] if fitted.best_epoch else None
            if not fitted.diverged and (keep == "last" or best is None or score > best[measured]):
                fitted.best_epoch = epoch
            _save(folder, model, optimizer, fitted)
            bar.update(task, loss=loss, id=score)
            report(row)
    if fitted.best_epoch is not None:
        model.load_state_dict(safetensors.torch.load_file(_best(folder, fitted.best_epoch)))
    return fitted
