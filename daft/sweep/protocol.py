"""The staged sweep of one cell: given the outcomes so far, which runs come next and which rates win.

Knows nothing of how runs are made, so that the protocol can be read, and tested, by itself.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from daft.common.errors import ConfigError
from daft.config.schema import Config, SweepConfig

EXTENSIONS = 4
"""Values that `extend` adds to one grid, at most."""

RateName = Literal["lr_backbone", "lr_head", "lr_probe"]
Status = Literal["open", "chosen", "diverged", "failed"]
"""Of a choice: it waits for outcomes; is made; all that it is between diverged; one of them failed."""


class Rates(NamedTuple):
    """Learning rates of a run, None where its method has no such rate."""

    lr_backbone: float | None = None
    lr_head: float | None = None
    lr_probe: float | None = None

    def given(self) -> dict[str, float]:
        """Those that the method has, by name."""
        return {name: rate for name, rate in self._asdict().items() if rate is not None}


class Trial(NamedTuple):
    """One run of a cell."""

    rates: Rates
    seed: int

    @property
    def is_probe(self) -> bool:
        """Whether it is the run of LP at `lr_probe` that the cell's own runs start from."""
        return self.rates.lr_probe is not None and self.rates.lr_backbone is None

    def __str__(self) -> str:
        rates = [f"{name}={rate:g}" for name, rate in self.rates.given().items()]
        return " ".join([*rates, f"seed={self.seed}"])


class Outcome(NamedTuple):
    """How a trial ended."""

    status: Literal["finished", "diverged", "failed"]
    accuracy: float | None = None
    """or mIoU, on the split that is selected on; of a finished trial"""


@dataclass(frozen=True)
class Stage:
    """One rate is swept, the others stay as they are."""

    rate: RateName
    grid: tuple[float, ...]

    def trial(self, rates: Rates, value: float, seed: int) -> Trial:
        """Its run at this value, with the rates of the stages before; of `lr_probe` it is a run of LP."""
        changed = {self.rate: value}
        return Trial(Rates(**changed) if self.is_probe else rates._replace(**changed), seed)

    def candidates(self, rates: Rates) -> set[float]:
        """Its grid; of a head's rate also the value that it starts from, the anchor of its factors."""
        return {*self.grid} if self.rate == "lr_backbone" else {*self.grid, getattr(rates, self.rate)}

    @property
    def is_probe(self) -> bool:
        """Whether it chooses the LP run that the cell's own runs start from."""
        return self.rate == "lr_probe"


@dataclass(frozen=True)
class Protocol:
    """How a cell comes to its learning rates."""

    start: Rates
    """before the first stage; a rate that is swept later stays at its value, its anchor, until then"""
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    """of the chosen rates; the stages run on the lowest"""
    extend: bool = False


class Step(NamedTuple):
    """A stage of a cell, or its seeds, as far as it is known."""

    name: str
    """the rate that it sweeps, or `seeds`"""
    trials: list[Trial]
    """that no earlier step has; none if an earlier step is undecided"""
    size: int
    """of trials, also where they are not known yet"""


@dataclass(frozen=True)
class Standing:
    """Where a cell is in its protocol."""

    status: Status
    """of the choice of rates"""
    steps: list[Step]
    rates: Rates
    """the chosen ones, or the best so far"""
    edges: list[RateName]
    """the rates whose best value is at the edge of its grid"""

    @property
    def trials(self) -> list[Trial]:
        """All that are known, in the order of the protocol."""
        return [trial for step in self.steps for trial in step.trials]


def protocol(sweep: SweepConfig, config: Config) -> Protocol:
    """The protocol of the cell that a configuration is in; raises ConfigError if the sweep has none."""
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
        stages.append(Stage(rate, tuple(grid)))
    return Protocol(start, tuple(stages), tuple(sweep.seeds), sweep.extend)


