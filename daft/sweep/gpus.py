"""Gives each process of a machine a GPU of its own, as long as there are enough."""

import itertools
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

VISIBLE = "CUDA_VISIBLE_DEVICES"

_held: list[FileLock] = []  # until the process ends


def claim_gpu(devices: list[str], folder: Path | None = None) -> str:
    """The one of `devices` that this process uses until it ends.

    Each process takes the lowest number that no living one holds, and numbers go round the devices. The
    number of a job would not do: a process does many jobs, but sees the GPU of its first one for good.
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


def pin_process() -> None:
    """Let this process see one of several GPUs; only the first call has an effect."""
    import torch

    if torch.cuda.is_initialized() or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get(VISIBLE)
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ[VISIBLE] = claim_gpu(devices)
