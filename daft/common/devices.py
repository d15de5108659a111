"""The device that something computes on, and how it is used."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from daft.common.errors import UserError

STEPS_WORTH_TUNING = 5000
"""Training steps that make up for cuDNN's search of the fastest algorithm for each shape of a convolution.

The search is made anew in each process. With it, of six processes on one H100, the first epoch of
EfficientNet-Lite0 on PACS took 37 s and the next ones 1.2 s (results/benchmarks).
"""


def find(name: str | None, key: str) -> torch.device:
    """The device of this name: cpu, cuda, cuda:N; a GPU if there is one for None and `auto`.

    key: what named it, for the UserError that is raised if it is not here.
    """
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, found = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"{key}={name}: {found} CUDA device(s) found; use auto or cpu")
    return device


@contextmanager
def tuned_convolutions(steps: int) -> Iterator[None]:
    """Let cuDNN search in a training of so many steps, if they are worth it or the caller does it anyway.

    Evaluation is outside: another algorithm may win the next search, with other last bits.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or steps >= STEPS_WORTH_TUNING
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
