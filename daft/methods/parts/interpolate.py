"""WiSE-FT (Wortsman et al. 2022): weights on the line from the network at the start to the trained one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from daft.common import progress
from daft.methods.parts.part import Part
from daft.networks.classifier import Classifier


class Interpolate(Part):
    """(1 - α) θ_start + α θ_trained, with the best α by the images that select epochs; of equals the lowest.

    The start is the network before the first step, its head and BN conversion included. BN statistics are
    interpolated like weights. To measure them anew would need a pass over the training images for each α,
    would move both ends (which must be the networks that they are), and would give a method that trains with
    BN in test mode the statistics that it keeps away from.
    """

    def __init__(self, alphas: Sequence[float]) -> None:
        self.alphas = sorted(alphas)

    def start(self, model: Classifier) -> None:
        self.origin = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}

    def after(
        self, model: Classifier, measure: Callable[[], Mapping[str, float]], selected_on: str
    ) -> dict[str, Any]:
        """Give the model the weights of the chosen α; the record has `alpha`, and the metrics of each."""
        trained = {key: value.detach().clone() for key, value in model.state_dict().items()}
        origin = {key: value.to(trained[key].device) for key, value in self.origin.items()}
        curve = []
        for alpha in progress.track(self.alphas, "interpolation", len(self.alphas)):
            model.load_state_dict(between(origin, trained, alpha))
            curve.append({"alpha": alpha, **measure()})
        best = max(curve, key=lambda row: row[selected_on])
        model.load_state_dict(between(origin, trained, best["alpha"]))
        return {"alpha": best["alpha"], "selected_on": selected_on, "curve": curve}


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - α) start + α end of each tensor, the very bits of an end at 0 and 1; of counters the end's."""
    if alpha in (0, 1):
        return dict((start, end)[int(alpha)])
    return {
        key: torch.lerp(start[key], last, alpha) if last.is_floating_point() else last
        for key, last in end.items()
    }
