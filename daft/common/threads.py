"""Work that threads share: decoding and resizing images release the interpreter's lock."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from daft.common import progress

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """Processors that this process may use: its affinity and its container's limit count, not the machine."""
    import joblib  # half a second

    return joblib.cpu_count()


def parallel_map(
    work: Callable[[T], R], items: Sequence[T], threads: int | None, description: str, queued: int = 4096
) -> Generator[R, None, None]:
    """`work` of each item, in order, with a progress bar; at most `queued` items are begun ahead of need.

    threads: None for one per processor that this process may use. Closing the generator drops what is not
    begun.
    """
    pool = ThreadPoolExecutor(threads or available_cpus())
    try:
        chunks = (pool.map(work, items[i : i + queued]) for i in range(0, len(items), queued))
        yield from progress.track(chain.from_iterable(chunks), description, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
