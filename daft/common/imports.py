"""Imports that take less time: those of large libraries are most of a short run's."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_blocked(module: str) -> Iterator[None]:
    """In here an import of this module fails, as where it is not installed; not if it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyrefly: ignore[unsupported-operation]
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def gc_paused(*, for_good: bool = False) -> Iterator[None]:
    """In here the garbage collector does not look through what is imported, in vain.

    for_good: it never will, at the end of the process neither, where that takes longest. Not for libraries
        that miss their objects then: triton prints a list of them.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if collected:
            gc.enable()
