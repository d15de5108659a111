"""What a sweep would run, and what that takes by past runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

import torch

from daft.common import progress
from daft.common.errors import UserError
from daft.config.check import plain
from daft.config.schema import Config
from daft.data import datasets
from daft.runs import identity, records
from daft.sweep import timing
from daft.sweep.cells import Cell, Run
from daft.sweep.protocol import Standing
from daft.training import tasks


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


def _weights(config: Config) -> int:
    """Bytes of a run's network, but for the width of its last layer, found without any of them."""
    task = tasks.of(config, ["one", "another"])
    with torch.device("meta"):
        network = task.network(task.backbone(pretrained=False))
    return sum(tensor.nbytes for tensor in network.state_dict().values())


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
        listed = datasets.listing(run)
        images = {name: len(split) for name, split in {"train": listed.train, **listed.evaluation}.items()}
        if others:
            pace = mean(
                _hours(record) / _work(record["config"], record["data"]["images"]) for record in others
            )
        else:
            key = json.dumps([config["backbone"], config["method"]["bn_mode"], *_view(config)])
            if key not in paces:
                progress.console.print(f"timing {run.backbone.name} on {run.dataset.name} …", highlight=False)
                paces[key] = timing.seconds_per_image(run, listed) / 3600 / PASSES
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
    places = {place.removeprefix("dataset.") for place in identity.PLACES}
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
