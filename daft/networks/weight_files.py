"""Files of weights: known by what they begin with, not by their names, and read without running anything."""

import os
import pickle
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from daft.common.errors import UserError, first_line, join_first
from daft.networks import pickles, torchscript

START = 4096
"""Bytes that tell what a file is."""

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by its format."""

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Of the environment: torch then refuses every other way to read a file, ours too."""

PACKED = "packed files, not weights: unpack it, and name the file of weights in it"
AGAIN = "copy or fetch it again"

CUT = re.compile(
    "truncated|incomplete|ran out of|unexpected EOF|header too small|invalid header length|central directory",
    re.IGNORECASE,
)
"""What libraries say of a file that is cut short."""

KINDS = {
    rb"version https://git-lfs": "a pointer of Git LFS, not the weights: run `git lfs pull` where it is from",
    rb"(\xef\xbb\xbf)?\s*<": "a web page{title}, not the weights: fetch the file itself",
    rb"\s*[\[{]": "text in JSON, not weights; if it is the index of several files, save them as one",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd": PACKED,
    rb"PK\x03\x04": f"a zip, as torch.save writes, that is cut short: {AGAIN}",
    rb"\x89HDF": "an HDF5 file, as of Keras: save its weights as safetensors",
    rb"\x93NUMPY": "an array of NumPy: save the weights by their names, as safetensors",
}
"""What else a file is, by a regular expression for its first bytes."""


def read(file: Path) -> Any:
    """What a safetensors file, a torch file or a TorchScript archive holds, with tensors on the CPU.

    Raises UserError, which says what the file is and what to do, if it is none of them or damaged.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(START)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if not start.strip(b"\0"):
        raise UserError(f"{file} {'begins with nothing but zeros' if start else 'is empty'}: {AGAIN}")
    try:
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:
            return safetensors.torch.load_file(file)
        if tarfile.is_tarfile(file):
            raise UserError(f"{file} is {PACKED}")
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        if start.startswith(b"\x80"):
            return _read_pickles(file)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # what a damaged file raises can be anything
        raise UserError(f"{file} does not load ({reason(error)}); {AGAIN}") from error
    raise UserError(f"{file} is {_kind(start)}")


def _read_zip(file: Path) -> Any:
    if torchscript.is_archive(file):
        return torchscript.read_state_dict(file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{file} is {PACKED} (there is {join_first(names, 3)})")
    return _read_torch(file)


def _read_pickles(file: Path) -> Any:
    """A torch file from before 1.6, or what a pickle alone holds."""
    with open(file, "rb") as opened:
        first = pickles.load(opened)
    return _read_torch(file) if first == torch.serialization.MAGIC_NUMBER else first


def _read_torch(file: Path) -> Any:
    # As an open file: of a path torch would believe the suffix.
    with open(file, "rb") as opened, warnings.catch_warnings(action="ignore"):
        try:
            return torch.load(opened, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # raised by the pickle alone: it is neither TorchScript nor a tar
            if os.environ.get(FORCED, "").lower() in ("1", "y", "yes", "true"):  # torch's own words for it
                raise UserError(
                    f"{file} holds more than tensors by their names, and {FORCED}={os.environ[FORCED]} lets "
                    "torch read nothing else; unset it (no code of the file is run without it, either), or "
                    "save the state dict alone"
                ) from None
            opened.seek(0)
            return torch.load(opened, map_location="cpu", weights_only=False, pickle_module=pickles)


def reason(error: Exception) -> str:
    """What a library raised for a damaged file, in a few words."""
    text = first_line(error).split(". ")[0]
    return "it is cut short" if isinstance(error, EOFError) or CUT.search(text) else text


def _kind(start: bytes) -> str:
    for pattern, kind in KINDS.items():
        if re.match(pattern, start, re.DOTALL):
            title = re.search(rb"<title>\s*(.*?)\s*</title>", start, re.DOTALL | re.IGNORECASE)
            return kind.format(title=f" ({title[1].decode(errors='replace')!r})" if title else "")
    return (
        f"no file of weights, it begins with {start[:12]!r}: "
        "expected safetensors, a torch file, or a TorchScript archive"
    )
