"""Speed and memory as ratios, each measured in one run.

n is the number of repetitions. The variants of a row take turns within each, in rotating order and after
one warm-up, so that noise hits all alike; median and range are of the ratios of single repetitions.

- a, b: `convert_batchnorm` against a plain test-mode pass, and against `torch.optim.swa_utils.update_bn`; a
  row per network, with random weights; the same resident uint8 batches for all, in float32, network and
  batches channels last.
- c: images/s of `loop.fit` with a `Loader` over resident uint8 images (random crop, flip), without its
  evaluation and checkpoint, against the same optimiser step on one resident batch, repeated.
- d: the same from JPEG files decoded anew each epoch; workers have started and the page cache is warm.
  "decoding" is a pass over the loader alone. Once from small images (random crop, flip), once from JPEGs of
  500 x 400 px (`random_resized_crop`, flip). On a CPU, decoding and training share the cores; no more than
  1 / (1 / steps + 1 / decoding) images/s can then be had, and the second row of each size is against that.
- e: `fit_probe` on float32 features against scikit-learn (`warm_start`, `max_iter=200`, ascending C; always
  on the CPU and timed once), both with the accuracy on the selection set at every C. In brackets: the best
  accuracy, and the largest excess over the path of the objective over the lowest that any solver reached.
- f: peak increase of resident memory in a fresh process while `datasets.load` reads a CIFAR-10-like run (an
  ID set, two OOD sets made from it), over the bytes of the images it then holds. Stated, without a target.
- g: images/s of the `Loader` alone (`random_resized_crop` 224, flip) over JPEGs of 500 x 400 px kept once
  with `cache_side=256`, against the same files decoded anew each epoch. As in d, workers have started and
  the page cache is warm: no disk is measured. Stated, without a target.
- h: images/s of an evaluation of all 75 blocks of CIFAR-10-C's format, mapped from disk (in the page cache)
  and resized, against as many test-mode passes over one resident batch of the network's size.
- i: the same with the corruptions generated from resident images of the network's size as they are needed.
  Stated, without a target: on a CPU, corrupting and classifying share the cores.
- j: a sweep of several runs of half a minute of the embedded network, on one thread each, by
  `hydra/launcher=workers` with one worker, against the same with two. Whole commands, start included; what
  runs share is in the cache.
- k: seconds by which a finished sweep of 100 runs, started again, takes longer than one of a single run,
  over the 99 runs. Whole commands.
- l, m: CPU seconds (user and system) of `python scripts/train.py` on the embedded data: of a finished run
  that is named again, and of one up to the end of its first training step, with what runs share in the
  cache, and with nothing there. On an idle core that is the time it takes; where others compute, too,
  wall-clock time says more of them.
- n: `read_image` on one thread over JPEGs of 500 x 400 px against Pillow's own decoding of them, as it was
  done before: with equal pixels, and with the scaled decoding for a `resize` to 64 px (at 1/4 of the size).
- o: launches of a batch's `random_resized_crop` 224 and `random_scale_crop` 224 from resident images of
  256 px, image by image, against all at once, by `torch.profiler`: kernels on a GPU; on a CPU all operations
  of ATen, the drawing of boxes included. And the time; a CPU keeps to image by image. No target.
- p: seconds of `datasets.decode` over JPEGs for the first run of a process against the next one. No target.
"""

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.optim.swa_utils import update_bn

from daft.batchnorm import convert_batchnorm, full_precision
from daft.common import cli
from daft.common.files import write_atomically
from daft.common.memory import keep_freed
from daft.config.compose import configuration
from daft.config.operations import Flip, Operation, RandomResizedCrop, RandomScaleCrop, Resize
from daft.config.options import ROOT
from daft.config.schema import Config
from daft.data import datasets, images
from daft.data.corruptions import CORRUPTIONS, SEVERITIES
from daft.data.decoding import USUAL, Decoding, as_pixels, opened, read_image
from daft.data.images import Resident
from daft.data.loader import Batch, Loader
from daft.data.transforms import apply_each, num_uniforms, resized_crops, scaled_crops
from daft.methods import preparation
from daft.methods.probe import DEFAULT_PATH, fit_probe
from daft.networks import backbones, classifier
from daft.runs import robustness
from daft.training import loop
from daft.training.evaluation import accuracy, autocast

NEEDED: dict[str, dict[str, Any]] = {"resnet50_clip": {"num_classes": 1024}}
"""Arguments of timm's networks, as their files of conf/backbone have them."""

