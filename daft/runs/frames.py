"""Records as rows of a DataFrame, and what the columns are called."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from daft.common.files import digest
from daft.config.parts import TARGET_BN, short_name
from daft.config.schema import metric_name, selected_on
from daft.data.balance import is_unequal
from daft.runs.layout import MEASURES
from daft.runs.records import load


def from_directories(directories: Iterable[Path]) -> pd.DataFrame:
    """A row per record that can be used, in the order given; columns as of `from_records`."""
    return from_records(load(directories))


def from_records(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per record: run, status, best_epoch, measure, inputs (what identifies images and weights), probe
    (what the LP run that it starts from was selected by), device, and config.*, split/metric, time.*
    (epoch_s: of the fastest epoch) and seen.* (images that training took in) columns.
    """
    rows = []
    for record in records:
        rows.append(
            {
                "run": record["run"],
                "status": record["status"],
                "best_epoch": record["best_epoch"],
                "measure": metric_name(record["config"].get("segmentation")),
                "inputs": _inputs(record),
                "probe": _probe(record),
                "device": record.get("environment", {}).get("device", ""),
                **settings(record["config"]),
                **_metrics(record),
                **{f"time.{key}": value for key, value in record["time"].items()},
                "time.epoch_s": _fastest_epoch(record["history"]),
                **{f"seen.{kind}": images for kind, images in record.get("images_seen", {}).items()},
            }
        )
    return pd.DataFrame(rows)


def _fastest_epoch(history: Iterable[dict[str, float]]) -> float | None:
    return min((row["seconds"] for row in history if "seconds" in row), default=None)


BALANCED = "balanced_accuracy"


def _metrics(record: dict[str, Any]) -> dict[str, float | None]:
    """The metrics; the balanced accuracy, and that of each class, where those of a split are unequal.

    Of equal classes the balanced accuracy is the accuracy.
    """
    found = {key: value for key, value in record["metrics"].items() if not key.endswith(f"/{BALANCED}")}
    names = record.get("data", {}).get("classes") or []
    for split, of in unequal_splits(record).items():
        found[f"{split}/{BALANCED}"] = record["metrics"].get(f"{split}/{BALANCED}")
        if split == "id":
            each = zip(names, of["accuracy"], strict=False)
            found |= {f"id/{CLASS_ACCURACY}{name}": accuracy for name, accuracy in each}
    return found


CLASS_ACCURACY = "accuracy of "
"""And the name of the class: a metric of the ID set, where its classes are unequal."""

CLASS_IOU = "iou_"
"""And the name of the class: a metric of every split of a segmentation."""


def unequal_splits(record: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by class on the splits whose classes are unequal; older records have none."""
    return {split: of for split, of in (record.get("per_class") or {}).items() if is_unequal(of["images"])}


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
    if config.get("method", {}).get("parts"):  # with them it is another method
        flat["config.method.name"] = method_of(config)
    if side := config.get("dataset", {}).get("cache_side"):  # crops see other pixels: it is another dataset
        flat["config.dataset.name"] += f" (cached at {side} px)"
    if scaled := config.get("dataset", {}).get("scaled_decoding"):
        flat["config.dataset.name"] += f" (decoded at {scaled:g} times the size)"
    if few := config.get("fewshot"):  # episodes are another task on it
        kind = "MAML" if few["maml"] else "prototypes"
        flat["config.dataset.name"] += f" ({few['ways']}-way {few['shots']}-shot, {kind})"
    return flat


def method_of(config: dict[str, Any]) -> str:
    """The method of a configuration that is plain data, with the names of its parts."""
    return short_name(config["method"]["name"], config["method"].get("parts"))  # older records have none


DATASET, BACKBONE, METHOD = CELL = [f"config.{group}.name" for group in ("dataset", "backbone", "method")]
RATES = ["config.method.lr_backbone", "config.method.lr_head"]
LR_HEAD_UNIT = "config.method.lr_head_unit"
LR_PROBE = "config.method.lr_probe"
SEED = "config.seed"


def cell_metric(runs: pd.DataFrame) -> str:
    """What the runs of one cell are judged by."""
    return runs["measure"].iloc[0] if "measure" in runs else "accuracy"


def score(runs: pd.DataFrame, split: str) -> "pd.Series[float]":
    """What each run is judged by, on a split; NaN where it has none."""
    columns = [split + kind for kind in MEASURES]
    return runs.reindex(columns=columns).astype(float).bfill(axis=1)[columns[0]]


def with_balanced(columns: Iterable[str], known: Iterable[str]) -> list[str]:
    """Columns of accuracies, each with that of the balanced accuracy behind it where there is one."""
    known, found = set(known), []
    for column in columns:
        balanced = f"{column.rpartition('/')[0]}/{BALANCED}"
        found += [column, balanced] if balanced in known else [column]
    return found


def accuracy_columns(runs: pd.DataFrame) -> list[str]:
    """The accuracy columns (mIoU of segmentations) in the order of evaluation, the OOD mean last."""
    columns = [c for c in runs.columns if c.endswith(MEASURES) and not c.startswith("holdout/")]
    columns = [c for c in columns if runs[c].notna().any()]
    return sorted(columns, key=is_ood_mean)


def is_ood_mean(column: str) -> bool:
    """Whether a metric is a mean over OOD sets."""
    return column.partition("/")[0].removesuffix(TARGET_BN) == "ood"


def is_target_bn(column: str) -> bool:
    """Whether a metric is of images that were evaluated with the BN statistics of their batches."""
    return column.partition("/")[0].endswith(TARGET_BN)
