"""Images that two splits share: the same file under whatever names, or the same content.

No split for evaluation may share any with the training set or with unlabelled images, and no OOD set with the
ID set, unless it has a shift of its own: then the same images are meant.
"""

import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from daft.common import progress
from daft.common.errors import UserError, shown
from daft.common.files import cached, read_json
from daft.common.threads import parallel_map
from daft.config.schema import DatasetConfig, SplitConfig
from daft.config.sources import SOURCES
from daft.data.labelled import Labelled

TOLERATED, TOLERATED_AS_PUBLISHED = 0.01, 0.1
"""Share of a split that may be copies of other images: a few are in many large sets, and are told; those of
published splits are part of what everybody reports on."""

PROBE = 4096
"""Bytes in the middle of a file, which tell apart most files of one size."""

Pair = tuple[str, str]
"""Names of two splits."""

Shared = dict[Pair, list[tuple[int, int]]]
"""By pair the images of the first split that are in the second too, as their numbers in both."""

Keys = Mapping[str, Sequence[Hashable]]
"""By split a key of every image; images with the same are taken for one, None for none."""


def require_other_files(cfg: DatasetConfig, splits: Mapping[str, Labelled]) -> None:
    """Raise UserError if splits have a file in common that they must not, or are drawn from one seed."""
    for (one, other), images in same_files(splits, _pairs(cfg, splits)).items():
        raise UserError(f"{_told(splits, one, other, images, 'also in')}; {_mend(one)}")
    configured = _configured(cfg)
    for one, other in _pairs(cfg, splits):
        if one in configured and not isinstance(splits[one].held, list):
            (own,) = configured[one]
            path, seed = own.path, own.seed
            if (path, seed) in [(split.path, split.seed) for split in configured[other]]:
                what = f"the {path} images" + (f" of seed {seed}" if SOURCES[cfg.source].drawn else "")
                raise UserError(f"{split_key(one)}: {what} are in {split_key(other)} too; {_mend(one)}")


def require_other_images(
    cfg: DatasetConfig, splits: Mapping[str, Labelled], cache: Path, threads: int
) -> None:
    """Raise UserError if more than a few images are copies of those of another split; say it of a few.

    cache: where the verdict on files is kept, which must all be readable.
    """
    configured, own = _configured(cfg), SOURCES[cfg.source].own
    for (one, other), images in _kept_copies(splits, _pairs(cfg, splits), cache, threads).items():
        told = _told(splits, one, other, images, "copies of images in")
        published = not own or (one in configured and configured[one][0].known_images is not None)
        tolerated = TOLERATED_AS_PUBLISHED if published else TOLERATED
        if len(images) > tolerated * len(splits[one]):
            raise UserError(f"{told}; {_mend(one)}")
        progress.say_once(told)


def _pairs(cfg: DatasetConfig, splits: Iterable[str]) -> list[Pair]:
    """Pairs of splits that must have no image in common."""
    seen = [name for name in ("train", "unlabelled") if name in splits]
    evaluation = [name for name in splits if name not in seen]
    unshifted = [name for name, split in cfg.ood.items() if name in evaluation and not split.shift]
    return [(name, of) for of in seen for name in evaluation] + [(name, "id") for name in unshifted]


def _configured(cfg: DatasetConfig) -> dict[str, list[SplitConfig]]:
    single = {"train": cfg.train, "id": cfg.id, **cfg.ood}
    return {name: [split] for name, split in single.items()} | {
        "unlabelled": [*(cfg.unlabelled or {}).values()]
    }


def split_key(name: str) -> str:
    """What a split is called in a configuration, or what makes it."""
    if name == "holdout":
        return "training.selection=holdout"
    return f"dataset.{name}" if name in ("train", "id", "unlabelled") else f"dataset.ood.{name}"


def _mend(name: str) -> str:
    return "have each once in dataset.train" if name == "holdout" else "evaluate on others"


