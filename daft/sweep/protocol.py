"""The staged sweep of one cell: given the outcomes so far, which trials come next and which rates win.

It does not know how a trial is run, so the protocol can be read and tested by itself.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from daft.common.errors import ConfigError
from daft.config.schema import Config, SweepConfig
from daft.config.types import HIGHEST_RATE, LOWEST_RATE
from daft.sweep.selection import preference

EXTENSIONS = 4
"""The most values that `extend` adds to one grid."""

RateName = Literal["lr_backbone", "lr_head", "lr_probe"]
Status = Literal["open", "chosen", "diverged", "failed"]
"""Of a choice of rates: it waits for outcomes; it is made; all its trials diverged; one of them failed."""


class Rates(NamedTuple):
    """Learning rates of a trial, None where its method has no such rate."""

    lr_backbone: float | None = None
    lr_head: float | None = None
    lr_probe: float | None = None

    def given(self) -> dict[str, float]:
        """The rates that the method has, by name."""
        return {name: rate for name, rate in self._asdict().items() if rate is not None}


class Trial(NamedTuple):
    """Learning rates and a seed to run a cell's method with."""

    rates: Rates
    seed: int

    @property
    def is_probe(self) -> bool:
        """Whether it is a run of LP, which the cell's own runs may start from."""
        return self.rates.lr_probe is not None and self.rates.lr_backbone is None

    def __str__(self) -> str:
        rates = [f"{name}={rate:g}" for name, rate in self.rates.given().items()]
        return " ".join([*rates, f"seed={self.seed}"])


class Outcome(NamedTuple):
    """How a trial ended."""

    status: Literal["finished", "diverged", "failed"]
    metric: float | None = None
    """accuracy or mIoU, in percent, on the split that is selected on; None unless finished"""


@dataclass(frozen=True)
class Stage:
    """Sweeps one rate over a grid while the others stay as they are."""

    rate: RateName
    grid: tuple[float, ...]

    def trial(self, rates: Rates, value: float, seed: int) -> Trial:
        """The trial at this value and otherwise at `rates`; a trial of `lr_probe` is a run of LP alone."""
        changed = {self.rate: value}
        return Trial(Rates(**changed) if self.is_probe else rates._replace(**changed), seed)

    def candidates(self, rates: Rates) -> set[float]:
        """The values to try: the grid and, for a head's rate, the anchor that its factors multiply."""
        return {*self.grid} if self.rate == "lr_backbone" else {*self.grid, getattr(rates, self.rate)}

    @property
    def is_probe(self) -> bool:
        """Whether it chooses the run of LP that the cell's own runs start from."""
        return self.rate == "lr_probe"


@dataclass(frozen=True)
class Protocol:
    """How the learning rates of a cell are chosen."""

    start: Rates
    """the anchors: each rate keeps this value until its stage"""
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    """that the chosen rates run on; stages run on the lowest"""
    extend: bool = False


class StageTrials(NamedTuple):
    """The trials of one stage, or of the final seeds, as far as they are known."""

    name: str
    """the rate that the stage sweeps, or `seeds`"""
    trials: list[Trial]
    """that no earlier stage has; empty while an earlier stage is undecided"""
    size: int
    """number of trials, also while they are not known"""


@dataclass(frozen=True)
class CellState:
    """How far a cell is in its protocol."""

    status: Status
    """of the choice of rates"""
    stages: list[StageTrials]
    rates: Rates
    """the chosen ones, or the best so far"""
    edges: list[RateName]
    """rates whose best value is at the edge of its grid"""

    @property
    def trials(self) -> list[Trial]:
        """All trials that are known, in the order of the protocol."""
        return [trial for stage in self.stages for trial in stage.trials]


def protocol(sweep: SweepConfig, config: Config) -> Protocol:
    """The protocol of a configuration's cell; raises ConfigError if the sweep has none for its method."""
    backbone, dataset, method = config.backbone.name, config.dataset.name, config.method
    if method.name not in sweep.stages:
        raise ConfigError(
            f"sweep.stages.{method.name}",
            f"missing; choose a method of {', '.join(sweep.stages)}, or say what to sweep, "
            f"such as sweep.stages.{method.name}=[lr_backbone] sweep.grids.{method.name}=[0.1,0.01]",
        )
    start, stages = Rates(method.lr_backbone, method.lr_head, method.lr_probe), []
    for rate in sweep.stages[method.name]:
        value = start.given().get(rate)
        if value is None:
            problem = f"{rate}, but method.{rate} is null with method.rates={method.rates}"
            raise ConfigError(f"sweep.stages.{method.name}", problem)
        if rate != "lr_backbone":
            grid = [_round(factor * value) for factor in sweep.head_factors]
        elif (grid := sweep.grids.get(method.name)) is None:
            known = sweep.cell_grids[method.name]
            keys = (f"{backbone}/{dataset}", backbone, "default")
            grid = next(known[key] for key in keys if key in known)
        if wrong := [each for each in grid if not LOWEST_RATE <= each <= HIGHEST_RATE]:
            problem = (
                f"{value:g} times a factor is {wrong[0]:g}; rates are {LOWEST_RATE:g} to {HIGHEST_RATE:g}"
            )
            raise ConfigError("sweep.head_factors", problem)
        stages.append(Stage(rate, tuple(grid)))
    return Protocol(start, tuple(stages), tuple(sweep.seeds), sweep.extend)


