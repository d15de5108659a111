"""What a staged sweep shows: its plan before, its tables and what is missing after."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from daft import data, progress, records, tables, tasks, throughput
from daft.cells import Cell, Run
from daft.config import Config, plain
from daft.errors import UserError
from daft.sweep import Standing


class Estimate(NamedTuple):
    """What a run of a cell takes, by past runs."""

    hours: float
    source: Literal["measured", "scaled", "probed"]
    """runs alike; runs on other images, by their number and the epochs; a few steps here"""
    host_gib: float | None = None
    """memory at its peak; None if no past run tells"""
    gpu_gib: float | None = None


PASSES = 3
"""Forward passes that a training step counts for: a backward pass is two."""

MARKS = {"measured": "", "scaled": "~", "probed": "≈"}
NOTES = {
    "scaled": "~: by runs of the same network on other images, scaled by images and epochs",
    "probed": "≈: by a few training steps on this machine; reading images is not in it",
}


class Item(NamedTuple):
    """One line of a plan."""

    cell: Cell
    stage: str
    runs: int
    done: int
    unusable: list[Run]
    """whose records are damaged or of another version: they are neither taken nor made again"""
    each: Estimate | None
    """of its runs; None if no past run tells"""

    @property
    def left(self) -> int:
        """Runs to compute."""
        return self.runs - self.done - len(self.unusable)

    @property
    def hours(self) -> float | None:
        """Device-hours that they take."""
        return 0.0 if not self.left else None if self.each is None else self.left * self.each.hours


def plan(cells: Sequence[Cell], standings: Sequence[Standing]) -> list[Item]:
    """The runs of each cell and stage; one that several cells share counts for the first of them."""
    past = {folder: _past(folder) for folder in {cell.config.paths.runs for cell in cells}}
    paces: dict[str, float] = {}
    items, seen = [], set()
    for cell, standing in zip(cells, standings, strict=True):
        config, estimates = cell.config, dict[bool, Estimate | None]()
        shared = False  # with another cell, and so is what follows and is not known yet
        for step in standing.steps:
            if (lp := step.name == "lr_probe") not in estimates:
                of_step = replace(config, method=config.method.probe()) if lp else config
                estimates[lp] = _estimate(of_step, past[config.paths.runs], paces)
            runs = [cell.runs[trial] for trial in step.trials]
            fresh = [run for run in runs if id(run) not in seen]
            seen |= {id(run) for run in runs}
            shared = not fresh if runs else shared
            size = len(fresh) + (0 if shared else step.size - len(runs))
            shared = shared and not lp
            unusable = [run for run in fresh if run.is_missing]
            done = sum(run.outcome is not None for run in fresh) - len(unusable)
            items.append(Item(cell, step.name, size, done, unusable, estimates[lp]))
    return items


def show_plan(items: Sequence[Item], keep_all: bool) -> None:
    """Print a plan and its sums.

    keep_all: whether the weights of whole grids stay, or those of the chosen rates alone.
    """
    table = Table(title="Plan", title_justify="left")
    for name in ("cell", "stage", "runs", "done", "device-hours left"):
        table.add_column(name, justify="left" if name in ("cell", "stage") else "right")
    for item in items:
        about = MARKS[item.each.source] if item.left and item.each else ""
        hours = "unknown" if item.hours is None else f"{about}{item.hours:.2f}"
        table.add_row(str(item.cell), item.stage, str(item.runs), str(item.done), hours)
    _print(table)
    unusable = [run for item in items for run in item.unusable]
    for run in unusable:
        print(f"no use: {run.name}: {run.error}")
    runs, done, left = (sum(getattr(item, key) for item in items) for key in ("runs", "done", "left"))
    hours = sum(item.hours or 0 for item in items)
    unknown = sum(item.left for item in items if item.hours is None)
    known = f"{hours:.2f} device-hours" if hours or not unknown else "time unknown"
    rest = f" and {unknown} run(s) of unknown time" if hours and unknown else ""
    lost = f"{len(unusable)} of no use, " if unusable else ""
    print(f"{runs} runs, {done} done, {lost}{left} to compute: {known}{rest}")
    if to_come := [item for item in items if item.left]:
        for why in dict.fromkeys(_why_unknown(item) for item in to_come if item.hours is None):
            print(f"unknown: {why}")
        sources = {item.each.source for item in to_come if item.each}
        for source, note in NOTES.items():
            if source in sources:
                print(note)
        for name, key in (("memory", "host_gib"), ("GPU memory", "gpu_gib")):
            peaks = [getattr(item.each, key, None) for item in to_come]
            known = [peak for peak in peaks if peak is not None]
            if known or key == "host_gib":
                at_most = f"{max(known):.1f} GiB" if known else "unknown"
                others = ", of some unknown" if known and len(known) < len(peaks) else ""
                print(f"{name} of a run: {at_most}{others}")
        print(_disk(to_come, keep_all))


def _why_unknown(item: Item) -> str:
    if item.stage == "lr_probe" or item.cell.config.method.rates == "frozen":
        return "no past run tells the time of a linear probe"
    try:
        data.listing(item.cell.config)
    except UserError as error:
        return str(error)
    return "there is no GPU here to time a few steps on"


def _disk(to_come: Sequence[Item], keep_all: bool) -> str:
    """What the runs to come write: the weights, which are nearly all of it."""
    stays, most = 0, 0
    for cell in {id(item.cell): item.cell for item in to_come}.values():
        weights, frozen = _weights(cell.config), cell.config.method.rates == "frozen"
        own = [item for item in to_come if item.cell is cell]
        kept = sum(
            i.left for i in own if keep_all or frozen or i.stage == "lr_probe"
        )  # LP-FT may start there
        others = sum(item.left for item in own) - kept
        stays += weights * (kept + min(others, len(cell.protocol.seeds)))
        # A checkpoint holds weights and momentum: the last one, the next one, and two best epochs meanwhile.
        most = max(most, weights * (1 if frozen and cell.config.segmentation is None else 2 + 2 + 2))
    return f"disk: {_size(stays)} of weights stay; a run at work takes up to {_size(most)}"


def _weights(config: Config) -> int:
    """Bytes of a run's network, but for the width of its last layer, found without any of them."""
    task = tasks.of(config, ["one", "another"])
    with torch.device("meta"):
        network = task.network(task.backbone(pretrained=False))
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def finish(cells: Sequence[Cell], standings: Sequence[Standing]) -> None:
    """Print the table of each setting, what stands at an edge, and what failed.

    Raises UserError if a run is missing.
    """
    pairs = list(zip(cells, standings, strict=True))
    for setting in dict.fromkeys(cell.setting for cell in cells):
        told = [(cell, standing) for cell, standing in pairs if cell.setting == setting]
        if text := _table([pair for pair in told if pair[1].status in ("chosen", "diverged")]):
            print(f"\n{setting}\n\n{text}" if setting else f"\n{text}")
    for cell, standing in pairs:
        for rate in standing.edges:
            value = getattr(standing.rates, rate)
            print(f"edge: {cell}: {rate}={value:g} is at the edge of its grid; sweep.extend=true goes on")
    trials = [(cell, trial, cell.runs[trial]) for cell, standing in pairs for trial in standing.trials]
    missing = [told for told in trials if told[2].is_missing]
    for cell, trial, run in missing:
        print(f"missing: {cell} {trial}: {run.error}")
    for cell, standing in pairs:
        if standing.status == "failed":
            print(f"missing: {cell}: its later stages, which need what failed")
        if standing.status == "diverged" and all(trial.is_probe for trial in standing.trials):
            print(f"diverged: {cell}: every run of LP that it could start from")
    if lost := list({id(run): run for *_, run in missing}.values()):
        again = "; the same command tries again what failed" if any(run.attempts for run in lost) else ""
        raise UserError(f"{len(lost)} run(s) are missing, as listed{again}")


