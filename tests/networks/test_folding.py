"""Claims about BN folded into convolutions: the function stays, and what cannot be folded is left alone."""

import timm
import torch
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from daft.batchnorm import batchnorm_layers
from daft.networks.folding import fold_batchnorm


def spoiled(model: nn.Module) -> nn.Module:
    """With statistics and affine parameters that change something, in float64."""
    torch.manual_seed(0)
    for layer in batchnorm_layers(model).values():
        for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
            if tensor is not None:
                tensor.data.uniform_(0.5, 1.5)
    return model.double().eval()


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def folds(model: nn.Module, names: list[str] | None = None) -> None:
    """That these layers fold, all if none is named, and the function stays to float64's rounding."""
    model, x = spoiled(model), images()
    expected = list(batchnorm_layers(model)) if names is None else names
    with torch.no_grad():
        before = model(x)
        assert sorted(fold_batchnorm(model, x)) == sorted(expected)
        after = model(x)
    assert not set(batchnorm_layers(model)) & set(expected)
    # some 100 layers of sums of 5,000 terms: far below what a wrong fold changes, which is of order 1
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-11 * float(before.abs().max()))


def test_every_layer_of_a_resnet_folds():
    folds(timm.create_model("resnet18", num_classes=5))


def test_layers_with_activations_and_depthwise_convolutions_fold():
    folds(timm.create_model("tf_efficientnet_lite0", num_classes=5))  # pads as TensorFlow does


def test_layers_that_read_sums_and_concatenations_stay():
    model = timm.create_model("densenet121", num_classes=5, growth_rate=4, block_config=(2, 2), bn_size=2)
    folds(
        model,
        ["features.norm0", *(f"features.denseblock{b}.denselayer{n}.norm2" for b in (1, 2) for n in (1, 2))],
    )


def test_one_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)).double().eval()
    state = {"0.weight": 3.0, "0.bias": 1.0, "1.weight": 5.0, "1.bias": 7.0, "1.running_mean": 2.0}
    for name, value in (state | {"1.running_var": 4.0}).items():
        model.state_dict()[name].fill_(value)
    assert fold_batchnorm(model, torch.ones(1, 1, 2, 2).double()) == ["1"]
    folded = {name: parameter.item() for name, parameter in model.named_parameters()}
    assert folded == {"0.weight": 3 * 5 / 2, "0.bias": 7 + (1 - 2) * 5 / 2}
    assert isinstance(model[1], nn.Identity)


class Shared(nn.Module):
    """Layers in positions where folding would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.residual, self.after_residual = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice, self.after_twice = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.standardised, self.after_standardised = StdConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.normed, self.after_normed = weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)
        self.one, self.after_one = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.other, self.after_other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.other.weight = self.one.weight
        self.plain, self.after_plain = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.inside, self.after_inside = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(x)
        x = x + self.after_residual(x).relu()
        x = self.twice(self.after_twice(self.twice(x)))
        x = self.after_standardised(self.standardised(x))
        x = self.after_normed(self.normed(x))
        x = self.after_other(self.other(self.after_one(self.one(x))))
        x = self.after_plain(self.plain(x))
        return self.after_inside(self.inside(x).relu_())


def test_layers_that_share_what_they_read_or_whose_weight_is_made_anew_stay():
    folds(Shared(), ["after_plain"])
