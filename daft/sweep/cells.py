"""The cells of a sweep and their runs: what records and jobs tell of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from daft.common.errors import UserError
from daft.config.schema import Config, SweepConfig, selected_on
from daft.runs import records
from daft.sweep.protocol import CellState, Outcome, Protocol, StageTrials, Trial, cell_state, protocol

RETRIES = 1
"""Of a run that failed."""


@dataclass(eq=False)
class SweepRun:
    """One run of a sweep, which several cells may share."""

    name: str
    overrides: list[str]
    config: Config
    directory: Path | None
    """None where its inputs cannot be seen from here: its job will know"""
    outcome: Outcome | None = None
    attempts: int = 0
    error: str = ""

    @property
    def directory_name(self) -> str:
        """The name of its directory or, while that is unknown, of the run."""
        return self.directory.name if self.directory else self.name

    @property
    def has_failed(self) -> bool:
        """Whether it failed for good."""
        return self.outcome is not None and self.outcome.status == "failed"

    def read_outcome(self) -> None:
        """Take the outcome from the record, if there is one by now."""
        if self.directory is None or self.outcome is not None:
            return
        try:
            record = records.read(self.directory)
        except UserError as error:  # a damaged record is mended by hand, never overwritten
            self.outcome, self.error = Outcome("failed"), str(error)
            return
        if record is not None:
            metric = selected_on(self.config.training.selection, self.config.segmentation)
            self.outcome = Outcome(record["status"], record["metrics"].get(metric))

    def is_ready(self) -> bool:
        """Whether to compute it now: it has no outcome, and no process computes it."""
        self.read_outcome()
        return self.outcome is None and not (self.directory and records.is_locked(self.directory))

    def count_failure(self, error: str) -> None:
        """Count a failed attempt; the last one is the outcome."""
        self.attempts, self.error = self.attempts + 1, error
        if self.attempts > RETRIES:
            self.outcome = Outcome("failed")


@dataclass
class Cell:
    """One method on one dataset with one backbone."""

    overrides: list[str]
    setting: str
    """what else is swept on the command line"""
    config: Config
    protocol: Protocol
    runs: dict[Trial, SweepRun] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Dataset, backbone, method with its parts."""
        return [self.config.dataset.name, self.config.backbone.name, self.config.method.short_name]

    def __str__(self) -> str:
        return " ".join([*self.names, self.setting]).strip()

    def configure(self, trial: Trial) -> Config:
        """The configuration of one of its trials."""
        method = replace(self.config.method, **trial.rates.given())
        if trial.is_probe:
            method = method.linear_probe()
        return replace(self.config, method=method, seed=trial.seed)

    def state(self) -> CellState:
        """How far it is in its protocol, by the outcomes so far."""
        ended = {trial: run.outcome for trial, run in self.runs.items() if run.outcome is not None}
        return cell_state(self.protocol, ended)


def product(
    axes: Iterable[Sequence[tuple[str, str]]], options: SweepConfig, compose: Callable[[list[str]], Config]
) -> list[Cell]:
    """A cell for each combination of overrides; raises UserError for a rate that the sweep itself sets.

    axes: for each key of the command line its overrides, each with what tables add to the cell's name.
    """
    cells = []
    for choice in itertools.product(*axes):
        overrides = [override for override, _ in choice]
        config = compose(overrides)
        setting = " ".join(label for _, label in choice if label)
        cells.append(Cell(overrides, setting, config, protocol(options, config)))
        name, stages = config.method.name, options.stages[config.method.name]
        instead = {
            "lr_backbone": f"say what it takes by sweep.grids.{name}=[0.1,0.01]",
            "lr_probe": f"to set it yourself, say sweep.stages.{name}=[{','.join(stages[1:])}]",
        }
        for rate in instead.keys() & stages:
            if any(f"method.{rate}=" in override for override in overrides):
                raise UserError(f"method.{rate}: a staged sweep sets it; {instead[rate]}")
    return cells


class StageRuns(NamedTuple):
    """The runs of a stage that no earlier cell or stage has."""

    cell: Cell
    stage: StageTrials
    new: list[SweepRun]
    size: int
    """how many they are, also while they are not known"""


def stage_runs(cells: Iterable[Cell], states: Iterable[CellState]) -> Iterator[StageRuns]:
    """Each stage of each cell; a run that several share is one of the first."""
    seen: set[SweepRun] = set()
    for cell, state in zip(cells, states, strict=True):
        shared = False  # with another cell, and so are the stages after it that are not known yet
        for stage in state.stages:
            runs = [cell.runs[trial] for trial in stage.trials]
            new = [run for run in dict.fromkeys(runs) if run not in seen]
            seen |= {*runs}
            shared = not new if runs else shared
            yield StageRuns(cell, stage, new, len(new) + (0 if shared else stage.size - len(runs)))
            shared = shared and stage.name != "lr_probe"


def growing(cells: Iterable[Cell], states: Iterable[CellState]) -> int:
    """Grids to which `sweep.extend` may still add values: those of stages that are not decided."""
    return sum(
        stage.size > len(stage.trials) or any(cell.runs[trial].outcome is None for trial in stage.trials)
        for cell, state in zip(cells, states, strict=True)
        for stage in state.stages
        if cell.protocol.extend and state.status == "open" and stage.name != "seeds"
    )


def unfinished(cells: Iterable[Cell], states: Iterable[CellState]) -> list[SweepRun]:
    """The runs without an outcome, each once."""
    runs = [cell.runs[trial] for cell, state in zip(cells, states, strict=True) for trial in state.trials]
    return [run for run in dict.fromkeys(runs) if run.outcome is None]


def delete_unselected_weights(cells: Iterable[Cell], states: Iterable[CellState]) -> None:
    """Delete the weights of grid runs that lost, unless another cell chose them or may still do so."""
    lost: set[SweepRun] = set()
    kept: set[SweepRun] = set()
    for cell, state in zip(cells, states, strict=True):
        for trial in state.trials:
            run = cell.runs[trial]
            frozen = run.config.method.rates == "frozen"  # LP-FT may start from it
            is_lost = state.status == "chosen" and trial.rates != state.rates and not frozen
            (lost if is_lost else kept).add(run)
    try:
        for run in lost - kept:
            if run.directory is not None and run.outcome is not None:
                (run.directory / records.MODEL).unlink(missing_ok=True)
    except OSError as error:  # a read-only folder
        print(f"weights that lost stay: {error}")
