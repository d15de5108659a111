"""CIFAR-10, CIFAR-10-C, CIFAR-10.1 and STL-10 as published, with CIFAR-10's labels."""

import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import Labelled
from daft.data.tables import read_text

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In label order (modestyachts/CIFAR-10.1, code/utils.py)."""

STL_CLASSES = {
    "airplane": "airplane",
    "bird": "bird",
    "car": "automobile",
    "cat": "cat",
    "deer": "deer",
    "dog": "dog",
    "horse": "horse",
    "monkey": None,
    "ship": "ship",
    "truck": "truck",
}
"""In label order, which counts from 1 (class_names.txt of STL-10), and what CIFAR-10 calls them."""


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` makes of the bytes in a pickle of protocol 2, and nothing else of what it can."""
    if encoding != "latin1":
        raise UserError(f"would encode text as {encoding}, which no batch of CIFAR-10 needs")
    return text.encode("latin1")


_ARRAY = np.zeros(1)
NEEDED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")  # of NumPy 1 and 2
        for module, name, function in (
            ("multiarray", "_reconstruct", _ARRAY.__reduce__()[0]),
            ("multiarray", "scalar", _ARRAY[0].__reduce__()[0]),
            ("numeric", "_frombuffer", _ARRAY.__reduce_ex__(5)[0]),
        )
    },
}
"""All that the pickled batches of CIFAR-10 call, as published or pickled anew by a later Python."""

CORRUPTED = "cifar10-c/"
"""Before the name of a corruption: the path of a split of CIFAR-10-C, its five severities together."""

HASH_STRIDE = 100
"""Of the images of a corruption, every so many go into its fingerprint."""

Pixels = tuple[np.ndarray, np.ndarray]


def classes(cfg: DatasetConfig) -> list[str]:
    """CIFAR-10's, in label order; raises UserError if others are configured."""
    if cfg.classes not in (None, [*CLASSES]):
        raise UserError(f"dataset.classes: {cfg.classes}, but they are CIFAR-10's; use null")
    return [*CLASSES]


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path one of SPLITS, or `cifar10-c/<corruption>`; raises UserError for files not as published."""
    read, root = SPLITS.get(split.path), Path(cfg.root).expanduser()
    if split.path.startswith(CORRUPTED):
        read = partial(_every_severity, corruption=split.path.removeprefix(CORRUPTED))
    if read is None:
        known = ", ".join([*SPLITS, f"{CORRUPTED}<corruption>"])
        raise UserError(f"dataset.{name}.path: no split {split.path!r}; choose from {known}")
    images, labels = read(root)
    if not len(images):
        raise UserError(f"{cfg.root} holds no image of {split.path}")
    return Labelled.of_pixels(images, labels)


def _cifar10(root: Path, batches: list[str]) -> Pixels:
    folder = root / "cifar-10-batches-py"
    images, labels = zip(*(_batch(folder / batch) for batch in batches), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _batch(file: Path) -> Pixels:
    with _opened(file) as opened:
        try:
            batch = _Unpickler(opened, encoding="latin1").load()
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
            images, labels = batch["data"], np.asarray(batch["labels"])
        except UserError as error:
            raise UserError(f"{file} {error}; it is not opened") from None
        except Exception as error:  # pickle raises many kinds for damaged files
            raise UserError(f"{file} is no batch of CIFAR-10, or damaged ({error})") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise UserError(f"{file}: data is {_described(images)}, not uint8 of shape (N, 3072)")
    return images.reshape(-1, 3, 32, 32), _labels(file, labels, len(images), range(10))


class _Unpickler(pickle.Unpickler):
    """Reads what Python and NumPy wrote, and runs nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in NEEDED:
            raise UserError(f"would run {module_name}.{global_name}, which no batch of CIFAR-10 needs")
        return NEEDED[module_name, global_name]


def _cifar10_1(root: Path, version: str) -> Pixels:
    file = root / f"cifar10.1_{version}_data.npy"
    images = _array(file)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise UserError(f"{file} holds {_described(images)}, not uint8 of shape (N, 32, 32, 3)")
    file = root / f"cifar10.1_{version}_labels.npy"
    return images.transpose(0, 3, 1, 2), _labels(file, _array(file), len(images), range(10))


