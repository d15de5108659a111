"""BN statistics at test time: prediction-time batch normalisation (Nado et al. 2020), a form of AdaBN."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.config.parts import TARGET_BN
from daft.methods.parts.part import Part


class TestTime(Part):
    """Evaluates also with each batch normalised by its own statistics, in columns marked `(target BN)`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def evaluations(self) -> Mapping[str, Callable[[nn.Module], AbstractContextManager[None]]]:
        return {TARGET_BN: batch_statistics}


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let BN layers normalise each batch by its own statistics in test mode, and leave them as they were."""
    kept = {layer: (layer.running_mean, layer.running_var) for layer in batchnorm_layers(network).values()}
    try:
        for layer in kept:  # torch: without running statistics a layer uses those of the batch
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, (mean, variance) in kept.items():
            layer.running_mean, layer.running_var = mean, variance
