"""Progress bars on a terminal; nothing where there is none to draw on."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
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

T = TypeVar("T")
console = Console(stderr=True)


def bar(*extra: str) -> Progress:
    """A progress bar; `extra` are templates of further columns."""
    return _bar(MofNCompleteColumn(), *(TextColumn(column) for column in extra), TimeElapsedColumn())


def transfer() -> Progress:
    """A progress bar that counts bytes, and bytes per second."""
    return _bar(DownloadColumn(), TransferSpeedColumn())


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items, showing how many of `total` are done."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)


def warn_left_out(problem: object) -> None:
    """Say on stderr what is not used, and why."""
    console.print(f"left out: {problem}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
