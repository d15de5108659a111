"""One run, from configuration to record; reads like the paper's method section."""

import json
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from daft.common import files, memory, progress
from daft.common.errors import BusyError, UserError, join_first
from daft.common.files import digest, write_atomically
from daft.config.check import to_dict
from daft.config.schema import Config
from daft.data import balance, datasets
from daft.data.loader import Loader, derive_seed
from daft.methods import authors_probe, head_rate, preparation, probe
from daft.methods.head_rate import HeadRate
from daft.methods.parts import table as parts_table
from daft.methods.parts.loss import Loss
from daft.methods.parts.part import Part, Setting
from daft.methods.preparation import Prepared
from daft.networks.backbones import FeatureExtractor
from daft.networks.stages import stages
from daft.runs import lookup, machine, measured, mistakes, records, trained
from daft.runs.identity import pretrained_key, run_identity
from daft.runs.lookup import Known, RunResult
from daft.runs.measured import Measured
from daft.runs.preview import Preview, preview
from daft.runs.reopened import FinishedRun
from daft.training import distortion, evaluation, loop, tasks
from daft.training.checkpoints import TrainingState
from daft.training.evaluation import PretrainedFeatures
from daft.training.task import Task

BUSY_SECONDS = 5.0
"""Between looks at a run that another process computes."""


class Tracker(Protocol):
    """What follows a run while it is computed, such as W&B's mirror."""

    def log_epoch(self, row: dict[str, float]) -> None:
        """Called with the row of history of each epoch."""

    def finish(self, record: dict[str, Any]) -> None:
        """Called with the record once it is written."""


Track = Callable[[Config, str, Path], AbstractContextManager[Tracker | None]]
"""Makes the tracker of a configuration, a run's id and its directory; it is closed even if the run fails."""


def untracked(config: Config, run_id: str, directory: Path) -> AbstractContextManager[None]:
    """Nothing follows the run."""
    return nullcontext()


def nothing(found: Preview) -> None:
    """Say nothing."""


def run(
    config: Config,
    track: Track = untracked,
    tell: Callable[[Preview], None] = nothing,
    known: Known | None = None,
) -> RunResult:
    """Fine-tune by one method, evaluate on ID and OOD images, record; a finished run is not repeated.

    tell: called with what was found, before a run is computed. known: which run it is, by `lookup.known`, if
    that was asked before.
    Raises UserError for inputs that are absent or do not fit together, and BusyError if another process is
    at the same run.
    """
    device, precision = machine.set_up(config)
    listing, identity, run_id, directory = known or lookup.known(config, precision)
    if (record := records.read(directory)) is not None:
        return RunResult(directory, record, fresh=False)
    if config.method.probe_solver == "authors":
        authors_probe.require_installed()
    files.make_folder(Path(config.paths.cache), "paths.cache")
    files.make_folder(directory.parent, "paths.runs")
    with records.lock_run(directory) as directory:
        if (record := records.read(directory)) is not None:  # another process has just finished it
            return RunResult(directory, record, fresh=False)
        with _failure_noted(directory):
            clock = machine.Clock("prepare_s")
            tell(preview(config, listing, machine.name(device), precision))
            # Parts do more than train: a run with some is never taken from another.
            same = None if config.method.parts else trained.find(config, identity)
            context = RunContext.of(config, listing, identity, device, precision, directory)
            with track(config, run_id, directory) as tracker:
                record = _evaluate(context, *same) if same else _fine_tune(context, track, tracker, clock)
                if tracker:
                    tracker.finish(record)
        return RunResult(directory, record, fresh=True)


def directory_of(config: Config) -> Path:
    """The directory of a configuration's run, whether there is one yet or not; computes nothing.

    Raises UserError as `run` does for inputs that are not there. They are listed once a process: what
    changes meanwhile is noticed by the run itself.
    """
    _, precision = machine.device_and_precision(config)
    settings = to_dict(config)
    seen = [settings["fewshot"], config.training.selection, config.method.adapts]
    inputs = json.dumps([settings["dataset"], settings["backbone"], *seen])
    if inputs not in _fingerprints:
        _fingerprints[inputs] = lookup.fingerprints(config, datasets.listing(config))
    return records.run_directory(config, digest(run_identity(config, precision, *_fingerprints[inputs])))


_fingerprints: dict[str, tuple[dict[str, str], str]] = {}


