"""Waiting for what must come, however slow the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HANG_SECONDS = 900.0
"""After this, on any machine, what is waited for does not come any more."""


def wait_until(condition: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
    """The condition's first true value; `meanwhile` is called before each look and may raise."""
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        meanwhile()
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"it has not come for {HANG_SECONDS:.0f} s"
        time.sleep(0.01)
