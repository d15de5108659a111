"""Weights & Biases as a mirror of the record: what a run is there, and how it gets there."""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from daft.common import progress
from daft.config.check import to_dict
from daft.config.schema import Config
from daft.report import paper, tables
from daft.runs import frames

Mode = Literal["online", "offline"]

OWN = ("paths", "wandb", "sweep")
"""Sections of the configuration that are of no interest there."""


def cell(settings: dict[str, Any]) -> str:
    """The cell of a configuration, under which W&B groups its runs."""
    return "-".join([settings["dataset"]["name"], settings["backbone"]["name"], frames.method_of(settings)])


@functools.cache  # they are asked for every record
def _definitions() -> list[paper.PaperTable]:
    return [paper.load(name) for name in paper.names()]


def description(run_id: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What W&B is told of a run before it has results, as arguments of `wandb.init`."""
    given = settings["wandb"].get("group")
    before = "-".join(settings[group]["name"] for group in ("dataset", "backbone"))
    runs = pd.DataFrame([frames.settings(settings)])
    return {
        "id": run_id,
        "project": settings["wandb"]["project"],
        "entity": settings["wandb"]["entity"],
        "name": tables.run_label(settings),
        # Records of before have the default of then.
        "group": cell(settings) if given in (None, before) else given,
        "tags": [table.name for table in _definitions() if table.members(runs).all()],
        "config": {key: value for key, value in settings.items() if key not in OWN},
    }


class Mirror:
    """One run in W&B under the run's own id; goes on after what is there of it already.

    Steps are epochs, each of which is logged at most once and none before those in front of it; a last
    step has the histograms of feature distortion. What fails raises what the client raises.
    """

    def __init__(self, described: dict[str, Any], directory: Path, mode: Mode, **settings: Any) -> None:
        import wandb  # takes a second; not needed when disabled

        self._run: Any = wandb.init(
            **described,
            mode=mode,
            resume="allow",
            reinit="create_new",  # a sweep has one run after another in a process
            dir=directory,
            settings=wandb.Settings(silent=True, **settings),
        )
        self._next = max(1, self._run.starting_step)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the run as failed, unless it is finished."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=1)

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log the metrics of an epoch; if one before it never arrived, `finish` logs both."""
        if row["epoch"] == self._next:
            self._log(row)

    def finish(self, record: dict[str, Any]) -> None:
        """Log what is missing of a record, and close the run as finished."""
        import wandb

        histograms = {
            f"{split}/{measure}_histogram": wandb.Histogram(np_histogram=(found["counts"], found["edges"]))
            for split, measures in record["distortion"].items()
            for measure, found in measures.items()
            if found["counts"]
        }
        rows = [*record["history"], *filter(None, [histograms])]
        for row in rows[self._next - 1 :]:
            self._log(row)
        self._run.summary.update(results(record))
        self._run.finish()
        self._run = None

    def _log(self, row: dict[str, Any]) -> None:
        self._run.log(_known(row), step=self._next, commit=True)
        self._next += 1


def results(record: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run: its last epoch, then what is known of the selected one."""
    last = record["history"][-1] if record["history"] else {}
    times = {f"time/{phase}": seconds for phase, seconds in record["time"].items()}
    outcome = {"status": record["status"], "best_epoch": record["best_epoch"]}
    return _known(last | times | record["metrics"] | outcome)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Without NaN, which a record has as null."""
    return {k: v for k, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


class Tracker:
    """Mirrors a run while it is computed; whatever goes wrong there is said, and the run goes on."""

    def __init__(self, config: Config, run_id: str, directory: Path) -> None:
        self.config, self.run_id, self.directory = config, run_id, directory
        self._mirror: Mirror | None = None

    def __enter__(self) -> "Tracker":
        """Tell W&B of the run, unless it is disabled."""
        mode = self.config.wandb.mode
        if mode != "disabled":
            try:
                described = description(self.run_id, to_dict(self.config))
                self._mirror = Mirror(described, self.directory, mode)
            except Exception as error:
                self._complain(error)
        return self

    def __exit__(self, *_: object) -> None:
        """Close as failed what did not finish."""
        self._try(Mirror.close)

    def log_epoch(self, row: dict[str, float]) -> None:
        """Log the metrics of one epoch."""
        self._try(lambda mirror: mirror.log_epoch(row))

    def finish(self, record: dict[str, Any]) -> None:
        """Log what is not there yet of the record, and close the run."""
        self._try(lambda mirror: mirror.finish(record))
        self._mirror = None

    def _try(self, call: Callable[[Mirror], object]) -> None:
        if self._mirror is None:
            return
        try:
            call(self._mirror)
        except Exception as error:
            broken, self._mirror = self._mirror, None
            with suppress(Exception):
                broken.close()
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        text = f"W&B failed ({type(error).__name__}: {error}); the run goes on without it"
        progress.say(text)
