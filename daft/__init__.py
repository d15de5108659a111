"""Domain-Aware Fine-Tuning (Ha, Jeong, Lee, AAAI 2024) and the methods it is measured against."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daft.batchnorm import BatchNormShift, convert_batchnorm

__all__ = ["BatchNormShift", "convert_batchnorm"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; help pages and configuration errors must not wait for it.
    if name in __all__:
        from daft import batchnorm

        return getattr(batchnorm, name)
    raise AttributeError(f"module 'daft' has no attribute {name!r}")
