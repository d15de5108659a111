"""Rates of training, BN conversion and the linear probe on one GPU, by the rows of the benchmark."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from daft.config.operations import Flip, RandomCrop
from daft.data import datasets
from daft.data.images import Resident
from daft.data.loader import Batch, Loader
from daft.networks import builders
from tests import benchmark
from tests.benchmark import NEEDED, TEN, Bench, Row, Training, ratios
from tests.gpu_check.lines import Fact, Found, Line
from tests.gpu_check.photos import write_photos
from tests.gpu_check.size import Size

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def has_bf16(device: torch.device) -> bool:
    """Whether `precision: auto` is bf16 there."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def rates(size: Size) -> Iterator[Found]:
    """Training end to end against steps on one resident batch, in bf16 and fp32; a rate per network."""
    first, *others = size.networks
    default = default_precision(size)
    yield from _end_to_end(size, first, default)
    for name in others:  # before the other precision: device-hours need a rate of each
        yield from _end_to_end(size, name, default, repeats=1)
    if default == "fp32" and size.bench.device.type == "cuda":
        yield Line("training in bf16", ">= 0.95", "this GPU has no bf16: runs are in fp32", "stated")
    else:
        yield from _end_to_end(size, first, "fp32" if default == "bf16" else "bf16")


def compiled(size: Size) -> Iterator[Found]:
    """The same with `compute.compile=true`."""
    yield from _end_to_end(size, next(iter(size.networks)), default_precision(size), compile_=True)


def default_precision(size: Size) -> str:
    """What `precision: auto` is."""
    return "bf16" if has_bf16(size.bench.device) else "fp32"


def _end_to_end(
    size: Size, name: str, precision: str, *, compile_: bool = False, repeats: int | None = None
) -> Iterator[Found]:
    bench = replace(size.bench, model=size.networks[name], repeats=repeats or size.bench.repeats)
    training, loader = _training(bench, precision), _resident(bench)
    if compile_:
        training.prepared.model.backbone.compile()
    batch = next(loader.epoch())
    training.bench = bench = _paced(training, batch, size.seconds)
    one, whole = bench.interleaved(
        {
            "one batch, images/s": lambda: training.images_per_second(batch),
            "end to end, images/s": lambda: training.fit(loader),
        }
    )
    how = f"{bench.model}, {bench.side} px, batch {bench.batch}, {precision}{', compiled' * compile_}"
    what = f"{how}: training end to end / steps on one batch"
    rate = f"{bench.steps} steps: {median(whole):,.0f} / {median(one):,.0f} images/s"
    yield Line.of(Row(what, ratios(whole, one), ">= 0.95", rate))
    yield Fact(f"{name} {precision}{' compiled' * compile_}", median(whole))


def _training(bench: Bench, precision: str) -> Training:
    config = bench.configured(Path())
    backbone = replace(config.backbone, model_args=NEEDED.get(bench.model, {}))
    return Training(bench, replace(config, backbone=backbone), precision)


def _resident(bench: Bench) -> Loader:
    """Random images in memory, of which training crops and flips some."""
    shape = (bench.steps * bench.batch, 3, bench.stored, bench.stored)
    images = torch.randint(256, shape, dtype=torch.uint8)
    operations = [RandomCrop(size=bench.side), Flip()]
    labels = torch.arange(len(images)) % len(TEN)
    held = Resident(images.to(bench.device))
    return Loader("train", held, labels, "", operations, bench.batch, 0, True, bench.device, 0)


def _paced(training: Training, batch: Batch, seconds: float) -> Bench:
    """As many steps as last so long, by a first look; it also compiles, chooses kernels and allocates."""
    bench = training.bench
    training.bench = replace(bench, steps=3)
    rate = [training.images_per_second(batch) for _ in range(2)][-1]
    return replace(bench, steps=int(min(max(seconds * rate / bench.batch, 3), 200)))


class _Photos(Dataset[tuple[torch.Tensor, int]]):
    """JPEG files by Pillow, cropped and normalised one by one, as torchvision's tutorials have it."""

    def __init__(self, folder: Path, side: int) -> None:
        self.files = sorted(folder.rglob("*.jpg"))
        operations = [transforms.RandomCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*operations, transforms.Normalize(*IMAGENET)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as image:
            return torch.as_tensor(self.transform(image.convert("RGB"))), int(self.files[index].parent.name)


def published_loop(bench: Bench, folder: Path, workers: int) -> Callable[[], float]:
    """Images/s of an epoch of a plain loop: fp32, Pillow, so many workers, `.item()` of each loss."""
    network = builders.build(bench.configured(Path()).backbone, pretrained=False)
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, bench.side, bench.side)).shape[1]
    model = nn.Sequential(network, nn.Linear(width, len(TEN))).to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    photos = _Photos(folder, bench.side)
    # Their workers start anew each epoch, which here, where epochs are short, would count for too much.
    loader = DataLoader(photos, bench.batch, shuffle=True, num_workers=workers, persistent_workers=True)

    def epoch() -> None:
        model.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(bench.device)), labels.to(bench.device))
            loss.backward()
            optimizer.step()
            total += loss.item()

    return lambda: len(photos) / bench.seconds(epoch)


def against_published(size: Size) -> Iterator[Found]:
    """Training from JPEG files against the authors' loop as it is published."""
    bench = replace(size.bench, steps=size.photos // size.bench.batch)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos({folder / "train": size.photos, folder / "val": len(TEN)}, TEN, bench.stored)
        theirs = published_loop(bench, folder / "train", size.workers)
        kept, read = bench.configured(folder, resident_gib=8), bench.configured(folder)
        default, streamed = Training(bench, kept, default_precision(size)), Training(bench, read, "fp32")
        memory = datasets.load(kept, datasets.listing(kept), bench.device).train
        files = datasets.load(read, datasets.listing(read), bench.device).train
        plain, ours, alike = bench.interleaved(
            {
                "published loop, images/s": theirs,
                "as configured, images/s": lambda: default.fit(memory),
                "fp32 from files, images/s": lambda: streamed.fit(files),
            }
        )
    what = f"{bench.model}, {bench.side} px, batch {bench.batch}: training"
    rate = [f"{median(other):,.0f} / {median(plain):,.0f} images/s" for other in (ours, alike)]
    by_default = f"JPEGs of {bench.stored} px, {size.workers} workers in theirs: {rate[0]}"
    yield Line.of(Row(f"{what} by default / the authors' loop", ratios(ours, plain), ">= 1", by_default))
    anew = f"{files.workers} workers in ours: {rate[1]}"
    yield Line.of(
        Row(f"{what} in fp32, decoded anew / the authors' loop", ratios(alike, plain), ">= 1", anew)
    )


def conversion(size: Size) -> Iterator[Found]:
    """BN conversion against a plain test-mode pass, of each network."""
    for network in size.bench.converted:
        (row,) = benchmark.converted(size.bench, *network, with_update_bn=False)
        yield Line.of(row)


def probe(size: Size) -> Iterator[Found]:
    """The linear probe against scikit-learn on the CPU."""
    (row,) = benchmark.probe(size.bench, ["float32"])
    yield Line.of(row)
