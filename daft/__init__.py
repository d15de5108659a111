"""Domain-Aware Fine-Tuning (Ha, Jeong, Lee, AAAI 2024) and the methods it is measured against."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daft.batchnorm import BatchNormShift, convert_batchnorm
    from daft.use.loaded import best_run, load_run

__all__ = ["BatchNormShift", "best_run", "convert_batchnorm", "load_run"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; help pages and configuration errors must not wait for it.
    if name in __all__:
        return getattr(import_module("daft.use.loaded" if name.endswith("_run") else "daft.batchnorm"), name)
    raise AttributeError(f"module 'daft' has no attribute {name!r}")
