"""Fine-tune one network by one method and report ID and OOD accuracy; see --help."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from daft.common.cli import complaint  # noqa: E402
from daft.common.errors import UserError  # noqa: E402
from daft.config.check import (
    for_schema,  # noqa: E402
    validate,  # noqa: E402
)
from daft.sweep.jobs import POINTER  # noqa: E402

DEBUG = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="train")
def train(cfg: DictConfig) -> str:
    """Run what the configuration says; returns the run's directory, for a sweeper."""
    try:
        if "sweep" in cfg:  # the jobs of a staged sweep are told nothing of it
            raise UserError("sweep: needs -m and a protocol: train.py -m sweep=paper method=ft,daft …")
        config = validate(cfg)
        # Seconds of imports: only now that the configuration makes sense.
        from daft import experiment
        from daft.report import tables

        run = experiment.run(config)
    except UserError as error:
        if DEBUG:
            raise
        sys.exit(complaint("train.py", error))  # as SystemExit it passes Hydra without a traceback
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        (Path(job.runtime.output_dir) / POINTER).write_text(str(run.directory.resolve()))
        print(tables.line(run.record, run.fresh), flush=True)
    else:
        note = "" if run.fresh else " (taken from its record)"
        tables.show([run.directory], f"{run.directory}{note}")
    return str(run.directory.resolve())


def main() -> None:
    """Exit code 1 and one line for what the user can mend, 130 when interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us
    # Launchers start interpreters of their own, which must find this code too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Hydra wants -m before the overrides; users put it anywhere.
    sys.argv[1:] = sorted(for_schema(sys.argv[1:]), key=lambda a: a not in ("-m", "--multirun"))
    try:
        train()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this stopped", file=sys.stderr)
        sys.exit(130)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:  # a full disk, say
        if DEBUG:
            raise
        sys.exit(complaint("train.py", error))


if __name__ == "__main__":
    main()
