"""The cells of a sweep and their runs: what is known of them, from records and from jobs.

Imports torch late: Hydra's search for plugins comes by here at every start.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from daft.common.errors import UserError
from daft.config.schema import Config, selected_on
from daft.sweep.protocol import Outcome, Protocol, Standing, Trial, stand

RETRIES = 1
"""Of a run that failed."""

GROUPS = ("dataset", "backbone", "method")


@dataclass
class Run:
    """One run, of one cell or of several."""

    name: str
    overrides: list[str]
    config: Config
    directory: Path | None
    """None where its inputs cannot be seen from here: the job will know"""
    outcome: Outcome | None = None
    attempts: int = 0
    error: str = ""

    @property
    def place(self) -> str:
        """The name of its directory, or else its own."""
        return self.directory.name if self.directory else self.name

    @property
    def is_missing(self) -> bool:
        """Whether it failed for good."""
        return self.outcome is not None and self.outcome.status == "failed"

    def look(self) -> None:
        """Take the outcome from the record, if there is one by now."""
        from daft.runs import records

        if self.directory is None or self.outcome is not None:
            return
        try:
            record = records.read(self.directory)
        except UserError as error:  # not a record: to be mended by hand, never overwritten
            self.outcome, self.error = Outcome("failed"), str(error)
            return
        if record is not None:
            metric = selected_on(self.config.training.selection, self.config.segmentation)
            self.outcome = Outcome(record["status"], record["metrics"].get(metric))

    def is_ready(self) -> bool:
        """Whether to compute it now: it has no record, and no process is at it."""
        from daft.runs import records

        self.look()
        return self.outcome is None and not (self.directory and records.is_claimed(self.directory))

    def failed(self, error: str) -> None:
        """Count an attempt; after the last one that is the outcome."""
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
    runs: dict[Trial, Run] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Dataset, backbone, method."""
        return [getattr(self.config, group).name for group in GROUPS]

    def __str__(self) -> str:
        return " ".join([*self.names, self.setting]).strip()

    def configure(self, trial: Trial) -> Config:
        """The configuration of one of its runs."""
        method = replace(self.config.method, **trial.rates.given())
        if trial.is_probe:
            method = method.probe()
        return replace(self.config, method=method, seed=trial.seed)

    def standing(self) -> Standing:
        """Where it is, by the outcomes so far."""
        ended = {trial: run.outcome for trial, run in self.runs.items() if run.outcome is not None}
        return stand(self.protocol, ended)


def unfinished(cells: Iterable[Cell], standings: Iterable[Standing]) -> list[Run]:
    """The runs without an outcome, each once."""
    runs = [cell.runs[t] for cell, standing in zip(cells, standings, strict=True) for t in standing.trials]
    return list({id(run): run for run in runs if run.outcome is None}.values())


def discard_weights(cells: Iterable[Cell], standings: Iterable[Standing]) -> None:
    """Delete the weights of grid runs that lost, unless another cell chose them or may still do so."""
    from daft.runs import records

    lost: list[Run] = []
    kept: set[int] = set()
    for cell, standing in zip(cells, standings, strict=True):
        for trial in standing.trials:
            run = cell.runs[trial]
            frozen = run.config.method.rates == "frozen"  # LP-FT may start from it
            if standing.status == "chosen" and trial.rates != standing.rates and not frozen:
                lost.append(run)
            else:
                kept.add(id(run))
    try:
        for run in lost:
            if id(run) not in kept and run.directory is not None and run.outcome is not None:
                (run.directory / records.MODEL).unlink(missing_ok=True)
    except OSError as error:  # a folder that can only be read
        print(f"weights that lost stay: {error}")
