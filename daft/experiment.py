"""One run, from configuration to record; reads like the paper's method section."""

import json
import math
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from daft.common import progress
from daft.common.errors import BusyError, UserError
from daft.common.files import digest, made_once, write_atomically
from daft.config.check import plain
from daft.config.schema import Config
from daft.data import datasets
from daft.data.loader import Loader, derive_seed
from daft.methods import preparation, probe
from daft.networks import backbones, checkpoints
from daft.runs import machine, records
from daft.runs.identity import pretrained_network, run_identity
from daft.runs.machine import device_and_precision
from daft.runs.reopened import Finished
from daft.tracking.mirror import Tracker
from daft.training import distortion, evaluation, loop, tasks
from daft.training.evaluation import PretrainedFeatures

BUSY_SECONDS = 5.0
"""Between looks at a run that another process computes."""


class Run(NamedTuple):
    """A finished run."""

    directory: Path
    record: dict[str, Any]
    fresh: bool
    """False if the record was there already"""


def run(config: Config) -> Run:
    """Fine-tune, evaluate on ID and OOD, record; a run that has a record is not repeated."""
    device, precision = device_and_precision(config)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    torch.backends.cudnn.benchmark = True

    # Which run is this? Listing its inputs is enough to know.
    listing = datasets.listing(config)
    weights = checkpoints.fingerprint(config.backbone)
    identity = run_identity(config, precision, listing.fingerprints(), weights)
    run_id = digest(identity)
    directory = records.run_directory(config, run_id)
    if (record := records.read(directory)) is not None:
        return Run(directory, record, fresh=False)
    with records.claimed(directory) as directory:
        if (record := records.read(directory)) is not None:  # another process has just finished it
            return Run(directory, record, fresh=False)
        (directory / records.ERROR).unlink(missing_ok=True)
        try:
            with Tracker(config, run_id, directory) as tracker:
                record = _compute(config, device, precision, listing, identity, directory, tracker)
        except Exception:
            with suppress(OSError):  # a full disk: what matters is the error itself
                write_atomically(directory / records.ERROR, traceback.format_exc())
            raise
        return Run(directory, record, fresh=True)


def identify(config: Config) -> Path:
    """The directory of a configuration's run, whether there is one yet or not; computes nothing.

    Raises UserError as `run` does for inputs that are not there. They are listed once a process: what
    changes meanwhile is noticed by the run itself.
    """
    _, precision = device_and_precision(config)
    settings = plain(config)
    inputs = json.dumps([settings["dataset"], settings["backbone"], config.training.selection])
    if inputs not in _fingerprints:
        images = datasets.listing(config).fingerprints()
        _fingerprints[inputs] = images, checkpoints.fingerprint(config.backbone)
    identity = run_identity(config, precision, *_fingerprints[inputs])
    return records.run_directory(config, digest(identity))


_fingerprints: dict[str, tuple[dict[str, str], str]] = {}


