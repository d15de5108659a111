"""Claims about imports that are kept out."""

import importlib
import sys

import pytest

from daft.common.imports import absent


def test_an_absent_module_cannot_be_imported_until_the_end_and_one_that_is_there_stays() -> None:
    sys.modules.pop("this", None)  # a module that nobody needs
    for _ in range(2):
        with pytest.raises(ImportError), absent("this"):
            importlib.import_module("this")
    this = importlib.import_module("this")
    with absent("this"):
        assert importlib.import_module("this") is this
    assert sys.modules["this"] is this
