"""Factors on the learning rates over the course of training."""

import math


def cosine(epoch: int, epochs: int) -> float:
    """Factor on the learning rate during an epoch (from 1): a half cosine from 1 towards 0."""
    return (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def polynomial(step: int, steps: int, power: float) -> float:
    """Factor on the learning rate at a step (from 0): falls from 1 towards 0."""
    return (1 - step / steps) ** power


def share(epoch: int, epochs: int, steps: int) -> range:
    """The steps (from 0) of an epoch (from 1)."""
    return range((epoch - 1) * steps // epochs, epoch * steps // epochs)
