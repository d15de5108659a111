"""Progress bars on a terminal; nothing where there is none to draw on."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

T = TypeVar("T")

WIDEST = 1000
"""Columns of a table."""


def terminal(*, stderr: bool = False, width: int | None = None) -> Console:
    """A terminal that shows texts as they are: brackets and colons in a user's names are no markup."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def print_whole(table: Table) -> None:
    """Print a table on stdout as wide as it is: a narrower terminal wraps its lines, and no name is cut."""
    wide = terminal(width=WIDEST)
    whole = Measurement.get(wide, wide.options, table).maximum
    terminal(width=max(console.width, whole)).print(table)


console = terminal(stderr=True)


def bar(*extra: str) -> Progress:
    """A progress bar; `extra` are templates of further columns."""
    columns = (TextColumn(column, markup=False) for column in extra)
    return _bar(MofNCompleteColumn(), *columns, TimeElapsedColumn())


def transfer() -> Progress:
    """A progress bar that counts bytes, and bytes per second."""
    return _bar(DownloadColumn(), TransferSpeedColumn())


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items, showing how many of `total` are done."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)


def say(text: str) -> None:
    """Say on stderr, in one line, what a user should know."""
    console.print(text, style="yellow", soft_wrap=True, highlight=False)


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show on stderr rows of the same keys, numbers flush right; None is a dash."""
    table = Table(title=title, title_justify="left")
    for key, value in rows[0].items():
        table.add_column(key, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(
            *("-" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in row.values())
        )
    console.print(table)


def note(text: str) -> None:
    """Say on stderr, in one line, how work goes."""
    console.print(text, soft_wrap=True, highlight=False)


def warn_left_out(problem: object) -> None:
    """Say on stderr what is not used, and why."""
    say(f"left out: {problem}")


@functools.cache
def say_once(text: str) -> None:
    """Say on stderr what a user should know of the inputs; the same text once a process."""
    say(text)


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
