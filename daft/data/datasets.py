"""From a dataset's configuration to loaders for training, ID and OOD evaluation."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from daft.common import memory, progress
from daft.common.errors import UserError, join_first
from daft.common.threads import available_cpus
from daft.config.operations import Operation
from daft.config.schema import Config, DatasetConfig, FewshotConfig, SplitConfig
from daft.config.sources import SOURCES
from daft.data import overlap
from daft.data.decoding import Decoding
from daft.data.episodes import EpisodeLoader
from daft.data.images import ImageStore, Resident, Streamed
from daft.data.labelled import Labelled
from daft.data.loader import Loader
from daft.data.sources import source
from daft.data.transforms import RGB, largest_size

BYTES_OF_A_PIXEL = RGB * (1 + 4)
"""In a batch: as it is read, and as the network takes it."""

HOLDOUT_EVERY = 10
"""`selection: holdout` selects on every tenth training image of each class, which is not trained on."""

BACKGROUND = "background"
"""The first class of pixels, where a source gives masks on request."""

EXPLAINED = 12
"""Files that do not decode of which a message says why, at most."""

UNLABELLED = "unlabelled."
"""Begin of the keys of unlabelled splits."""

HINT = "; python scripts/prepare.py dataset="


@dataclass(frozen=True)
class Listing:
    """A dataset before any image is decoded: enough to know which run this is."""

    classes: list[str]
    train: Labelled
    evaluation: dict[str, Labelled]
    """`id`, `holdout` if selecting on one, then the OOD sets"""
    unlabelled: Labelled | None = None
    """images of target domains, all of class 0, if the method sees them"""

    def splits(self) -> dict[str, Labelled]:
        """All of them, by name."""
        unlabelled = {} if self.unlabelled is None else {"unlabelled": self.unlabelled}
        return {"train": self.train, **unlabelled, **self.evaluation}

    def fingerprints(self) -> dict[str, str]:
        """Per split what identifies its images."""
        return {name: split.fingerprint for name, split in self.splits().items()}


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


def listing(config: Config) -> Listing:
    """List the images of every split and check that they share their classes; decodes nothing."""
    cfg = config.dataset
    classes = class_names(cfg, with_masks=config.segmentation is not None)
    splits = {
        key: list_split(cfg, key, classes)
        for key in cfg.splits()
        if not key.startswith(UNLABELLED) or config.method.adapts
    }
    unlabelled = [splits.pop(name) for name in [*splits] if name.startswith(UNLABELLED)]
    if config.fewshot is not None:
        splits = _class_disjoint(config.fewshot, splits, classes)
    train = splits.pop("train")
    evaluation = {"id": splits.pop("id")}
    if config.training.selection == "holdout":
        train, evaluation["holdout"] = train.split_every_nth(HOLDOUT_EVERY)
        if not len(evaluation["holdout"]):
            raise UserError(
                f"training.selection=holdout: no class has {HOLDOUT_EVERY} training images to hold one out"
            )
    evaluation |= {name.removeprefix("ood."): split for name, split in splits.items()}
    try:
        found = Listing(classes, train, evaluation, Labelled.joined(unlabelled) if unlabelled else None)
    except ValueError as error:
        raise UserError(f"dataset.unlabelled: {error} cannot be in one batch; name one split") from None
    _require_images(found.splits())
    overlap.require_other_files(cfg, found.splits())
    return found


def list_split(cfg: DatasetConfig, key: str, classes: list[str]) -> Labelled:
    """The images of one split (`train`, `id`, `ood.NAME`), as many as its `images` says."""
    split = cfg.splits()[key]
    return _thinned(cfg, split, key, read_split(cfg, split, key, classes), classes)


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
        split = replace(split, decoding=Decoding.of(cfg, operations))
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
    _require_images(loaders)
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


def _require_images(splits: Mapping[str, Sized]) -> None:
    for name, split in splits.items():
        if name in ("train", "unlabelled") and len(split) < 2:
            raise UserError(f"dataset.{name}: {len(split)} image(s); batch normalisation needs two or more")
        if not len(split):
            raise UserError(f"dataset.{name}: no images are left to evaluate on")


def class_names(cfg: DatasetConfig, with_masks: bool = False) -> list[str]:
    """Class names in label order, of images or of the pixels of their masks."""
    names = source(cfg.source).classes(cfg)
    if with_masks and SOURCES[cfg.source].masks == "optional":
        names = [BACKGROUND, *names]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"dataset.classes: need two or more distinct names, not {names}")
    return names


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """All images of one split, by class and path; raises UserError if it is not what it should be.

    Those of an unlabelled split are all of class 0. Which are its own may be a matter of their folders, where
    `part` says so.
    """
    module, labelled = source(cfg.source), not name.startswith(UNLABELLED)
    read_unlabelled = getattr(module, "read_unlabelled", None)
    try:
        if labelled or split.part != "all" or read_unlabelled is None:
            found = module.read_split(cfg, split, name, classes)
        else:
            found = read_unlabelled(cfg, split, name)
    except UserError as error:
        hint = f"{HINT}{cfg.name} dataset.root={cfg.root} --check says what to do"
        prefix = "" if str(error).startswith("dataset.") else f"dataset.{name}: "
        raise UserError(f"{prefix}{error}{hint if cfg.files or cfg.manual else ''}") from error
    if split.part != "all":
        assert cfg.eval_every is not None
        before, found = found, found.split_every_nth(cfg.eval_every)[split.part == "id"]
        what = f"part={split.part} leaves no image of {{}}; raise dataset.eval_every, or add images"
        _require_classes(before, found, classes, f"dataset.{name}: {what}")
    if split.known_images is not None and len(found) != split.known_images:
        raise UserError(
            f"dataset.{name}: {len(found):,} images, but there must be {split.known_images:,}; if yours is "
            f"another version, set dataset.{name}.known_images=null"
        )
    return replace(found if labelled else found.without_labels(), decoding=Decoding.of(cfg))


def _class_disjoint(
    cfg: FewshotConfig, splits: Mapping[str, Labelled], classes: list[str]
) -> dict[str, Labelled]:
    """Training images of the training classes, evaluated ones of the test classes.

    Raises UserError if one of these is no class.
    """
    others = [name for name in classes if name not in cfg.test_classes]
    named = {"train_classes": cfg.train_classes or others, "test_classes": cfg.test_classes}
    for key, names in named.items():
        if unknown := [name for name in names if name not in classes]:
            raise UserError(f"fewshot.{key}: {unknown[0]!r} is no class; choose from {', '.join(classes)}")
    found = {}
    for name, split in splits.items():
        kept = named["train_classes" if name == "train" else "test_classes"]
        wanted = torch.tensor([classes.index(each) for each in kept], dtype=torch.int64)
        found[name] = split.subset(torch.isin(split.labels, wanted).nonzero()[:, 0])
    return found


def _thinned(
    cfg: DatasetConfig, split: SplitConfig, name: str, found: Labelled, classes: list[str]
) -> Labelled:
    """The images of a split that `images` keeps; drawn images are as many as they should be."""
    if split.images is None or SOURCES[cfg.source].drawn:
        return found
    if split.images > len(found):
        raise UserError(f"dataset.{name}.images: {split.images}, but there are only {len(found)}")
    thinned = found.stratified_subset(split.images)
    message = f"dataset.{name}.images: {split.images} leaves no image of {{}}; raise it"
    _require_classes(found, thinned, classes, message)
    return thinned


def _require_classes(before: Labelled, after: Labelled, classes: list[str], message: str) -> None:
    if lost := sorted(set(before.labels.tolist()) - set(after.labels.tolist())):
        raise UserError(message.format(", ".join(classes[i] for i in lost)))
