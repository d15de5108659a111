"""Weights & Biases as a mirror of the record; whatever goes wrong there, the run goes on."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from daft import progress
from daft.config import Config, plain


class Tracker:
    """One run in W&B, under the run's own id, so that a resumed run continues there too."""

    def __init__(self, config: Config, run_id: str, directory: Path) -> None:
        self._run: Any = None
        if config.wandb.mode != "disabled":
            self._try(lambda: self._start(config, run_id, directory))

    def epoch(self, row: dict[str, float]) -> None:
        """Log the metrics of one epoch."""
        if self._run is not None:
            self._try(lambda: self._run.log(row, step=int(row["epoch"])))

    def finish(self, record: dict[str, Any]) -> None:
        """Log the final metrics and the histograms of feature distortion, and close the run."""
        self._try(lambda: self._finish(record))

    def _start(self, config: Config, run_id: str, directory: Path) -> None:
        import wandb  # takes a second; not needed when disabled

        self._run = wandb.init(
            mode=config.wandb.mode,
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=config.wandb.group,
            name=f"{config.method.name}-s{config.seed}",
            id=run_id,
            resume="allow",
            reinit="create_new",  # a sweep has one run after another in a process
            dir=directory,
            config={k: v for k, v in plain(config).items() if k != "paths"},
            settings=wandb.Settings(silent=True),
        )

    def _finish(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        import wandb

        for split, measures in record["distortion"].items():
            for measure, summary in measures.items():
                if summary["counts"]:
                    histogram = wandb.Histogram(np_histogram=(summary["counts"], summary["edges"]))
                    self._run.log({f"{split}/{measure}_histogram": histogram})
        self._run.summary.update(record["metrics"] | {"status": record["status"]})
        self._run.finish()

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            broken, self._run = self._run, None
            if broken is not None:
                with suppress(Exception):
                    broken.finish(exit_code=1)
            progress.console.print(
                f"[yellow]W&B failed ({type(error).__name__}: {error}); the run goes on without it[/]"
            )
