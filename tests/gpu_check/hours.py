"""Tables 2 and 5 as device-hours, from the rates that were measured."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daft.common.errors import UserError
from daft.config.check import to_dict, validate, validate_section
from daft.config.compose import composed
from daft.config.schema import Config, DatasetConfig, SweepConfig
from daft.report import paper
from daft.report.paper import CellKey
from daft.sweep import plan
from daft.sweep.protocol import cell_state, protocol
from tests.gpu_check.lines import Fact, Found, Line

TABLES = ("table2", "table5")

ABOUT = {
    "entity30": {"train": 156_000},  # 120 subclasses of ImageNet, 732 to 1,300 images each
    "living17": {"train": 44_200},  # 34 of them
    "fmow": {"train": 21_000, "id": 3_100, "ood.id_val": 5_400, "ood.val": 8_500},  # WILDS 1.1, by region
}
"""Images of the splits of which no number is published as exact; at most, or rounded."""

OF_RATE = {"clip_rn50": "resnet50_clip"}
"""The network whose rate a backbone of the tables has, where that is not ResNet-50."""


class Cost(NamedTuple):
    """What a cell of a table takes."""

    key: CellKey
    runs: int
    hours: float


def hours(facts: Mapping[str, float], precision: str) -> Iterator[Found]:
    """Device-hours of both tables, each cell's among them; a cell that both have is counted once in all."""
    seen: dict[CellKey, Cost] = {}
    for name in TABLES:
        table = paper.load(name)
        costs = [seen.setdefault(key, cost(key, table.sweep, facts, precision)) for key in table.cells()]
        for dataset in table.datasets:
            yield _cells(name, dataset, [each for each in costs if each.key.dataset == dataset])
        yield _total(name, costs)
        yield Fact(f"{name} hours", sum(each.hours for each in costs))
    yield _total("table2 and table5, cells of both once", [*seen.values()])


def cost(key: CellKey, sweep: str, facts: Mapping[str, float], precision: str) -> Cost:
    """Runs of a cell by the protocol, and hours by its network's rate; raises UserError without a rate."""
    overrides = [f"{axis}={name}" for axis, name in key._asdict().items()]
    cfg = composed(f"sweep={sweep}", *overrides)
    options = validate_section(cfg, "sweep", SweepConfig)
    config = validate(cfg)
    runs = sum(stage.size for stage in cell_state(protocol(options, config), {}).stages)
    network = f"{OF_RATE.get(config.backbone.name, 'resnet50')} {precision}"
    if (rate := facts.get(network)) is None:
        raise UserError(f"no rate of {network} was measured before")
    passes = plan.PASSES_PER_STEP * rate  # forward passes of single images in a second
    return Cost(key, runs, runs * forward_passes(config) / passes / 3600)


def forward_passes(config: Config) -> float:
    """Those of one run; of LP's, which trains nothing, one of each image."""
    images = {name.removeprefix("ood."): n for name, n in counts(config.dataset).items()}
    if config.method.rates == "frozen":
        return sum(images.values())
    return plan.forward_passes(to_dict(config), images)


def counts(dataset: DatasetConfig) -> dict[str, int]:
    """Images of each split, as published or about."""
    about = ABOUT.get(dataset.name, {})
    return {name: split.known_images or about[name] for name, split in dataset.splits().items()}


def _cells(table: str, dataset: str, costs: list[Cost]) -> Line:
    """A dataset's cells; each is network, method: hours."""
    by_network: dict[str, list[str]] = {}
    for key, runs, taken in costs:
        by_network.setdefault(key.backbone, []).append(f"{key.method} {taken:.1f} ({runs})")
    told = "; ".join(f"{network}: {', '.join(cells)}" for network, cells in by_network.items())
    total = sum(each.hours for each in costs)
    about = ", number of images about" * (dataset in ABOUT)
    return Line(f"{table}, {dataset}: device-hours (runs)", "", f"{total:.1f} h{about}; {told}", "stated")


def _total(what: str, costs: list[Cost]) -> Line:
    runs = sum(each.runs for each in costs)
    total = sum(each.hours for each in costs)
    return Line(f"{what}: device-hours in all", "", f"{total:,.0f} h for {runs} runs", "stated")
