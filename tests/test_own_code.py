"""Claims about conversion in code of others: the README's loop is DAFT, and what works in which order."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from daft import convert_batchnorm
from daft.batchnorm import batchnorm_layers
from daft.data import datasets
from daft.data.loader import Batch, Loader
from daft.methods import preparation
from daft.networks import backbones
from daft.networks.folding import fold_batchnorm
from daft.training import evaluation, loop, tasks
from tests.conftest import ROOT

CPU = torch.device("cpu")
PAGE = (ROOT / "daft" / "README.md").read_text().partition("## In your own code")[2].partition("\n## ")[0]
CODE = PAGE.partition("```python\n")[2].partition("```")[0]


def fine_tune() -> Callable[..., nn.Sequential]:
    """The function that the README shows."""
    names: dict[str, Any] = {}
    exec(CODE, names)
    return names["fine_tune"]


class Epochs:
    """A loader as others have them: iterated anew for each epoch, the first time for the conversion."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.number = loader, -1

    def __iter__(self) -> Iterator[Batch]:
        self.number += 1
        return self.loader.epoch(self.number)


def test_the_loop_is_short():
    function = CODE.partition("def ")[2]
    assert len(function.strip().splitlines()) <= 25


def test_the_loop_trains_to_the_weights_of_the_scripts(tiny, tmp_path: Path):
    """Up to rounding: torch computes the cosine from one epoch to the next."""
    config = tiny("method=daft", "training.epochs=3", "training.selection=last")
    images = datasets.load(config, datasets.listing(config), CPU)
    task = tasks.of(config, images.classes)
    own = task.network(backbones.load(config.backbone))
    theirs = fine_tune()(deepcopy(own.backbone), deepcopy(own.head.linear1), Epochs(images.train), epochs=3)
    prepared = preparation.prepare(config.method, own, probed_head=None, batches=images.train.epoch())
    hooks = loop.LoopHooks(
        set_train_mode=lambda _: preparation.set_train_mode(own, config.method), evaluate=lambda _: 0.0
    )
    loop.fit(
        prepared.model, images.train, prepared.groups, hooks,
        epochs=3, momentum=0.9, weight_decay=0.0, folder=tmp_path, keep="last",
    )  # fmt: skip
    expected = {**own.backbone.state_dict(), **own.head.get_submodule("linear1").state_dict()}
    found = {**theirs[0].state_dict(), **theirs[1].state_dict()}
    start = backbones.load(config.backbone).state_dict()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name
        if name.endswith("conv1.weight"):  # and they have moved
            assert not torch.allclose(start[name], value, rtol=1e-4, atol=1e-5)


def test_the_loop_learns_with_the_loaders_of_torch(tiny):
    config = tiny("method=daft", "dataset.image_size=64", "dataset.train.images=200")
    images = datasets.load(config, datasets.listing(config), CPU)
    pixels = torch.cat([x for x, _ in images.train.epoch()]), torch.cat([y for _, y in images.train.epoch()])
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*pixels), batch_size=25, shuffle=True)
    backbone = backbones.load(config.backbone)
    model: Any = fine_tune()(backbone, nn.Linear(backbone.num_features, 10), loader, epochs=2)
    cast = evaluation.autocast(CPU, "fp32")
    assert evaluation.accuracy(model[0], model[1], images.evaluation["id"], cast) > 25  # chance is 10 %


# With other libraries


