"""JPEG files that compress about as photos do, by as many processes as there are cores."""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from daft.common.threads import available_cpus

CHUNK = 200
"""Files that a process writes at a time."""


def write_photos(folders: Mapping[Path, int], classes: Sequence[str], side: int) -> None:
    """So many files in each folder, the classes in turn; no two are alike, and a class has its colour."""
    jobs = [
        (folder, list(classes), side, number, range(start, min(start + CHUNK, count)))
        for number, (folder, count) in enumerate(folders.items())
        for start in range(0, count, CHUNK)
    ]
    for folder in folders:
        for name in classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
    if len(jobs) <= len(folders):  # not worth a process
        for job in jobs:
            _write(job)
        return
    with ProcessPoolExecutor(min(available_cpus(), len(jobs)), get_context("spawn")) as pool:
        list(pool.map(_write, jobs))


def _write(job: tuple[Path, list[str], int, int, range]) -> None:
    folder, classes, side, seed, indices = job
    for i in indices:
        generator, label = np.random.default_rng([seed, i]), i % len(classes)
        blobs = generator.integers(256, size=(8, 8, 3), dtype=np.uint8) // 2 + 64
        blobs[..., label % 3] += np.uint8(8 * (1 + label // 3))
        smooth = Image.fromarray(blobs).resize((side, side), Image.Resampling.BICUBIC)
        grain = np.roll(_grain(side), tuple(generator.integers(side, size=2)), axis=(0, 1))
        pixels = (np.asarray(smooth, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / classes[label] / f"{i:06d}.jpg", quality=90)


@functools.cache
def _grain(side: int) -> np.ndarray:
    """Noise [side, side, 3]; drawn once, for drawing takes longer than the rest."""
    return np.random.default_rng(0).normal(0, 6, (side, side, 3)).astype(np.int16)