def _compute(
    config: Config,
    device: torch.device,
    precision: str,
    listing: datasets.Listing,
    identity: dict[str, Any],
    directory: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """The run itself, in its claimed directory; returns the record that it has written there."""
    clock, run_id = _Clock(), digest(identity)
    environment = machine.environment(device)  # of the code as it runs now, not as it is hours later

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    # Whatever is wrong with the inputs comes out here, before any work.
    task = tasks.of(config, listing.classes)
    backbone = task.backbone().to(device).to(memory_format=torch.channels_last)
    images = datasets.load(config, listing, device)
    _require_fit(backbone, images, config)
    tracker.start()

    # The pretrained features: what distortion is measured from, and what a probe is fitted on.
    cast = evaluation.autocast(device, precision)
    select = images.evaluation["holdout" if config.training.selection == "holdout" else "id"]
    network, cache = pretrained_network(identity, device), Path(config.paths.cache)
    pretrained = PretrainedFeatures(task.features(backbone), network, cast, cache / "features")
    before = {name: pretrained(loader) for name, loader in images.evaluation.items()}
    probing = [network, images.train.identity, select.identity, images.classes]

    def labelled(loader: Loader) -> tuple[Tensor, Tensor]:
        return pretrained(loader), loader.labels[loader.order()].to(device)

    linear_probe = _Kept(
        cache / "probes" / f"{digest(probing)}.safetensors",
        lambda: probe.fit_probe(*labelled(images.train), *labelled(select), num_classes=len(images.classes)),
    )

    def probed() -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The head's state after LP, and what the record says of it."""
        if config.method.lr_probe is not None:
            return _trained_head(config)
        solved = linear_probe()
        return {"linear1.weight": solved.weight, "linear1.bias": solved.bias}, _report(solved)

    # Table 1: head, BN conversion, learning rates.
    converting = config.method.conversion_batches or images.train.batches
    torch.manual_seed(derive_seed(config.seed, 0))  # a random head depends on the seed alone
    try:
        prepared = preparation.prepare(
            config.method,
            task.network(backbone),
            probe=lambda: probed()[0],
            batches=progress.track(islice(images.train.epoch(), converting), "BN conversion", converting),
        )
    except ValueError as error:
        raise UserError(f"method={config.method.name}: {error}") from error
    model = prepared.model.to(memory_format=torch.channels_last)
    start = distortion.snapshot(model)  # Eq. 6 compares with the converted network
    clock.lap("prepare_s")

    def report(row: dict[str, float]) -> None:
        tracker.epoch(row)
        state = {"epoch": row["epoch"], "epochs": config.training.epochs, "seconds": row["seconds"]}
        write_atomically(directory / records.CHECKPOINTS / records.PROGRESS, json.dumps(state))

    if config.compute.compile:
        backbone.compile()
    fitted = loop.fit(
        model,
        images.train,
        prepared.groups,
        epochs=config.training.epochs,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
        steps=config.training.steps,
        poly_power=config.training.poly_power,
        keep="last" if config.training.selection == "last" else "best",
        metric=task.metric,
        step=task.step,
        set_train_mode=lambda network: preparation.set_train_mode(model, config.method),
        evaluate=lambda network: task.score(model, select, cast),
        folder=directory / records.CHECKPOINTS,
        autocast=cast,
        report=report,
    )
    clock.lap("train_s")

    metrics: dict[str, float] = {}
    distorted: dict[str, Any] = {}
    if not fitted.diverged:
        for name, loader in images.evaluation.items():
            after = (
                evaluation.features(task.features(backbone), loader, cast)
                if prepared.trains_backbone
                else before[name]
            )
            found = task.measures(model, after, loader, cast)
            metrics |= {f"{name}/{measure}": value for measure, value in found.items()}
            distorted[name] = distortion.feature_distortion(before[name], after)
            metrics |= {f"{name}/{measure}": found["mean"] for measure, found in distorted[name].items()}
        metrics |= _ood_means(metrics, config.dataset.ood_mean or list(config.dataset.ood))
    clock.lap("evaluate_s")

    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(directory / records.MODEL, lambda path: save_file(state, path))
    record = {
        "run": run_id,
        "status": "diverged" if fitted.diverged else "finished",
        "config": plain(config),
        "identity": identity,
        "environment": environment,
        "data": datasets.describe(images),
        "best_epoch": fitted.best_epoch,
        "metrics": metrics,
        "history": fitted.history,
        "distortion": distorted,
        "relative_change": distortion.relative_change(start, model),
        "bn_shift": distortion.shift_table(prepared.shift),
        "probe": probed()[1] if config.method.head_init == "probe" else None,
        "time": clock.laps,
        "memory": machine.memory(device),
    }
    records.write(directory, record)
    shutil.rmtree(directory / records.CHECKPOINTS, ignore_errors=True)
    tracker.finish(record)
    return record


def _trained_head(config: Config) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The head that LP trains on the frozen backbone, in a run of its own, and that run's metrics."""
    probing, done = replace(config, method=config.method.probe()), None
    while done is None:
        try:
            done = run(probing)
        except BusyError:  # runs that differ in η_θ alone start from the same one
            time.sleep(BUSY_SECONDS)
    head = Finished(done.directory, done.record, probing).network(torch.device("cpu")).head
    if done.record["status"] == "diverged":  # so does what starts from it
        for parameter in head.parameters():
            parameter.data.fill_(math.nan)
    return head.state_dict(), {"run": done.record["run"], "metrics": done.record["metrics"]}


def _require_fit(backbone: backbones.FeatureExtractor, images: datasets.Data, config: Config) -> None:
    """Raise UserError unless there are batches to convert with and the network takes every split's images."""
    if (config.method.conversion_batches or 0) > images.train.batches:
        raise UserError(
            f"method.conversion_batches={config.method.conversion_batches}: the training set has "
            f"{images.train.batches}; null takes all of them"
        )
    for loader in (images.train, *images.evaluation.values()):
        shape = loader.shape()
        side = backbone.input_size
        if side is not None and shape[1:] != (side, side):
            raise UserError(
                f"backbone={config.backbone.name} takes images of {side} x {side} pixels only, not of "
                f"{shape[1]} x {shape[2]}, as dataset.{loader.name} has after its transform; resize or crop "
                f"them to {side} there"
            )
        try:
            with torch.no_grad():
                backbone(torch.zeros(1, *shape, dtype=torch.uint8, device=loader.device))
        except RuntimeError as error:
            raise UserError(
                f"backbone={config.backbone.name} does not take images of {shape[1]} x {shape[2]} pixels, as "
                f"dataset.{loader.name} has after its transform ({str(error).splitlines()[0]})"
            ) from error


def _ood_means(metrics: dict[str, float], splits: list[str]) -> dict[str, float]:
    """Plain means of every measure over the OOD sets that count."""
    if not splits:
        return {}
    measures = [key.removeprefix("id/") for key in metrics if key.startswith("id/")]
    return {
        f"ood/{measure}": sum(metrics[f"{split}/{measure}"] for split in splits) / len(splits)
        for measure in measures
    }


class _Clock:
    """Seconds per phase; a resumed run counts from its last start."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


class _Kept:
    """A probe that is solved when first asked for and then kept in a file: LP and LP-FT share it."""

    def __init__(self, file: Path, solve: Callable[[], probe.Probe]) -> None:
        self.file, self.solve = file, solve

    def __call__(self) -> probe.Probe:
        with made_once(self.file) as missing:
            if missing:
                solved = self.solve()
                tensors = {"weight": solved.weight.cpu(), "bias": solved.bias.cpu()}
                metadata = {"report": json.dumps(_report(solved))}
                write_atomically(self.file, lambda path: save_file(tensors, path, metadata))
        with safe_open(self.file, "pt") as opened:
            report = json.loads(opened.metadata()["report"])
            points = tuple(probe.PathPoint(**point) for point in report.pop("path"))
            weight, bias = opened.get_tensor("weight"), opened.get_tensor("bias")
        return probe.Probe(weight, bias, **report, path=points)


def _report(solved: probe.Probe) -> dict[str, Any]:
    """The chosen C, its accuracy, and every point of the path with whether it converged."""
    return {key: value for key, value in asdict(solved).items() if key not in ("weight", "bias")}
