"""Claims about imports that are kept out, and about the garbage collector meanwhile."""

import gc
import importlib
import sys

import pytest

from daft.common.imports import gc_paused, import_blocked


def test_a_blocked_module_cannot_be_imported_until_the_end_and_one_that_is_there_stays() -> None:
    sys.modules.pop("this", None)  # a module that nobody needs
    for _ in range(2):
        with pytest.raises(ImportError), import_blocked("this"):
            importlib.import_module("this")
    this = importlib.import_module("this")
    with import_blocked("this"):
        assert importlib.import_module("this") is this
    assert sys.modules["this"] is this


@pytest.mark.parametrize("collected", [True, False])
def test_the_garbage_collector_is_left_as_it_was_whatever_an_import_does(collected: bool) -> None:
    (gc.enable if collected else gc.disable)()
    try:
        with gc_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == collected
        with pytest.raises(ImportError), gc_paused():
            importlib.import_module("none.such")
        assert gc.isenabled() == collected
    finally:
        gc.enable()
