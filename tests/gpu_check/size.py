"""How much the parts measure: at full size on a GPU, and at toy size to try them."""

from dataclasses import dataclass, replace

import torch

from tests.benchmark import ON_GPU, Bench


@dataclass(frozen=True)
class Size:
    """How much the parts measure."""

    bench: Bench
    networks: dict[str, str]
    """timm's names of those whose training rate is measured, by whose rate it is taken for"""
    seconds: float
    """that one measurement of a rate lasts, about"""
    photos: int
    """JPEG files that training reads"""
    workers: int
    """of the authors' loop"""
    share: float
    """of PACS' images"""
    pacs: tuple[str, ...]
    """overrides of the runs on images of PACS' size, the network among them"""
    sweep: tuple[str, ...]
    """further overrides of several small runs"""
    at_once: tuple[int, ...]
    """small runs at a time, against one"""


CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FULL = Size(
    replace(
        Bench(CUDA, 5, "resnet50", side=224, stored=256, steps=10, samples=10_000, epochs=3, short=1),
        converted=ON_GPU,
    ),
    networks={"resnet50": "resnet50", "resnet50_clip": "resnet50_clip"},
    seconds=0.5,
    photos=1280,
    workers=12,
    share=1.0,
    pacs=("backbone=efficientnet_lite0", "training.epochs=2"),
    sweep=(),
    at_once=(2, 4),
)
TOY = Size(
    Bench(CPU, 1, "test_resnet", side=32, stored=40, steps=2, batch=4, samples=200, short=1,
          converted=(("test_resnet", 32, 4),)),
    networks={"resnet50": "test_resnet", "resnet50_clip": "test_resnet"},
    seconds=0.01,
    photos=40,
    workers=1,
    share=0.01,
    pacs=("training.epochs=1", "backbone=timm", "backbone.model=test_resnet",
          "dataset.train_transform=[{resize: [32, 32]}]", "dataset.eval_transform=[{resize: [32, 32]}]",
          "training.batch_size=8", "compute.workers=1"),
    sweep=("training.epochs=1", "dataset.train.images=20", "dataset.id.images=20", "sweep.grids.ft=[0.1]"),
    at_once=(2,),
)  # fmt: skip
