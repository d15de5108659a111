"""Which pictures there are of some runs: for files, for the report, for W&B."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from daft.common import progress
from daft.common.errors import UserError
from daft.report import tables
from daft.report.figures import (
    accuracy,
    change,
    conversion,
    errors,
    extremes,
    features,
    mistaken,
    sensitivity,
    style,
)
from daft.report.methods import in_order, shown_in
from daft.runs import frames, mistakes, similarity
from daft.sweep import selection
from daft.training.predictions import Predictions

Measure = Callable[[Path], similarity.Similarities]
"""Of a run's directory: `daft.runs.similarity.similarities`, which takes the run's network and images."""


class Picture(NamedTuple):
    """One picture, not drawn yet."""

    name: str
    """of a file, without suffix"""
    caption: str
    draw: Callable[[], Figure]


SENSITIVITY = {
    "training_size": ("Accuracy over the size of the training set", sensitivity.training_size),
    "conversion_batches": (
        "Estimate and accuracy over the batches of BN conversion",
        sensitivity.conversion_batches,
    ),
    "head_rate": ("Accuracy over the head's rate in multiples of the one that fits", sensitivity.head_rate),
    "shift_family": ("What BN conversion gains over the strength of the shift", sensitivity.shift_family),
}
"""Of one dataset and backbone, from `sensitivity.frame`; and `rate_grid`, per method."""

KINDS = (
    "overview",
    "id_ood",
    "conversion",
    "features",
    "cosine",
    "l2",
    "change",
    "rates",
    "extremes",
    "errors",
    "samples",
    *SENSITIVITY,
    "rate_grid",
)
"""What pictures are called, or begin with: errors_daft, rates_ft, extremes_id."""


def of_runs(loaded: Sequence[dict[str, Any]], methods: Sequence[str] = ()) -> list[Picture]:
    """The pictures of one dataset and backbone, at the selected rates, as far as its records have them.

    methods: of Figures 1 and 2, instead of the paper's. Raises UserError if one is not there, or if runs of a
    method are no sample.
    """
    runs = frames.from_records(loaded)
    chosen = selection.select(runs)
    if chosen.empty:
        return []
    kept = [record for record in loaded if record["run"] in set(chosen["run"])]
    found = [Picture("overview", "Accuracy and feature distortion", partial(accuracy.overview, chosen, kept))]
    if frames.score(chosen, "ood").notna().any():
        found.append(Picture("id_ood", "OOD over ID accuracy", partial(accuracy.id_against_ood, chosen)))
    if any("+" in name for name in conversion.pairs([*chosen[frames.METHOD].unique()])):
        draw = partial(conversion.arrows, chosen)
        found.append(Picture("conversion", "What BN conversion does to each strategy", draw))
    found += _distortion(kept, methods)
    for method in in_order(chosen[frames.METHOD]):
        best = chosen[chosen[frames.METHOD] == method]
        cell = selection.candidates(best, runs[runs[frames.METHOD] == method])
        if cell[frames.RATES[0]].nunique() > 1:
            rate = best[frames.RATES[0]].iloc[0]
            draw = partial(accuracy.learning_rates, cell, rate)
            found.append(Picture(f"rates_{method}", f"Learning rates, {style.label(method)}", draw))
    return found


def of_extremes(
    loaded: Sequence[dict[str, Any]],
    folder: Path,
    methods: Sequence[str] = (),
    measure: Measure | None = None,
) -> list[Picture]:
    """Figures 6 to 9, a picture per evaluation split, of the lowest seed that all methods have.

    loaded: records of one dataset and backbone at the selected rates, of runs in this folder; images with
    masks have no one class, and no such picture. methods: instead of the paper's. measure: for what is not
    kept beside the runs; None: that is left out. Raises UserError if one of `methods` is not there, or if
    they have no seed in common.
    """
    there: dict[str, dict[int, dict[str, Any]]] = {}
    for record in loaded:
        config = record["config"]
        if not config.get("segmentation"):
            there.setdefault(frames.method_of(config), {})[config["seed"]] = record
    compared = _compared(methods, shown_in(*extremes.FIGURES), list(there)) if there else []
    if not compared:
        return []
    seeds = set.intersection(*(set(there[method]) for method in compared))
    if methods and not seeds:
        raise UserError(f"{', '.join(compared)}: the runs of these methods have no seed in common")
    found: dict[str, similarity.Similarities] = {}
    for method in compared if seeds else ():
        name = there[method][min(seeds)]["run"]
        directory = next(folder.glob(f"*{name}"), folder / name)
        try:
            kept = similarity.read(directory)
        except UserError as error:
            kept = {}
            if not measure:
                progress.warn_left_out(error)
        if kept := kept or (measure(directory) if measure else {}):
            found[method] = kept
    if not found:
        return []
    known = there[compared[0]][min(seeds)]
    config, classes = known["config"], known.get("data", {}).get("classes", [])
    if any(len(split.ranked) != len(classes) for kept in found.values() for split in kept.values()):
        raise UserError(f"{known['run']}: what is kept of similarities is of other classes than the record's")
    title = f"{config['dataset']['name']}, {config['backbone']['name']}, seed {config['seed']}"
    return [
        Picture(
            f"extremes_{split}",
            f"Least and most moved features, {tables.split_name(split)} (Figures 6 to 9)",
            partial(extremes.picture, split, {m: of[split] for m, of in found.items()}, classes, title),
        )
        for split in known["distortion"]  # in the order of evaluation
        if split != "holdout"
    ]


Predict = Callable[[Path], dict[str, Predictions]]
"""Of a run's directory what it says of each image, for runs that have not kept it."""


