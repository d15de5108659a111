"""Fine-tune one network by one method and report ID and OOD accuracy; see --help."""

import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from _door import cli

from daft.common.cli import FULL_ERROR  # as it is here: main changes what workers would read
from daft.config import options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from daft.runs.preview import Preview


DIVERGED = 3
"""Exit code of a single run that has diverged."""


def train(cfg: "DictConfig") -> str:
    """Run what the configuration says; returns the run's directory, for a sweeper."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from daft.config.check import validate
    from daft.sweep.jobs import POINTER, isolated, leave_out

    job = HydraConfig.get()
    os.chdir(job.runtime.cwd)  # with hydra.job.chdir too: paths are those of whoever gave the command
    if "sweep" in cfg:  # the jobs of a staged sweep are told nothing of it
        sys.exit("train.py: sweep: needs -m and a protocol: train.py -m sweep=paper method=ft,daft …")
    try:
        config = validate(cfg)
        # Seconds of imports: only now that the configuration makes sense, and most of them to compute a run.
        from daft.common.imports import gc_paused, import_blocked

        with gc_paused():
            from daft.common import progress
            from daft.report import tables
            from daft.runs import lookup

        single = job.mode != RunMode.MULTIRUN
        known, run = lookup.finished(config)
        if run is None:
            mirrored = config.wandb.mode != "disabled"
            # timm takes W&B along where it is installed, in each process of a sweep.
            with gc_paused(), nullcontext() if mirrored else import_blocked("wandb"):
                from daft import experiment
            track: experiment.Track = experiment.untracked
            if mirrored:
                from daft.tracking.mirror import Tracker

                track = Tracker
            told = partial(tell, sweep=None if single else Path(job.sweep.dir))
            run = experiment.run(config, track, told, known)
    except Exception as error:
        line = cli.mistake(error)
        if FULL_ERROR or line is None:
            raise
        if job.mode == RunMode.MULTIRUN and not isolated.get():
            return leave_out(Path(job.sweep.dir, str(job.job.num)), " ".join(job.overrides.task), line)
        sys.exit(f"train.py: {line}")  # as SystemExit it passes Hydra without a traceback
    if not single:
        pointer = Path(job.sweep.dir, str(job.job.num), POINTER)  # whatever hydra.sweep.subdir is
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.write_text(str(run.directory.resolve()), encoding="utf-8")
        print(tables.format_run(run.record, run.fresh), flush=True)
    else:
        note = "" if run.fresh else " (taken from its record)"
        tables.show([run.directory], f"{run.directory}{note}")
        if by_class := tables.class_table(run.record):
            progress.print_whole(by_class)
        for warning in filter(None, (tables.rate_warning(run.record), tables.divergence(run.record))):
            progress.say(warning)
        if run.record["status"] == "diverged":
            sys.exit(DIVERGED)  # as SystemExit it passes Hydra
    return str(run.directory.resolve())


def tell(found: "Preview", sweep: Path | None) -> None:
    """Say what was found; in a sweep once for all runs on the same images, in whichever process they are."""
    from daft.common import files, progress

    lines = found.of_sweep if sweep else found.of_run
    if sweep:
        try:
            sweep.mkdir(parents=True, exist_ok=True)
            (sweep / f"found-{files.digest(lines)}.txt").touch(exist_ok=False)
        except FileExistsError:
            return
    for line in lines:
        progress.note(line)


def main() -> None:
    """Show the help page, or let Hydra compose the configuration and run it."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(options.help_page())
        return
    import hydra
    from hydra._internal.utils import get_args_parser

    from daft.config.compose import hydra_errors
    from daft.config.overrides import arrange

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us
    words, sys.argv[1:] = sys.argv[1:], arrange(sys.argv[1:])
    parser = get_args_parser()
    parser.error = partial(cli.refuse_argument, parser)
    parser.parse_args()
    with hydra_errors(words):
        hydra.main(version_base="1.3", config_path=str(options.CONF), config_name="train")(train)()


if __name__ == "__main__":
    cli.run(main)
