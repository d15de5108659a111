"""What a run has found and will do, said in a few lines before the work starts."""

from typing import NamedTuple

from daft.common.errors import join_first, shown
from daft.config.schema import Config
from daft.data import balance
from daft.data.datasets import Listing
from daft.data.labelled import Labelled
from daft.data.loader import batch_boundaries

FEW = 10
"""Images of a class, below which its numbers are told."""

MOST_NAMES = 8
"""Classes that are named with their numbers; of more, the smallest and the largest."""


class Preview(NamedTuple):
    """What is said."""

    images: list[str]
    """classes, and images per split, a line each"""
    device: str
    """and precision"""
    work: str
    """network, device, precision, steps and rates, in one line"""

    @property
    def of_run(self) -> list[str]:
        """The lines for a single run."""
        return [*self.images, self.work]

    @property
    def of_sweep(self) -> list[str]:
        """Those that the runs of a sweep on one dataset share."""
        return [*self.images, f"  on {self.device}"]


def preview(config: Config, listed: Listing, device: str, precision: str) -> Preview:
    """Of the run of a configuration.

    device: as it is called, with its threads.
    """
    splits = {"train": listed.train, **listed.evaluation}
    names = {name: {"id": "ID", "train": "train"}.get(name, shown(name)) for name in splits}
    width = max(map(len, names.values()))
    classes = listed.classes
    by_class = config.segmentation is None
    images = [
        f"  {names[name]:<{width}}  {len(split):,} images{_per_class(split, classes) if by_class else ''}"
        for name, split in splits.items()
    ]
    training, method = config.training, config.method
    batches = len(batch_boundaries(len(listed.train), training.batch_size))
    steps = training.steps or training.epochs * batches
    work = f"{_count(training.epochs, 'epoch')}, {_count(steps, 'step')} of {training.batch_size} images"
    if method.is_solved:
        work = "the head is solved for, nothing is trained by gradients"
    head = f"{shown(config.dataset.name)}: {len(classes)} classes ({join_first(classes)})"
    place, named = f"{device}, {precision}", f"{shown(config.method.name)} on {shown(config.backbone.name)}"
    return Preview([head, *images], place, f"{named}, {place}: {', '.join([work, *_rates(config)])}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _per_class(split: Labelled, classes: list[str]) -> str:
    """The numbers of a split's classes, if they are unequal, few or none."""
    counts = balance.counts(split.labels, len(classes))
    named = [*zip(counts, classes, strict=True)]
    if min(counts) >= FEW and not balance.is_unequal(counts):
        return ""
    if min(counts) == max(counts):
        told = f"{counts[0]} of each class"
    elif len(counts) <= MOST_NAMES:
        told = ", ".join(f"{shown(name)} {count:,}" for count, name in named)
    else:
        (least, smallest), (most, largest) = min(named), max(named)
        told = f"from {least:,} ({shown(smallest)}) to {most:,} ({shown(largest)}) a class"
    none = [name for count, name in named if not count]
    return f": {told}" + (f"; none of {join_first(none)}" if none and len(counts) > MOST_NAMES else "")


def _rates(config: Config) -> list[str]:
    method = config.method
    tied = " for all" if method.rates == "tied" else ""
    rates = [] if method.lr_backbone is None else [f"η_θ={method.lr_backbone:g}{tied}"]
    if method.lr_head is not None:
        unit = " times the rate that fits the features" if method.lr_head_unit else ""
        rates.append(f"η_w={method.lr_head:g}{unit}")
    return rates
