"""Few-shot accuracies of runs and of pretrained networks: their evaluation, and their table."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import digest, write_atomically
from daft.common.numbers import fixed
from daft.config.check import to_dict
from daft.config.options import options
from daft.config.schema import Config
from daft.data import datasets
from daft.data.episodes import Protocol
from daft.report import robustness, tables
from daft.report.methods import in_order
from daft.runs import fewshot, records, reopened
from daft.runs.fewshot import DIFFERENCE, PRETRAINED, TRAINED, Images
from daft.runs.reopened import FinishedRun
from daft.training.fewshot import half_width, t_quantile


@dataclass(frozen=True)
class Measured:
    """A network with its accuracies."""

    config: Config
    result: dict[str, Any]
    run: FinishedRun | None = None
    """None: a pretrained network, which no method has trained"""


def find(what: Path) -> tuple[list[Path], bool]:
    """The directory of a run, or of those in a folder as `robustness.chosen`; raises UserError if none is."""
    if os.path.lexists(what / records.RECORD):
        return [what], True
    if not records.find_runs(what):
        raise UserError(
            f"{what}: no run, no folder of runs, no network; those are {', '.join(options('backbone'))}"
        )
    return robustness.chosen(what, None)


def of_backbone(config: Config, protocol: Protocol, device: torch.device) -> Measured:
    """A pretrained network on the evaluation sets of its configuration; raises UserError."""
    listing = datasets.listing(config)
    images = Images.of(config, listing, protocol, device)
    return Measured(config, fewshot.of_backbone(config, listing, images, protocol, device))


def of_runs(
    directories: Sequence[Path],
    protocol: Protocol,
    device: torch.device,
    elsewhere: Config | None = None,
    paths: dict[str, str] | None = None,
) -> tuple[list[Measured], bool]:
    """Each run before and after its method, a line each, and whether all could be evaluated.

    elsewhere: whose evaluation sets they are evaluated on; None: each on its own. One that cannot be is named
    on stderr; if it is the only one, UserError is raised. paths: as of `open_run`.
    """
    measured, whole, known = [], True, dict[str, Images]()
    for directory in directories:
        try:
            run = reopened.open_run(directory, paths)
            key = "" if elsewhere else digest(run.record["identity"]["dataset"])
            if key not in known:  # those of one dataset at a time
                listing = datasets.listing(elsewhere) if elsewhere else run.listing()
                known = {key: Images.of(elsewhere or run.config, listing, protocol, device)}
            result = fewshot.of_run(run, known[key], protocol, device)
        except UserError as error:
            if len(directories) == 1:
                raise
            progress.warn_left_out(error)
            whole = False
            continue
        measured.append(Measured(run.config, result, run))
        print(f"{run}: ID {protocol.ways}-way {_gains(result['accuracy']['id'], protocol)}", flush=True)
    return measured, whole


def _gains(accuracy: dict[str, Any], protocol: Protocol) -> str:
    """Accuracies before and after, in words."""
    means = {
        shots: [accuracy[str(shots)][key]["mean"] for key in (PRETRAINED, TRAINED)]
        for shots in protocol.shots
    }
    return ", ".join(
        f"{shots}-shot {fixed(before)} → {fixed(after)} %" for shots, (before, after) in means.items()
    )


def table(measured: Sequence[Measured], protocol: Protocol) -> pd.DataFrame:
    """A row per network, split and number of shots: mean, std and half of the 95 % interval over episodes.

    The features before a method are a network of their own, which several runs may share.
    """
    order = in_order(one.config.method.name for one in measured)
    measured = sorted(measured, key=lambda one: (order.index(one.config.method.name), one.config.seed))
    rows = [row for one in measured for row in _rows(one, protocol)]
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def _rows(one: Measured, protocol: Protocol) -> Iterator[dict[str, Any]]:
    result, trained_on = one.result, one.config.dataset.name
    label = tables.run_label(to_dict(one.config))
    label += f" on {trained_on}" if trained_on != result["dataset"] else ""
    drawn = {key: result[key] for key in ("ways", "queries", "episodes", "seed")}
    for split, shots in product(result["accuracy"], protocol.shots):
        for features, spread in result["accuracy"][split][str(shots)].items():
            run = None if features == PRETRAINED or one.run is None else one.run.record["run"]
            yield {
                "dataset": result["dataset"],
                "backbone": one.config.backbone.name,
                "network": label if run else PRETRAINED,
                "run": run,
                "precision": result["precision"],
                "features": features,
                "split": split,
                "shots": shots,
                **drawn,
                **spread,
                "half_width": half_width(spread["std"], result["episodes"]),
            }


def markdown(rows: pd.DataFrame, protocol: Protocol) -> str:
    """What `table` has, a row per network and one for what it gains, as a table for each number of shots."""
    parts = []
    for (dataset, backbone, shots), setting in rows.groupby(["dataset", "backbone", "shots"], sort=False):
        splits = list(dict.fromkeys(setting["split"]))
        found = []
        for (network, features, *_), of_one in setting.groupby(
            ["network", "features", "precision", "run"], sort=False, dropna=False
        ):
            gains = features == DIFFERENCE
            numbers = of_one.set_index("split").loc[splits]
            shown = (
                f"{'+' if gains and mean >= 0 else ''}{fixed(mean)} ± {fixed(half)}"
                for mean, half in _intervals(numbers)
            )
            found.append([f"{tables.in_markdown(str(network))}{' − pretrained' if gains else ''}", *shown])
        columns = ["features", *(f"{tables.in_markdown(tables.split_name(split))} %" for split in splits)]
        title = f"{dataset}, {backbone}: {protocol.ways}-way {shots}-shot accuracy"
        parts += [
            f"### {tables.in_markdown(title)}",
            tables.pipe_table(pd.DataFrame(found, columns=columns), texts=1),
        ]
    return "\n\n".join([*parts, note(protocol)]) + "\n"


def _intervals(rows: pd.DataFrame) -> Iterator[tuple[float, float]]:
    return zip(rows["mean"], rows["half_width"], strict=True)


def note(protocol: Protocol) -> str:
    """Below a table: what its numbers are."""
    count, t = protocol.episodes, t_quantile(protocol.episodes)
    return (
        f"Nearest prototype by squared Euclidean distance. Mean over {count:,} episodes ± half of its 95 % "
        f"interval, t·s/√{count:,} with s the sample standard deviation (ddof = 1) of the accuracies of the "
        f"episodes and t = {t:.3f} (Student's, {count - 1:,} degrees of freedom). An episode has "
        f"{protocol.ways} classes, and of each {protocol.queries} other images to classify. All networks "
        f"have the same episodes, drawn from seed {protocol.seed}, so a difference is of pairs. The interval "
        "is of the luck of the episodes alone, for these images and this network, not of seeds of training."
    )


def write(measured: Sequence[Measured], protocol: Protocol, out: Path | None) -> None:
    """Print the table of these networks, and write it to a folder as fewshot.md and fewshot.csv."""
    if not measured:
        return
    rows = table(measured, protocol)
    text = markdown(rows, protocol)
    print(f"\n{text}", end="")
    if out:
        write_atomically(out / "fewshot.csv", rows.to_csv(index=False))
        write_atomically(out / "fewshot.md", text)
