"""How much memory there is, asked before much of it is taken, and what becomes of freed memory."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from daft.common.errors import UserError

GIB = 2**30

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h)."""

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that this process may still take: free on the machine, and within the limits of its containers.

    What the system could free by forgetting copies of files counts as free.
    """
    return max(0, min([_free(), *_within_limits()]))


def require(needed: int, what: str, remedy: str) -> None:
    """Raise UserError, which names `what` and ends in `remedy`, if so many bytes cannot be had."""
    if needed > (there := available()):
        raise UserError(
            f"{what}: {needed / GIB:,.1f} GiB of memory are needed, but {there / GIB:,.1f} are free; {remedy}"
        )


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, or torch's on the CPU or a GPU, which are RuntimeErrors."""
    told = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in told or "can't allocate memory" in told


def keep_freed() -> None:
    """Have glibc keep freed memory for what is allocated next, unless the environment has settings of it.

    By default activations of some megabytes go back to the system and are had from it again, page by zeroed
    page, in every training step, or not, as their order happens to be: of two processes with the same runs
    one was slower by a third (results/README.md). Blocks over 1 GiB, and more than 2 GiB at the end of the
    heap, still go back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is None or chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(TRIM_THRESHOLD, 2 * GIB - 1)
    mallopt(MMAP_THRESHOLD, GIB) or mallopt(MMAP_THRESHOLD, 2**25)  # the most that older ones take


def _free() -> int:
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _within_limits() -> Iterator[int]:
    """What each control group around this process leaves it, of either version."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        own = root / name.lstrip("/")
        for folder in (own, *own.parents):  # in a container its own group is the root
            if (found := _left(folder, *names)) is not None:
                yield found
            if folder == root:
                break


def _left(group: Path, limit: str, usage: str) -> int | None:
    """Bytes below the limit of a group; None if it has none."""
    try:
        most, taken, told = (
            (group / f"memory.{name}").read_text(encoding="ascii").strip() for name in (limit, usage, "stat")
        )
        used = int(taken) - int(dict(line.split() for line in told.splitlines()).get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return int(most) - used if most.isdecimal() else None