ON_CPU = (("resnet18", 64, 64), ("tf_efficientnet_lite0", 128, 16), ("resnet50_clip", 224, 4))
ON_GPU = tuple(
    (model, 224, 64) for model in ("resnet18", "tf_efficientnet_lite0", "resnet50_clip", "resnet50")
)
"""Networks of rows a and b, the side of their images, and the batch."""

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "scikit-learn")
TEN = [str(i) for i in range(10)]

RUNS = 6
"""Of row j."""

FEW = [f"dataset.{split}.images=20" for split in ("train", "id", "ood.photo")]
FEW += [f"~dataset.ood.{style}" for style in ("clipart", "painting", "neon")]
FEW += ["dataset.image_size=32", "training.epochs=1"]
"""Overrides of a run on few embedded images."""


@dataclass(frozen=True)
class Row:
    """A ratio, once per repetition, and the bound on its median, such as `<= 1.15`, if it has one."""

    what: str
    values: list[float]
    target: str
    detail: str

    @property
    def verdict(self) -> str:
        """Whether the median keeps the bound."""
        sign, _, bound = self.target.partition(" ")
        excess = median(self.values) - float(bound or 0)
        return "stated" if not sign else "met" if (excess <= 0 if sign == "<=" else excess >= 0) else "MISSED"


