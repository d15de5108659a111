"""What every script imports first: the door they share, or one line if `daft` is not this repository's."""

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["cli"]

SCRIPT = Path(sys.argv[0]).name
SCRIPTS = Path(__file__).resolve().parent
HERE = SCRIPTS.parent / "daft"
REMEDY = "use the environment that `make setup` makes (.venv/bin/python), or `pip install -e .` in this one"

if (found := find_spec("daft")) is None:
    sys.exit(f"{SCRIPT}: daft is not installed: {REMEDY}")
folders = list(found.submodule_search_locations or ())
if [Path(folder).resolve() for folder in folders] != [HERE]:
    there = found.origin or ", ".join(folders)
    sys.exit(f"{SCRIPT}: `import daft` finds {there}, not {HERE}: remove what is there, and {REMEDY}")
try:
    from daft.common import cli
except ImportError as error:  # another package's files lie over ours, or a library is missing
    sys.exit(f"{SCRIPT}: {error}; {REMEDY}")

if sys.argv[0] in sys.orig_argv and Path(sys.argv[0]).resolve().parent == SCRIPTS:
    cli.leave_at_the_end()  # not of a program that runs a script within its own process
