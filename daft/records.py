"""One run, one directory, one record: identity, atomic write, all records as one DataFrame."""

import fcntl
import functools
import json
import math
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from daft.config import Config, measure, plain, selected_on
from daft.errors import BusyError, UserError
from daft.files import PARTIAL, digest, write_atomically
from daft.progress import console

FORMAT = 1
"""Raised when the layout of a record changes."""

PROTOCOL = 1
"""Raised when the same configuration would give other numbers."""

SEGMENTATION_PROTOCOL = 2
"""Raised when the same segmentation would, but no other run."""

RECORD = "record.json"
MODEL = "model.safetensors"
"""Weights of the selected epoch, beside the record."""

LOCK = ".lock"
"""Held by the process that is at the run; in the folder of runs, by the one that makes a directory."""

CHECKPOINTS = "checkpoints"
"""Folder of an unfinished run's state, removed once the record is written."""

PROGRESS = "progress.json"
"""In it, for status.py: the last whole epoch, of how many, and its seconds."""

ERROR = "error.txt"
"""In the directory of a run that failed: why; gone when it is tried again."""

SHOWN = {"run": str, "status": str, "best_epoch": int | None, "history": list}
SHOWN |= dict.fromkeys(("config", "metrics", "distortion", "environment", "time"), dict)
"""What tables, figures and reports read of a record."""

PLACES = ("dataset.root", "dataset.annotations", "dataset.files", "dataset.manual", "backbone.checkpoint")
"""Settings that say where inputs are; what these are is in a run's identity."""

LIBRARIES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")


def identity(config: Config, precision: str, images: dict[str, str], weights: str) -> dict[str, Any]:
    """The facts that make a run: settings that move its numbers, and what identifies its inputs.

    precision: as resolved. images: fingerprint per split. weights: fingerprint of the checkpoint. Names,
    paths, device, workers and logging are left out, so two names for the same run are one run.
    """
    settings = plain(config)
    dataset, backbone, method = (settings[key] for key in ("dataset", "backbone", "method"))
    for key in dataset.keys() - {"ood", "train_transform", "eval_transform", "ood_mean", "cache_side"}:
        del dataset[key]  # the fingerprints hold what these lead to
    if not dataset["cache_side"]:
        del dataset["cache_side"]
    dataset["ood"] = {name: split["shift"] for name, split in dataset["ood"].items()}
    for key in backbone.keys() - {"model", "model_args", "mean", "std"}:
        del backbone[key]
    del method["name"]
    training = settings["training"] | {"precision": precision}
    for section, keys in ((method, ("conversion_batches", "lr_probe")), (training, ("steps", "poly_power"))):
        for key in keys:
            if section[key] is None:  # as if it had never been thought of
                del section[key]
    if config.method.rates == "frozen" and config.method.lr_head is None:
        for key in ("epochs", "momentum", "weight_decay"):
            del training[key]  # nothing is trained
    facts = {
        "protocol": PROTOCOL,
        "seed": config.seed,
        "method": method,
        "training": training,
        "dataset": dataset | {"images": images},
        "backbone": backbone | {"weights": weights},
    }
    if task := settings["segmentation"]:
        for key in ("eval_batch_size", "head_init", "lr_head"):  # the method holds what the last two lead to
            del task[key]
        facts["segmentation"] = task | {"protocol": SEGMENTATION_PROTOCOL}
    return facts


def pretrained_network(identity: dict[str, Any], device: torch.device) -> list[Any]:
    """What tells apart features before training: the network, and the arithmetic they were computed in.

    They are the same to the last bit only with the same code on the same kind of device.
    """
    threads = device.type == "cpu" and torch.get_num_threads()
    around = [identity["segmentation"]] if "segmentation" in identity else []
    return [identity["backbone"], PROTOCOL, identity["training"]["precision"], device.type, threads, *around]


def run_directory(config: Config, run_id: str) -> Path:
    """The run's directory: the one that ends in its id, or a new one that says what it is."""
    runs = Path(config.paths.runs)
    if existing := _called(runs, run_id):
        return existing
    parts = [
        config.dataset.name,
        config.backbone.name,
        config.method.name,
        f"s{config.seed}",
        run_id,
    ]
    return runs / "-".join(parts).replace("/", "_")


def run_id(directory: Path) -> str | None:
    """The id that a run's directory ends in; None if it is none."""
    found = re.search(r"-([0-9a-f]{12})$", directory.name)
    return found and found[1]


