"""Claims about parts that compare labelled and unlabelled images."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from daft.batchnorm import batchnorm_layers
from daft.common.errors import ConfigError, UserError
from daft.config.parts import FEATURES, CoralConfig, DannConfig, PartsConfig
from daft.methods.parts import table
from daft.methods.parts.coral import Coral, coral_distance
from daft.methods.parts.dann import Dann, GradientReversal, adaptation
from daft.methods.parts.loss import Loss
from daft.methods.parts.part import Domains, Part, Setting, Step
from daft.networks.stages import stages
from daft.training.loop import cross_entropy


def test_the_distance_is_that_of_the_worked_example():
    """C_S = [[2, 1], [1, 3]] and C_T = [[1, 0], [0, 2]] differ by 1 everywhere: 4 / (4 · 2²)."""
    source, target = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert float(coral_distance(source, target)) == 0.25


def features(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def in_float64(labelled: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
    """Written out as published (Sun and Saenko 2016, Eq. 1 to 3)."""

    def covariance(x: torch.Tensor) -> torch.Tensor:
        total = x.sum(0, keepdim=True)
        return (x.T @ x - total.T @ total / len(x)) / (len(x) - 1)

    difference = covariance(labelled) - covariance(unlabelled)
    return difference.square().sum() / (4 * labelled.shape[1] ** 2)


def test_coral_and_its_gradients_are_those_of_float64_at_every_layer():
    halves = {"a": (features(9, 5), features(7, 5)), "b": (features(9, 3), features(7, 3))}
    single = {k: tuple(x.clone().requires_grad_() for x in pair) for k, pair in halves.items()}
    double = {k: tuple(x.double().requires_grad_() for x in pair) for k, pair in halves.items()}
    part = Coral(CoralConfig(weight=2.0, layers=["a", "b"]))
    domains = Domains({k: pair[0] for k, pair in single.items()}, {k: pair[1] for k, pair in single.items()})
    terms = part.loss(Step(0.5), domains)
    expected = sum((in_float64(*pair) for pair in double.values()), torch.zeros(())) / 2
    terms["loss"].backward()
    (2 * expected).backward()
    # Covariances of values below 1 are sums of at most 9 products, of which each rounds by 2^-24, and so do
    # their differences, of which there are 25: within a few hundred roundings of numbers below 1.
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=300 * 2**-24 / 25)
    close(terms["loss"].double(), 2 * expected)
    assert terms["coral"] == pytest.approx(float(expected.detach()), rel=1e-4)
    for pair, right in zip(single.values(), double.values(), strict=True):
        for x, y in zip(pair, right, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            close(x.grad.double(), y.grad)


def test_equal_domains_have_no_distance():
    same = {FEATURES: features(8, 4)}
    assert float(Coral(CoralConfig()).loss(Step(0), Domains(same, same))["loss"]) == 0


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_a_gradient_is_reversed_by_exactly_lambda(scale):
    x, weight = features(4, 3).requires_grad_(), features(4, 3)
    out = GradientReversal.apply(x, scale)
    assert torch.equal(out, x)
    (out * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, -scale * weight)


def test_lambda_grows_as_published():
    assert adaptation(0) == 0
    assert adaptation(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert adaptation(1) == pytest.approx(0.9999092042625952)


def dann(model, **settings) -> Dann:
    part = Dann(DannConfig(hidden=[6], **settings))
    torch.manual_seed(3)
    head = {"name": "head", "params": [*model.head.parameters()], "lr": 0.5, "initial_lr": 0.5}
    *_, own = part.groups(model, [head])
    assert part.module is not None
    assert own["name"] == "domain"
    assert own["lr"] == own["initial_lr"] == (settings.get("lr") or 0.5)
    assert [*map(id, own["params"])] == [*map(id, part.module.parameters())]
    return part


@pytest.mark.parametrize("settings", [{}, {"schedule": "constant", "weight": 2.0}, {"lr": 0.25}])
def test_features_get_the_reversed_gradient_and_the_domain_classifier_its_own(model, settings):
    part = dann(model, **settings)
    labelled, unlabelled = features(5, 4).requires_grad_(), features(3, 4).requires_grad_()
    terms = part.loss(Step(0.3), Domains({FEATURES: labelled}, {FEATURES: unlabelled}))
    terms["loss"].backward()
    assert part.module is not None
    own = [p.grad.clone() for p in part.module.parameters() if p.grad is not None]
    # Without reversal, by hand.
    plain = [x.detach().clone().requires_grad_() for x in (labelled, unlabelled)]
    logits = [part.module(x)[:, 0] for x in plain]
    loss = -(F.logsigmoid(-logits[0]).mean() + F.logsigmoid(logits[1]).mean()) / 2
    part.module.zero_grad()
    (settings.get("weight", 1.0) * loss).backward()
    scale = 1.0 if "schedule" in settings else adaptation(0.3)
    # Of float32, through three small layers.
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-8)
    close(terms["domain_loss"], loss.detach())
    for gradient, parameter in zip(own, part.module.parameters(), strict=True):
        close(gradient, parameter.grad)
    for x, y in zip((labelled, unlabelled), plain, strict=True):
        assert y.grad is not None
        close(x.grad, -scale * y.grad)
    right = 50 * ((logits[0] <= 0).float().mean() + (logits[1] > 0).float().mean())
    assert float(terms["domain_accuracy"]) == pytest.approx(float(right))
    assert float(terms["domain_lambda"]) == pytest.approx(scale)


class Watching(Part):
    """Keeps the features that it is given."""

    layers = (FEATURES, "1")

    def loss(self, step, domains):
        assert domains is not None
        self.domains = domains
        return {"loss": torch.ones(()), "seen": torch.tensor(float(len(domains.unlabelled[FEATURES])))}


def test_both_domains_go_through_the_backbone_together_and_the_head_sees_the_labelled_images(model, batch):
    part, images = Watching(), torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    loss = Loss(cross_entropy, [part])
    loss.before_step(Step(0.0, images))
    model.train()
    counter = next(iter(batchnorm_layers(model).values())).num_batches_tracked
    assert counter is not None
    before = int(counter)
    terms = loss(model, batch)
    assert int(counter) == before + 1
    together = model.backbone(torch.cat([batch[0], images]))
    assert torch.equal(part.domains.labelled[FEATURES], together[:8])
    assert torch.equal(part.domains.unlabelled[FEATURES], together[8:])
    maps = model.backbone.network[:2](model.backbone.normalised(torch.cat([batch[0], images])))
    assert torch.equal(part.domains.unlabelled["1"], maps[8:].flatten(2).mean(2))
    right = F.cross_entropy(model.head(together[:8]), batch[1])
    assert torch.equal(terms["task_loss"], right.detach())
    assert torch.equal(terms["loss"], right + 1)
    assert float(terms["seen"]) == 5


@pytest.mark.parametrize("mode", ["train", "test"])
def test_separate_domains_have_their_own_statistics_and_running_ones_of_labelled_images(model, batch, mode):
    part, images = Watching(), torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    part.separate = True
    alone = copy.deepcopy(model)
    for each in (model, alone):
        each.train()
        for layer in batchnorm_layers(each).values():
            layer.train(mode == "train")
    loss = Loss(cross_entropy, [part])
    loss.before_step(Step(0.0, images))
    terms = loss(model, batch)
    assert torch.equal(terms["task_loss"], cross_entropy(alone, batch)["loss"])
    for key, value in model.state_dict().items():  # as if there were no unlabelled images
        assert torch.equal(value, alone.state_dict()[key]), key
    assert torch.equal(part.domains.unlabelled[FEATURES], alone.backbone(images))
    assert torch.equal(part.domains.labelled[FEATURES], model.backbone(batch[0]))


def test_a_loss_without_terms_is_the_tasks_own(model, batch):
    loss = Loss(cross_entropy, [Part()])
    assert loss(model, batch).keys() == {"loss"}


def test_a_layer_that_is_not_there_is_named_with_those_that_are(model):
    network = model.backbone.network
    setting = Setting(network, stages(network), epochs=1)
    (part,) = table.build(PartsConfig(coral=CoralConfig(layers=[FEATURES, "3"])))
    part.require_fit(setting)
    (part,) = table.build(PartsConfig(coral=CoralConfig(layers=["layer9"])))
    with pytest.raises(
        ConfigError, match=r"coral\.layers: 'layer9' is no layer; there are features, 0, 1, 2"
    ):
        part.require_fit(setting)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["part=dann"], r"dataset\.unlabelled: null, but method\.parts\.dann needs images"),
        (["part=coral"], r"dataset\.unlabelled: null, but method\.parts\.coral needs images"),
        (["part=coral", "method.parts.coral.weight=0"], r"method\.parts\.coral\.weight: 0.*greater than 0"),
        (["part=coral", "method.parts.coral.layers=[a,a]"], r"method\.parts\.coral\.layers: .* twice"),
        (["part=coral", "method.parts.coral.layers=[]"], r"method\.parts\.coral\.layers: "),
        (["part=dann", "method.parts.dann.schedule=linear"], r"method\.parts\.dann\.schedule: 'linear'"),
        (["part=dann", "method.parts.dann.hidden=[0]"], r"method\.parts\.dann\.hidden\.0: 0 "),
        (
            ["part=[coral,dann]", "method.parts.dann.batchnorm=separate"],
            r"method\.parts\.dann\.batchnorm: separate, but joint of coral",
        ),
        (["part=dann", "dataset=shapes_masks"], r"method\.parts\.dann: it compares features of images"),
    ],
)
def test_what_makes_no_sense_is_refused(configure, overrides, message):
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        configure(*overrides)