@dataclass(frozen=True)
class Bench:
    """Where to measure, how often, and at what size."""

    device: torch.device
    repeats: int
    model: str
    side: int  # of the images that reach the network, in pixels
    stored: int  # side of the images that training crops from
    steps: int  # batches in an epoch
    batch: int = 64
    samples: int = 20_000  # of rows e and f
    photos: int = 512  # of rows d, g and n
    epochs: int = 8  # of the runs of row j
    finished: int = 100  # runs of row k
    short: int = 3  # times as many repetitions of rows a and b
    converted: tuple[tuple[str, int, int], ...] = (("resnet18", 32, 8),)
    """networks of rows a and b, each with the side of its images and the batch"""

    def interleaved(
        self, variants: Mapping[str, Callable[[], float]], times: int = 1, warm_up: bool = True
    ) -> list[list[float]]:
        """Per variant what it returned in each (of `times` as many) repetitions after the warm-up."""
        measured: dict[str, list[float]] = {name: [] for name in variants}
        for repetition in range(0 if warm_up else 1, times * self.repeats + 1):
            names = list(variants)
            for i in range(len(names)):
                name = names[(i + repetition) % len(names)]
                measured[name].append(variants[name]())
                print(
                    f"  {repetition}/{times * self.repeats} {name:<24}{measured[name][-1]:10.4g}", flush=True
                )
        return [values[int(warm_up) :] for values in measured.values()]

    def seconds(self, work: Callable[..., object], *args: Any) -> float:
        """Wall-clock time until the device has done the work."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        work(*args)
        wait()
        return time.perf_counter() - started

    def configured(self, folder: Path, resident_gib: float = 0) -> Config:
        """Fine-tuning on JPEG folders, streamed unless there is room for them in memory."""
        return configuration(
            *("dataset=folder", f"dataset.root={folder}", "dataset.id.path=val", f"paths.cache={folder}"),
            f"dataset.train_transform=[{{random_crop: {self.side}}}, flip]",
            *("backbone=timm", "backbone.weights=random", f"backbone.model={self.model}"),
            *("method=ft", "method.lr_backbone=0.001", f"training.batch_size={self.batch}"),
            f"compute.resident_gib={resident_gib}",
        )

    def network(self, config: Config) -> preparation.Prepared:
        """The network and its parameter groups, laid out as in experiment.py."""
        backbone = backbones.load(config.backbone).to(self.device).to(memory_format=torch.channels_last)
        head = classifier.make_head(backbone.num_features, [], 10).to(self.device)
        model = classifier.Classifier(backbone, head)
        return preparation.prepare(config.method, model, probed_head=None, batches=())


def conversion(bench: Bench) -> list[Row]:
    """Rows a and b, of each network."""
    return [row for network in bench.converted for row in converted(bench, *network)]


def converted(bench: Bench, model: str, side: int, batch: int, with_update_bn: bool = True) -> list[Row]:
    """Rows a and b of one network, on batches of so many images of this side."""
    config = replace(bench.configured(Path()).backbone, model=model, model_args=NEEDED.get(model, {}))
    network = backbones.load(config).to(bench.device).to(memory_format=torch.channels_last)
    images = torch.randint(256, (bench.steps * batch, 3, side, side), dtype=torch.uint8)
    batches = images.to(bench.device).contiguous(memory_format=torch.channels_last).split(batch)

    @torch.no_grad()
    def forward() -> None:
        network.eval()
        for each in batches:
            network(each)

    def alike(work: Callable[..., object], *args: Any) -> float:
        with full_precision(bench.device):  # as the conversion is
            return bench.seconds(work, *args)

    variants = {
        "forward, s": lambda: alike(forward),
        "convert_batchnorm, s": lambda: bench.seconds(convert_batchnorm, network, batches),
    }
    if with_update_bn:
        variants["update_bn, s"] = lambda: alike(update_bn, batches, network)
    # Short, and a few percent apart: a median of few would be noise.
    plain, ours, *theirs = bench.interleaved(variants, times=bench.short)
    size = f"{model}, {bench.steps} x {batch} images of {side} px"
    times = [f"{median(ours):.3f} s / {median(other):.3f} s" for other in (plain, *theirs)]
    rows = [
        Row(f"a. BN conversion of {model} / test-mode pass", ratios(ours, plain), "<= 1.05",
            f"{size}: {times[0]}")
    ]  # fmt: skip
    for seconds in theirs:
        detail = f"same batches: {times[1]}"
        rows.append(Row(f"b. BN conversion of {model} / update_bn", ratios(ours, seconds), "<= 1.05", detail))
    return rows


class Training:
    """A network that is fine-tuned as in experiment.py: by steps on one resident batch, or by the loop."""

    def __init__(self, bench: Bench, config: Config, precision: str) -> None:
        self.bench, self.config = bench, config
        self.cast, self.prepared = autocast(bench.device, precision), bench.network(config)

    def images_per_second(self, batch: Batch) -> float:
        """Of the same optimiser step on one batch, repeated."""
        model, settings = self.prepared.model, self.config.training
        optimizer = torch.optim.SGD(self.prepared.groups, momentum=settings.momentum)

        def steps() -> None:
            preparation.set_train_mode(model, self.config.method)
            for _ in range(self.bench.steps):
                with self.cast():
                    loss = loop.cross_entropy(model, batch)["loss"]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return self.bench.steps * len(batch[0]) / self.bench.seconds(steps)

    def fit(self, loader: Loader) -> float:
        """Images/s of an epoch of the loop, without its evaluation and checkpoint."""
        with tempfile.TemporaryDirectory() as checkpoints:
            fitted = loop.fit(
                self.prepared.model,
                loader,
                self.prepared.groups,
                loop.LoopHooks(
                    set_train_mode=lambda model: preparation.set_train_mode(
                        self.prepared.model, self.config.method
                    ),
                    evaluate=lambda network: 0.0,
                    autocast=self.cast,
                ),
                epochs=1,
                steps=self.bench.steps,
                momentum=self.config.training.momentum,
                weight_decay=self.config.training.weight_decay,
                folder=Path(checkpoints),
            )
        assert not fitted.diverged
        return fitted.history[-1]["images/s"]


def train(bench: Bench) -> list[Row]:
    """Rows c and d."""
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    images = bench.steps * bench.batch
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, count in (("train", images), ("val", 10)):
            write_jpegs(folder / split, TEN, count, (bench.stored, bench.stored))
            write_jpegs(folder / "photos" / split, TEN, min(count, bench.photos), (500, 400))
        config, in_memory = bench.configured(folder), bench.configured(folder, resident_gib=8)
        large = bench.configured(folder / "photos")
        crop = [RandomResizedCrop(size=bench.side), Flip()]
        large = replace(large, dataset=replace(large.dataset, train_transform=crop))
        training = Training(bench, config, precision)
        streamed = datasets.load(config, datasets.listing(config), bench.device).train
        photos = datasets.load(large, datasets.listing(large), bench.device).train
        resident = datasets.load(in_memory, datasets.listing(config), bench.device).train
        batch = next(resident.epoch())

        def decode(loader: Loader) -> float:
            return len(loader) / bench.seconds(lambda: sum(1 for _ in loader.epoch(1)))

        one, memory, files, decoding, fit_photos, decode_photos = bench.interleaved(
            {
                "one batch, images/s": lambda: training.images_per_second(batch),
                "fit from memory, images/s": lambda: training.fit(resident),
                "fit from JPEGs, images/s": lambda: training.fit(streamed),
                "decoding, images/s": lambda: decode(streamed),
                "fit from photos, images/s": lambda: training.fit(photos),
                "decoding photos, images/s": lambda: decode(photos),
            }
        )
    size = f"{bench.model}, {bench.side} px, batch {bench.batch}, {precision}, {bench.steps} steps"
    sizes = {f"{bench.stored} px": (files, decoding), "500 x 400 px": (fit_photos, decode_photos)}
    rows = [
        Row("c. training from memory / steps on one batch", ratios(memory, one), ">= 0.95",
            f"{size}: {median(memory):.1f} / {median(one):.1f} images/s")
    ]  # fmt: skip
    for what, (fitted, alone) in sizes.items():
        name, rate = f"d. training from JPEGs of {what}", f"{median(fitted):.1f}"
        lower = [min(pair) for pair in zip(one, alone, strict=True)]
        told = f"{rate} / min({median(one):.1f}, {median(alone):.1f}) images/s"
        rows.append(
            Row(f"{name} / the lower of steps on one batch and decoding", ratios(fitted, lower), ">= 0.97",
                f"{streamed.workers} workers: {told}")
        )  # fmt: skip
        if bench.device.type == "cpu":
            both = [1 / (1 / steps + 1 / reads) for steps, reads in zip(one, alone, strict=True)]
            rows.append(
                Row(f"{name} / the most that shared cores allow", ratios(fitted, both), "",
                    f"{rate} / {median(both):.1f} images/s")
            )  # fmt: skip
    return rows


def probe(bench: Bench, precisions: Sequence[str] = ("float32", "float64")) -> list[Row]:
    """Row e, against scikit-learn in each precision."""
    n = bench.samples
    features, labels = overlapping(n + n // 4)
    on_device = [t.to(bench.device) for t in (features[:n], labels[:n], features[n:], labels[n:])]
    solve = lambda: fit_probe(*on_device, num_classes=10)  # noqa: E731
    (times,) = bench.interleaved({"fit_probe, s": lambda: bench.seconds(solve)})
    solved = solve()
    wide = features.double()
    wide = (wide - wide[:n].mean()) / wide[:n].std(correction=0)  # what the objective is defined on
    objectives, theirs = [np.array([point.objective for point in solved.path])], []
    for precision in precisions:
        x, y = wide.numpy().astype(precision), labels.numpy()
        classifier = LogisticRegression(max_iter=200, warm_start=True)
        heads, accuracy, started = [], 0.0, time.perf_counter()
        with warnings.catch_warnings(action="ignore"):  # of not having converged: the gap shows it
            for C in DEFAULT_PATH:  # noqa: N806
                classifier.set_params(C=C).fit(x[:n], y[:n])
                accuracy = max(accuracy, 100 * float(classifier.score(x[n:], y[n:])))
                heads.append(np.column_stack([classifier.coef_, classifier.intercept_]))
        theirs.append((precision, time.perf_counter() - started, accuracy))
        print(f"  scikit-learn {theirs[-1]}", flush=True)
        found = [objective(wide[:n], labels[:n], *head) for head in zip(heads, DEFAULT_PATH, strict=True)]
        objectives.append(np.array(found))
    gaps = [float((found / np.min(objectives, axis=0) - 1).max()) for found in objectives]
    ours = f"{median(times):.2f} s ({solved.accuracy:.2f} %, {gaps[0]:.0e})"
    size = f"{n:,} x {features.shape[1]}, 10 classes, {len(DEFAULT_PATH)} values of C"
    return [
        Row(f"e. scikit-learn in {name} / probe, time", [seconds / t for t in times], ">= 3",
            f"{size}: {seconds:.1f} s ({accuracy:.2f} %, {gap:.0e}) / {ours}")
        for (name, seconds, accuracy), gap in zip(theirs, gaps[1:], strict=True)
    ]  # fmt: skip


def overlapping(count: int) -> tuple[Tensor, Tensor]:
    """ReLU-like features [count, 512] of ten overlapping classes, float32, and labels [count]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    latent = 0.3 * torch.randn(10, 64, generator=generator)[labels]
    latent += torch.randn(count, 64, generator=generator)
    hidden = latent @ torch.randn(64, 512, generator=generator) / 8
    noise = torch.randn(count, 512, generator=generator) * torch.linspace(0.7, 0.05, 512)
    return 0.45 * torch.relu(hidden + noise + 0.3), labels


