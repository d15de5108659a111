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
def gc_paused() -> Iterator[None]:
    """In here the garbage collector does not look through what is imported, in vain."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
