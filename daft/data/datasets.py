"""From a dataset's configuration to loaders for training, ID and OOD evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from daft.common import memory, progress
from daft.common.errors import UserError, join_first
from daft.common.threads import available_cpus
from daft.config.operations import Operation
from daft.config.schema import Config
from daft.data import overlap
from daft.data.decoding import Decoding
from daft.data.episodes import EpisodeLoader
from daft.data.images import ImageStore, Resident, Streamed
from daft.data.labelled import Labelled
from daft.data.listing import Listing, class_names, list_split, listing, read_split, require_images
from daft.data.loader import Loader
from daft.data.transforms import RGB, largest_size

__all__ = [
    "Data",
    "Decoded",
    "Listing",
    "class_names",
    "decode",
    "describe",
    "list_split",
    "listing",
    "load",
    "read_split",
]
"""What lists images is in `listing`, which imports less; it is here too."""

BYTES_OF_A_PIXEL = RGB * (1 + 4)
"""In a batch: as it is read, and as the network takes it."""


EXPLAINED = 12
"""Files that do not decode of which a message says why, at most."""


@dataclass(frozen=True)
class Data:
    """Loaders of one dataset."""

    classes: list[str]
    train: Loader
    evaluation: dict[str, Loader]
    unreadable: dict[str, int] = field(default_factory=dict)
    """images left out per split, on request"""
    unlabelled: Loader | None = None
    """images of target domains, if the method sees them"""

    def loaders(self) -> dict[str, Loader]:
        """All of them, by name."""
        unlabelled = {} if self.unlabelled is None else {"unlabelled": self.unlabelled}
        return {"train": self.train, **unlabelled, **self.evaluation}


def load(config: Config, listed: Listing, device: torch.device) -> Data:
    """Decode, map or prepare to stream every split.

    Raises UserError, which says why, if images cannot be read, and if splits that must not have images in
    common.
    """
    decoded = decode(config, listed.splits(), listed.classes, device)
    overlap.require_other_images(config.dataset, decoded.kept, decoded.store.cache, decoded.store.threads)
    loaders = dict(decoded.loaders)
    train, unlabelled = loaders.pop("train"), loaders.pop("unlabelled", None)
    return Data(listed.classes, train, loaders, decoded.skipped, unlabelled)


class Decoded(NamedTuple):
    """Loaders of some splits, and what they were made of."""

    loaders: dict[str, Loader]
    kept: dict[str, Labelled]
    """without the images that cannot be read"""
    skipped: dict[str, int]
    """images left out, on request"""
    store: ImageStore


def decode(
    config: Config, listed: Mapping[str, Labelled], classes: Sequence[str], device: torch.device
) -> Decoded:
    """As `load`, of these splits alone, whatever images they share."""
    cfg, compute = config.dataset, config.compute
    workers = available_cpus() if compute.workers is None else compute.workers
    store = ImageStore(
        compute.resident_gib, max(workers, 1), Path(config.paths.cache), device, cfg.cache_side
    )

    training_batch, task = config.training.batch_size, config.segmentation
    evaluation_batch = training_batch if task is None else task.eval_batch_size
    shifts = {name: split.shift for name, split in cfg.ood.items()}

    def loader(split: Labelled, name: str) -> Loader:
        in_training = name in ("train", "unlabelled")
        operations = cfg.train_transform if in_training else [*shifts.get(name, []), *cfg.eval_transform]
        batch_size = training_batch if in_training else evaluation_batch
        _require_memory(operations, name, min(batch_size, len(split)) if device.type == "cpu" else 1)
        decoding = replace(Decoding.of(cfg, operations), leave_out_larger=compute.unreadable == "skip")
        split = replace(split, decoding=decoding)
        images, split = store.load(split, operations, name, batched=batch_size > 1)
        kept[name] = split
        return Loader(
            name,
            images,
            split.labels,
            split.fingerprint,
            operations,
            batch_size=batch_size,
            seed=config.seed,
            shuffle=in_training,
            device=device,
            workers=workers,
        )

    kept: dict[str, Labelled] = {}
    loaders: dict[str, Loader] = {name: loader(split, name) for name, split in listed.items()}
    if config.fewshot is not None and "train" in loaders:
        loaders["train"] = EpisodeLoader.of_training(loaders["train"], config.fewshot)
    if store.unreadable and compute.unreadable == "error":
        raise _unreadable(store.unreadable.values())
    for name, files in store.unreadable.items():
        _say_skipped(classes, listed[name], name, kept[name], files)
    require_images(loaders)
    return Decoded(loaders, kept, {name: len(files.paths) for name, files in store.unreadable.items()}, store)


def describe(data: Data) -> dict[str, Any]:
    """Classes, images per split and where they live, for the record."""
    loaders = data.loaders()
    return {
        "classes": data.classes,
        "images": {name: len(loader) for name, loader in loaders.items()},
        "resident": [n for n, loader in loaders.items() if isinstance(loader.images, Resident)],
        "unreadable": data.unreadable,
    }


def _unreadable(splits: Iterable[Streamed]) -> UserError:
    """Every file that does not decode, once, with the reason of the first ones."""
    files = {path: (of, i) for of in splits for i, path in enumerate(of.paths)}
    told = [of.problem(i) for of, i in [*files.values()][:EXPLAINED]]
    if len(files) > EXPLAINED:
        told.append(f"and {len(files) - EXPLAINED:,} more")
    return UserError(
        f"{len(files):,} image(s) cannot be read; mend or remove them, or leave them out with "
        "compute.unreadable=skip:\n  " + "\n  ".join(told)
    )


def _say_skipped(
    classes: Sequence[str], listed: Labelled, name: str, kept: Labelled, files: Streamed
) -> None:
    """Say how many images of a split are left out; raises UserError if those are all of a class."""
    told = f"{overlap.split_key(name)}: {len(files.paths):,} of {len(listed):,} images cannot be read"
    example = f"{files.problem(0)} (and others)" if len(files.paths) > 1 else files.problem(0)
    if lost := sorted({*listed.labels.tolist()} - {*kept.labels.tolist()} if len(kept) else ()):
        names = join_first([repr(classes[label]) for label in lost])
        raise UserError(f"{told}, which leaves none of {names}; mend them, or remove the class: {example}")
    progress.say_once(f"{told}, and are left out: {example}")


def _require_memory(operations: list[Operation], name: str, count: int) -> None:
    """Raise UserError if not even the pixels of a batch have room, the network's features aside."""
    height, width = largest_size(operations)
    key = f"dataset.{'train' if name in ('train', 'unlabelled') else 'eval'}_transform"
    what = f"{key}: {count:,} images of {height} x {width} pixels at a time"
    needed = count * height * width * BYTES_OF_A_PIXEL
    memory.require(needed, what, "make them smaller, or training.batch_size")