@dataclass(frozen=True)
class RunContext:
    """What a run works with: its network, its images, its machine."""

    config: Config
    identity: dict[str, Any]
    device: torch.device
    precision: str
    directory: Path
    environment: dict[str, Any]
    """of the code as it runs now, not as it is hours later"""
    task: Task
    backbone: FeatureExtractor
    images: datasets.Data

    @classmethod
    def of(
        cls,
        config: Config,
        listing: datasets.Listing,
        identity: dict[str, Any],
        device: torch.device,
        precision: str,
        directory: Path,
    ) -> "RunContext":
        """Load backbone and images; raises UserError if one does not take the other."""
        environment = machine.environment(device)
        machine.reset_memory(device)
        task = tasks.of(config, listing.classes)
        task.require(listing.train.labels, {name: split.labels for name, split in listing.evaluation.items()})
        backbone = task.backbone().to(device).to(memory_format=torch.channels_last)
        images = datasets.load(config, listing, device)
        task.require(images.train.labels, {name: split.labels for name, split in images.evaluation.items()})
        if config.training.class_weights:
            task.class_weights = balance.weights(images.train.labels, len(listing.classes)).to(device)
        context = cls(config, identity, device, precision, directory, environment, task, backbone, images)
        context.check_inputs()
        context.check_parts()
        return context

    @property
    def autocast(self) -> evaluation.Autocast:
        """Context of a forward pass in the run's precision."""
        return evaluation.autocast(self.device, self.precision)

    @property
    def selection(self) -> Loader:
        """The images by which epochs, and a probe's C, are selected; never OOD ones."""
        holdout = self.config.training.selection == "holdout"
        return self.images.evaluation["holdout" if holdout else "id"]

    @property
    def selection_title(self) -> str:
        """How lines of progress call the metric on these images."""
        name = {"id": "ID"}.get(self.selection.name, self.selection.name)
        return f"{name} mIoU" if self.task.metric == "miou" else name

    @cached_property
    def parts(self) -> list[Part]:
        """What is added to the method."""
        return parts_table.build(self.config.method.parts)

    @property
    def cache(self) -> Path:
        """Folder of what runs share."""
        return Path(self.config.paths.cache)

    def check_inputs(self) -> None:
        """Raise UserError unless the network takes every split's images, and conversion has its batches.

        And unless a head of several layers has room: a few numbers are enough to fill any memory.
        """
        hidden = self.config.method.head_hidden
        widths = [self.backbone.num_features, *hidden, len(self.images.classes)]
        weights = sum(inputs * outputs for inputs, outputs in pairwise(widths))
        if hidden and self.device.type == "cpu":
            what = f"method.head_hidden=[{join_first(hidden)}]: {weights:,} weights, gradients and momenta"
            memory.require(weights * 3 * 4, what, "make it narrower")
        wanted, there = self.config.method.conversion_batches or 0, self.images.train.num_batches
        if wanted > there:
            raise UserError(
                f"method.conversion_batches={wanted}: the training set has {there}; null takes all of them"
            )
        for loader in self.images.loaders().values():
            evaluation.require_size(self.backbone, self.config.backbone.name, loader)

    def check_parts(self) -> None:
        """Raise UserError unless the parts of the method fit the network, the epochs and the images."""
        network = self.backbone.network
        resting = [stage.title for part in self.parts for stage in part.resting(network)]
        trained = [stage for stage in stages(network) if stage.title not in resting] if self.parts else []
        setting = Setting(network, trained, self.config.training.epochs)
        for name, part in zip(self.config.method.part_names, self.parts, strict=True):
            part.require_fit(setting)
            alone = [loader.name for loader in self.images.evaluation.values() if len(loader) == 1]
            if part.evaluations() and alone:
                raise UserError(f"method.parts.{name}: {alone[0]} has one image, which has no statistics")