def of_errors(
    loaded: Sequence[dict[str, Any]],
    folder: Path,
    methods: Sequence[str] = (),
    predict: Predict | None = None,
) -> list[Picture]:
    """What is wrong, two pictures per method, of its lowest seed: in numbers, and images if they are here.

    loaded: records of one dataset and backbone at the selected rates, of runs in this folder; of masks there
    is one picture, of IoU by class, for records keep no more of pixels. predict: for runs that have kept no
    predictions; None: they are left out. Raises UserError if one of `methods` is not there.
    """
    of_method: dict[str, dict[str, Any]] = {}
    for record in sorted(loaded, key=lambda record: -record["config"]["seed"]):
        if record["status"] == "finished":
            of_method[record["config"]["method"]["name"]] = record
    found = []
    listed: dict[str, Any] = {}
    for method in _compared(methods, in_order(of_method), list(of_method)) if of_method else ():
        record = of_method[method]
        config = record["config"]
        of = f"{style.label(method)}, {config['dataset']['name']}, {config['backbone']['name']}"
        title = f"{of}, seed {config['seed']}"
        if config.get("segmentation"):
            if by_class := _ious(record):
                draw = partial(errors.ious, by_class, title)
                found.append(Picture(f"errors_{method}", f"IoU by class, {style.label(method)}", draw))
            continue
        directory = next(folder.glob(f"*{record['run']}"), folder / record["run"])
        try:
            kept = mistakes.read(directory) or (predict(directory) if predict else {})
        except UserError as error:
            progress.warn_left_out(error)
            continue
        names = record.get("data", {}).get("classes", [])
        kept = {split: kept[split] for split in _splits(record, kept)}
        if not kept or any(of.largest >= len(names) for of in kept.values()):
            continue
        draw = partial(errors.matrices, kept, names, title)
        found.append(Picture(f"errors_{method}", f"What {style.label(method)} gets wrong", draw))
        if shown := mistaken.pictures(directory, kept, names, listed):
            draw = partial(errors.pictured, shown, title)
            caption = f"Most confident mistakes, {style.label(method)}"
            found.append(Picture(f"errors_{method}_images", caption, draw))
    return found


