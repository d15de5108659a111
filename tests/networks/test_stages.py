"""Claims about stages: every parameter and BN layer is in one, from the stem up."""

import pytest
import timm
from torch import nn

from daft.batchnorm import batchnorm_layers
from daft.networks.stages import resting_batchnorm, stages

TIMM = {
    "resnet18": 5,
    "resnet50_clip": 6,  # its attention pooling comes last
    "efficientnet_lite0": 8,  # the last convolution belongs to the last blocks
    "mobilenetv3_small_100": 8,
    "densenet121": 6,
    "regnetx_002": 5,
    "hrnet_w18_small": 6,
}


def small() -> nn.Module:
    """Four layers at the top, the first three with BN, one module deeper than need be."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers, nn.Conv2d(3, 5, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def require_partition(network: nn.Module) -> None:
    found = stages(network)
    parameters = [id(p) for stage in found for p in stage.parameters]
    assert sorted(parameters) == sorted(id(p) for p in network.parameters())
    layers = [name for stage in found for name in stage.batchnorm]
    assert sorted(layers) == sorted(batchnorm_layers(network))
    for stage in found:
        own = {id(p) for p in stage.parameters}
        assert all(id(p) in own for layer in stage.batchnorm.values() for p in layer.parameters())


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_has_the_stages_that_it_says(name):
    network = timm.create_model(name, num_classes=0)
    require_partition(network)
    assert len(stages(network)) == TIMM[name]


def test_stages_go_from_the_stem_up_and_are_called_by_their_modules():
    titles = [stage.title for stage in stages(timm.create_model("resnet18", num_classes=0))]
    assert titles == ["conv1 … bn1", "layer1", "layer2", "layer3", "layer4"]


def test_other_networks_have_the_stages_that_are_at_the_top_with_bn_in_that_of_its_layer():
    network = small()
    require_partition(network)
    assert [stage.title for stage in stages(network)] == ["0.0 … 0.1", "0.3 … 0.4", "0.6 … 0.7", "0.9"]


def test_bn_without_parameters_is_in_the_stage_of_the_layer_before_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1))
    require_partition(network)
    assert [[*stage.batchnorm] for stage in stages(network)] == [["1"], []]


def test_dilated_features_of_a_network_have_its_stages_too():
    network = timm.create_model("efficientnet_lite0", features_only=True)
    require_partition(network)
    assert len(stages(network)) == 8


def test_bn_layers_rest_where_nothing_of_their_stage_is_trained():
    network = small()
    assert not resting_batchnorm(network)
    first, second, *_ = stages(network)
    for parameter in [*first.parameters, *second.parameters[1:]]:
        parameter.requires_grad_(False)
    assert resting_batchnorm(network) == [*first.batchnorm.values()]
