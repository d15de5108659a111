"""Layer-wise rates: the further a stage is from the head, the more slowly it learns."""

from daft.methods.parts.part import Groups, Part
from daft.networks.classifier import Classifier
from daft.networks.stages import stages


class LayerDecay(Part):
    """η_l = η · γ^(L - l): l counts the backbone's stages from 1, and L is the head.

    η is the rate that the method gives a parameter, so that a head with a rate of its own keeps it.
    """

    by_stage = True

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def groups(self, model: Classifier, groups: Groups) -> Groups:
        """A group for each stage that is trained, in the place of those that hold them together."""
        found = stages(model.backbone.network)
        depth = {id(p): i for i, stage in enumerate(found) for p in stage.parameters}
        split: Groups = []
        for group in groups:
            below: dict[int, Groups] = {}
            for parameter in group["params"]:
                below.setdefault(depth.get(id(parameter), len(found)), []).append(parameter)
            for i, parameters in sorted(below.items()):
                rate = group["lr"] * self.gamma ** (len(found) - i)
                name = group["name"] if i == len(found) else f"{group['name']}.{i + 1}"
                split.append({"name": name, "params": parameters, "lr": rate, "initial_lr": rate})
        return split