def _ious(record: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """IoU in percent by split and class, None for a class that is neither there nor predicted."""
    metrics, names = record["metrics"], record.get("data", {}).get("classes", [])
    splits = dict.fromkeys(key.partition("/")[0] for key in metrics)
    splits = [split for split in splits if split not in ("holdout", "ood")]  # the latter is a mean
    by_class = {split: {name: f"{split}/iou_{name}" for name in names} for split in splits}
    return {
        split: {name: metrics[key] for name, key in keys.items()}
        for split, keys in by_class.items()
        if keys and all(key in metrics for key in keys.values())
    }


def _splits(record: dict[str, Any], kept: Mapping[str, Predictions]) -> list[str]:
    """The splits of predictions in the order of evaluation, what was added later at the end."""
    ordered = list(dict.fromkeys(key.partition("/")[0] for key in record["metrics"]))
    return [split for split in [*ordered, *kept] if split in kept and split != "holdout"]


def of_settings(loaded: Sequence[dict[str, Any]]) -> list[Picture]:
    """Pictures of one dataset and backbone over a setting; each says what it needs when it is drawn."""
    runs = sensitivity.frame(loaded)
    return [Picture(name, caption, partial(draw, runs)) for name, (caption, draw) in SENSITIVITY.items()]


def of_grids(loaded: Sequence[dict[str, Any]], whole: bool = False) -> list[Picture]:
    """Heat maps over both rates, a picture per method of one dataset and backbone; whole: with no gap."""
    runs, found = sensitivity.frame(loaded), []
    for method in in_order(runs[frames.METHOD]):
        cell = runs[runs[frames.METHOD] == method]
        sides = [cell[rate].nunique() for rate in frames.RATES]
        if min(sides) > 1 and (not whole or len(cell[frames.RATES].drop_duplicates()) == math.prod(sides)):
            draw = partial(sensitivity.rate_grid, cell)
            found.append(
                Picture(f"rate_grid_{method}", f"Grid of learning rates, {style.label(method)}", draw)
            )
    return found


def _distortion(loaded: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[Picture]:
    """Figures 1 and 2 of records of one dataset and backbone."""
    found = []
    if moved := features.trained_methods(loaded):
        compared = _compared(methods, shown_in(1), moved) or moved
        draw = partial(features.distributions, loaded, compared)
        found.append(Picture("features", "Feature distortion, ID (Figure 1)", draw))
        for measure, name in features.MEASURES.items():
            draw = partial(features.ridges, loaded, measure)
            found.append(Picture(measure, f"{name.capitalize()} of features, per split and method", draw))
    if changed := change.methods_of(loaded):
        compared = _compared(methods, shown_in(2), changed) or changed
        draw = partial(change.relative_change, loaded, compared)
        found.append(Picture("change", "Relative change of weights and BN layers (Figure 2)", draw))
    return found


def _compared(asked: Sequence[str], paper: Sequence[str], there: Sequence[str]) -> list[str]:
    """The methods asked for, all of which must be there, or those of the paper's that are."""
    if unknown := [method for method in asked if method not in there]:
        raise UserError(f"--methods {','.join(unknown)}: none to draw here; choose from {', '.join(there)}")
    return [*asked] or [method for method in paper if method in there]


def usable(loaded: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[UserError]]:
    """The records of the methods whose runs are a sample, and why those of others are none."""
    kept, problems = selection.usable(frames.from_records(loaded))
    runs = set(kept["run"])
    return [record for record in loaded if record["run"] in runs], problems


def named(kind: str, pictures: Sequence[Picture]) -> list[Picture]:
    """The one of this name, or those of a kind."""
    whole = [p for p in pictures if p.name == kind]
    return whole or [p for p in pictures if kind_of(p.name) == kind]


def kind_of(name: str) -> str | None:
    """The kind that a picture's name begins with; None if it is no name of a picture."""
    kinds = [kind for kind in KINDS if name == kind or name.startswith(f"{kind}_")]
    return max(kinds, key=len, default=None)  # conversion_batches is no picture of the kind conversion


def groups(loaded: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records by dataset and backbone, by a name for files."""
    runs = frames.from_records(loaded)
    if runs.empty:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for names, record in zip(
        runs[[frames.DATASET, frames.BACKBONE]].itertuples(index=False), loaded, strict=True
    ):
        found.setdefault("-".join(map(str, names)), []).append(record)
    return found


def selected(loaded: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records at the selected rates."""
    chosen = set(selection.select(frames.from_records(loaded))["run"])
    return [record for record in loaded if record["run"] in chosen]