def cell_state(protocol: Protocol, outcomes: Mapping[Trial, Outcome]) -> CellState:
    """How far a cell is, given the outcomes so far; its trials without an outcome are to be run next.

    A stage is decided once all its trials have ended; `selection.preference` says which of them wins.
    """
    first, rates = min(protocol.seeds), protocol.start
    others = [seed for seed in protocol.seeds if seed != first]
    status: Status = "chosen"
    stages: list[StageTrials] = []
    edges: list[RateName] = []
    ran = False  # whether the rates so far have run on the lowest seed
    for stage in protocol.stages:
        # Earlier stages have already run the value that this one starts from.
        tried = {getattr(rates, stage.rate)} if ran else set()
        ran = ran or not stage.is_probe
        values = sorted(stage.candidates(rates) | tried, reverse=True)
        if status != "chosen":
            size = len(values) - len(tried) if status != "diverged" else 0
            stages.append(StageTrials(stage.rate, [], size))
            continue
        limit = len(values) + protocol.extend * EXTENSIONS
        while True:
            trials = [stage.trial(rates, value, first) for value in values]
            status, best = _decide(trials, outcomes)
            at_edge = best in (trials[0], trials[-1]) and len(values) > 1
            if not at_edge or len(values) >= limit:
                break
            wider = _beyond(values, up=best == trials[0])
            if not LOWEST_RATE <= wider[-1] < wider[0] <= HIGHEST_RATE:
                break
            values = wider
        new = [t for t, value in zip(trials, values, strict=True) if value not in tried]
        size = len(new) + (len(others) if stage.is_probe and status != "diverged" else 0)
        if best is not None:
            rates = rates._replace(**{stage.rate: getattr(best.rates, stage.rate)})
            if stage.is_probe:  # runs on other seeds start from LP on the same seed
                new += [Trial(best.rates, seed) for seed in others]
        stages.append(StageTrials(stage.rate, new, size))
        if at_edge:
            edges.append(stage.rate)
    seeds = others if ran else [first, *others]
    trials = [Trial(rates, seed) for seed in seeds] if status == "chosen" else []
    stages.append(StageTrials("seeds", trials, len(seeds) if status != "diverged" else 0))
    return CellState(status, stages, rates, edges)


def count_missing(protocol: Protocol, trials: Collection[Trial], seed: int, chosen: Rates) -> int:
    """How many of the protocol's trials are not among `trials`: grids on this seed, and other seeds.

    chosen: the rates that `trials` select. Runs of LP count for the cell of LP alone.
    """
    wanted, rates = {Trial(chosen, seed)}, protocol.start
    for stage in protocol.stages:
        if not stage.is_probe:
            wanted |= {stage.trial(rates, value, seed) for value in stage.candidates(rates)}
        rates = rates._replace(**{stage.rate: getattr(chosen, stage.rate)})
    others = {trial.seed for trial in trials if trial.rates == chosen} - {seed}
    return len(wanted - set(trials)) + max(0, len(protocol.seeds) - 1 - len(others))


def _decide(trials: list[Trial], outcomes: Mapping[Trial, Outcome]) -> tuple[Status, Trial | None]:
    """Whether a stage is decided, and the trial that wins, if one does."""
    if not all(trial in outcomes for trial in trials):
        return "open", None
    # A failed trial might have won: to choose among the others would be another protocol.
    if any(outcomes[trial].status == "failed" for trial in trials):
        return "failed", None
    finished = [trial for trial in trials if outcomes[trial].status == "finished"]
    if not finished:
        return "diverged", None
    return "chosen", max(finished, key=lambda trial: preference(outcomes[trial].metric, trial.rates))


def _beyond(values: list[float], *, up: bool) -> list[float]:
    """A falling grid with one more value at an end, which continues its last steps: 0.1, 0.3, then 1."""
    ordered = values[::-1] if up else values
    before, edge = ordered[-2], ordered[-1]
    # Half-decades alternate between factors of 3 and 10/3: two steps give the pattern, one does not.
    further = before * edge / ordered[-3] if len(ordered) > 2 else edge * edge / before
    return sorted([*values, _round(further)], reverse=True)


def _round(rate: float) -> float:
    """Without rounding errors: 0.1 · 3 is 0.3, also in a run's identity."""
    return float(f"{rate:.6g}")