def _fine_tune(
    context: RunContext, track: Track, tracker: Tracker | None, clock: machine.Clock
) -> dict[str, Any]:
    """The experiment itself; returns the record that it has written."""
    pretrained = _pretrained_features(context)
    before = {name: pretrained(loader) for name, loader in context.images.evaluation.items()}
    try:
        probed = _probed_head(context, pretrained, track)
        fitting = _head_rate(context, pretrained)
        prepared = _prepare(context, probed, fitting)
    except ValueError as error:
        raise UserError(f"method={context.config.method.name}: {error}") from error
    start = distortion.snapshot(prepared.model)  # Eq. 6 compares with the converted network
    clock.next("train_s")
    fitted = _fit(context, prepared, tracker)
    clock.next("evaluate_s")
    kept = context.config.training.divergence == "keep_best" and fitted.best_epoch
    diverged = fitted.diverged and not kept
    more = {} if diverged else _after(context, prepared)
    found = Measured() if diverged else _measure(context, prepared, before)
    clock.stop()
    state = {key: value.cpu().contiguous() for key, value in prepared.model.state_dict().items()}
    write_atomically(context.directory / records.MODEL, lambda path: save_file(state, path))
    mistakes.write(context.directory, found.predictions)
    record = {
        "run": digest(context.identity),
        "status": "diverged" if diverged else "finished",
        "config": to_dict(context.config),
        "identity": context.identity,
        "environment": context.environment,
        "data": datasets.describe(context.images),
        "best_epoch": fitted.best_epoch,
        "metrics": found.metrics,
        "per_class": found.per_class,
        "history": fitted.history,
        "images_seen": _images_seen(context, fitted),
        "distortion": found.distortion,
        "relative_change": distortion.relative_change(start, prepared.model),
        "bn_shift": distortion.shift_table(prepared.shift),
        "probe": probed and probed.report,
        "head_rate": fitting and fitting.report(context.config.training.momentum),
        "above_zero_head": _above_zero_head(context, fitted),
        **({"stages": prepared.stages} if prepared.stages else {}),
        **more,
        "time": clock.seconds,
        "memory": machine.peak_memory(context.device),
    }
    records.write(context.directory, record)
    shutil.rmtree(context.directory / records.CHECKPOINTS, ignore_errors=True)
    return record


def _evaluate(context: RunContext, trained_in: Path, old: dict[str, Any]) -> dict[str, Any]:
    """What a run with the same weights lacks, other OOD sets; returns the record that it has written."""
    progress.note(f"trained already: the weights are those of {trained_in}; only evaluated here")
    finished, loaders = FinishedRun(trained_in, old, context.config), context.images.evaluation
    measure = context.task.metric if context.config.segmentation else "nll"  # which old records lack
    shared = trained.reusable(old, context.identity, measure)
    new = {name: loader for name, loader in loaders.items() if name not in shared}
    found = Measured()
    if old["status"] == "finished":
        model, before = finished.network(context.device), _pretrained_features(context)
        found = measured.measure(context.task, model, new, before, context.autocast, trains_backbone=True)
        found = found.joined(trained.measured_in(trained_in, old, shared), [*loaders])
        dataset = context.config.dataset
        found.metrics |= measured.ood_means(found.metrics, dataset.ood_mean or list(dataset.ood))
        trained.take_over(trained_in / records.MODEL, context.directory / records.MODEL)
    mistakes.write(context.directory, found.predictions)
    weights_from = {"run": old["run"], "evaluated": [*new], "environment": context.environment}
    record = old | {
        "run": digest(context.identity),
        "config": to_dict(context.config),
        "identity": context.identity,
        "data": datasets.describe(context.images),
        "metrics": found.metrics,
        "per_class": found.per_class,
        "distortion": found.distortion,
        "weights_from": weights_from,
    }
    records.write(context.directory, record)
    shutil.rmtree(context.directory / records.CHECKPOINTS, ignore_errors=True)
    return record


def _pretrained_features(context: RunContext) -> PretrainedFeatures:
    """What distortion is measured from, and what a probe is fitted on."""
    key = pretrained_key(context.identity, context.device)
    backbone = context.task.features(context.backbone)
    width, folder = context.backbone.num_features, context.cache / "features"
    return PretrainedFeatures(backbone, width, key, context.autocast, folder)


class _ProbedHead(NamedTuple):
    """A head after the linear probe, and what the record says of it."""

    state: dict[str, Tensor]
    report: dict[str, Any]


