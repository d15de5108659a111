"""The training loop: epochs, selection of one of them, checkpoint, resume."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer

from daft.common import devices, progress
from daft.common.numbers import fixed
from daft.data.loader import Batch, Loader, derive_seed
from daft.methods.parts.part import Step
from daft.training.checkpoints import Checkpoints, EpochProgress, TrainingState
from daft.training.interruption import SaveOnSignal
from daft.training.schedules import Schedule

CHECK_SECONDS = 1.0
"""Between looks at the loss: each one waits for the device."""


def cross_entropy(model: nn.Module, batch: Batch, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Mean cross-entropy of one batch, by class weighted with `weights` [K]."""
    images, labels = batch
    return {"loss": F.cross_entropy(model(images), labels, weights)}


@dataclass(frozen=True)
class LoopHooks:
    """What an epoch does with the network, and what it is judged by: the seams for tasks and methods."""

    set_train_mode: Callable[[nn.Module], None]
    """called before every epoch: the one place that decides the mode of each layer"""
    evaluate: Callable[[nn.Module], float]
    """the metric after an epoch, in percent; NaN if any logit is not finite"""
    metric: str = "accuracy"
    """its name"""
    metric_title: str = "ID"
    """how lines of progress call it"""
    compute_loss: Callable[[nn.Module, Batch], dict[str, Tensor]] = cross_entropy
    """what a step minimises: a dict with `loss` in it, and any further terms, whose means are recorded"""
    before_epoch: Callable[[int, Optimizer], None] = lambda epoch, optimizer: None
    """called with the epoch (from 1) after the schedule has set its rates"""
    before_step: Callable[[Step], None] = lambda step: None
    """called before the loss of each step"""
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """what is trained beside the network: it is in checkpoints, and not among the selected weights"""
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    """of the forward pass"""
    report: Callable[[dict[str, float]], None] = lambda row: None
    """called with the row of history of each epoch"""


def fit(
    model: nn.Module,
    loader: Loader,
    groups: list[dict[str, Any]],
    hooks: LoopHooks,
    *,
    epochs: int,
    momentum: float,
    weight_decay: float,
    folder: Path,
    steps: int | None = None,
    poly_power: float | None = None,
    keep: Literal["best", "last"] = "best",
    unlabelled: Loader | None = None,
    name: str = "training",
) -> TrainingState:
    """Train with SGD; the model ends with the weights of the epoch that evaluates best, or of the last one.

    groups: of parameters, each with `initial_lr` and a `name`; none, or no epochs: nothing is trained.
    steps: of all epochs, in equal numbers; by default an epoch is a pass over the loader's images.
    poly_power: as `Schedule.power`. unlabelled: images that each step takes a batch of, without their labels.
    name: of the run, in the lines that stand for the bar where there is no terminal.

    A run that was cut off goes on after the last epoch that `folder` holds, or within one that a signal
    interrupted, with the same result as if it had not been. Nothing is evaluated before training, ties
    keep the earlier epoch, and a loss or logit that is not finite ends the run as diverged.
    """
    if not groups or not epochs:
        return TrainingState()
    optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    schedule = Schedule(epochs, steps or epochs * loader.num_batches, poly_power)
    checkpoints = Checkpoints(folder, model, optimizer, hooks.modules)
    fitted, done = checkpoints.resume()
    metric = f"selection/{hooks.metric}"
    with _Bar(fitted, done, schedule, hooks, name) as bar:
        trainer = _Trainer(model, loader, optimizer, hooks, schedule, bar, unlabelled)
        for epoch in range(len(fitted.history) + 1, epochs + 1):
            if fitted.diverged:
                break
            torch.manual_seed(derive_seed(loader.seed, epoch))  # for dropout and the like
            schedule.before_epoch(epoch, optimizer)
            hooks.before_epoch(epoch, optimizer)
            hooks.set_train_mode(model)
            done.restore_rng_state()
            with SaveOnSignal(partial(checkpoints.save, fitted, done)) as interruption:
                with devices.tuned_convolutions(schedule.steps):
                    loss, seconds = trainer.epoch(epoch, done, interruption)
                score = hooks.evaluate(model) if math.isfinite(loss) else math.nan
            row = {
                "epoch": epoch,
                **({"step": schedule.steps_of_epoch(epoch).stop} if steps else {}),
                "train/loss": loss,
                **{f"train/{name}": float(term) / done.images for name, term in done.terms.items()},
                metric: score,
                **{f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups},
                "seconds": seconds,
                "images/s": done.images / seconds,
            }
            _select(fitted, row, metric, keep)
            checkpoints.save(fitted)
            bar.end_epoch(row)
            hooks.report(row)
            done = EpochProgress(torch.zeros((), device=loader.device))
    checkpoints.load_best(fitted)
    return fitted