def objective(x: Tensor, labels: Tensor, head: np.ndarray, C: float) -> float:  # noqa: N803
    """What the probe minimises, in float64, at a head [K, D + 1] of weight and bias."""
    weight, bias = torch.from_numpy(head).double().split([x.shape[1], 1], dim=1)
    loss = F.cross_entropy(x @ weight.T + bias.T, labels, reduction="sum")
    return float(0.5 * weight.square().sum() + C * loss)


def memory(bench: Bench) -> list[Row]:
    """Row f."""
    sizes: list[tuple[int, int]] = []

    def in_fresh_process(folder: str) -> float:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            sizes.append(pool.submit(peak_of_loading, folder).result())
        return sizes[-1][0] / sizes[-1][1]

    with tempfile.TemporaryDirectory() as folder:
        for split, share in (("train", 0.8), ("test", 0.2)):
            classes = configuration("dataset=cifar10_folder").dataset.classes or []
            write_jpegs(Path(folder) / "cifar10" / split, classes, int(share * bench.samples), (32, 32))
        (values,) = bench.interleaved({"peak / images": lambda: in_fresh_process(folder)})
    peak, images = (median(column) / 2**20 for column in zip(*sizes, strict=True))
    detail = f"{bench.samples:,} JPEGs of 32 px in 10 classes: {peak:.0f} MiB / {images:.0f} MiB"
    return [Row("f. peak memory of loading / resident images", values, "", detail)]


