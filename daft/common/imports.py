"""Libraries that import more than is needed of them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(module: str) -> Iterator[None]:
    """In here an import of this module fails, as where it is not installed; not if it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyrefly: ignore[unsupported-operation]
    try:
        yield
    finally:
        del sys.modules[module]
