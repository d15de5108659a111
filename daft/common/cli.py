"""The door that all scripts share: how they read arguments, and how they end when something is wrong."""

import argparse
import codecs
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from daft.common.errors import UserError

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether an error is shown with its traceback."""


SPELLED = {"η": "eta", "θ": "theta", "±": "+-", "×": "x", "…": "...", "≈": "~", "→": "->"}
"""Our signs as a terminal shows them that has no Unicode; others become a question mark."""


def _substitute(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign, "?") for sign in signs), error.end


def show_on_any_terminal() -> None:
    """Let what this process and its children print never fail for a sign that the terminal lacks."""
    codecs.register_error("spelled", _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook put there
            stream.reconfigure(errors="spelled")
    os.environ.setdefault("PYTHONIOENCODING", ":replace")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's `main` and exit with its code.

    What the user can mend, and what the disk refuses, is one line and exit code 1; Ctrl-C is exit code 130.
    """
    show_on_any_terminal()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        if FULL_ERROR:
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)


def add_runs(parser: argparse.ArgumentParser, name: str = "--runs", of: str = "") -> None:
    """Add an argument for a folder of runs, DAFT_RUNS or else `runs` by default."""
    parser.add_argument(
        name,
        nargs=None if name.startswith("-") else "?",
        type=Path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help=f"folder of {of}run directories; default: DAFT_RUNS, or runs",
    )


def names(text: str) -> list[str]:
    """The names in a list with commas, as the type of an argument."""
    return [name.strip() for name in text.split(",") if name.strip()]


def count(text: str) -> int:
    """A whole number from 1, as the type of an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
