"""The door that all scripts share: how they read arguments, and how they end when something is wrong."""

import argparse
import atexit
import codecs
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from daft.common import names as wandb_names
from daft.common.errors import UserError, first_line
from daft.common.memory import is_lack_of_memory

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether an error is shown with its traceback."""


LARGEST = 2**31
"""Above whole numbers that are given: seeds, images, epochs."""

SPELLED = {
    "η": "eta",
    "θ": "theta",
    "±": "+-",
    "×": "x",
    "…": "...",
    "≈": "~",
    "→": "->",
    "−": "-",
    "√": "sqrt ",
    "·": "*",
}
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


def show_warnings_in_a_line() -> None:
    """Let a warning of a library be one line that names the library, without its file and code."""
    if FULL_ERROR:
        return

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        parts = Path(filename).parts
        known = parts[parts.index("site-packages") + 1] if "site-packages" in parts else Path(filename).stem
        print(f"{known.removesuffix('.py')}: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show


_exit_code: int | None = None
"""Of the script that has ended."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's `main` and exit with its code.

    What the user can mend, and what the disk refuses, is one line and exit code 1; Ctrl-C and kill are exit
    code 130.
    """
    global _exit_code
    show_on_any_terminal()
    show_warnings_in_a_line()
    try:
        _exit_with(main)
    except SystemExit as ended:
        if isinstance(ended.code, int | str | None):
            _exit_code = 1 if isinstance(ended.code, str) else ended.code or 0
        raise


def leave_at_the_end() -> None:
    """Let this process, a script's, end without Python taking torch apart, for up to two seconds.

    All else happens as ever, but for files that nobody closed. To be called before anything registers with
    `atexit`; does nothing after that.
    """
    if atexit._ncallbacks() == 0 and not sys.flags.inspect:
        atexit.register(_leave)  # the first entry is called last


def _leave() -> None:
    if _exit_code is not None:
        with suppress(OSError, ValueError):  # a pipe that nobody reads: Python says so
            for stream in (sys.stdout, sys.stderr):
                print(end="", file=stream, flush=True)
            os._exit(_exit_code)


def _exit_with(main: Callable[[], int | None]) -> NoReturn:
    try:
        with _kill_as_ctrl_c():  # else the processes of a sweep would go on without it
            sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = mistake(error)
        if FULL_ERROR or line is None:
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: {line}")


@contextmanager
def _kill_as_ctrl_c() -> Iterator[None]:
    """In here SIGTERM raises KeyboardInterrupt, unless it has another handler."""
    free = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if free:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def mistake(error: Exception) -> str | None:
    """What to tell of an error that the user can mend, or of a lack of disk or memory; None for a bug."""
    if is_lack_of_memory(error):
        return f"out of memory ({first_line(error)}); smaller images or batches take less"
    return str(error) if isinstance(error, UserError | OSError) else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse_argument(self, message)


def refuse_argument(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Say in one line what is wrong with the arguments, and exit with code 2."""
    parser.exit(2, f"{parser.prog}: {message}; see --help\n")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser that shows a script's docstring as it is written, and errors in one line."""
    return _Parser(description=doc, formatter_class=argparse.RawTextHelpFormatter)


def add_runs(parser: argparse.ArgumentParser, name: str = "--runs", of: str = "") -> None:
    """Add an argument for a folder of runs, DAFT_RUNS or else `runs` by default."""
    parser.add_argument(
        name,
        nargs=None if name.startswith("-") else "?",
        type=path,
        default=os.environ.get("DAFT_RUNS", "runs"),
        help=f"folder of {of}run directories; default: DAFT_RUNS, or runs",
    )


def path(text: str) -> Path:
    """A file or a folder, as the type of an argument."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path must not be empty")
    return Path(text).expanduser()


def require_out(out: Path, *suffixes: str) -> None:
    """Raise UserError unless `--out` can be written: a file with such a suffix; without any, a folder."""
    folder = out
    if suffixes:
        if out.suffix[1:] not in suffixes:
            raise UserError(f"--out {out}: name a file that ends in {' or '.join(f'.{s}' for s in suffixes)}")
        if out.exists() and not out.is_file():
            kind = "a folder" if out.is_dir() else "a device or a pipe"
            raise UserError(f"--out {out}: there is {kind} of that name; name another file")
        folder = out.parent
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {there} cannot be written")


def project(text: str) -> str:
    """The name of a project of W&B, as the type of an argument."""
    return _as_argument(wandb_names.project, text)


def entity(text: str) -> str:
    """The name of an account or a team of W&B, as the type of an argument."""
    return _as_argument(wandb_names.entity, text)


def _as_argument(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def names(text: str) -> list[str]:
    """The names in a list with commas, as the type of an argument."""
    if not (found := [name.strip() for name in text.split(",") if name.strip()]):
        raise argparse.ArgumentTypeError(f"{text!r} has no name; write one or more, separated by commas")
    return found


def text(text: str) -> str:
    """Something that is not empty, as the type of an argument."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def condition(text: str) -> str:
    """`key=value`, as the type of an argument."""
    key, sign, value = text.partition("=")
    if not (key.strip() and sign and value.strip()):
        raise argparse.ArgumentTypeError(f"{text!r}: write key=value, as in dataset=pets")
    return text


def up_to(most: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from 1."""

    def read(text: str) -> int:
        if not _is_whole(text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
        return int(text)

    return read


count, cores = up_to(LARGEST - 1), up_to(1024)


def counts(text: str) -> tuple[int, ...]:
    """Different whole numbers from 1 in a list with commas, as the type of an argument."""
    return tuple(dict.fromkeys(map(count, names(text))))


def seed(text: str) -> int:
    """One seed, as the type of an argument."""
    if len(found := seeds(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: one seed")
    return found[0]


def device(text: str) -> str:
    """A device, as the type of an argument; whether it is here is another question."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; write cpu, cuda or cuda:N")
    return text


def seeds(text: str) -> list[int]:
    """Different seeds in a list with commas, as the type of an argument."""
    if wrong := [name for name in names(text) if not _is_whole(name)]:
        raise argparse.ArgumentTypeError(
            f"{wrong[0]!r} is no seed; write whole numbers below {LARGEST}, as in 0,1,2"
        )
    return list(dict.fromkeys(map(int, names(text))))


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < len(str(LARGEST)) + 1 and int(text) < LARGEST