def peak_of_loading(folder: str) -> tuple[int, int]:
    """Bytes by which resident memory peaks while a run's images are loaded, and bytes of the images."""

    def status(key: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])

    config = configuration("dataset=cifar10_folder", f"paths.data={folder}", f"paths.cache={folder}")
    Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, starts anew
    before = status("VmRSS")
    loaded = datasets.load(config, datasets.listing(config), torch.device("cpu"))
    peak = status("VmHWM") - before
    held = [loader.images for loader in (loaded.train, *loaded.evaluation.values())]
    return peak, sum(
        {h.pixels.data_ptr(): h.pixels.numel() for h in held if isinstance(h, Resident)}.values()
    )


def cached(bench: Bench) -> list[Row]:
    """Row g."""
    count, side, crop = bench.photos, 256, [RandomResizedCrop(size=224), Flip()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, images in (("train", count), ("val", 10)):
            write_jpegs(folder / split, TEN, images, (500, 400))
        config = bench.configured(folder)
        config = replace(config, dataset=replace(config.dataset, train_transform=crop))
        once = replace(config, dataset=replace(config.dataset, cache_side=side))
        files, kept = (datasets.load(c, datasets.listing(c), bench.device).train for c in (config, once))
        decoding, mapped = bench.interleaved(
            {
                "from JPEGs, images/s": lambda: count / bench.seconds(lambda: sum(1 for _ in files.epoch(1))),
                "from the cache, images/s": lambda: (
                    count / bench.seconds(lambda: sum(1 for _ in kept.epoch(1)))
                ),
            }
        )
    detail = f"{count} JPEGs of 500 x 400 px, cache_side {side}, {files.workers} workers: "
    detail += f"{median(mapped):.1f} / {median(decoding):.1f} images/s"
    return [Row("g. loading from the cache / from JPEGs", ratios(mapped, decoding), "", detail)]


def decoders(bench: Bench) -> list[Row]:
    """Rows n."""

    def pillow(file: Path) -> Tensor:
        with opened(file, USUAL) as image:
            return as_pixels(image)

    with tempfile.TemporaryDirectory() as temporary:
        write_jpegs(Path(temporary) / "photos", TEN, bench.photos, (500, 400))
        files = sorted(Path(temporary).rglob("*.jpg"))
        assert all(torch.equal(pillow(file), read_image(file)) for file in files)

        def rate(read: Callable[[Path], Tensor]) -> float:
            return len(files) / bench.seconds(lambda: [read(file) for file in files] and None)

        before, equal, scaled = bench.interleaved(
            {
                "Pillow, images/s": lambda: rate(pillow),
                "equal pixels, images/s": lambda: rate(read_image),
                "scaled, images/s": lambda: rate(lambda file: read_image(file, Decoding(least_side=64))),
            }
        )
    rates = [f"{median(values):.0f} / {median(before):.0f} images/s" for values in (equal, scaled)]
    what = f"{bench.photos} JPEGs of 500 x 400 px, one thread"
    return [
        Row(
            "n. decoding with equal pixels / by Pillow",
            ratios(equal, before),
            ">= 1.5",
            f"{what}: {rates[0]}",
        ),
        Row("n. scaled decoding at 1/4 / by Pillow in full", ratios(scaled, before), ">= 3", rates[1]),
    ]


def crops(bench: Bench) -> list[Row]:
    """Rows o."""
    images = torch.randint(256, (bench.batch, 3, 256, 256), dtype=torch.uint8).to(bench.device)
    on_gpu, rows = bench.device.type == "cuda", []
    kinds = torch.profiler.ProfilerActivity

    def launches(work: Callable[[], object]) -> float:
        with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_gpu else [])]) as profiler:
            bench.seconds(work)
        events = profiler.events() or []
        if on_gpu:
            return sum(event.name == "cudaLaunchKernel" for event in events)
        return sum(event.name.startswith("aten::") for event in events)

    for name, op, at_once in (
        (
            "random_resized_crop",
            RandomResizedCrop(size=224),
            partial(resized_crops, RandomResizedCrop(size=224)),
        ),
        ("random_scale_crop", RandomScaleCrop(size=224), partial(scaled_crops, RandomScaleCrop(size=224))),
    ):
        uniforms = torch.rand(bench.batch, num_uniforms([op]))
        each = partial(lambda op, uniforms: torch.stack(apply_each(op, list(images), uniforms)), op, uniforms)
        once = partial(at_once, images, uniforms)
        loop, batch, slow, fast = bench.interleaved(
            {
                f"{name}, launches": partial(launches, each),
                "at once, launches": partial(launches, once),
                f"{name}, s": partial(bench.seconds, each),
                "at once, s": partial(bench.seconds, once),
            }
        )
        counted = f"batch of {bench.batch}, {'kernels' if on_gpu else 'operations'}"
        rows += [
            Row(f"o. {name} one by one / at once, launches", ratios(loop, batch), "",
                f"{counted}: {median(loop):.0f} / {median(batch):.0f}"),
            Row(f"o. {name} one by one / at once, time", ratios(slow, fast), "",
                f"{1000 * median(slow):.1f} ms / {1000 * median(fast):.1f} ms"),
        ]  # fmt: skip
    return rows


