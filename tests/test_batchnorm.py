"""Claims about daft.batchnorm, checked against hand-worked cases and NumPy in float64."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from daft import batchnorm
from daft.batchnorm import MAX_FLOAT32_TERMS, BatchNormShift, batchnorm_layers, convert_batchnorm
from tests.helpers.waiting import HANG_SECONDS, wait_until

Module = TypeVar("Module", bound=nn.Module)
U = 2.0**-24  # float32 unit roundoff: one rounding moves a number by at most this, relatively


class ResNet(nn.Module):
    """A stem, one residual block with a projected shortcut, a linear head: four BN layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(y + self.shortcut(x)).mean((2, 3)))


def randomised(model: Module, seed: int = 0) -> Module:
    """Give every BN layer statistics and affine parameters (of both signs) that fit nothing."""
    generator = torch.Generator().manual_seed(seed)
    for layer in batchnorm_layers(model).values():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.normal_(0, 0.3, generator=generator)
        layer.running_var.uniform_(0.5, 2, generator=generator)
        nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
        with torch.no_grad():
            layer.weight[::3] *= -1
        nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
    return model


def resnet(dtype: torch.dtype = torch.float32) -> ResNet:
    torch.manual_seed(0)
    return randomised(ResNet()).to(dtype)


def images(*sizes: int, side: int = 8, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Tensor]:
    """Batches of images whose means differ, so that no layer sees the same statistics twice."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(size, 3, side, side, generator=generator) for size in sizes]
    return [(1 + i) * (x + 0.5 * i).to(dtype) for i, x in enumerate(draw)]


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return copy.deepcopy(model).eval()(x)


@torch.no_grad()
def layer_inputs(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Record what every BN layer is fed in test mode, call by call, on a copy of the model."""
    model = copy.deepcopy(model).eval()
    inputs: dict[str, list[Tensor]] = {name: [] for name in batchnorm_layers(model)}
    for name, layer in batchnorm_layers(model).items():
        layer.register_forward_hook(lambda _, args, __, into=inputs[name]: into.append(args[0].clone()))
    for batch in batches:
        model(batch)
    return inputs


