"""Fine-tune one network by one method and report ID and OOD accuracy; see --help."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from daft.config import SECTIONS, validate  # noqa: E402
from daft.errors import UserError  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="train")
def train(cfg: DictConfig) -> None:
    config = validate(cfg)
    # Seconds of imports: only now that the configuration makes sense.
    from daft import experiment, tables

    run = experiment.run(config)
    job = HydraConfig.get()
    if job.mode and job.mode.name == "MULTIRUN":
        pointer = Path(job.runtime.output_dir) / tables.POINTER
        pointer.write_text(str(run.directory.resolve()))
        print(tables.line(run.record, run.fresh), flush=True)
    else:
        note = "" if run.fresh else " (taken from its record)"
        tables.show([run.directory], f"{run.directory}{note}")


def main() -> int:
    """Exit code 2 and one line for what the user can mend, 130 when interrupted."""
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves errors to us
    sys.argv[1:] = _arranged(sys.argv[1:])
    try:
        train()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


def _arranged(arguments: list[str]) -> list[str]:
    """The command line with -m in front, where Hydra wants it, and keys that our schema will judge.

    Hydra refuses a key that no file mentions; with ++ it passes, and the schema, which knows all
    keys and their types, accepts it or says what is allowed.
    """
    multirun = [a for a in arguments if a in ("-m", "--multirun")]
    rest = [a for a in arguments if a not in multirun]
    return multirun + [f"++{a}" if re.match(rf"({'|'.join(SECTIONS)})\.[^=]*=", a) else a for a in rest]


if __name__ == "__main__":
    sys.exit(main())
