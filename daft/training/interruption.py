"""What ends a process lets it save its state first: Ctrl-C, kill, and a cluster's warning of preemption."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""submitit's warning is USR2."""


class SaveOnSignal:
    """While it is entered, a signal first calls `save`, between steps, and then does what it would have done.

    A second Ctrl-C does not wait for the end of the step.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._in_step = self._saving = False
        self._waiting = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: old for n, old in found.items() if old not in (None, signal.SIG_IGN)}
        for number in self._before:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """What is in here is done as a whole, or was not done for what `save` sees."""
        self._in_step = True
        yield
        self._in_step = False
        if self._waiting:
            self._act()

    def _on_signal(self, number: int, frame: object) -> None:
        first, self._waiting = not self._waiting, number
        waits = first or number != signal.SIGINT
        if not self._saving and not (self._in_step and waits):
            self._act()

    def _act(self) -> None:
        # Workers that read images are forks, and have these handlers too.
        if not self._in_step and os.getpid() == self._process:
            self._saving = True
            self._save()
            self._saving = False
        number, self._waiting = self._waiting, 0  # the last one, where others came meanwhile
        signal.signal(number, self._before[number])
        signal.raise_signal(number)
        signal.signal(number, self._on_signal)  # it was one that is only logged
