"""Each process of a machine to a GPU of its own, as long as there are enough."""

import itertools
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_held: list[FileLock] = []  # until the process ends


def pin(devices: list[str], folder: Path | None = None) -> str:
    """The one of `devices` that this process keeps to until it ends.

    Processes take numbers, the lowest that no living one holds, and go round the devices by them: a job's
    number would not do, as a process does many jobs but sees the GPU of its first one for good.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"daft-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for number in itertools.count():
        lock = FileLock(folder / f"{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _held.append(lock)
        return devices[number % len(devices)]
    raise AssertionError
