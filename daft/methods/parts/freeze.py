"""Partial freezing: the first stages of the backbone stay as they are."""

from torch import nn

from daft.common.errors import ConfigError
from daft.methods.parts.part import Groups, Part, Setting
from daft.networks.classifier import Classifier
from daft.networks.stages import Stage, stages


class Freeze(Part):
    """The first `count` stages keep their weights and BN statistics, and BN conversion leaves them out."""

    by_stage = True

    def __init__(self, count: int) -> None:
        self.count = count

    def require_fit(self, setting: Setting) -> None:
        if self.count >= (there := len(stages(setting.network))):
            problem = f"{self.count}, but the network has {there} stages; freeze fewer, or use method=lp"
            raise ConfigError("method.parts.freeze", problem)

    def resting(self, network: nn.Module) -> list[Stage]:
        return stages(network)[: self.count]

    def groups(self, model: Classifier, groups: Groups) -> Groups:
        frozen = {id(p) for stage in self.resting(model.backbone.network) for p in stage.parameters}
        kept = ([p for p in group["params"] if id(p) not in frozen] for group in groups)
        return [group | {"params": params} for group, params in zip(groups, kept, strict=True) if params]
