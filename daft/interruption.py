"""What ends a process lets it save its state first: Ctrl-C, kill, and a cluster's warning of preemption."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""submitit's warning is USR2."""


class SavesFirst:
    """While it is entered, a signal first calls `save`, between steps, and then does what it would have done.

    A second one does not wait for the end of the step.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._in_step, self._waiting = False, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: old for n, old in found.items() if old not in (None, signal.SIG_IGN)}
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is in here is done as a whole, or was not done for what `save` sees."""
        self._in_step = True
        yield
        self._in_step = False
        if self._waiting:
            self._act(self._waiting)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._in_step and not self._waiting:
            self._waiting = number
        else:
            self._act(number)

    def _act(self, number: int) -> None:
        self._waiting = 0
        self._restore()
        # Workers that read images are forks, and have these handlers too.
        if not self._in_step and os.getpid() == self._process:
            self._save()
        signal.raise_signal(number)
        self._install()  # it was one that is only logged

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._on_signal)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