def _probed_head(context: RunContext, pretrained: PretrainedFeatures, track: Track) -> _ProbedHead | None:
    """The head that LP gives, if the method starts from it; a segmentation's comes from a run of LP."""
    config, images = context.config, context.images
    if config.method.head_init != "probe":
        return None
    if config.method.lr_probe is not None:
        return _trained_head(config, track)

    def labelled(loader: Loader) -> tuple[Tensor, Tensor]:
        return pretrained(loader), loader.labels[loader.order()].to(context.device)

    key = [pretrained.identity, images.train.identity, context.selection.identity, images.classes]
    solver = probe.fit_probe
    if config.method.probe_solver == "authors":
        key, solver = [*key, "authors"], authors_probe.fit_probe
    solved = probe.cached_probe(
        context.cache / "probes" / f"{digest(key)}.safetensors",
        lambda: solver(
            *labelled(images.train), *labelled(context.selection), num_classes=len(images.classes)
        ),
        len(images.classes),
        context.backbone.num_features,
    )
    return _ProbedHead({"linear1.weight": solved.weight, "linear1.bias": solved.bias}, solved.report())


def _trained_head(config: Config, track: Track) -> _ProbedHead:
    """The head that LP trains on the frozen backbone, in a run of its own, and that run's metrics."""
    probing, done = replace(config, method=config.method.linear_probe()), None
    while done is None:
        try:
            done = run(probing, track)
        except BusyError:  # runs that differ in η_θ alone start from the same one
            time.sleep(BUSY_SECONDS)
    head = FinishedRun(done.directory, done.record, probing).network(torch.device("cpu")).head
    if done.record["status"] == "diverged":  # so does what starts from it
        for parameter in head.parameters():
            parameter.data.fill_(math.nan)
    return _ProbedHead(head.state_dict(), {"run": done.record["run"], "metrics": done.record["metrics"]})


def _head_rate(context: RunContext, pretrained: PretrainedFeatures) -> HeadRate | None:
    """The rate that fits the features, used or not, if the method has a rate for the head alone.

    It is the same for every seed, so that the runs of a cell have one rate.
    """
    if context.config.segmentation is not None or context.config.method.rates != "separate":
        return None
    train = replace(context.images.train, seed=0)
    file = f"{digest([pretrained.identity, train.identity, head_rate.IMAGES])}.json"

    def features() -> Tensor:
        batches = math.ceil(head_rate.IMAGES / train.batch_size)
        return evaluation.features(pretrained.backbone, train, context.autocast, batches)[: head_rate.IMAGES]

    return head_rate.cached_head_rate(context.cache / "head_rates" / file, features)


def _prepare(context: RunContext, probed: _ProbedHead | None, fitting: HeadRate | None) -> Prepared:
    """Table 1: head, BN conversion, learning rates."""
    method, train = context.config.method, context.images.train
    if method.lr_head_unit == "auto":
        assert method.lr_head is not None
        assert fitting is not None
        fits = head_rate.fitting_rate(fitting.largest_eigenvalue, context.config.training.momentum)
        method = replace(method, lr_head=method.lr_head * fits, lr_head_unit=None)
    batches = method.conversion_batches or train.num_batches
    torch.manual_seed(derive_seed(context.config.seed, 0))  # a random head depends on the seed alone
    prepared = preparation.prepare(
        method,
        context.task.network(context.backbone),
        probed_head=probed.state if probed else None,
        batches=progress.track(islice(train.epoch(), batches), "BN conversion", batches),
        parts=context.parts,
    )
    prepared.model.to(memory_format=torch.channels_last)
    for part in prepared.parts:
        part.start(prepared.model)
    if rows := prepared.stages:
        progress.show_table("Stages", rows)
    return prepared


def _fit(context: RunContext, prepared: Prepared, tracker: Tracker | None) -> TrainingState:
    """Train with two learning rates, or one, and keep the epoch with the best ID metric."""
    method, training, task = context.config.method, context.config.training, context.task
    folder = context.directory / records.CHECKPOINTS

    def report(row: dict[str, float]) -> None:
        if tracker:
            tracker.log_epoch(row)
        state = {"epoch": row["epoch"], "epochs": training.epochs, "seconds": row["seconds"]}
        write_atomically(folder / records.PROGRESS, json.dumps(state))

    def before_epoch(epoch: int, optimizer: Optimizer) -> None:
        for part in prepared.parts:
            part.before_epoch(epoch)

    if context.config.compute.compile:
        context.backbone.compile()
    loss = Loss(task.compute_loss, prepared.parts)
    hooks = loop.LoopHooks(
        set_train_mode=lambda _: preparation.set_train_mode(prepared.model, method),
        evaluate=lambda _: task.score(prepared.model, context.selection, context.autocast),
        metric=task.metric,
        metric_title=context.selection_title,
        compute_loss=loss,
        before_epoch=before_epoch,
        before_step=loss.before_step,
        modules=prepared.modules,
        autocast=context.autocast,
        report=report,
    )
    return loop.fit(
        prepared.model,
        context.images.train,
        prepared.groups,
        hooks,
        epochs=training.epochs,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        folder=folder,
        steps=training.steps,
        poly_power=training.poly_power,
        keep="last" if training.selection == "last" else "best",
        unlabelled=context.images.unlabelled,
        name=context.directory.name,
    )