def _select(fitted: TrainingState, row: dict[str, float], metric: str, keep: str) -> None:
    """Add an epoch to the history, and make it the best one if it is; NaN has diverged."""
    score = row[metric]
    best = fitted.history[fitted.best_epoch - 1][metric] if fitted.best_epoch else -math.inf
    fitted.history.append(row)
    fitted.diverged = math.isnan(score)
    if not fitted.diverged and (keep == "last" or score > best):
        fitted.best_epoch = len(fitted.history)


@dataclass(frozen=True)
class _Trainer:
    """What stays the same from epoch to epoch."""

    model: nn.Module
    loader: Loader
    optimizer: Optimizer
    hooks: LoopHooks
    schedule: Schedule
    bar: "_Bar"
    unlabelled: Loader | None = None

    def epoch(self, epoch: int, done: EpochProgress, interruption: SaveOnSignal) -> tuple[float, float]:
        """Take the steps of an epoch that are not done yet; mean loss, and seconds, of all of them.

        A loss that is not finite ends them early.
        """
        looked = time.perf_counter()
        started = looked - done.seconds
        steps = self.schedule.steps_of_epoch(epoch)[done.steps :]
        others = repeat(None, len(steps)) if self.unlabelled is None else self.unlabelled.steps(steps)
        for step, batch, other in zip(steps, self.loader.steps(steps), others, strict=True):
            with interruption.uninterrupted():
                terms = self._step(step, batch, other)
                done.add(images=len(batch[1]), seconds=time.perf_counter() - started, **terms)
            self.bar.advance()
            if time.perf_counter() - looked > CHECK_SECONDS:
                self.bar.show(done.mean_loss)
                looked = time.perf_counter()
                if not done.loss.isfinite():
                    break
        mean = done.mean_loss  # waits for the device, so it comes before the time
        return mean, time.perf_counter() - started

    def _step(self, step: int, batch: Batch, other: Batch | None) -> dict[str, Tensor]:
        self.schedule.before_step(step, self.optimizer)
        self.hooks.before_step(Step(step / self.schedule.steps, other[0] if other else None))
        with self.hooks.autocast():
            terms = self.hooks.compute_loss(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}


class _Bar:
    """Progress in steps, with the last loss and metric beside it; without a terminal a line per epoch."""

    def __init__(
        self, fitted: TrainingState, done: EpochProgress, schedule: Schedule, hooks: LoopHooks, name: str
    ) -> None:
        self._schedule, self._title, self._name = schedule, hooks.metric_title, name
        self._key = f"selection/{hooks.metric}"
        self._first, self._started = len(fitted.history), time.perf_counter()
        self._score = fitted.history[-1][self._key] if fitted.history else None
        self._bar: Progress = progress.bar("{task.fields[shown]}")
        self._task = self._bar.add_task(
            "training",
            total=schedule.steps,
            completed=schedule.steps_of_epoch(self._first + 1).start + done.steps,
            shown=self._shown(None),
        )

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count a step."""
        self._bar.advance(self._task)

    def show(self, loss: float) -> None:
        """Show a loss."""
        self._bar.update(self._task, shown=self._shown(loss))

    def end_epoch(self, row: dict[str, float]) -> None:
        """Show an epoch's loss and metric; on no terminal also its rates, and the time that is left."""
        self._score = row[self._key]
        self.show(row["train/loss"])
        if progress.console.is_terminal:
            return
        epoch, epochs = int(row["epoch"]), self._schedule.epochs
        pace = (time.perf_counter() - self._started) / (epoch - self._first)
        rates = " ".join(f"{rate:.3g}" for key, rate in row.items() if key.startswith("lr/"))
        left = timedelta(seconds=round(pace * (epochs - epoch)))
        shown = f"{self._shown(row['train/loss'])}, rate {rates}, {left} left"
        progress.note(f"{self._name}: epoch {epoch} of {epochs}, {shown}")

    def _shown(self, loss: float | None) -> str:
        """What is known so far, in words; what is not finite is called so."""
        words = [] if loss is None else [f"loss {loss:.3f}" if math.isfinite(loss) else "loss not finite"]
        if self._score is not None:
            score = f"{fixed(self._score)} %" if math.isfinite(self._score) else "not finite"
            words.append(f"{self._title} {score}")
        return ", ".join(words)
