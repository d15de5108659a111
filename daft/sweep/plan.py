"""What a sweep would run, and the time, memory and disk that this takes, by past runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import torch
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from daft.common.errors import UserError
from daft.config.check import to_dict
from daft.config.schema import Config
from daft.data import datasets
from daft.methods import head_rate
from daft.runs import identity, layout, records
from daft.sweep import timing
from daft.sweep.cells import Cell, SweepRun, stage_runs
from daft.sweep.protocol import CellState
from daft.training import tasks


class _Dataset(TypedDict):
    train_transform: Any
    eval_transform: Any
    image_size: Any


class _Method(TypedDict):
    rates: str


class _Training(TypedDict):
    epochs: Annotated[int, Field(gt=0)]
    batch_size: int
    precision: str
    steps: NotRequired[int | None]


class _Configuration(TypedDict):
    dataset: _Dataset
    method: _Method
    training: _Training


class Past(TypedDict):
    """What a record must say of a run that others are estimated by, beside what every one does."""

    config: _Configuration


PAST = TypeAdapter(Past)

PASSES_PER_STEP = 3
"""Forward passes that a training step counts for: a backward pass is two."""


class Estimate(NamedTuple):
    """What one run takes, by past runs."""

    hours: float
    source: Literal["measured", "scaled", "timed"]
    """by runs alike; by runs on other images, scaled by their number and the epochs; by a few steps here"""
    host_gib: float | None = None
    """peak memory; None if no past run tells"""
    gpu_gib: float | None = None


class PlannedStage(NamedTuple):
    """The runs of one stage of a cell."""

    cell: Cell
    name: str
    runs: int
    done: int
    unusable: list[SweepRun]
    """whose records are damaged or of another version: they are neither used nor made again"""
    estimate: Estimate | str
    """of each run, or why there is none"""
    head_rate: float | None = None
    """that fits its images and network (`backbone.lr_head: auto`), if a past run tells; no image is read"""

    @property
    def left(self) -> int:
        """Runs to compute."""
        return self.runs - self.done - len(self.unusable)

    @property
    def hours(self) -> float | None:
        """Device-hours of the runs to compute; None if unknown."""
        if not self.left:
            return 0.0
        return None if isinstance(self.estimate, str) else self.left * self.estimate.hours


def plan(cells: Sequence[Cell], states: Sequence[CellState]) -> list[PlannedStage]:
    """The runs of each cell and stage; a run that several cells share counts for the first of them."""
    folders = {cell.config.paths.runs for cell in cells}
    past = {folder: _past(Path(folder)) for folder in folders}
    paces: dict[str, float] = {}
    stages: list[PlannedStage] = []
    estimates: dict[tuple[int, bool], Estimate | str] = {}  # by cell, and whether it is of LP's runs
    for cell, stage, new, size in stage_runs(cells, states):
        config, is_probe = cell.config, stage.name == "lr_probe"
        if (key := (id(cell), is_probe)) not in estimates:
            of_stage = replace(config, method=config.method.linear_probe()) if is_probe else config
            estimates[key] = _estimate(of_stage, past[config.paths.runs], paces)
        unusable = [run for run in new if run.has_failed]
        done = sum(run.outcome is not None for run in new) - len(unusable)
        head = _head_rate(config, past[config.paths.runs])
        stages.append(PlannedStage(cell, stage.name, size, done, unusable, estimates[key], head))
    return stages


def _past(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder that say enough of their runs to be compared with others."""

    def is_telling(record: dict[str, Any]) -> bool:
        if "weights_from" in record:  # it took what an evaluation takes
            return False
        try:
            layout.require(PAST, record)
        except ValueError:
            return False
        return True

    return [*filter(is_telling, records.load(records.find_runs(folder)))]


def _head_rate(run: Config, past: Sequence[dict[str, Any]]) -> float | None:
    """The rate that fits the features, by a past run with the same network and images."""
    config = to_dict(run)
    if config["method"]["rates"] != "separate" or config["segmentation"] is not None:
        return None
    for record in past:
        same = record["config"]["backbone"]["name"] == config["backbone"]["name"]
        if same and (found := record.get("head_rate")) and _same_images(record["config"], config):
            return head_rate.fitting_rate(found["lambda"], run.training.momentum)
    return None


def peak_memory(stages: Sequence[PlannedStage], kind: str) -> tuple[float, bool]:
    """The most GiB that a run of these stages takes, 0 if unknown, and whether it is known of all stages.

    kind: `host_gib` or `gpu_gib`.
    """
    known = [peak for stage in stages if (peak := getattr(stage.estimate, kind, None)) is not None]
    return max(known, default=0.0), len(known) == len(stages)