def _images_seen(context: RunContext, fitted: TrainingState) -> dict[str, int]:
    """How many images training has taken in, labelled and unlabelled, with those that came again."""
    training, images = context.config.training, context.images
    steps = training.steps or training.epochs * images.train.num_batches
    done = range(steps * len(fitted.history) // max(training.epochs, 1))
    loaders = {"labelled": images.train, "unlabelled": images.unlabelled}
    return {name: loader.count(done) if loader else 0 for name, loader in loaders.items()}


def _above_zero_head(context: RunContext, fitted: TrainingState) -> list[float]:
    """The epochs whose loss was above that of a head of zeros."""
    losses = {row["epoch"]: row.get("train/task_loss", row["train/loss"]) for row in fitted.history}
    return [epoch for epoch, loss in losses.items() if context.task.is_above_zero_head(loss)]


def _after(context: RunContext, prepared: Prepared) -> dict[str, Any]:
    """What parts do with the trained network, and what the record says of it."""
    task, evaluated = context.task, context.images.evaluation
    dataset, selection = context.config.dataset, context.selection.name

    def measure() -> dict[str, float]:
        scores = {
            f"{name}/{task.metric}": task.score(prepared.model, loader, context.autocast)
            for name, loader in evaluated.items()
        }
        return scores | measured.ood_means(scores, dataset.ood_mean or list(dataset.ood))

    found: dict[str, Any] = {}
    for name, part in zip(context.config.method.part_names, prepared.parts, strict=True):
        if said := part.after(prepared.model, measure, f"{selection}/{task.metric}"):
            found[name] = said
    return {"parts": found} if found else {}


def _measure(context: RunContext, prepared: Prepared, before: dict[str, Tensor]) -> Measured:
    """Metrics on ID and every OOD set, and how far the features moved from those `before` (Figure 1)."""
    found = measured.measure(
        context.task,
        prepared.model,
        context.images.evaluation,
        lambda loader: before[loader.name],
        context.autocast,
        trains_backbone=prepared.trains_backbone,
    )
    dataset = context.config.dataset
    found.metrics |= measured.ood_means(found.metrics, dataset.ood_mean or list(dataset.ood))
    found.metrics |= _otherwise(context, prepared)
    return found


def _otherwise(context: RunContext, prepared: Prepared) -> dict[str, float]:
    """The metric on each split in the other ways that parts evaluate in, marked, and its mean over OOD sets.

    Images come in random order: statistics of a batch mean little where it has a single class.
    """
    metrics: dict[str, float] = {}
    task, dataset = context.task, context.config.dataset
    ways = {mark: way for part in prepared.parts for mark, way in part.evaluations().items()}
    for mark, way in ways.items():
        with way(prepared.model.backbone):
            scores = {
                f"{name}/{task.metric}": task.score(
                    prepared.model, replace(loader, shuffle=True), context.autocast
                )
                for name, loader in context.images.evaluation.items()
                if name != "holdout"
            }
        scores |= measured.ood_means(scores, dataset.ood_mean or list(dataset.ood))
        for key, value in scores.items():
            split, _, metric = key.partition("/")
            metrics[f"{split}{mark}/{metric}"] = value
    return metrics


@contextmanager
def _failure_noted(directory: Path) -> Iterator[None]:
    """Leave the traceback of what fails in the run's directory, for status.py."""
    with suppress(OSError):  # a folder in its place, say: the run does not need it
        (directory / records.ERROR).unlink(missing_ok=True)
    try:
        yield
    except Exception:
        with suppress(OSError):  # a full disk: what matters is the error itself
            write_atomically(directory / records.ERROR, traceback.format_exc())
        raise