def stand(protocol: Protocol, outcomes: Mapping[Trial, Outcome]) -> Standing:
    """Where a cell is, given the outcomes so far; trials without one are those to run next.

    A stage is decided when all its trials have ended. Its winner is the finished one with the best
    accuracy on the lowest seed; of equal ones that with the larger rate, which stands first in the
    paper's grids (as in `tables.select`).
    """
    first, rates = min(protocol.seeds), protocol.start
    others = [seed for seed in protocol.seeds if seed != first]
    status: Status = "chosen"
    steps: list[Step] = []
    edges: list[RateName] = []
    ran = False  # the rates so far, on the lowest seed
    for stage in protocol.stages:
        # The stages before have tried what this one sweeps, at the value that it starts from.
        tried = {getattr(rates, stage.rate)} if ran else set()
        ran = ran or not stage.is_probe
        values = sorted(stage.candidates(rates) | tried, reverse=True)
        if status != "chosen":
            size = len(values) - len(tried) if status != "diverged" else 0
            steps.append(Step(stage.rate, [], size))
            continue
        limit = len(values) + protocol.extend * EXTENSIONS
        while True:
            trials = [stage.trial(rates, value, first) for value in values]
            status, best = _decide(trials, outcomes)
            at_edge = best in (trials[0], trials[-1]) and len(values) > 1
            if not at_edge or len(values) >= limit:
                break
            values = _beyond(values, up=best == trials[0])
        new = [t for t, value in zip(trials, values, strict=True) if value not in tried]
        size = len(new) + (len(others) if stage.is_probe and status != "diverged" else 0)
        if best is not None:
            rates = rates._replace(**{stage.rate: getattr(best.rates, stage.rate)})
            if stage.is_probe:  # the cell's runs on other seeds start from LP's on those
                new += [Trial(best.rates, seed) for seed in others]
        steps.append(Step(stage.rate, new, size))
        if at_edge:
            edges.append(stage.rate)
    seeds = others if ran else [first, *others]
    trials = [Trial(rates, seed) for seed in seeds] if status == "chosen" else []
    steps.append(Step("seeds", trials, len(seeds) if status != "diverged" else 0))
    return Standing(status, steps, rates, edges)


def lacking(protocol: Protocol, trials: Collection[Trial], seed: int, chosen: Rates) -> int:
    """How many trials a cell lacks of its protocol: of each stage's grid on this seed, and on other seeds.

    chosen: the rates that its runs select. A stage that runs LP counts for the cell of LP.
    """
    wanted, rates = {Trial(chosen, seed)}, protocol.start
    for stage in protocol.stages:
        if not stage.is_probe:
            wanted |= {stage.trial(rates, value, seed) for value in stage.candidates(rates)}
        rates = rates._replace(**{stage.rate: getattr(chosen, stage.rate)})
    others = {trial.seed for trial in trials if trial.rates == chosen} - {seed}
    return len(wanted - set(trials)) + max(0, len(protocol.seeds) - 1 - len(others))


def _decide(trials: list[Trial], outcomes: Mapping[Trial, Outcome]) -> tuple[Status, Trial | None]:
    """The winner of a stage, whose trials are in falling order of their rates; None if there is none."""
    ended = [outcomes.get(trial) for trial in trials]
    if None in ended:
        return "open", None
    # What failed might have won: choosing among the others would be another protocol.
    if any(outcome.status == "failed" for outcome in ended if outcome):
        return "failed", None
    finished = [trial for trial in trials if outcomes[trial].status == "finished"]
    if not finished:
        return "diverged", None
    return "chosen", max(finished, key=lambda trial: _accuracy(outcomes[trial]))  # the first of equals


def _accuracy(outcome: Outcome) -> float:
    assert outcome.accuracy is not None
    return outcome.accuracy


def _beyond(values: list[float], *, up: bool) -> list[float]:
    """A falling grid with one more value at an end, as its last values there go on: 0.1, 0.3, 1."""
    ordered = values[::-1] if up else values
    before, edge = ordered[-2], ordered[-1]
    # Half-decades alternate between factors of 3 and 10/3: two steps give the pattern, one does not.
    further = before * edge / ordered[-3] if len(ordered) > 2 else edge * edge / before
    return sorted([*values, _round(further)], reverse=True)


def _round(rate: float) -> float:
    """Without the last bits: 0.1 · 3 is 0.3, in a run's identity too."""
    return float(f"{rate:.6g}")