def _told(
    splits: Mapping[str, Labelled], one: str, other: str, images: list[tuple[int, int]], what: str
) -> str:
    text = f"{split_key(one)}: {len(images):,} of {len(splits[one]):,} images are {what} {split_key(other)}"
    (i, j), mine, others = images[0], splits[one].images, splits[other].images
    if isinstance(mine, list) and isinstance(others, list):
        there = f" (there {shown(others[j])})" if others[j] != mine[i] else ""
        text += f", {shown(mine[i])}{there} among them"
    return text


def _kept_copies(splits: Mapping[str, Labelled], pairs: Sequence[Pair], cache: Path, threads: int) -> Shared:
    """As `copies`; of files once."""
    files = {name: split.images for name, split in splits.items() if isinstance(split.images, list)}
    if not files:
        return copies(splits, pairs, threads)
    from daft.data.cache import stat_digest  # seconds of imports, which a finished run does without

    digest = hashlib.sha256(json.dumps([pairs, {name: len(of) for name, of in files.items()}]).encode())
    digest.update(stat_digest(file for of in files.values() for file in of).encode())

    def found() -> str:
        return json.dumps([[*pair, images] for pair, images in copies(splits, pairs, threads).items()])

    def kept(path: Path) -> Shared:
        shared = {(one, other): [(i, j) for i, j in images] for one, other, images in read_json(path)}
        for (one, other), images in shared.items():
            if not all(i in range(len(splits[one])) and j in range(len(splits[other])) for i, j in images):
                raise ValueError("numbers of no images")
        return shared

    return cached(cache / "copies" / f"{digest.hexdigest()}.json", found, kept)


def same_files(splits: Mapping[str, Labelled], pairs: Iterable[Pair]) -> Shared:
    """Images that are one file, however it is linked."""
    return _shared({name: _places(split.files) for name, split in splits.items()}, pairs)


def copies(splits: Mapping[str, Labelled], pairs: Sequence[Pair], threads: int) -> Shared:
    """Images of the same content: of the same bytes in files, of the same pixels in memory.

    Files are read where two splits have one of the same size: in the middle, and whole if that is the same.
    """
    keys: dict[str, Sequence[Hashable]] = {name: _contents(split.images) for name, split in splits.items()}
    for digest in (_middle, _whole):
        common = _common(keys, pairs)
        alike = {
            file: None
            for name, split in splits.items()
            if isinstance(split.images, list)
            for file, key in zip(split.images, keys[name], strict=True)
            if key in common[name]
        }
        digests = dict(zip(alike, parallel_map(digest, [*alike], threads, "comparing images"), strict=True))
        for name, split in splits.items():
            if isinstance(split.images, list):
                found = zip(split.images, keys[name], strict=True)
                keys[name] = [(key, digests[file]) if key in common[name] else None for file, key in found]
    return _shared(keys, pairs)


def _common(keys: Keys, pairs: Iterable[Pair]) -> dict[str, set[Hashable]]:
    """By split the keys that it shares with another."""
    known = {name: set(of) - {None} for name, of in keys.items()}
    common: dict[str, set[Hashable]] = {name: set() for name in keys}
    for one, other in pairs:
        shared = known[one] & known[other]
        common[one] |= shared
        common[other] |= shared
    return common


def _shared(keys: Keys, pairs: Iterable[Pair]) -> Shared:
    shared: Shared = {}
    for one, other in pairs:
        places = {key: i for i, key in enumerate(keys[other]) if key is not None}
        if found := [(i, places[key]) for i, key in enumerate(keys[one]) if key in places]:
            shared[one, other] = found
    return shared


def _places(files: list[Path]) -> list[Hashable]:
    return [(stat.st_dev, stat.st_ino) for stat in map(os.stat, files)]


def _contents(images: list[Path] | Tensor) -> list[Hashable]:
    """Of pixels a hash, of files the size, which equal ones share; nothing has no content."""
    if isinstance(images, Tensor):
        return [(image.shape, hash(image.numpy().tobytes())) for image in images]
    return [os.stat(file).st_size or None for file in images]


def _middle(file: Path) -> bytes:
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, (size - PROBE) // 2))
        return hashlib.blake2b(opened.read(PROBE), digest_size=16).digest()


def _whole(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