def mean_and_var(inputs: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 3 in NumPy and float64: per-batch mean and unbiased variance, averaged with equal weight."""
    rows = [np.moveaxis(z.double().cpu().numpy(), 1, 0).reshape(z.shape[1], -1) for z in inputs]
    return np.mean([r.mean(1) for r in rows], 0), np.mean([r.var(1, ddof=1) for r in rows], 0)


def one_layer(*channels: tuple[float, float, float, float], eps: float) -> nn.BatchNorm1d:
    """A float64 BN layer, each channel given by its γ, β, mean and variance."""
    layer = nn.BatchNorm1d(len(channels), eps=eps).double()
    values = torch.tensor(channels, dtype=torch.float64).T
    layer.load_state_dict(
        dict(zip(("weight", "bias", "running_mean", "running_var"), values, strict=True)), strict=False
    )
    return layer


def bits(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None or is_lazy(tensor):
        return None
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tensor.device, tuple(tensor.shape), raw


def values(model: nn.Module) -> dict[str, Any]:
    """Every parameter and buffer of a model, to the bit."""
    return {name: bits(t) for name, t in itertools.chain(model.named_parameters(), model.named_buffers())}


def surroundings(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that is not the value of a parameter or buffer."""
    hooks = [key for key in vars(nn.Module()) if "hooks" in key]
    assert "_forward_pre_hooks_with_kwargs" in hooks
    return {
        name: (
            [(key, id(p), p.requires_grad, id(p.grad), bits(p.grad)) for key, p in own.items()],
            [(key, id(b), b is not None and b.dtype) for key, b in module.named_buffers(recurse=False)],
            [tuple(getattr(module, key).items()) for key in hooks],
            (module.training, getattr(module, "momentum", None), getattr(module, "eps", None)),
        )
        for name, module in model.named_modules()
        for own in [dict(module.named_parameters(recurse=False))]
    }


def statistics(shifts: dict[str, BatchNormShift]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": getattr(shift, key)
        for name, shift in shifts.items()
        for key in ("target_mean", "target_var")
    }


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(bits(a[key]) == bits(b[key]) for key in a)


# ---- the function stays


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm  # here, so that the spawned ranks below need not import it

        torch.manual_seed(0)
        return randomised(timm.create_model(name, num_classes=7))

    return build


NETWORKS = {
    "plain": (resnet, 8),
    "resnet18": (_timm("resnet18"), 64),
    "norm+act": (_timm("test_byobnet"), 64),  # the architecture family of timm's CLIP ResNets
    "norm+act+depthwise": (_timm("test_efficientnet"), 64),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_in_test_mode_stay_the_same(network: str) -> None:
    build, side = NETWORKS[network]
    model = build()
    batches = images(6, 6, 3, side=side)
    x = images(8, side=side, seed=2)[0]
    exact, before = logits(copy.deepcopy(model).double(), x.double()), logits(model, x)
    wide, unmatched = copy.deepcopy(model).double(), copy.deepcopy(model)

    convert_batchnorm(wide, [b.double() for b in batches])
    # float64 rounds at 1e-16; 1e-12 leaves four digits for what the network amplifies.
    assert (logits(wide, x.double()) - exact).norm() <= 1e-12 * exact.norm()

    shifts = convert_batchnorm(model, batches)
    # r is what rounding does to this network in float32. The converted one rounds at the same places,
    # and once more for each stored γ and β: at most 3 r from exact, so 4 r from the original.
    r = (before - exact).norm()
    assert 0 < r < 1e-4 * exact.norm()
    assert (logits(model, x) - before).norm() <= 4 * r

    # The same statistics without Eq. 5 are another network: the claim above is not vacuous.
    for name, layer in batchnorm_layers(unmatched).items():
        layer.running_mean, layer.running_var = shifts[name].target_mean, shifts[name].target_var
    assert (logits(unmatched, x) - before).norm() > 1000 * r


def test_norm_and_act_networks_have_such_layers() -> None:
    for network in ("norm+act", "norm+act+depthwise"):
        layers = batchnorm_layers(NETWORKS[network][0]())
        assert any(type(layer).__name__ == "BatchNormAct2d" for layer in layers.values())


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (9, 6)),
        (nn.BatchNorm1d, (9, 6, 5)),
        (nn.BatchNorm2d, (9, 6, 3, 4)),
        (nn.BatchNorm3d, (9, 6, 2, 3, 2)),
        (nn.SyncBatchNorm, (9, 6, 3, 4)),
    ],
)
def test_every_kind_of_layer_and_epsilon_keeps_its_function(kind: Any, shape: tuple[int, ...], eps: float):
    generator = torch.Generator().manual_seed(0)
    layer = randomised(kind(shape[1], eps=eps))
    data = [3 + 2 * torch.randn(shape, generator=generator) for _ in range(2)]
    x = torch.randn(shape, generator=generator)
    before = layer.eval()(x).detach().double()
    source = copy.deepcopy(layer)
    shift = convert_batchnorm(layer, data)[""]

    def size(bn: nn.Module) -> Tensor:
        """Return |αx| + |αM| + |β| with α = γ / sqrt(Σ + ε), the terms whose rounding is felt."""
        gamma, beta, mean, var = (
            getattr(bn, key).double().view(-1, *[1] * (x.ndim - 2))
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        alpha = gamma / (var + eps).sqrt()
        return (alpha * x).abs() + (alpha * mean).abs() + beta.abs()

    # y = αx + (β - αM): α takes 4 roundings, each product and sum one more, so at most 8 U on either
    # side; γ_t and β_t are rounded once more each when stored.
    tolerance = U * (8 * size(source) + 10 * size(layer))
    assert ((layer(x).double() - before).abs() <= tolerance).all()
    assert_float32_close(shift, data)


# ---- Eq. 3


@pytest.mark.parametrize("network", NETWORKS)
def test_statistics_equal_a_float64_computation(network: str) -> None:
    """The last batch is short and still counts as much as the others."""
    build, side = NETWORKS[network]
    model = build().double()
    batches = images(6, 6, 3, side=side, dtype=torch.float64)
    inputs = layer_inputs(model, batches)
    source = batchnorm_layers(copy.deepcopy(model))
    shifts = convert_batchnorm(model, batches)
    assert shifts.keys() == inputs.keys()
    for name, layer in batchnorm_layers(model).items():
        mean, var = mean_and_var(inputs[name])
        # Sums of up to 6 * 64 * 64 float64 numbers: 1e-16 per addition, growing with their square root.
        np.testing.assert_allclose(shifts[name].target_mean, mean, rtol=1e-12, atol=1e-12 * var.max() ** 0.5)
        np.testing.assert_allclose(shifts[name].target_var, var, rtol=1e-12)
        for shift, stored, was in [
            (
                (shifts[name].source_mean, shifts[name].target_mean),
                layer.running_mean,
                source[name].running_mean,
            ),
            ((shifts[name].source_var, shifts[name].target_var), layer.running_var, source[name].running_var),
        ]:
            assert bits(shift[0]) == bits(was)
            assert bits(shift[1]) == bits(stored)


def assert_float32_close(shift: BatchNormShift, inputs: list[Tensor]) -> None:
    """Within float32 rounding of the float64 statistics of these inputs [N, C, ...].

    At most n values no larger than a are added up in float32, all else is float64. n roundings of
    alternating sign move a mean by d = 6 √n U a at most (a random walk at six standard deviations, as in
    Higham and Mary 2019), and a variance v by 6 √n U v of its own, 4 d √v between parts, and 5 d².
    """
    mean, var = mean_and_var(inputs)
    size = max(float(z.abs().max()) for z in inputs)
    longest = min(MAX_FLOAT32_TERMS, max(z.numel() // z.shape[1] for z in inputs))
    walk = 6 * longest**0.5 * U
    d = walk * size
    assert (np.abs(shift.target_mean.double().numpy() - mean) <= d).all()
    bound = (walk + U) * var + 4 * d * np.sqrt(var) + 5 * d * d
    assert (np.abs(shift.target_var.double().numpy() - var) <= bound).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_float32_statistics_are_the_float64_ones_up_to_rounding(memory_format: torch.memory_format) -> None:
    model = resnet().to(memory_format=memory_format)
    batches = [b.contiguous(memory_format=memory_format) for b in images(6, 6, 3)]
    inputs = layer_inputs(model, batches)
    shifts = convert_batchnorm(model, batches)
    for name, shift in shifts.items():
        assert_float32_close(shift, inputs[name])


@pytest.mark.parametrize("layout", ["2-D", "channels first", "channels last", "strided"])
def test_a_large_mean_cancels_nothing(layout: str) -> None:
    """E[x²] - E[x]² in float32 would lose 1e6 * U = 0.06 of a variance of 1."""
    generator = torch.Generator().manual_seed(0)
    shape = (64, 8) if layout == "2-D" else (64, 8, 16, 16)
    batches = [1000 + torch.randn(shape, generator=generator) for _ in range(2)]
    if layout == "channels last":
        batches = [b.contiguous(memory_format=torch.channels_last) for b in batches]
    elif layout == "strided":
        batches = [b.transpose(0, 3).contiguous().transpose(0, 3) for b in batches]
    layer = nn.BatchNorm1d(8) if layout == "2-D" else nn.BatchNorm2d(8)
    shift = convert_batchnorm(layer, batches)[""]
    assert_float32_close(shift, batches)


def test_variance_is_the_mean_within_batches_and_not_the_pooled_one() -> None:
    layer = nn.BatchNorm1d(1)
    shift = convert_batchnorm(layer, [torch.tensor([[0.0], [2]]), torch.tensor([[10.0], [12]])])[""]
    # Means 1 and 11, unbiased variances 2 and 2. Pooled: (36 + 16 + 16 + 36) / 3 = 34.67.
    assert shift.target_mean.item() == 6
    assert shift.target_var.item() == 2


def test_batches_count_equally_whatever_their_size() -> None:
    layer = nn.BatchNorm1d(1)
    batches = [torch.tensor([[0.0], [2]]), torch.tensor([[10.0], [10], [10], [14]])]
    shift = convert_batchnorm(layer, batches)[""]
    # Means 1 and 11, variances 2 and (1 + 1 + 1 + 9) / 3 = 4; weighted by size the mean would be 7.67.
    assert shift.target_mean.item() == 6
    assert shift.target_var.item() == 3


def test_a_layer_called_twice_counts_two_mini_batches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(3 * x + 1)

    shift = convert_batchnorm(Twice(), [torch.tensor([[0.0], [2]]), torch.tensor([[10.0], [12]])])["bn"]
    # Means 1, 4, 11, 34 and variances 2, 18, 2, 18.
    assert shift.target_mean.item() == 12.5
    assert shift.target_var.item() == 10
    assert shift.batches == 4


# ---- Eq. 5


def test_eq_5_by_hand() -> None:
    """Channel 0 moves and widens; channel 1, with a negative γ, meets a constant."""
    layer = one_layer((2, 1, 1, 3), (-4, 0.5, 2, 15), eps=1)
    convert_batchnorm(layer, [torch.tensor([[3.0, -1], [7, -1]], dtype=torch.float64)])
    # M_t = 5, Σ_t = 2² + 2² = 8:  γ_t = 2 √(8+1) / √(3+1) = 3,     β_t = 1 + 2 (5 - 1) / √(3+1) = 5.
    # M_t = -1, Σ_t = 0:           γ_t = -4 √(0+1) / √(15+1) = -1,  β_t = 0.5 - 4 (-1 - 2) / √(15+1) = 3.5.
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.running_mean.tolist() == [5, -1]
    assert layer.running_var.tolist() == [8, 0]
    assert layer.weight.tolist() == [3, -1]
    assert layer.bias.tolist() == [5, 3.5]
    # At x = (3, -1): 2 (3 - 1) / 2 + 1 = 3 (3 - 5) / 3 + 5 = 3 and -4 (-1 - 2) / 4 + 0.5 = 3.5.
    assert layer.eval()(torch.tensor([[3.0, -1]], dtype=torch.float64)).tolist() == [[3, 3.5]]


def test_after_one_batch_train_mode_differs_from_test_mode_by_bessels_factor_alone() -> None:
    """Train mode normalises with divisor n, Eq. 3 has n - 1."""
    model = resnet(torch.float64)
    batch = images(6, dtype=torch.float64)
    convert_batchnorm(model, batch)
    for name, (z,) in layer_inputs(model, batch).items():
        layer = copy.deepcopy(batchnorm_layers(model)[name])
        assert layer.running_var is not None
        n = z.numel() // z.shape[1]
        var, beta = (t.detach()[:, None, None] for t in (layer.running_var.clone(), layer.bias))
        expected = (layer.eval()(z) - beta) * ((var + layer.eps) / (var * (n - 1) / n + layer.eps)).sqrt()
        actual = layer.train()(z) - beta
        # The conversion itself moves z by float64 rounding; 1e-12 as above.
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # At most some 64 roundings lie between the image and the deepest BN layer's statistics.
    [(torch.float64, 64 * 2.0**-53), (torch.float32, 64 * U)],
)
def test_a_second_conversion_changes_nothing(dtype: torch.dtype, tolerance: float) -> None:
    model = resnet(dtype)
    batches = images(6, 6, 3, dtype=dtype)
    convert_batchnorm(model, batches)
    once = copy.deepcopy(model)
    shifts = convert_batchnorm(model, batches)
    for name, shift in shifts.items():
        mean, std = shift.source_mean.abs(), shift.source_var.sqrt()
        assert ((shift.target_mean - shift.source_mean).abs() <= tolerance * (mean + std)).all()
        assert ((shift.target_var - shift.source_var).abs() <= 2 * tolerance * shift.source_var).all()
        old, new = (batchnorm_layers(m)[name] for m in (once, model))
        assert ((new.weight - old.weight).abs() <= tolerance * old.weight.abs()).all()
        scale = old.bias.abs() + old.weight.abs() * (1 + mean / std)
        assert ((new.bias - old.bias).abs() <= tolerance * scale).all()
    # Nothing precedes the first layer: its statistics come out the same to the bit.
    first = shifts["stem.1"]
    assert bits(first.target_mean) == bits(first.source_mean)
    assert bits(first.target_var) == bits(first.source_var)


# ---- what is left as found, and what comes back


def test_all_but_the_four_tensors_is_left_as_found() -> None:
    model = resnet()
    model(images(4)[0]).square().sum().backward()  # gradients, and num_batches_tracked = 1
    model.train()
    model.bn1.eval()  # a mixed state, as in training with frozen BN
    model.shortcut.training = False
    model.bn1.weight.requires_grad_(False)
    model.bn2.bias.grad = None
    model.bn1.momentum, model.bn2.momentum = None, 0.3
    calls: list[str] = []
    model.bn1.register_forward_pre_hook(lambda *_: calls.append("pre"))
    model.bn1.register_forward_hook(lambda *_, **__: calls.append("post"), with_kwargs=True)
    around, before = surroundings(model), values(model)

    convert_batchnorm(model, images(6, 6))

    assert surroundings(model) == around
    assert calls == ["pre", "post"] * 2
    after = values(model)
    changed = {name for name in before if before[name] != after[name]}
    keys = ("weight", "bias", "running_mean", "running_var")
    assert changed == {f"{name}.{key}" for name in batchnorm_layers(model) for key in keys}
    assert model.bn1.num_batches_tracked is not None
    assert model.bn1.num_batches_tracked.item() == 1
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


class Reversed(nn.Module):
    """Registers `last` before `first` and calls its BN layers by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=self.first(input=x))


def test_shifts_come_in_forward_order_from_layers_called_by_keyword() -> None:
    batches = [torch.tensor([[0.0, 1], [2, 5]])] * 3
    shifts = convert_batchnorm(Reversed(), batches)
    assert list(shifts) == ["first", "last"]
    assert shifts["first"].target_mean.tolist() == [1, 3]
    assert [shift.batches for shift in shifts.values()] == [3, 3]


def test_a_norm_and_act_layer_may_be_called_by_its_own_keyword() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = BatchNormAct2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x=x)

    batches = images(4)
    assert_float32_close(convert_batchnorm(Keyword(), batches)["bn"], batches)


def test_shifts_are_copies() -> None:
    model = resnet()
    source = copy.deepcopy(model.bn1)
    shift = convert_batchnorm(model, images(4))["bn1"]
    target = bits(shift.target_mean), bits(shift.target_var)
    assert model.bn1.running_mean is not None
    assert model.bn1.running_var is not None
    assert target == (bits(model.bn1.running_mean), bits(model.bn1.running_var))
    model.bn1.running_mean.fill_(7)
    model.bn1.running_var.fill_(7)
    assert (bits(shift.source_mean), bits(shift.source_var)) == (
        bits(source.running_mean),
        bits(source.running_var),
    )
    assert (bits(shift.target_mean), bits(shift.target_var)) == target


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_a_layers_momentum_plays_no_part(momentum: float | None) -> None:
    model, other = resnet(), resnet()
    for layer in batchnorm_layers(other).values():
        layer.momentum = momentum
    shifts = statistics(convert_batchnorm(model, images(4, 4)))
    assert same_bits(shifts, statistics(convert_batchnorm(other, images(4, 4))))


def test_layers_that_train_mode_would_perturb_are_measured_in_test_mode() -> None:
    """Dropout draws nothing, and BN layers normalise with the source statistics."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9), nn.BatchNorm1d(2)).train()
    shifts = convert_batchnorm(model, [torch.tensor([[0.0, 1], [2, 5]])])
    # Mean 0 and variance 1 before, so the first layer divides by √(1 + ε) and no more.
    expected = torch.tensor([1, 3]).double() / (1 + 1e-5) ** 0.5
    # Two roundings of its output, one of the result.
    torch.testing.assert_close(shifts["2"].target_mean.double(), expected, rtol=3 * U, atol=0)


# ---- batches


def _generated(batches: list[Tensor]) -> Iterator[tuple[Tensor, int]]:
    for batch in batches:
        yield batch, 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda batches: [(b, torch.zeros(len(b))) for b in batches],
        lambda batches: [[b, torch.zeros(len(b)), {"path": "a"}] for b in batches],
        lambda batches: tuple((b,) for b in batches),
        iter,
        _generated,
        lambda batches: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat(batches)), batch_size=4
        ),
    ],
    ids=["pairs", "lists", "singletons", "iterator", "generator", "loader"],
)
def test_batches_may_come_in_any_of_these_forms(wrap: Callable[[list[Tensor]], Iterable[Any]]) -> None:
    plain = convert_batchnorm(resnet(), images(4, 4, 4))
    wrapped = convert_batchnorm(resnet(), wrap(images(4, 4, 4)))
    assert same_bits(statistics(plain), statistics(wrapped))
    assert [s.batches for s in wrapped.values()] == [3] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_upcast(dtype: torch.dtype) -> None:
    batches = images(4, 4, dtype=dtype)
    half = convert_batchnorm(resnet(), batches)
    assert same_bits(statistics(half), statistics(convert_batchnorm(resnet(), [b.float() for b in batches])))
    assert all(t.dtype == torch.float32 for t in statistics(half).values())


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (None, "not NoneType"),
        ("images", "not str"),
        ({"images": torch.zeros(4, 3, 8, 8)}, "not dict"),
        (np.zeros((4, 3, 8, 8), np.float32), "not ndarray"),
        ((np.zeros((4, 3, 8, 8), np.float32), torch.zeros(4)), "not tuple that starts with ndarray"),
        ([[torch.zeros(4, 3, 8, 8)], 0], "not list that starts with list"),
        ([], "not list"),
    ],
)
def test_anything_else_raises_a_type_error_that_names_it(batch: object, match: str) -> None:
    model = resnet()
    before, around = values(model), surroundings(model)
    with pytest.raises(TypeError, match=f"{match}$"):
        convert_batchnorm(model, [*images(4), batch])
    assert (values(model), surroundings(model)) == (before, around)


