"""L2-SP (Li, Grandvalet and Davoine 2018): the backbone is held to the weights that it starts from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from daft.methods.parts.part import Domains, Part, Step
from daft.networks.classifier import Classifier


class L2SP(Part):
    """α/2 ‖θ - θ₀‖², with θ₀ as BN conversion leaves the backbone; the head, which is new, is left out."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def start(self, model: Classifier) -> None:
        self.parameters: list[nn.Parameter] = [p for p in model.backbone.parameters() if p.requires_grad]
        self.origin = [parameter.detach().clone() for parameter in self.parameters]

    def loss(self, step: Step, domains: Domains | None) -> Mapping[str, Tensor]:
        pairs = zip(self.parameters, self.origin, strict=True)
        distance = torch.stack([(now - before).square().sum() for now, before in pairs]).sum()
        return {"loss": self.alpha / 2 * distance, "l2_sp": distance.detach()}
