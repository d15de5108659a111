"""Few-shot episodes: a few classes, a few labelled images of each, and others to classify."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from daft.common.errors import UserError
from daft.config.schema import FewshotConfig
from daft.data.loader import Loader, derive_seed

Option = Callable[[str, int], str]
"""How a setting of this name is given this value."""

OPTION: Option = "--{} {}".format


@dataclass(frozen=True)
class Protocol:
    """What is drawn: N-way K-shot episodes, how many, and from which seed."""

    ways: int
    """classes of an episode"""
    shots: tuple[int, ...]
    """labelled images of each class; an episode is taken once with each number"""
    queries: int
    """other images of each class, which are classified"""
    episodes: int
    """two or more"""
    seed: int

    @classmethod
    def of(cls, cfg: FewshotConfig) -> Self:
        """Those that a split is evaluated on."""
        return cls(cfg.ways, (cfg.shots,), cfg.queries, cfg.episodes, cfg.seed)

    @property
    def images(self) -> int:
        """Of an episode with the most shots."""
        return self.ways * (max(self.shots) + self.queries)

    def require(self, labels: Tensor, classes: Sequence[str], split: str, option: Option = OPTION) -> None:
        """Raise UserError unless a split's images, of these labels [N], are enough for an episode."""
        counts = labels.bincount(minlength=len(classes))
        there = int((counts > 0).sum())
        if self.ways > there:
            raise UserError(f"{option('ways', self.ways)}: dataset.{split} has {there} classes")
        shots, fewest = max(self.shots), int(counts[counts > 0].min())
        if shots + self.queries > fewest:
            given = f"{option('shots', shots)} {option('queries', self.queries)}"
            less = option("queries", fewest - shots) if shots < fewest else option("shots", fewest - 1)
            name = classes[counts.tolist().index(fewest)]
            raise UserError(
                f"{given}: {shots + self.queries} images of a class, but dataset.{split} has {fewest} of "
                f"{name!r}{f'; use {less} or less' if fewest > 1 else ''}"
            )


class Episodes(NamedTuple):
    """A batch of B episodes, as places of images in their split."""

    support: Tensor
    """int64 [B, ways, most shots]: the labelled images; fewer shots are the first of them"""
    query: Tensor
    """int64 [B, ways, queries]: the images to classify, none of them in the support"""


def draw(labels: Tensor, protocol: Protocol, batch: int) -> Iterator[Episodes]:
    """All episodes of a protocol in batches: ways uniform over the classes that have images, then the images.

    Classes and images of an episode are drawn without replacement. An episode depends on the labels [N], the
    seed, and the numbers of ways and queries alone: every number of shots has the same queries.
    """
    counts = labels.bincount()
    classes = counts.nonzero()[:, 0]
    places = torch.full((len(counts), int(counts.max())), -1)  # of each class's images, row by row
    places[torch.arange(places.shape[1]) < counts[:, None]] = labels.argsort(stable=True)
    of_classes, of_images = (np.random.default_rng([protocol.seed, stream]) for stream in range(2))
    for start in range(0, protocol.episodes, batch):
        count = min(batch, protocol.episodes - start)
        order = torch.from_numpy(of_classes.random((count, len(classes)))).argsort()
        ways = classes[order[:, : protocol.ways]]
        keys = torch.from_numpy(of_images.random((*ways.shape, places.shape[1])))
        keys[torch.arange(places.shape[1]) >= counts[ways][..., None]] = math.inf
        chosen = keys.topk(protocol.queries + max(protocol.shots), largest=False).indices
        images = places[ways[..., None], chosen]
        yield Episodes(images[..., protocol.queries :], images[..., : protocol.queries])


DRAWN = 1000
"""Episodes at a time: they take memory for every image of their classes."""


@dataclass
class EpisodeLoader(Loader):
    """A split whose steps are of episodes; epoch 0 is a plain pass over the images, as BN conversion takes.

    The images [per_step · ways · (shots + queries)] of a step are its episodes one after the other, of each
    the ways, and of each way the support, then the queries. An image that several episodes of a pass draw is
    augmented alike in them.
    """

    protocol: Protocol
    """`episodes` are those of a pass; all passes of a split that is not shuffled are its `seed`'s"""
    per_step: int

    @classmethod
    def of(cls, loader: Loader, protocol: Protocol, per_step: int) -> Self:
        """The same images in episodes."""
        return cls(
            **{f.name: getattr(loader, f.name) for f in fields(Loader)}, protocol=protocol, per_step=per_step
        )

    @classmethod
    def of_training(cls, loader: Loader, cfg: FewshotConfig) -> Self:
        """As many episodes a pass as there are images for, at least a step."""
        protocol = Protocol.of(cfg)
        steps = max(1, len(loader) // (cfg.meta_batch * protocol.images))
        return cls.of(loader, replace(protocol, episodes=steps * cfg.meta_batch), cfg.meta_batch)

    @property
    def steps_per_pass(self) -> int:
        return self.protocol.episodes // self.per_step

    def _sample(self, number: int) -> tuple[Tensor, Tensor]:
        order, uniforms = super()._sample(number)
        if number:
            seed = derive_seed(self.seed, number) if self.shuffle else self.protocol.seed
            drawn = draw(self.labels, replace(self.protocol, seed=seed), DRAWN)
            order = torch.cat([torch.cat(episodes, -1).flatten() for episodes in drawn])
        return order, uniforms

    def _ends(self, number: int) -> list[int]:
        size = self.per_step * self.protocol.images
        return [*range(size, size * self.steps_per_pass + 1, size)] if number else super()._ends(number)