def test_autocast_around_the_call_changes_nothing() -> None:
    model = resnet()
    exact = logits(model, images(6)[0])
    plain = statistics(convert_batchnorm(resnet(), images(6, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(logits(model, images(6)[0]).float(), exact)  # autocast is at work
        cast = statistics(convert_batchnorm(model, images(6, 6)))
        assert torch.is_autocast_enabled("cpu")
    assert same_bits(plain, cast)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_models_own_device_is_the_default(device: torch.device | str) -> None:
    named = convert_batchnorm(resnet(), images(4), device=device)
    assert same_bits(statistics(named), statistics(convert_batchnorm(resnet(), images(4))))


def test_inputs_are_sent_to_the_device_that_is_asked_for() -> None:
    seen: list[str] = []

    class Placed(torch.Tensor):
        def to(self, *args: Any, **_: Any) -> Tensor:
            seen.append(str(args[0]))
            return self.as_subclass(Tensor)

    batches = [b.as_subclass(Placed) for b in images(4, 4)]
    convert_batchnorm(resnet(), batches, device="cpu:0")
    assert seen == ["cpu:0"] * 2


def test_an_unknown_device_leaves_the_model_as_found() -> None:
    model = resnet()
    before, around = values(model), surroundings(model)
    with pytest.raises(RuntimeError, match="abacus"):
        convert_batchnorm(model, images(4), device="abacus")
    assert (values(model), surroundings(model)) == (before, around)


# ---- errors


def _with(**changes: Any) -> Callable[[], nn.Module]:
    """Build the network with one of its modules or attributes (`__` for a dot) replaced."""

    def build() -> nn.Module:
        model = resnet()
        for path, value in changes.items():
            owner, _, key = path.replace("__", ".").rpartition(".")
            setattr(model.get_submodule(owner), key, value() if callable(value) else value)
        return model

    return build


def _shared() -> nn.Module:
    model = resnet()
    model.bn2.weight, model.bn2.bias = model.bn1.weight, model.bn1.bias
    return model


def _half(dtype: torch.dtype) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = resnet()
        model.bn2.to(dtype)
        return model

    return build


def _column(value: float) -> list[Tensor]:
    first, second = images(4, 4)
    second[1, 2, 3, 3] = value
    return [first, second]


def _interrupted() -> Iterator[Tensor]:
    yield from images(4, 4)
    raise OSError("the disk is gone")


BROKEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], type[Exception], str]] = {
    "no BN layer": (lambda: nn.Linear(2, 2), lambda: images(4), ValueError, "no batch-norm layer"),
    "no statistics": (
        _with(bn1=lambda: nn.BatchNorm2d(12, track_running_stats=False)),
        lambda: images(4),
        ValueError,
        r"'bn1'.*track_running_stats",
    ),
    "no affine": (
        _with(bn1=lambda: nn.BatchNorm2d(12, affine=False)),
        lambda: images(4),
        ValueError,
        "'bn1'.*affine",
    ),
    "no bias": (_with(bn1__bias=None), lambda: images(4), ValueError, "'bn1'.*bias=False"),
    "lazy": (_with(bn1=nn.LazyBatchNorm2d), lambda: images(4), ValueError, "'bn1'.*lazy"),
    "bfloat16": (_half(torch.bfloat16), lambda: images(4), ValueError, "'bn2'.*weight.*bfloat16"),
    "float16": (_half(torch.float16), lambda: images(4), ValueError, "'bn2'.*weight.*torch.float16"),
    "shared affine": (_shared, lambda: images(4), ValueError, "'bn1' and 'bn2'.*weight"),
    "never reached": (
        _with(auxiliary=lambda: nn.BatchNorm2d(4)),
        lambda: images(4),
        ValueError,
        "'auxiliary' was never reached",
    ),
    "one value per channel": (
        _with(),
        lambda: [*images(4), *images(1, side=1)],
        ValueError,
        r"'stem.1'.*\(1, 8, 1, 1\)",
    ),
    "an empty batch": (_with(), lambda: images(4, 0), ValueError, r"'stem.1'.*\(0, 8, 8, 8\)"),
    "one value per channel deep inside": (
        _with(),
        lambda: images(1, side=2),
        ValueError,
        r"'bn1'.*\(1, 12, 1, 1\)",
    ),
    "NaN": (_with(), lambda: _column(float("nan")), ValueError, r"'stem.1'.*NaN or Inf in 8 of 8 channels"),
    "Inf": (_with(), lambda: _column(float("inf")), ValueError, r"'stem.1'.*NaN or Inf in 8 of 8 channels"),
    "overflow": (_with(), lambda: _column(1e30), ValueError, r"'stem.1'.*target variance.*NaN or Inf"),
    "NaN in the source": (
        _with(bn2__running_var=lambda: torch.full((12,), torch.nan)),
        lambda: images(4),
        ValueError,
        "'bn2'",
    ),
    "no batches": (_with(), list, ValueError, "no batches"),
    "an exhausted generator": (_with(), lambda: iter(()), ValueError, "no batches"),
    "interrupted data": (_with(), _interrupted, OSError, "the disk is gone"),
    "a tensor in place of batches": (
        _with(),
        lambda: images(4, side=9)[0],
        ValueError,
        r"'stem.1' has 8 channels but met a batch of shape \(8, 9, 9\)",
    ),
    # torch's statistics kernel does not check the channels and would write beyond the buffers.
    "more channels than the layer has": (
        _with(bn1=lambda: nn.BatchNorm2d(3)),
        lambda: images(4),
        ValueError,
        r"'bn1' has 3 channels but met a batch of shape \(4, 12, 4, 4\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_error_names_the_layer_and_leaves_the_model_as_found(case: str) -> None:
    build, batches, error, match = BROKEN[case]
    model = build().train()
    next(model.children(), model).eval()
    before, around = values(model), surroundings(model)
    with pytest.raises(error, match=match):
        convert_batchnorm(model, batches())
    assert values(model) == before
    assert surroundings(model) == around
    assert torch.is_grad_enabled()


# ---- torch.distributed

SHARES = {"even": ([0, 1], [2, 3]), "uneven": ([0, 1, 2], [3]), "one rank has none": ([0, 1, 2, 3], [])}


def _four_batches() -> list[Tensor]:
    return images(6, 6, 6, 3)


def _message(batches: Iterable[Any]) -> str:
    try:
        convert_batchnorm(resnet(), batches)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def _trained(own: list[Tensor], wrap_first: bool) -> dict[str, Tensor]:
    """The parameters after conversion, before or after wrapping, and a step on one's own share."""
    model = resnet()
    wrapped = DistributedDataParallel(model) if wrap_first else model
    convert_batchnorm(wrapped, own)
    wrapped = wrapped if wrap_first else DistributedDataParallel(model)
    wrapped.train()
    wrapped(own[0]).square().mean().backward()
    torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _rank(rank: int, folder: str) -> None:
    """Go through every case on one of two ranks and write down what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=HANG_SECONDS),
    )
    results: dict[str, Any] = {}
    for case, shares in SHARES.items():
        model = resnet()
        shifts = convert_batchnorm(model, [_four_batches()[i] for i in shares[rank]])
        results[case] = {
            "statistics": statistics(shifts),
            "model": model.state_dict(),
            "batches": [s.batches for s in shifts.values()],
        }
    own = [_four_batches()[i] for i in SHARES["even"][rank]]
    results["wrapped"] = statistics(convert_batchnorm(DistributedDataParallel(resnet()), own))
    results["trained"] = [_trained(own, wrap_first) for wrap_first in (False, True)]
    results["bad batch"] = _message([*images(4), "images"] if rank == 1 else images(4, 4, 4))
    results["interrupted"] = _message(_interrupted() if rank == 0 else images(4))
    results["NaN"] = _message(_column(float("nan")) if rank == 0 else images(4))
    results["no batches"] = _message([])
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; a hang fails."""
    folder = tmp_path_factory.mktemp("ranks")
    context = spawn(_rank, (str(folder),), nprocs=2, join=False)
    assert context is not None
    try:
        wait_until(lambda: context.join(timeout=1))
    finally:
        for process in context.processes:
            assert process is not None
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", SHARES)
def test_ranks_end_with_the_statistics_of_all_batches(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["batches"] == second["batches"] == [4] * 4
    assert same_bits(first["model"], second["model"])
    assert first["statistics"].keys() == second["statistics"].keys()
    alone = statistics(convert_batchnorm(resnet(), _four_batches()))
    for name, expected in alone.items():
        assert bits(first["statistics"][name]) == bits(second["statistics"][name])
        # Float64 sums in another order may round to the neighbouring float32 number.
        np.testing.assert_array_max_ulp(first["statistics"][name].numpy(), expected.numpy(), maxulp=1)


def test_a_distributed_wrapper_leaves_no_mark_on_the_names(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert same_bits(rank["wrapped"], rank["even"]["statistics"])
        assert all(name.startswith(("stem", "bn", "shortcut")) for name in rank["wrapped"])


def test_ranks_train_alike_whether_converted_before_or_after_they_are_wrapped(
    ranks: list[dict[str, Any]],
) -> None:
    expected, *others = [trained for rank in ranks for trained in rank["trained"]]
    assert all(same_bits(trained, expected) for trained in others)
    assert not same_bits(expected, {name: p.detach() for name, p in resnet().named_parameters()})


def test_an_error_on_one_rank_raises_on_both(ranks: list[dict[str, Any]]) -> None:
    """Each case after the first also shows that the ranks can go on after an error."""
    first, second = ranks
    assert first["bad batch"] == "RuntimeError: BN conversion failed on 1 other rank(s)"
    assert second["bad batch"].startswith("TypeError: batches must yield")
    assert first["interrupted"] == "OSError: the disk is gone"
    assert second["interrupted"] == "RuntimeError: BN conversion failed on 1 other rank(s)"
    assert first["NaN"] == second["NaN"]
    assert "'stem.1': target mean has NaN or Inf" in first["NaN"]
    assert first["no batches"] == second["no batches"]
    assert first["no batches"].startswith("ValueError: no batches")


# ---- CUDA


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cuda_and_cpu_agree(memory_format: torch.memory_format) -> None:
    """In float64, where convolutions have no reduced-precision path."""
    batches = images(6, 6, 3, dtype=torch.float64)
    expected = statistics(convert_batchnorm(resnet(torch.float64), batches))
    model = resnet(torch.float64).cuda().to(memory_format=memory_format)
    x = images(8, dtype=torch.float64, seed=2)[0].cuda()
    before = logits(model, x)
    actual = statistics(convert_batchnorm(model, batches))  # sent to the model's device
    for name, tensor in actual.items():
        assert tensor.is_cuda
        # Numbers of order 1 behind a few thousand float64 operations in another order.
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=1e-11, atol=1e-12)
    assert (logits(model, x) - before).norm() <= 1e-12 * before.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_mean_cancels_nothing_on_cuda(memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [1000 + torch.randn(64, 8, 16, 16, generator=generator) for _ in range(2)]
    layer = nn.BatchNorm2d(8).cuda()
    shift = convert_batchnorm(layer, [b.contiguous(memory_format=memory_format) for b in batches])[""]
    mean, var = mean_and_var(batches)
    # Welford in float32 rounds the running mean to U * 1000 at each of the some ten levels at which
    # partial results meet, and a deviation from it by as much: 10 U * 1000 = 6e-4 of a std of 1.
    np.testing.assert_allclose(shift.target_mean.cpu(), mean, rtol=10 * U)
    np.testing.assert_allclose(shift.target_var.cpu(), var, rtol=2 * 10 * U * 1000)


@pytest.mark.gpu
def test_cuda_autocast_around_the_call_changes_nothing() -> None:
    plain = statistics(convert_batchnorm(resnet().cuda(), images(6, 6)))
    with torch.autocast("cuda", torch.bfloat16):
        cast = statistics(convert_batchnorm(resnet().cuda(), images(6, 6)))
    for name, tensor in plain.items():  # cuDNN may choose another algorithm, but never bfloat16's 2^-8
        torch.testing.assert_close(cast[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_images_on_cuda_reach_a_model_on_the_cpu() -> None:
    batches = images(256, 256, 256, side=64)
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    expected = statistics(convert_batchnorm(layer, batches))
    assert same_bits(statistics(convert_batchnorm(other, [b.cuda() for b in batches])), expected)
    again = convert_batchnorm(nn.BatchNorm2d(3), [b.cuda() for b in batches], device="cpu")
    assert same_bits(statistics(again), expected)


def test_layers_that_are_left_out_stay_as_they_are_and_the_function_does_too():
    model, x = resnet(torch.float64).eval(), torch.randn(8, 3, 9, 9, dtype=torch.float64)
    before, whole = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    logits = model(x)
    shift = convert_batchnorm(model, [x], exclude=["stem.1", "bn2"])
    assert [*shift] == ["bn1", "shortcut.1"]
    all_layers = convert_batchnorm(whole, [x])
    for name, layer in batchnorm_layers(model).items():
        same = all(torch.equal(value, before[f"{name}.{key}"]) for key, value in layer.state_dict().items())
        assert same == (name in ("stem.1", "bn2")), name
        if not same:  # what a layer measures does not depend on which others are converted
            assert torch.equal(shift[name].target_mean, all_layers[name].target_mean)
    torch.testing.assert_close(model(x), logits, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="no BN layer 'bn3' to exclude"):
        convert_batchnorm(model, [x], exclude=["bn3"])


def test_statistics_that_are_held_for_a_gpu_add_up_as_those_that_are_not(monkeypatch: pytest.MonkeyPatch):
    class Holding(batchnorm._Moments):
        def __init__(self, name: str, layer: batchnorm.BatchNorm, order: list[str]) -> None:
            super().__init__(name, layer, order)
            self.holds = True

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    batches = [torch.randn(size, 3, 8, 8) for size in (4, 2, 3)]
    direct = convert_batchnorm(copy.deepcopy(model), batches)["1"]
    monkeypatch.setattr(batchnorm, "_Moments", Holding)
    monkeypatch.setattr(batchnorm, "HELD_CALLS", 2)  # one addition when full, one of the rest
    held = convert_batchnorm(model, batches)["1"]
    for key in ("target_mean", "target_var"):  # sums in float64: one rounding to float32 apart at most
        torch.testing.assert_close(getattr(held, key), getattr(direct, key), rtol=2**-23, atol=0)
    assert held.batches == direct.batches == 3