def _table(pairs: Sequence[tuple[Cell, Standing]]) -> str:
    """The long table of these cells as Markdown; records go by their cell's names, not by their own."""
    frames = []
    for cell, standing in pairs:
        told = [cell.runs[trial] for trial in standing.trials if not trial.is_probe]
        runs = records.frame(run.directory for run in told if run.directory and not run.is_missing)
        frames.append(runs.assign(**dict(zip(tables.CELL, cell.names, strict=True))))
    runs = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return "" if runs.empty else tables.markdown(tables.aggregate(tables.select(runs), runs))


def _past(folder: str) -> list[dict[str, Any]]:
    """All records of a folder of runs."""
    return records.load(records.below(Path(folder)))


def _estimate(run: Config, past: Sequence[dict[str, Any]], paces: dict[str, float]) -> Estimate | None:
    """By runs with as much to train: on the same images for as many epochs, or else scaled from others; or
    by a probe, whose paces are kept for other cells.
    """
    config = plain(run)
    alike = [record for record in past if _trains_alike(record["config"], config)]
    if same := [record for record in alike if _same_images(record["config"], config)]:
        memory = [record.get("memory", {}) for record in same]  # records of before have none
        peaks = {key: [found[key] for found in memory if key in found] for key in ("host_gib", "gpu_gib")}
        most = {key: max(found) for key, found in peaks.items() if found}
        return Estimate(mean(map(_hours, same)), "measured", **most)
    # A linear probe's time does not grow with its images alone, and a forward pass's with their pixels.
    if config["method"]["rates"] == "frozen":
        return None
    others = [r for r in alike if _view(r["config"]) == _view(config) and "images" in r.get("data", {})]
    try:
        listed = data.listing(run)
        images = {name: len(split) for name, split in {"train": listed.train, **listed.evaluation}.items()}
        if others:
            pace = mean(
                _hours(record) / _work(record["config"], record["data"]["images"]) for record in others
            )
        else:
            key = json.dumps([config["backbone"], config["method"]["bn_mode"], *_view(config)])
            if key not in paces:
                progress.console.print(f"timing {run.backbone.name} on {run.dataset.name} …", highlight=False)
                paces[key] = throughput.seconds_per_image(run, listed) / 3600 / PASSES
            pace = paces[key]
    except UserError:  # the images are not here, or the GPU
        return None
    return Estimate(pace * _work(config, images), "scaled" if others else "probed")


