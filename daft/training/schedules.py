"""Learning rates over the course of training, and which steps belong to which epoch."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer


def cosine(epoch: int, epochs: int) -> float:
    """Factor on the learning rate during an epoch (from 1): a half cosine from 1 towards 0."""
    return (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def polynomial(step: int, steps: int, power: float) -> float:
    """Factor on the learning rate at a step (from 0): falls from 1 towards 0."""
    return (1 - step / steps) ** power


@dataclass(frozen=True)
class Schedule:
    """Epochs of equal numbers of steps, with rates that fall as a half cosine, or as a polynomial."""

    epochs: int
    steps: int
    """of all epochs together"""
    power: float | None = None
    """rates fall as (1 - step / steps) to this power, set before every step; None: as a half cosine, set
    before every epoch"""

    def steps_of_epoch(self, epoch: int) -> range:
        """The steps (from 0) of an epoch (from 1)."""
        return range((epoch - 1) * self.steps // self.epochs, epoch * self.steps // self.epochs)

    def before_epoch(self, epoch: int, optimizer: Optimizer) -> None:
        """Set the rates of an epoch (from 1)."""
        _scale(optimizer, cosine(epoch, self.epochs))

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Set the rates of a step (from 0), if they change at every step."""
        if self.power is not None:
            _scale(optimizer, polynomial(step, self.steps, self.power))


def _scale(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
