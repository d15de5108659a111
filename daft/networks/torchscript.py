"""Tensors of a TorchScript archive, read without compiling or running anything that is in it.

The archive is a zip: `<name>/data.pkl` is a pickle of the tree of modules, and `<name>/data/` holds
one file of raw values per storage. What the modules do (`<name>/code/`) is never opened.
"""

import io
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daft.common.errors import UserError, first_line


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive; torch.save, which writes zips too, has no constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors that the archive's modules hold, by dotted name, as stored, on the CPU.

    Raises UserError if the file is no TorchScript archive, is damaged, or asks for any function or
    class that a tree of modules and tensors does not need; nothing of that kind is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            (tree,) = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            folder = tree.removesuffix("/data.pkl")
            # Archives from before torch 2.1 do not say; those machines were little-endian.
            marked = f"{folder}/byteorder"
            order = archive.read(marked).decode() if marked in names else "little"
            if order != sys.byteorder:
                raise pickle.UnpicklingError(f"its byte order is {order}, this machine's {sys.byteorder}")
            root = _Reader(archive, folder).load()
            if not isinstance(root, _Module):
                raise pickle.UnpicklingError(f"it holds no module but {type(root).__name__}")
            return dict(_tensors(root))
    except Exception as error:  # what a damaged pickle raises can be anything
        raise UserError(f"{path} cannot be read as a TorchScript archive: {first_line(error)}") from error


class _Module:
    """What a scripted module holds, by name, and nothing of what it does."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


def _tensors(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, held in module.attributes.items():
        if isinstance(held, Tensor):
            yield prefix + name, held
        elif isinstance(held, _Module):
            yield from _tensors(held, f"{prefix}{name}.")


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """A view of a storage [numel]; torch raises RuntimeError for one that leaves it."""
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: object) -> Any:
    """A typed list or dictionary without its type."""
    return value


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": dict,  # a tensor's backward hooks: always empty
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.jit._pickle.restore_type_tag": _first,
    **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("int", "double", "bool", "tensor")},
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
"""Names in the pickle, and what stands for each of them here."""


class _Reader(pickle.Unpickler):
    """Builds the tree of modules from names in ALLOWED and the archive's storages alone."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (full := f"{module}.{name}") not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full}, which tensors do not need")
        return ALLOWED[full]

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, numel = pid
        values = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
        if len(values) != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} bytes for {numel} of {dtype}")
        return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