def _array(file: Path, mapped: bool = False) -> np.ndarray:
    with _opened(file) as opened:
        try:
            if mapped:
                return np.lib.format.open_memmap(file, mode="r")
            return np.lib.format.read_array(opened, allow_pickle=False)
        except Exception as error:  # a cut file, pickled objects, or no array at all
            raise UserError(f"{file} is no NumPy array, or damaged ({error})") from error


def corrupted(root: Path, corruption: str) -> Pixels:
    """Images uint8 [5, N, 32, 32, 3] by severity, mapped from disk, and int64 labels [N] of CIFAR-10-C.

    Raises UserError for files that are absent or not as published.
    """
    folder = root / "CIFAR-10-C"
    file = folder / f"{corruption}.npy"
    images = _array(file, mapped=True)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images) or len(images) % 5:
        raise UserError(f"{file} holds {_described(images)}, not uint8 of shape (5 N, 32, 32, 3)")
    file = folder / "labels.npy"
    labels = _labels(file, _array(file), len(images), range(10)).reshape(5, -1)
    if (labels != labels[0]).any():
        raise UserError(f"{file}: the labels of the five severities differ; fetch it again")
    return images.reshape(5, -1, 32, 32, 3), labels[0]


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Of what `corrupted` gives: shape, labels, and the pixels of some images, evenly spaced."""
    known = hashlib.sha256(str(images.shape).encode() + labels.tobytes())
    known.update(np.ascontiguousarray(images[:, ::HASH_STRIDE]).data)
    return known.hexdigest()


def _every_severity(root: Path, corruption: str) -> Pixels:
    images, labels = corrupted(root, corruption)
    return images.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2), np.tile(labels, 5)


def _stl10(root: Path, part: str) -> Pixels:
    folder = root / "stl10_binary"
    named = folder / "class_names.txt"
    if named.is_file() and (names := read_text(named).split()) != [*STL_CLASSES]:
        raise UserError(f"{named} names {', '.join(names)}; expected {', '.join(STL_CLASSES)}")
    file = folder / f"{part}_X.bin"
    with _opened(file) as opened:
        images = np.frombuffer(opened.read(), np.uint8)
    if len(images) % (3 * 96 * 96):
        raise UserError(f"{file}: {len(images)} bytes, no multiple of 3 x 96 x 96; fetch it again")
    images = images.reshape(-1, 3, 96, 96).swapaxes(2, 3)  # published column by column
    file = folder / f"{part}_y.bin"
    with _opened(file) as opened:
        found = np.frombuffer(opened.read(), np.uint8)
    stl_labels = _labels(file, found, len(images), range(1, 11))
    numbers = [-1 if ours is None else CLASSES.index(ours) for ours in STL_CLASSES.values()]
    labels = np.array(numbers)[stl_labels - 1]
    return images[labels >= 0], labels[labels >= 0]


def _labels(file: Path, labels: np.ndarray, images: int, allowed: range) -> np.ndarray:
    """int64 [images]; raises UserError if they are not that many whole numbers of the range."""
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{file}: labels are {_described(labels)}, not {images} whole numbers, one per image")
    if wrong := sorted(set(labels.tolist()) - set(allowed)):
        raise UserError(f"{file}: label {wrong[0]} is out of range; labels are {allowed[0]} to {allowed[-1]}")
    return labels.astype(np.int64)


def _described(value: Any) -> str:
    is_array = isinstance(value, np.ndarray)
    return f"{value.dtype} of shape {value.shape}" if is_array else f"a {type(value).__name__}"


def _opened(file: Path) -> IO[bytes]:
    if not file.is_file():  # a pipe would never end
        raise UserError(f"{file} is no file" if file.exists() else f"{file} does not exist")
    return file.open("rb")


SPLITS: dict[str, Callable[[Path], Pixels]] = {
    "cifar10/train": partial(_cifar10, batches=[f"data_batch_{i}" for i in range(1, 6)]),
    "cifar10/test": partial(_cifar10, batches=["test_batch"]),
    "cifar10.1/v4": partial(_cifar10_1, version="v4"),
    "cifar10.1/v6": partial(_cifar10_1, version="v6"),
    "stl10/train": partial(_stl10, part="train"),
    "stl10/test": partial(_stl10, part="test"),
}
"""Paths of a dataset's splits, and what reads them below its root."""