@torch.no_grad()
def corrupted(bench: Bench) -> list[Row]:
    """Rows h and i."""
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    cast, model = autocast(bench.device, precision), bench.network(bench.configured(Path())).model
    backbone, head, each = model.backbone, model.head, bench.steps * bench.batch // 10
    images, generator = 75 * each, np.random.default_rng(0)
    resident = torch.randint(256, (bench.batch, 3, bench.side, bench.side), dtype=torch.uint8)
    resident = resident.to(bench.device).contiguous(memory_format=torch.channels_last)
    clean = torch.randint(256, (each, 3, bench.side, bench.side), dtype=torch.uint8).to(bench.device)
    labels = torch.arange(each) % 10
    loader = Loader("id", Resident(clean), labels, "", [], bench.batch, 0, False, bench.device, 0)

    def passes() -> None:
        model.eval()
        for _ in range(images // bench.batch):
            with cast():
                features = backbone(resident)
            head(features.float())

    def evaluate(blocks: robustness.Corrupted) -> None:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                accuracy(backbone, head, blocks.block(name, severity), cast)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "CIFAR-10-C"
        folder.mkdir()
        np.save(folder / "labels.npy", np.tile(labels.numpy(), 5))
        for name in CORRUPTIONS:
            pixels = generator.integers(256, size=(5 * each, 32, 32, 3), dtype=np.uint8)
            np.save(folder / f"{name}.npy", pixels)
        resize: list[Operation] = [Resize(size=bench.side)]
        mapped = robustness.published(folder.parent, resize, bench.device, bench.batch)
        made = robustness.generated(loader, bench.batch)
        one, files, here = bench.interleaved(
            {
                "one batch, images/s": lambda: images // bench.batch * bench.batch / bench.seconds(passes),
                "CIFAR-10-C, images/s": lambda: images / bench.seconds(evaluate, mapped),
                "generated, images/s": lambda: images / bench.seconds(evaluate, made),
            }
        )
    size = f"{bench.model}, {bench.side} px, batch {bench.batch}, {precision}, 75 blocks of {each}"
    rates = [f"{median(other):.1f} / {median(one):.1f} images/s" for other in (files, here)]
    return [
        Row(
            "h. evaluation on CIFAR-10-C / on one batch", ratios(files, one), ">= 0.95", f"{size}: {rates[0]}"
        ),
        Row("i. with corruptions generated / one batch", ratios(here, one), "", rates[1]),
    ]


def sweep(bench: Bench, runs: Path, *overrides: str, cache: str = "") -> float:
    """Seconds of a sweep of the embedded network, as a command; without `cache` its own is empty."""
    places = [f"paths.runs={runs}", f"paths.cache={cache or runs / 'cache'}", f"hydra.sweep.dir={runs}/sweep"]
    settings = [f"compute.device={bench.device.type}", "compute.threads=1", "wandb.mode=disabled"]
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-m", "sweep=paper", "method=ft"]
    started = time.perf_counter()
    subprocess.run([*command, *settings, *places, *overrides], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def by_workers(bench: Bench, workers: int, *overrides: str, cache: str = "") -> float:
    """Seconds of RUNS runs by so many workers."""
    grid = [round(0.1 / (1 + i), 4) for i in range(RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        return sweep(
            bench,
            Path(folder),
            *("hydra/launcher=workers", f"hydra.launcher.n_jobs={workers}", "sweep.seeds=[0]"),
            *(f"sweep.grids.ft={grid}".replace(" ", ""), f"training.epochs={bench.epochs}", *overrides),
            cache=cache,
        )


def sweeps(bench: Bench) -> list[Row]:
    """Rows j and k."""
    with tempfile.TemporaryDirectory() as cache:
        by_workers(bench, 1, "training.epochs=1", "sweep.grids.ft=[0.1]", cache=cache)
        one, two = bench.interleaved(
            {
                "one worker, s": partial(by_workers, bench, 1, cache=cache),
                "two workers, s": partial(by_workers, bench, 2, cache=cache),
            },
            warm_up=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        seeds = {runs: f"sweep.seeds={list(range(runs))}".replace(" ", "") for runs in (1, bench.finished)}
        again = {
            f"{runs} finished, s": partial(sweep, bench, Path(folder), *FEW, "sweep.stages.ft=[]", given)
            for runs, given in seeds.items()
        }
        single, many = bench.interleaved(again)  # the warm-up computes them
    each = [(all_ - alone) / (bench.finished - 1) for all_, alone in zip(many, single, strict=True)]
    return [
        Row("j. sweep by one worker / by two, time", ratios(one, two), ">= 1.8",
            f"{RUNS} runs on a thread each: {median(one):.0f} s / {median(two):.0f} s"),
        Row("k. seconds that each finished run adds to a sweep", each, "<= 0.1",
            f"{bench.finished} runs: {median(many):.1f} s, 1 run: {median(single):.1f} s"),
    ]  # fmt: skip


TO_FIRST_STEP = f"""
import os, runpy, sys
from torch.optim import SGD
step = SGD.step
SGD.step = lambda *given, **more: (step(*given, **more), os._exit(0))
sys.argv[0], sys.path[0] = "train.py", {str(ROOT / "scripts")!r}
runpy.run_path({str(ROOT / "scripts/train.py")!r}, run_name="__main__")
"""
"""A run that ends with its first training step."""


def start(bench: Bench) -> list[Row]:
    """Rows l and m."""
    kept = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # the bytecode, as by default
    walls: dict[str, list[float]] = {"again": [], "first": [], "fresh": []}

    def cpu_seconds(name: str, program: Sequence[str], runs: str, cache: str) -> float:
        places = [f"paths.runs={runs}/runs", f"paths.cache={cache}/cache"]
        settings = [f"compute.device={bench.device.type}", "compute.threads=1", "wandb.mode=disabled"]
        command = [sys.executable, *program, *settings, *places, *small]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls[name].append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def step(name: str, cache: str | None) -> float:
        with tempfile.TemporaryDirectory() as fresh:
            return cpu_seconds(name, ["-c", TO_FIRST_STEP], fresh, cache or fresh)

    small = FEW if bench.finished < Bench.finished else []  # --quick
    with tempfile.TemporaryDirectory() as folder:
        finished = partial(cpu_seconds, "again", [str(ROOT / "scripts/train.py")], folder, folder)
        again, first, fresh = bench.interleaved(
            {
                "named again, CPU s": finished,
                "to first step, CPU s": partial(step, "first", folder),
                "to first step without a cache, CPU s": partial(step, "fresh", None),
            }
        )
    named, stepped, drawn = (f"wall-clock {median(walls[name][1:]):.1f} s" for name in walls)
    return [
        Row("l. CPU seconds of a finished run named again", again, "<= 3", named),
        Row("m. CPU seconds to the first training step", first, "<= 6", f"{stepped}, cache warm"),
        Row("m. the same, with images to draw and an empty cache", fresh, "", drawn),
    ]


def next_run(bench: Bench) -> list[Row]:
    """Row p."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, count in (("train", bench.steps * bench.batch), ("val", 10)):
            write_jpegs(folder / split, TEN, count, (bench.stored, bench.stored))
        config = bench.configured(folder, resident_gib=8)
        listed = datasets.listing(config)

        def load() -> float:
            splits = listed.splits()
            return bench.seconds(lambda: datasets.decode(config, splits, listed.classes, bench.device))

        def anew() -> float:
            images._latest.clear()
            return load()

        first, following = bench.interleaved({"first run, s": anew, "next run, s": load})
    taken = f"{median(first):.3g} s / {median(following):.3g} s"
    detail = f"{bench.steps * bench.batch:,} JPEGs of {bench.stored} px: {taken}"
    return [
        Row(
            "p. images for the first run of a process / the next one, time",
            ratios(first, following),
            "",
            detail,
        )
    ]


def write_jpegs(folder: Path, classes: list[str], count: int, size: tuple[int, int]) -> None:
    """Smooth images with grain, which compress about as photos do, the classes in turn; their own per folder.

    size: width and height in pixels.
    """
    generator = np.random.default_rng([*folder.name.encode()])
    for name in classes:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        blobs = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize(size, Image.Resampling.BICUBIC))
        grainy = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / classes[i % len(classes)] / f"{i:06d}.jpg", quality=90)


def ratios(values: list[float], yardstick: list[float]) -> list[float]:
    """Repetition by repetition."""
    return [value / one for value, one in zip(values, yardstick, strict=True)]


def report(rows: list[Row], machine: str) -> str:
    """The table with where, when and how it was measured, as markdown."""
    lines = [
        f"# Speed and memory: {machine}\n",
        "| ratio | median | range | n | target | | measured (medians) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        numbers = f"{median(row.values):.3f} | {min(row.values):.3f} ... {max(row.values):.3f}"
        verdict = f"{row.target or 'none'} | {row.verdict}"
        lines.append(f"| {row.what} | {numbers} | {len(row.values)} | {verdict} | {row.detail} |")
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            *lines,
            f"\nMachine: {machine}; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads.",
            f"Python {platform.python_version()}, {libraries}; {date.today()}.",
            f"Command: `python tests/benchmark.py {shlex.join(sys.argv[1:])}`\n",
            (__doc__ or "").split("\n\n", 1)[1],
        ]
    )


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "conversion": conversion,
    "training": train,
    "probe": probe,
    "memory": memory,
    "cache": cached,
    "decoding": decoders,
    "next-run": next_run,
    "crops": crops,
    "corrupted": corrupted,
    "sweeps": sweeps,
    "start": start,
}
"""What can be measured, in the order of the table."""


def main() -> int:
    """Measure, print, and write the table if all of it was measured at full size."""
    parser = cli.parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=cli.count, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--repeats", type=cli.count, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[], help="writes no file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it; writes no file")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks", help="folder")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args()
    machine = platform.processor() or platform.machine()
    if args.device == "cuda":
        machine = torch.cuda.get_device_name()
        bench = Bench(torch.device("cuda"), args.repeats, "resnet50", side=224, stored=256, steps=50)
        bench = replace(bench, converted=ON_GPU)
    else:
        if (info := Path("/proc/cpuinfo")).exists():
            names = re.findall(r"model name\s*: (.+)", info.read_text())
            machine = names[0] if names else machine
        bench = Bench(torch.device("cpu"), args.repeats, "resnet18", side=64, stored=64, steps=20)
        bench = replace(bench, converted=ON_CPU)
    if args.quick:
        bench = replace(bench, model="resnet18", side=32, stored=40, steps=3, batch=8, samples=500, photos=32)
        bench = replace(bench, epochs=1, finished=3, converted=Bench.converted)
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed()  # as runs do
    torch.backends.cudnn.benchmark = True  # as in a long training
    rows: list[Row] = []
    with threadpool_limits(args.threads):
        for name in args.only or ROWS:
            print(f"{name} on {machine}", flush=True)
            rows += ROWS[name](bench)
    text = report(rows, machine)
    print(f"\n{text}")
    if not args.quick and not args.only:
        slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
        slug += "-benchmark" * (args.device == "cuda")  # beside what `make gpu-check` writes
        write_atomically(args.out / f"{slug}.md", text)
    return int(args.check and any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    cli.run(main)
