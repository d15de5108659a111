"""Deep CORAL (Sun and Saenko 2016): labelled and unlabelled features with equal covariances."""

from collections.abc import Mapping

import torch
from torch import Tensor

from daft.common.errors import ConfigError, join_first
from daft.config.parts import FEATURES, CoralConfig
from daft.methods.parts.part import Domains, Part, Setting, Step


def coral_distance(source: Tensor, target: Tensor) -> Tensor:
    """‖C_S - C_T‖²_F / 4d² of two covariance matrices [d, d]."""
    return (source - target).square().sum() / (4 * source.shape[0] ** 2)


class Coral(Part):
    """Adds the mean over the layers of this distance between the domains, of covariances over n - 1."""

    def __init__(self, config: CoralConfig) -> None:
        self.weight, self.layers = config.weight, tuple(config.layers)
        self.separate = config.batchnorm == "separate"

    def require_fit(self, setting: Setting) -> None:
        network = setting.network
        known = dict(network.named_modules())
        if absent := [layer for layer in self.layers if layer != FEATURES and layer not in known]:
            names = join_first([FEATURES, *(name for name, _ in network.named_children())], 20)
            raise ConfigError("method.parts.coral.layers", f"{absent[0]!r} is no layer; there are {names}")

    def loss(self, step: Step, domains: Domains | None) -> Mapping[str, Tensor]:
        assert domains is not None
        # Under autocast a product of float32 would be one of bfloat16.
        with torch.autocast(domains.labelled[self.layers[0]].device.type, enabled=False):
            each = [
                coral_distance(torch.cov(domains.labelled[layer].T), torch.cov(domains.unlabelled[layer].T))
                for layer in self.layers
            ]
        distance = torch.stack(each).mean()
        return {"loss": self.weight * distance, "coral": distance.detach()}
