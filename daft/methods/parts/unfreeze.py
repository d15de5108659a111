"""Gradual unfreezing (Howard and Ruder 2018): first the head learns alone, then stages from the top."""

from daft.common.errors import ConfigError
from daft.config.parts import UnfreezeConfig
from daft.methods.parts.part import Part, Setting
from daft.networks.classifier import Classifier
from daft.networks.stages import Stage, stages


class Unfreeze(Part):
    """A stage that has not thawed has no gradients, and so no momentum; its BN layers are in test mode."""

    by_stage = True

    def __init__(self, config: UnfreezeConfig) -> None:
        self.epochs = config.epochs_per_stage

    def require_fit(self, setting: Setting) -> None:
        if (needed := self.epochs * len(setting.trained) + 1) > setting.epochs:
            raise ConfigError(
                "method.parts.unfreeze",
                f"epochs_per_stage={self.epochs} thaws the last of {len(setting.trained)} stages in epoch "
                f"{needed}, but training.epochs={setting.epochs}; train longer, or freeze some stages",
            )

    def start(self, model: Classifier) -> None:
        self.stages: list[Stage] = [s for s in stages(model.backbone.network) if s.is_trained]

    def before_epoch(self, epoch: int) -> None:
        thawed = (epoch - 1) // self.epochs
        for below_head, stage in enumerate(reversed(self.stages)):
            for parameter in stage.parameters:
                parameter.requires_grad_(below_head < thawed)
