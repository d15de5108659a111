"""Torch files that hold more than plain tensors, read without running anything that is in them.

Training scripts save their arguments, metrics and whole networks beside the weights. Each object of a class
that is not needed for tensors is replaced by a stand-in, which keeps what was stored in it, and does nothing.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, _utils

ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _utils._rebuild_parameter,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytearray, complex, slice)},
}
"""Names in a pickle that stand for what they say."""

REFUSED = ("os", "posix", "nt", "sys", "subprocess", "commands")
REFUSED += ("builtins.eval", "builtins.exec", "builtins.__import__")
"""Modules and functions that no honest checkpoint names; they would not be run either."""


class Unknown(dict[Any, Any]):
    """An object of some other class: its items if it was a dictionary, and its state."""

    state: Any = None
    dump_patches = False
    """asked by torch of networks that were saved whole before 1.6"""

    def __new__(cls, *_: object, **__: object) -> "Unknown":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Whatever it was made from is forgotten."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # some are keys
        return id(self)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: object) -> "Unknown":  # a method that makes objects
        return Unknown()

    def ignore(self, *_: object) -> None:
        """Elements of what was a list or a set."""

    append = extend = add = ignore


class Array:
    """An array of NumPy."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> "Tensor | Array":
        """A copy; the array itself if it holds no numbers."""
        try:
            _, shape, dtype, is_fortran, values = self.state
            array = np.frombuffer(values, dtype.numpy()).reshape(shape, order="F" if is_fortran else "C")
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError, AttributeError):  # of text or objects, or damaged
            return self


class _DType:
    """A dtype of NumPy."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        _, self.order, *_ = state

    def numpy(self) -> np.dtype[Any]:
        if self.code[:1] not in ("f", "i", "u", "b", "c"):
            raise TypeError(self.code)
        return np.dtype(f"{'>' if self.order == '>' else '<'}{self.code}")


def _bytes(text: str = "", *_: object) -> bytes:
    """Bytes, which protocol 2 holds as text."""
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """The values of a tensor that was pickled without torch.save."""
    return torch.load(io.BytesIO(content), weights_only=True)


def _array(values: bytes, dtype: Any, shape: Any, order: str) -> Array:
    """An array of protocol 5."""
    array = Array()
    array.state = 1, shape, dtype, order == "F", values
    return array


STAND_INS: dict[str, Any] = {
    "torch.storage._load_from_bytes": _storage,
    "_codecs.encode": _bytes,
    "builtins.bytes": _bytes,
    "numpy.dtype": _DType,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
}


class Unpickler(pickle.Unpickler):
    """Builds tensors, plain data and stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if module.split(".")[0] in REFUSED or full in REFUSED:
            raise pickle.UnpicklingError(f"it asks for {full}, which weights do not need")
        if (known := (ALLOWED | STAND_INS).get(full)) is not None:
            # A pickle can set attributes of what it is given: of a function it gets one of its own.
            return partial(known) if isinstance(known, FunctionType) else known
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        return type(name, (Unknown,), {"__module__": module})


def load(file: IO[bytes], **keywords: Any) -> Any:
    """As `pickle.load`; with this and `Unpickler` this module is what torch.load takes as `pickle_module`."""
    return Unpickler(file, **keywords).load()


def entries(value: Any) -> dict[Any, Any] | None:
    """What a part of a checkpoint holds, by name: of a network its state dict; None for what holds nothing.

    Arrays of NumPy are tensors.
    """
    if isinstance(value, Unknown):
        state = value.state if isinstance(value.state, dict) else {}
        found = dict(_tensors(value)) if "_parameters" in state else {**value, **state}
    elif isinstance(value, dict):
        found = value
    else:
        return None
    return {name: part.tensor() if isinstance(part, Array) else part for name, part in found.items()} or None


def kind(value: Any) -> str:
    """The type of a part of a checkpoint; of a stand-in that which it stands for."""
    module = f"{type(value).__module__}." if isinstance(value, Unknown) else ""
    return f"{module}{type(value).__name__}"


def _tensors(module: Unknown, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The state dict of a network that was saved whole."""
    state: dict[str, Any] = {
        "_parameters": {},
        "_buffers": {},
        "_modules": {},
        "_non_persistent_buffers_set": (),
    }
    state |= module.state if isinstance(module.state, dict) else {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state[kind].items():
            if tensor is not None and name not in state["_non_persistent_buffers_set"]:
                yield f"{prefix}{name}", tensor
    for name, child in state["_modules"].items():
        if isinstance(child, Unknown):
            yield from _tensors(child, f"{prefix}{name}.")