def _trains_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations have the same network, and both train it or neither."""
    frozen = [config["method"]["rates"] == "frozen" for config in (one, other)]
    return one["backbone"]["name"] == other["backbone"]["name"] and frozen[0] == frozen[1]


def _same_images(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations train as long on the same images, wherever these are."""
    places = {place.removeprefix("dataset.") for place in records.PLACES}
    known = one["dataset"].keys() & other["dataset"].keys() - places
    same = all(one["dataset"][key] == other["dataset"][key] for key in known)
    lengths = [[config["training"].get(key) for key in ("epochs", "steps")] for config in (one, other)]
    return same and lengths[0] == lengths[1]


def _view(config: dict[str, Any]) -> Any:
    """What decides how many pixels the network sees of an image, and in which precision."""
    dataset = config["dataset"]
    transforms = [dataset[key] for key in ("train_transform", "eval_transform", "image_size")]
    return [*transforms, config["training"]["precision"]]


def _work(config: dict[str, Any], images: dict[str, int]) -> float:
    """Forward passes of an image in a run that trains the backbone; a training step is PASSES of them."""
    training, evaluated = config["training"], sum(images.values()) - images["train"]
    select = images["holdout" if training["selection"] == "holdout" else "id"]
    steps = training.get("steps")  # records of before have none
    trained = steps * training["batch_size"] if steps else training["epochs"] * images["train"]
    return PASSES * trained + training["epochs"] * select + 2 * evaluated


def _hours(record: dict[str, Any]) -> float:
    return sum(record["time"].values()) / 3600


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 120).print(table)