def disk_bytes(stages: Sequence[PlannedStage], *, keep_all: bool) -> tuple[int, int]:
    """Bytes that stay, and of one run while it trains: of weights, which are nearly all of it.

    keep_all: whether the weights of whole grids stay, or those of the chosen rates alone.
    """
    total, peak = 0, 0
    sizes: dict[str, int] = {}  # cells have few networks, and to build one takes a while
    for cell in {id(stage.cell): stage.cell for stage in stages}.values():
        config, frozen = cell.config, cell.config.method.rates == "frozen"
        network = repr((config.backbone, config.segmentation, config.fewshot, config.method.head_hidden))
        if network not in sizes:
            sizes[network] = _weight_bytes(config)
        weights = sizes[network]
        own = [stage for stage in stages if stage.cell is cell]
        # LP-FT may start from runs of LP.
        kept = sum(stage.left for stage in own if keep_all or frozen or stage.name == "lr_probe")
        others = sum(stage.left for stage in own) - kept
        total += weights * (kept + min(others, len(cell.protocol.seeds)))
        # A checkpoint holds weights and momentum: the last one, the next one, and two best epochs meanwhile.
        peak = max(peak, weights * (1 if frozen and cell.config.segmentation is None else 2 + 2 + 2))
    return total, peak


def _weight_bytes(config: Config) -> int:
    """Bytes of a run's network but for the width of its last layer, without loading any weights."""
    task = tasks.of(config, ["one", "another"])
    with torch.device("meta"):
        network = task.network(task.backbone(pretrained=False))
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _estimate(run: Config, past: Sequence[dict[str, Any]], paces: dict[str, float]) -> Estimate | str:
    """By runs that train as much of the same network: on the same images for as many epochs, or else scaled
    from others; or by timing steps, whose paces are kept for other cells. A str says why there is none.
    """
    config = to_dict(run)
    alike = [record for record in past if _trains_alike(record["config"], config)]
    parts = {*(config["method"]["parts"] or {})}
    same = [record for record in alike if {*(record["config"]["method"].get("parts") or {})} == parts]
    if same := [record for record in same if _same_images(record["config"], config)]:
        memory = [record.get("memory", {}) for record in same]  # older records have none
        peaks = {key: [found[key] for found in memory if key in found] for key in ("host_gib", "gpu_gib")}
        most = {key: max(found) for key, found in peaks.items() if found}
        return Estimate(mean(map(_hours, same)), "measured", **most)
    # A linear probe's time does not grow with its images alone, and a forward pass's with their pixels.
    if config["method"]["rates"] == "frozen":
        return "no past run tells the time of a linear probe"
    others = [r for r in alike if _view(r["config"]) == _view(config) and _counts_images(r)]
    try:
        listed = datasets.listing(run)
    except UserError as error:
        return str(error)
    images = {name: len(split) for name, split in listed.splits().items()}
    if others:
        work = [forward_passes(record["config"], record["data"]["images"]) for record in others]
        pace = mean(_hours(record) / passes for record, passes in zip(others, work, strict=True))
        return Estimate(pace * forward_passes(config, images), "scaled")
    key = json.dumps([config["backbone"], config["method"]["bn_mode"], *_view(config), _episodes(config)])
    if key not in paces:
        try:
            paces[key] = timing.seconds_per_image(run, listed) / 3600 / PASSES_PER_STEP
        except UserError:
            return "there is no GPU here to time a few steps on"
    return Estimate(paces[key] * forward_passes(config, images), "timed")


def _counts_images(record: dict[str, Any]) -> bool:
    """Whether a record says how many images were trained on and selected by."""
    counted = record.get("data", {}).get("images", {})
    return counted.get("train", 0) > 0 and _selecting(record["config"]) in counted


def _selecting(config: dict[str, Any]) -> str:
    """The split by which an epoch is selected."""
    return "holdout" if config["training"]["selection"] == "holdout" else "id"


def _trains_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations have the same network, and both train it or neither, on episodes or not."""
    frozen, episodes = (
        [of(config) for config in (one, other)]
        for of in (lambda config: config["method"]["rates"] == "frozen", _episodes)
    )
    same = frozen[0] == frozen[1] and episodes[0] == episodes[1]
    return same and one["backbone"]["name"] == other["backbone"]["name"]


def _episodes(config: dict[str, Any]) -> dict[str, Any]:
    """What decides how long an episode takes; nothing if there are none."""
    few = config.get("fewshot") or {}  # older records have none
    return {key: few[key] for key in ("ways", "shots", "queries", "maml") if key in few}


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


def forward_passes(config: dict[str, Any], images: dict[str, int]) -> float:
    """Forward passes of single images in a run that trains the backbone.

    config: as plain data. images: number of each split.
    """
    training, seen = config["training"], images["train"] + images.get("unlabelled", 0)
    evaluated = sum(images.values()) - seen
    select = images[_selecting(config)]
    steps = training.get("steps")  # older records have none
    trained = steps * training["batch_size"] if steps else training["epochs"] * images["train"]
    parts = config["method"].get("parts") or {}  # older records have none
    if "unlabelled" in images:  # a batch of them in each step
        trained *= 2
    again, adapted = len(parts.get("interpolate") or []) + ("test_time" in parts), 0
    if few := config.get("fewshot"):
        episode = few["ways"] * (few["shots"] + few["queries"])
        trained = steps * few["meta_batch"] * episode
        if few["maml"]:  # evaluation adapts the network as training does
            select = PASSES_PER_STEP * few["episodes"] * episode
            adapted = (len(images) - 1) * select
    return PASSES_PER_STEP * trained + training["epochs"] * select + (2 + again) * evaluated + adapted


def _hours(record: dict[str, Any]) -> float:
    return sum(record["time"].values()) / 3600
