"""One run, from configuration to record."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from daft import backbones, data, distortion, methods, probe, progress, records, training
from daft.config import Config
from daft.data.loader import Loader, entropy
from daft.errors import UserError
from daft.evaluation import accuracy, autocast, cached_features, features, head_accuracy
from daft.files import write_atomically
from daft.tracking import Tracker

MODEL = "model.safetensors"
"""Weights of the selected epoch, beside the record."""

CHECKPOINTS = "checkpoints"
"""Folder of an unfinished run's state, removed when the record is written."""


class Run(NamedTuple):
    """A finished run."""

    directory: Path
    record: dict[str, Any]
    fresh: bool
    """False if the record was there already"""


def run(config: Config) -> Run:
    """Fine-tune, evaluate on ID and OOD, and record; a run that has a record is not repeated."""
    device = _device(config.compute.device)
    precision = _precision(config.training.precision, device)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    torch.backends.cudnn.benchmark = True

    # Which run is this? Listing the inputs is enough to know.
    listed = data.listing(config)
    weights = backbones.fingerprint(config.backbone)
    facts = records.identity(config, precision, listed.fingerprints(), weights)
    run_id = records.digest(facts)
    directory = records.run_directory(config, run_id)
    if (record := records.read(directory)) is not None:
        return Run(directory, record, fresh=False)

    # Everything that can be wrong with the inputs is wrong before any work starts.
    started = time.perf_counter()
    backbone = backbones.load(config.backbone).to(device, memory_format=torch.channels_last)
    images = data.load(config, listed, device)
    directory.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(config, run_id, directory)
    cast = autocast(device, precision)
    select_on = "holdout" if config.training.selection == "holdout" else "id"
    select = images.evaluation[select_on]

    # The pretrained features: what the probe is fitted on, and what distortion is measured from.
    cache = Path(config.paths.cache)
    network = [facts["backbone"], precision]

    def pretrained(name: str, loader: Loader, *more: object) -> tuple[Tensor, Tensor]:
        source = listed.fingerprints()[name]
        key = records.digest([network, source, loader.operations, images.unreadable.get(name), *more])
        file = cache / "features" / f"{config.backbone.name}-{name}-{key}.safetensors"
        return cached_features(file.resolve(), backbone, loader, cast, name=name)

    before = {name: pretrained(name, loader)[0] for name, loader in images.evaluation.items()}

    def solve_probe() -> tuple[Tensor, Tensor]:
        nonlocal probed
        train_features, train_labels = pretrained(
            "train", images.train, config.seed, config.training.batch_size
        )
        key = records.digest([network, facts["dataset"], select_on, config.seed])
        probed = _cached_probe(
            cache / "probes" / f"{config.backbone.name}-{key}.safetensors",
            lambda: probe.fit_probe(
                train_features,
                train_labels,
                before[select_on],
                pretrained(select_on, select)[1],
                num_classes=len(images.classes),
            ),
        )
        return probed.weight, probed.bias

    probed: probe.Probe | None = None
    torch.manual_seed(entropy(config.seed, 0))  # a random head depends on the seed alone
    try:
        prepared = methods.prepare(
            config.method,
            backbone,
            len(images.classes),
            probe=solve_probe,
            batches=progress.track(images.train.epoch(), "BN conversion", images.train.batches),
        )
    except ValueError as error:
        raise UserError(f"method={config.method.name}: {error}") from error
    model = prepared.model.to(memory_format=torch.channels_last)
    reference = distortion.snapshot(backbone)  # after conversion: it is where training starts
    if config.compute.compile:
        model.compile()

    prepared_after = time.perf_counter() - started
    fitted = training.fit(
        model,
        images.train,
        prepared.groups,
        epochs=config.training.epochs if prepared.groups else 0,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
        set_train_mode=lambda network: methods.set_train_mode(network, config.method),
        evaluate=lambda network: accuracy(network, select, cast),
        folder=directory / CHECKPOINTS,
        autocast=cast,
        report=tracker.epoch,
    )

    trained_after = time.perf_counter() - started
    metrics: dict[str, float] = {}
    distorted: dict[str, Any] = {}
    trained = any(group["name"] == "backbone" for group in prepared.groups)
    for name, loader in images.evaluation.items() if not fitted.diverged else ():
        after, labels = features(backbone, loader, cast, name=name) if trained else pretrained(name, loader)
        metrics[f"{name}/accuracy"] = head_accuracy(model.head, after, labels)
        distorted[name] = distortion.feature_distortion(before[name], after)
        for measure, summary in distorted[name].items():
            metrics[f"{name}/{measure}"] = summary["mean"]
    ood = config.dataset.ood_mean or list(config.dataset.ood)
    for measure in ("accuracy", "cosine", "l2") if ood and metrics else ():
        metrics[f"ood/{measure}"] = sum(metrics[f"{name}/{measure}"] for name in ood) / len(ood)

    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(directory / MODEL, lambda path: save_file(state, path))
    record = {
        "run": run_id,
        "status": "diverged" if fitted.diverged else "finished",
        "config": _settings(config),
        "identity": facts,
        "environment": records.environment(device),
        "data": data.describe(images) | {"classes": images.classes},
        "best_epoch": fitted.best_epoch,
        "metrics": metrics,
        "history": fitted.history,
        "distortion": distorted,
        "relative_change": distortion.relative_change(reference, backbone),
        "bn_shift": distortion.shift_table(prepared.shift),
        "probe": _probe_report(probed) if probed else None,
        "time": {
            "prepare_s": prepared_after,
            "train_s": trained_after - prepared_after,
            "evaluate_s": time.perf_counter() - started - trained_after,
        },
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
        raise UserError(
            f"compute.device={name}: {torch.cuda.device_count()} CUDA device(s) here; use auto or cpu"
        )
    return device


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return name


def _settings(config: Config) -> dict[str, Any]:
    """The resolved configuration, operations by name."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def _cached_probe(file: Path, solve: Callable[[], probe.Probe]) -> probe.Probe:
    """The probe in the file, or a new one that is then in it: LP and every LP-FT share it."""
    if file.exists():
        with safe_open(file, "pt") as opened:
            report = json.loads(opened.metadata()["probe"])
            path = tuple(probe.PathPoint(**point) for point in report.pop("path"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return probe.Probe(**tensors, **report, path=path)
    solved = solve()
    tensors = {"weight": solved.weight.cpu(), "bias": solved.bias.cpu()}
    metadata = {"probe": json.dumps(_probe_report(solved))}
    write_atomically(file, lambda path: save_file(tensors, path, metadata))
    return solved


def _probe_report(solved: probe.Probe) -> dict[str, Any]:
    """The chosen C, its accuracy, and every point of the path with whether it converged."""
    return {key: value for key, value in asdict(solved).items() if key not in ("weight", "bias")}