def _called(runs: Path, run_id: str | None) -> Path | None:
    return next(runs.glob(f"*-{run_id}"), None)


@contextmanager
def claimed(directory: Path) -> Iterator[Path]:
    """The run's directory for this process alone, tidied of what a kill may have left in it.

    It is another one if a process has just made that for the same run by another name. Raises BusyError if
    another process is at it; the claim of a process that dies is gone with it.
    """
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.parent / LOCK):
            directory = _called(directory.parent, run_id(directory)) or directory
            directory.mkdir(exist_ok=True)
    try:
        with FileLock(directory / LOCK, timeout=0.5):  # `is_claimed` holds it for an instant
            for leftover in directory.rglob(f".*{PARTIAL}"):
                leftover.unlink(missing_ok=True)
            yield directory
    except Timeout:
        raise BusyError(
            f"another process is computing {directory}; wait for it or stop it", directory
        ) from None


def is_claimed(directory: Path) -> bool:
    """Whether a process is at this run; also of a folder that cannot be written."""
    try:
        with open(directory / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read(directory: Path) -> dict[str, Any] | None:
    """The record in a run's directory, None if there is none; raises UserError if it is not one."""
    file = directory / RECORD
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        for key, known in (("format", FORMAT), ("protocol", PROTOCOL)):
            if record[key] != known:
                raise UserError(f"{file}: record of {key} {record[key]}; this version reads {known}")
        for key, kind in SHOWN.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is {type(record[key]).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a record ({error!r}); move it away to run again") from error
    return record


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write a record so that a kill leaves none or a whole one; NaN becomes null."""
    content = _without_nan({"format": FORMAT, "protocol": PROTOCOL, **record})
    write_atomically(directory / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in run directories, in the order given; one that cannot be used is named on stderr."""
    records = []
    for directory in directories:
        try:
            record = read(directory)
        except (UserError, OSError) as error:
            console.print(f"left out: {error}", style="yellow", soft_wrap=True, markup=False, highlight=False)
            continue
        if record is not None:
            records.append(record)
    return records


def below(folder: Path) -> list[Path]:
    """The directories in a folder of runs that have a record."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}"))


def frame(directories: Iterable[Path]) -> pd.DataFrame:
    """A row per record that can be used, in the order given; columns as in `rows`."""
    return rows(load(directories))


def rows(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per record: run, status, best_epoch, measure, inputs (what identifies images and weights), probe
    (what the LP run that it starts from was selected by), and config.*, split/metric and time.* columns.
    """
    rows = []
    for record in records:
        rows.append(
            {
                "run": record["run"],
                "status": record["status"],
                "best_epoch": record["best_epoch"],
                "measure": measure(record["config"].get("segmentation")),
                "inputs": _inputs(record),
                "probe": _probe(record),
                **settings(record["config"]),
                **record["metrics"],
                **{f"time.{key}": value for key, value in record["time"].items()},
            }
        )
    return pd.DataFrame(rows)


def _inputs(record: dict[str, Any]) -> str:
    identity = record.get("identity")
    return digest([identity["dataset"]["images"], identity["backbone"]["weights"]]) if identity else ""


def _probe(record: dict[str, Any]) -> float | None:
    found, config = record.get("probe") or {}, record["config"]
    if "metrics" not in found:  # a linear probe is no run
        return None
    return found["metrics"].get(selected_on(config["training"]["selection"], config["segmentation"]))


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The config.* columns of a configuration that is plain data."""
    flat = {str(key): value for key, value in pd.json_normalize({"config": config}).iloc[0].items()}
    if side := config.get("dataset", {}).get("cache_side"):  # crops see other pixels: it is another dataset
        flat["config.dataset.name"] += f" (cached at {side} px)"
    return flat


def environment(device: torch.device) -> dict[str, Any]:
    """Code version, library versions, device and threads."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "code": _code_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "device": gpu or f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def memory(device: torch.device) -> dict[str, float]:
    """Peaks so far, in GiB: resident, of this process and all its runs; on the GPU, of this run."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss: bytes there, KiB elsewhere
    peaks = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        peaks["gpu_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks


@functools.cache  # what was imported stays as it is
def _code_version() -> str:
    """The commit this code stands at, marked if it was changed since; else the package's version."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return _version("daft")
        changed = git("status", "--porcelain", "--", "daft", "conf", "scripts")
        return git("rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return _version("daft")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
