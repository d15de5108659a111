"""One run, from configuration to record; reads like the paper's method section."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from daft import backbones, data, distortion, evaluation, methods, probe, progress, records, training
from daft.config import Config, plain
from daft.data.loader import entropy
from daft.errors import UserError
from daft.evaluation import PretrainedFeatures
from daft.files import digest, write_atomically
from daft.tracking import Tracker

MODEL = "model.safetensors"
"""Weights of the selected epoch, beside the record."""

CHECKPOINTS = "checkpoints"
"""Folder of an unfinished run's state, removed once the record is written."""


class Run(NamedTuple):
    """A finished run."""

    directory: Path
    record: dict[str, Any]
    fresh: bool
    """False if the record was there already"""


def run(config: Config) -> Run:
    """Fine-tune, evaluate on ID and OOD, record; a run that has a record is not repeated."""
    device = _device(config.compute.device)
    precision = _precision(config.training.precision, device)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    torch.backends.cudnn.benchmark = True
    clock = _Clock()

    # Which run is this? Listing its inputs is enough to know.
    listing = data.listing(config)
    weights = backbones.fingerprint(config.backbone)
    identity = records.identity(config, precision, listing.fingerprints(), weights)
    run_id = digest(identity)
    directory = records.run_directory(config, run_id)
    if (record := records.read(directory)) is not None:
        return Run(directory, record, fresh=False)

    # Whatever is wrong with the inputs comes out here, before any work.
    backbone = backbones.load(config.backbone).to(device).to(memory_format=torch.channels_last)
    images = data.load(config, listing, device)
    directory.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(config, run_id, directory)

    # The pretrained features: what distortion is measured from, and what a probe is fitted on.
    cast = evaluation.autocast(device, precision)
    select = images.evaluation["holdout" if config.training.selection == "holdout" else "id"]
    network, cache = [identity["backbone"], precision], Path(config.paths.cache)
    pretrained = PretrainedFeatures(backbone, network, cast, cache / "features")
    before = {name: pretrained(loader)[0] for name, loader in images.evaluation.items()}
    probing = [network, images.train.identity, select.identity, images.classes]
    linear_probe = _Kept(
        cache / "probes" / f"{digest(probing)}.safetensors",
        lambda: probe.fit_probe(
            *pretrained(images.train), *pretrained(select), num_classes=len(images.classes)
        ),
    )

    # Table 1: head, BN conversion, learning rates.
    torch.manual_seed(entropy(config.seed, 0))  # a random head depends on the seed alone
    try:
        prepared = methods.prepare(
            config.method,
            backbone,
            len(images.classes),
            probe=lambda: (linear_probe().weight, linear_probe().bias),
            batches=progress.track(images.train.epoch(), "BN conversion", images.train.batches),
        )
    except ValueError as error:
        raise UserError(f"method={config.method.name}: {error}") from error
    model = prepared.model.to(memory_format=torch.channels_last)
    start = distortion.snapshot(model)  # Eq. 6 compares with the converted network
    clock.lap("prepare_s")

    if config.compute.compile:
        model.compile()
    fitted = training.fit(
        model,
        images.train,
        prepared.groups,
        epochs=config.training.epochs,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
        set_train_mode=lambda network: methods.set_train_mode(network, config.method),
        evaluate=lambda network: evaluation.accuracy(network, select, cast),
        folder=directory / CHECKPOINTS,
        autocast=cast,
        report=tracker.epoch,
    )
    clock.lap("train_s")

    metrics: dict[str, float] = {}
    distorted: dict[str, Any] = {}
    if not fitted.diverged:
        for name, loader in images.evaluation.items():
            after = (
                evaluation.features(backbone, loader, cast)[0] if prepared.trains_backbone else before[name]
            )
            metrics[f"{name}/accuracy"] = evaluation.head_accuracy(model.head, after, loader, cast)
            distorted[name] = distortion.feature_distortion(before[name], after)
            metrics |= {f"{name}/{measure}": found["mean"] for measure, found in distorted[name].items()}
        metrics |= _ood_means(metrics, config.dataset.ood_mean or list(config.dataset.ood))
    clock.lap("evaluate_s")

    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(directory / MODEL, lambda path: save_file(state, path))
    record = {
        "run": run_id,
        "status": "diverged" if fitted.diverged else "finished",
        "config": plain(config),
        "identity": identity,
        "environment": records.environment(device),
        "data": data.describe(images),
        "best_epoch": fitted.best_epoch,
        "metrics": metrics,
        "history": fitted.history,
        "distortion": distorted,
        "relative_change": distortion.relative_change(start, model),
        "bn_shift": distortion.shift_table(prepared.shift),
        "probe": _report(linear_probe()) if config.method.head_init == "probe" else None,
        "time": clock.laps,
    }
    records.write(directory, record)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    tracker.finish(record)
    return Run(directory, record, fresh=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"compute.device={name}: {found} CUDA device(s) found; use auto or cpu")
    return device


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return name


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
        if not self.file.exists():
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