def network() -> nn.Sequential:
    """With statistics that conversion changes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (3 + torch.rand(8, 3, 9, 9, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def step(model: nn.Module, batch: tuple[Tensor, Tensor], rate: float = 0.1) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(batches()[0][0])


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize(
    ("in_place", "ran"), [(False, True), (True, False)], ids=["torch.compile, run before", "model.compile"]
)
def test_a_compiled_network_is_converted_as_any(in_place: bool, ran: bool):
    expected, model = network(), network()
    convert_batchnorm(expected, batches())
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        compiled = model
    if ran:
        outputs(compiled)
    shift = convert_batchnorm(compiled, batches())
    assert [*shift] == [f"{'' if in_place else '_orig_mod.'}{n}" for n in ("1", "4")]
    assert same(model, expected)
    assert torch.allclose(outputs(compiled), outputs(network()), atol=1e-5)
    step(compiled, batches()[0])
    step(expected, batches()[0])
    assert same(model, expected)


AVERAGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "AveragedModel": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
    "ModelEmaV3": lambda m: ModelEmaV3(m, decay=0.5),
}


def update(average: Any, model: nn.Module) -> None:
    (average.update_parameters if isinstance(average, AveragedModel) else average.update)(model)


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_after_conversion_keeps_the_function_and_one_made_before_loses_it(kind: str):
    model = network()
    before = AVERAGES[kind](model)
    start = outputs(network())
    if isinstance(before, AveragedModel):
        before.update_parameters(model)  # the first update copies
    convert_batchnorm(model, batches())
    after = AVERAGES[kind](model)
    for average in (before, after, after):
        update(average, model)
    averages: list[Any] = [before, after]
    off = [float((outputs(average.module) - start).abs().max()) for average in averages]
    assert off[1] < 1e-5 < 1e-2 < off[0]


def test_an_average_without_buffers_has_the_last_statistics():
    model: Any = network()
    convert_batchnorm(model, batches())
    ema = get_ema_multi_avg_fn(0.5)
    averages: list[Any] = [AveragedModel(model, multi_avg_fn=ema, use_buffers=use) for use in (False, True)]
    for batch in batches():
        step(model, (batch[0] * 2, batch[1]))
        for average in averages:
            average.update_parameters(model)
    last, averaged = (average.module[1].running_mean for average in averages)
    assert torch.equal(last, model[1].running_mean)
    assert not torch.allclose(averaged, last, rtol=0.01)


def test_a_network_whose_layers_are_folded_is_refused():
    model = network()
    assert fold_batchnorm(model, batches()[0][0]) == ["1", "4"]
    with pytest.raises(ValueError, match="no batch-norm layer to convert"):
        convert_batchnorm(model, batches())


def test_a_state_dict_that_is_loaded_later_undoes_the_conversion():
    model = network()
    convert_batchnorm(model, batches())
    assert not same(model, network())
    model.load_state_dict(network().state_dict())
    assert same(model, network())


def test_an_optimiser_may_be_made_before_conversion():
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for each in (model, other):
        convert_batchnorm(each, batches())
    model.train()
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    step(other, batches()[0])
    assert same(model, other)


@pytest.fixture
def hugging_face() -> Any:
    """transformers, and a small ResNet of theirs with statistics that conversion changes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config).eval()


def dictionaries() -> list[dict[str, Tensor]]:
    return [{"pixel_values": F.interpolate(x, 32), "labels": y} for x, y in batches()]


def test_a_resnet_of_transformers_is_converted_by_the_images_of_its_batches(hugging_face: Any):
    (shown,) = re.findall(r"`(convert_batchnorm\(model, \(batch.*?)`", PAGE)
    x = dictionaries()[0]["pixel_values"]
    with torch.no_grad():
        before = hugging_face(x).logits
    names = {"convert_batchnorm": convert_batchnorm, "model": hugging_face, "loader": dictionaries()}
    shift = eval(shown, names)
    assert {*shift} == {*batchnorm_layers(hugging_face)}
    assert all(float((s.source_mean - s.target_mean).abs().max()) > 0.01 for s in shift.values())
    with torch.no_grad():
        assert torch.allclose(hugging_face(x).logits, before, atol=1e-4)
    assert isinstance(hugging_face.classifier[1], nn.Linear)
    with pytest.raises(TypeError, match="not dict"):
        convert_batchnorm(hugging_face, dictionaries())


def test_trainer_fine_tunes_a_converted_network_with_two_rates(hugging_face: Any, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, head = hugging_face, hugging_face.classifier[1]
    convert_batchnorm(model, (batch["pixel_values"] for batch in dictionaries()))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    groups = [{"params": model.resnet.parameters(), "lr": 0.0}, {"params": head.parameters(), "lr": 0.1}]
    frozen = {name: p.clone() for name, p in model.resnet.named_parameters()}
    converted = model.resnet.embedder.embedder.normalization.running_mean.clone()
    samples = [
        {"pixel_values": x, "labels": y}
        for batch in dictionaries()
        for x, y in zip(batch["pixel_values"], batch["labels"], strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    trainer = transformers.Trainer(model, arguments, train_dataset=samples, optimizers=(optimizer, None))
    trainer.train()
    assert all(torch.equal(p, frozen[name]) for name, p in model.resnet.named_parameters())  # η_θ is 0 here
    assert head.weight.abs().max() > 0
    assert not torch.equal(model.resnet.embedder.embedder.normalization.running_mean, converted)  # train mode
