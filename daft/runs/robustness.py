"""Corruption errors of finished runs: on CIFAR-10-C, or on their own ID images, corrupted alike."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import digest, write_atomically
from daft.config.operations import Operation
from daft.data import corruptions
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.data.images import Resident
from daft.data.labelled import Labelled
from daft.data.loader import Batch, Loader, batch_boundaries
from daft.data.sources import cifar
from daft.data.transforms import NO_UNIFORMS, transform
from daft.runs import machine, records, results
from daft.runs.reopened import FinishedRun
from daft.runs.results import Kind
from daft.training import evaluation


@dataclass(frozen=True)
class Block:
    """Images under one corruption at one severity."""

    epoch: Callable[[], Iterator[Batch]]
    """transformed, on the device"""
    images: int
    device: torch.device

    def __len__(self) -> int:
        """Number of images."""
        return self.images


@dataclass(frozen=True)
class Corrupted:
    """An evaluation set under every corruption at every severity."""

    kind: Kind
    identity: list[Any]
    """plain data that tells its pixels from those of any other set"""
    images: int
    """in each block"""
    whole: int
    """in each block, before it was thinned"""
    block: Callable[[str, int], Block]
    """by corruption and severity"""


def published(
    root: Path, operations: list[Operation], device: torch.device, batch_size: int, images: int | None = None
) -> Corrupted:
    """CIFAR-10-C below the root of CIFAR-10, mapped from disk; `images` thins each block, stratified.

    Raises UserError if a file is absent or not as published.
    """
    try:
        files = {name: cifar.corrupted(root, name) for name in CORRUPTIONS}
    except UserError as error:
        raise UserError(f"{error}; python scripts/prepare.py dataset=cifar10_c --check says more") from error
    labels = torch.from_numpy(files[next(iter(files))][1])
    kept = _thinned(labels, images)
    fingerprints = [cifar.fingerprint(*file) for file in files.values()]

    def block(name: str, severity: int) -> Block:
        pixels = files[name][0][severity - 1]

        def batches() -> Iterator[Batch]:
            start = 0
            for end in batch_boundaries(len(kept), batch_size):
                chosen, start = kept[start:end], end
                batch = torch.from_numpy(pixels[chosen.numpy()]).permute(0, 3, 1, 2)
                moved = _on(device, batch), _on(device, labels[chosen])
                yield transform(moved[0], operations, NO_UNIFORMS), moved[1]

        return Block(batches, len(kept), device)

    identity = [fingerprints, [repr(operation) for operation in operations], len(kept)]
    return Corrupted("cifar10_c", identity, len(kept), len(labels), block)


def generated(clean: Loader, batch_size: int, images: int | None = None) -> Corrupted:
    """An evaluation set, corrupted as it is read; `images` thins it first, stratified.

    Images that share a size which the transform does not reduce are corrupted before it, as CIFAR-10-C's
    were; others after it, as ImageNet-C's were. Raises UserError if they are too small.
    """
    kept = _thinned(clean.labels, images)
    done = _before(clean)
    read = replace(
        clean,
        images=clean.images.subset(kept),
        labels=clean.labels[kept],
        fingerprint=f"{clean.fingerprint}/{len(kept)}",
        operations=clean.operations[:done],
        batch_size=batch_size,
    )
    side, rest = min(read.shape()[1:]), clean.operations[done:]
    if side < corruptions.LEAST_SIDE:
        raise UserError(
            f"dataset.{clean.name}: images of {side} pixels are too small to corrupt; at least "
            f"{corruptions.LEAST_SIDE} are needed"
        )

    def block(name: str, severity: int) -> Block:
        def batches() -> Iterator[Batch]:
            numbers = count()
            for pixels, labels in read.epoch():
                mine = [next(numbers) for _ in range(len(pixels))]
                corrupted = corruptions.corrupt(pixels, name, severity, mine)
                yield transform(corrupted, rest, NO_UNIFORMS), labels

        return Block(batches, len(read), clean.device)

    published_for = corruptions.parameters(side)
    identity = [corruptions.VERSION, read.identity, [repr(operation) for operation in rest], published_for]
    return Corrupted("generated", identity, len(read), len(clean), block)


def _thinned(labels: Tensor, images: int | None) -> Tensor:
    """Positions of the images that are kept, int64 [images]; raises UserError if there are fewer."""
    if images is None:
        return torch.arange(len(labels))
    if images > len(labels):
        raise UserError(f"--images {images}: there are only {len(labels)}")
    kept = Labelled(torch.arange(len(labels)), labels, "").stratified_subset(images).images
    assert isinstance(kept, Tensor)
    return kept.sort().values


def _before(clean: Loader) -> int:
    """How many of the operations come before the corruption: none or all."""
    held = clean.images
    everything = len(clean.operations)
    if isinstance(held, Resident):
        if held.applied:  # to fewer pixels, or from several sizes
            return everything
        sizes = {tuple(held.pixels.shape[-2:])}
    else:
        sizes = {held.size(i) for i in range(len(clean))}
    _, *transformed = clean.shape()
    return 0 if len(sizes) == 1 and math.prod(sizes.pop()) <= math.prod(transformed) else everything


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def of_run(
    run: FinishedRun, kind: Kind, device: torch.device, batch_size: int, images: int | None = None
) -> Corrupted:
    """The corrupted images that a run is evaluated on; runs with the same `key` share them.

    Raises UserError if there are none that it can classify.
    """
    if run.config.segmentation is not None:
        raise UserError(f"{run}: it segments; corruption errors are of networks that classify whole images")
    if run.config.fewshot is not None:
        raise UserError(
            f"{run}: it learns from episodes; corruption errors are of networks with fixed classes"
        )
    if kind == "generated":
        return generated(run.images(device).evaluation["id"], batch_size, images)
    if run.classes != [*cifar.CLASSES]:
        raise UserError(f"{run}: its classes are not CIFAR-10's, so CIFAR-10-C cannot be classified")
    dataset = run.config.dataset
    return published(Path(dataset.root).expanduser(), dataset.eval_transform, device, batch_size, images)


def key(run: FinishedRun, kind: Kind) -> str:
    """What tells the corrupted images of a run from those of another."""
    dataset = run.record["identity"]["dataset"]
    clean = dataset["images"].get("id") if kind == "generated" else run.config.dataset.root
    facts = [kind, clean, dataset.get("eval_transform"), dataset.get("cache_side")]
    scaled = dataset.get("scaled_decoding")
    return digest(facts if scaled is None else [*facts, scaled])


def evaluate(run: FinishedRun, corrupted: Corrupted, device: torch.device) -> dict[str, Any]:
    """The errors in percent of every block, written beside the record; blocks that are there stay.

    In the run's own precision. Raises BusyError if another process is at the run, UserError if its weights
    were not kept.
    """
    precision = run.record["identity"]["training"]["precision"]
    facts: dict[str, Any] = {
        "format": results.FORMAT,
        "kind": corrupted.kind,
        "identity": corrupted.identity,
        "precision": precision,
        "images": corrupted.images,
        "whole": corrupted.whole,
    }
    file = run.directory / results.FILE.format(digest(facts))
    with records.lock_run(run.directory):
        result = results.read(file) or facts | {"errors": {name: {} for name in CORRUPTIONS}, "seconds": 0.0}
        done = result["errors"]
        missing = [(name, s) for name in CORRUPTIONS for s in SEVERITIES if str(s) not in done[name]]
        if not missing:
            return result
        result["environment"] = machine.environment(device)
        model, cast = run.network(device), evaluation.autocast(device, precision)
        for name, severity in progress.track(missing, str(run), len(missing)):
            started = time.perf_counter()
            block = corrupted.block(name, severity)
            error = 100 - evaluation.accuracy(model.backbone, model.head, block, cast)
            done[name][str(severity)] = None if math.isnan(error) else error
            result["seconds"] += time.perf_counter() - started
            write_atomically(file, json.dumps(result, indent=1) + "\n")
    return result
