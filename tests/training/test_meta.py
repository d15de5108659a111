"""Claims about runs that learn from episodes."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from daft import experiment
from daft.common.errors import ConfigError, UserError
from daft.data import datasets
from daft.data.episodes import EpisodeLoader, Protocol, draw
from daft.report import tables
from daft.runs import fewshot as measured
from daft.runs import frames, robustness
from daft.runs.reopened import open_run
from daft.sweep import plan, selection, timing
from daft.training import evaluation, interruption, tasks
from daft.training import fewshot as prototypes
from tests.conftest import FAST
from tests.helpers import fabricate
from tests.test_experiment import without_times

CPU = torch.device("cpu")
SMALL = [
    *("training.steps=4", "training.selection=paper", "dataset.train.images=80", "dataset.id.images=80"),
    *("fewshot.ways=3", "fewshot.queries=2", "fewshot.meta_batch=2", "fewshot.episodes=6"),
]
PROTOTYPES = ["task=fewshot", *SMALL]
MAML = ["task=maml", *SMALL, "fewshot.maml.steps=1", "fewshot.episodes=3"]


@pytest.fixture
def episodes(tiny):
    """A configuration of episodes on embedded images."""
    return lambda *overrides: tiny("~dataset.ood.photo", *overrides)


def loaded(config):
    listing = datasets.listing(config)
    return listing, datasets.load(config, listing, CPU)


def test_no_class_is_both_trained_on_and_evaluated(episodes):
    held_out = ["dataset.train.images=200", "training.selection=holdout"]
    listing = datasets.listing(episodes(*PROTOTYPES, *held_out))

    def names(split) -> set[str]:
        return {listing.classes[label] for label in split.labels.tolist()}

    tested = {"crescent", "pentagon", "star", "heart", "arrow"}
    trained = {"circle", "ring", "triangle", "square", "cross"}
    assert names(listing.train) == names(listing.evaluation["holdout"]) == trained
    assert names(listing.evaluation["id"]) == names(listing.evaluation["neon"]) == tested
    fewer = datasets.listing(episodes(*PROTOTYPES, "fewshot.train_classes=[circle,ring,cross]"))
    assert {listing.classes[label] for label in fewer.train.labels.tolist()} == {"circle", "ring", "cross"}
    assert len(fewer.train) == 80 * 3 // 10
    every = datasets.listing(episodes("dataset.train.images=80"))
    assert every.fingerprints()["train"] not in (
        fewer.fingerprints()["train"],
        listing.fingerprints()["train"],
    )


def test_steps_are_episodes_of_seed_and_step_alone_and_epoch_0_is_a_plain_pass(episodes):
    _, images = loaded(episodes(*PROTOTYPES, "dataset.train_transform=[]"))
    train = images.train
    assert isinstance(train, EpisodeLoader)
    assert train.steps_per_pass == 40 // (2 * 3 * 3)
    batches = [*train.steps(range(7))]
    for (pixels, labels), (same, _) in zip(batches[3:], train.steps(range(3, 7)), strict=True):
        assert torch.equal(pixels, same)
        ways = labels.view(2, 3, 3)
        assert (ways == ways[..., :1]).all()
        assert all(len(episode[:, 0].unique()) == 3 for episode in ways)
        assert all(len(episode.flatten(1).unique(dim=0)) == 9 for episode in pixels.split(9))
    assert not torch.equal(batches[0][0], batches[1][0])
    assert sum(len(labels) for _, labels in train.epoch()) == 40


def test_evaluated_episodes_are_those_of_the_protocol(episodes):
    config = episodes(*MAML)
    _, images = loaded(config)
    loader, protocol = images.evaluation["id"], Protocol.of(config.fewshot)
    ((pixels, _),) = loader.epoch()
    (drawn,) = draw(loader.labels, protocol, protocol.episodes)
    steps = EpisodeLoader.of(loader, protocol, per_step=1).steps(range(3))
    for (mine, _), places in zip(steps, torch.cat(drawn, -1), strict=True):
        assert torch.equal(mine, pixels[places.flatten()])


def test_the_loss_of_prototypes_is_the_cross_entropy_of_each_query(episodes):
    config = episodes(*PROTOTYPES)
    listing, images = loaded(config)
    task = tasks.of(config, listing.classes)
    model = task.network(task.backbone()).eval()
    batch = next(images.train.steps(range(1)))
    with torch.no_grad():
        features = model.backbone(batch[0]).double().view(2, 3, 3, -1)
        expected = []
        for episode in features:
            centres = episode[:, :1].mean(1)
            for way, query in product(range(3), range(1, 3)):
                logits = -(episode[way, query] - centres).square().sum(-1)
                expected.append(F.cross_entropy(logits, torch.tensor(way)))
        loss = task.compute_loss(model, batch)["loss"]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("task", [PROTOTYPES, MAML], ids=["prototypes", "maml"])
def test_a_run_is_recorded_and_tabulated_like_any_other(episodes, task):
    config = episodes(*task)
    done = experiment.run(config)
    metrics, history = done.record["metrics"], done.record["history"]
    assert [row["step"] for row in history] == [2, 4]
    assert metrics["id/accuracy"] == history[done.record["best_epoch"] - 1]["selection/accuracy"]
    assert metrics["ood/accuracy"] == metrics["neon/accuracy"]
    assert not experiment.run(config).fresh
    runs = frames.from_directories([done.directory])
    table = tables.aggregate(selection.select(runs), runs)
    name = "shapes (3-way 1-shot, " + ("MAML)" if config.fewshot.maml else "prototypes)")
    assert set(table["dataset"]) == {name}
    assert f"### {name}, shapes_resnet10" in tables.markdown(table)
    run = open_run(done.directory)
    backbone, loader = run.network(CPU).backbone, run.images(CPU).evaluation["id"]
    if config.fewshot.maml is None:
        features = evaluation.features(backbone, loader, run.autocast(CPU))
        found = prototypes.accuracies(features, loader.labels, Protocol.of(config.fewshot))
        assert float(found[1].mean()) == metrics["id/accuracy"]
        assert float(found[1].std()) == metrics["id/episode_std"]
    with pytest.raises(UserError, match="it learns from episodes"):
        robustness.of_run(run, "generated", CPU, 4)
    protocol = Protocol(ways=5, shots=(2,), queries=2, episodes=4, seed=0)  # of the test classes
    shown = measured.Images.of(run.config, run.listing(), protocol, CPU)
    assert [*measured.of_run(run, shown, protocol, CPU)["accuracy"]] == ["id", "neon"]


@pytest.mark.parametrize("task", [PROTOTYPES, MAML], ids=["prototypes", "maml"])
def test_a_run_that_was_interrupted_in_an_epoch_ends_bit_equal(episodes, task, tmp_path, monkeypatch):
    whole = experiment.run(episodes(*task, f"paths.runs={tmp_path}/whole"))
    uninterrupted, steps = interruption.SaveOnSignal.uninterrupted, []

    def cut(self):
        if len(steps) == 3:
            self._save()
            raise KeyboardInterrupt
        steps.append(None)
        return uninterrupted(self)

    monkeypatch.setattr(interruption.SaveOnSignal, "uninterrupted", cut)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(episodes(*task))
    monkeypatch.undo()
    resumed = experiment.run(episodes(*task))
    assert resumed.fresh
    assert resumed.record["metrics"] == whole.record["metrics"]
    assert without_times(resumed.record["history"]) == without_times(whole.record["history"])
    files = [run.directory / "model.safetensors" for run in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fewshot.train_classes=[ring,star]"], "fewshot.train_classes: 'star' is one of test_classes, too"),
        (["fewshot.test_classes=[ring,ring]"], "names a class twice"),
        (["fewshot.ways=1"], "fewshot.ways: 1 is not allowed"),
        (["method=lp"], "method.head_init: probe, but no head fits all episodes"),
        (["method.head_init=random", "method.head_hidden=[8]"], "but prototypes have no head"),
        (["training.steps=null"], "training.steps: null, but episodes are counted in steps"),
    ],
)
def test_what_does_not_go_together_is_refused(configure, overrides, words):
    if "shapes_masks" in words:
        assert (
            configure("task=fewshot", *overrides).segmentation is None
        )  # the task is that of the command line
        return
    with pytest.raises(ConfigError) as error:
        configure("task=fewshot", *overrides)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["fewshot.test_classes=[ring,rung]"],
            "fewshot.test_classes: 'rung' is no class; choose from circle",
        ),
        (["fewshot.ways=6"], "fewshot.ways=6: dataset.train has 5 classes"),
        (
            ["fewshot.shots=7"],
            "fewshot.shots=7 fewshot.queries=2: 9 images of a class, but dataset.train has 8",
        ),
    ],
)
def test_what_the_images_do_not_give_is_refused_before_the_network_is_loaded(
    episodes, overrides, words, tmp_path
):
    with pytest.raises(UserError) as error:
        experiment.run(episodes(*PROTOTYPES, *overrides))
    assert words in str(error.value)
    assert not [*tmp_path.glob("cache/*")]


@pytest.fixture
def mine(configure, folders, tmp_path):
    """A configuration of episodes on files: three images of each of four classes."""
    for split, seed in (("train", 0), ("id", 100)):
        for i, label in enumerate("abcd" * 3):
            fabricate.picture(tmp_path / "mine" / split / label / f"{i}.png", seed + i, 32, 32)
    files = ["dataset=folder", f"dataset.root={tmp_path / 'mine'}", "dataset.id.path=id", "dataset.ood={}"]
    files += ["dataset.train_transform=[flip]", "dataset.eval_transform=[]", "fewshot.test_classes=[c,d]"]
    few = ["task=fewshot", *SMALL, "fewshot.ways=2", "dataset.train.images=null", "dataset.id.images=null"]
    return lambda *overrides: configure(*few, *files, *folders, *FAST, *overrides)


@pytest.mark.parametrize("workers", [0, 2])
def test_episodes_are_the_same_whatever_holds_the_images(mine, workers):
    resident, streamed = (
        loaded(mine(*overrides))[1].train
        for overrides in ([], ["compute.resident_gib=0", f"compute.workers={workers}"])
    )
    assert type(resident.images) is not type(streamed.images)
    for (one, labels), (other, same) in zip(
        resident.steps(range(1, 4)), streamed.steps(range(1, 4)), strict=True
    ):
        assert torch.equal(one, other)
        assert torch.equal(labels, same)


def test_unreadable_images_that_an_episode_needs_are_missed(mine, tmp_path):
    (tmp_path / "mine" / "train" / "a" / "0.png").write_bytes(b"")
    config = mine("compute.unreadable=skip")
    with pytest.raises(
        UserError, match=r"shots=1 fewshot\.queries=2: 3 images of a class, .*train has 2 of 'a'"
    ):
        experiment.run(config)


def test_maml_in_bf16_keeps_weights_and_statistics_in_float32(episodes):
    done = experiment.run(episodes(*MAML, "training.precision=bf16", "training.epochs=1"))
    assert done.record["status"] == "finished"
    state = load_file(done.directory / "model.safetensors")
    assert {tensor.dtype for name, tensor in state.items() if "tracked" not in name} == {torch.float32}


def test_a_plan_estimates_episodes_by_their_images(episodes):
    config = episodes(*MAML)
    images = {"train": 40, "id": 40, "neon": 40}
    plain = plan.forward_passes(
        experiment.to_dict(replace(config, fewshot=replace(config.fewshot, maml=None))), images
    )
    assert plain == 3 * 4 * 2 * 9 + 2 * 40 + 2 * 80
    adapting = plan.forward_passes(experiment.to_dict(config), images)
    assert adapting == 3 * 4 * 2 * 9 + 2 * 3 * 3 * 9 + 2 * 80 + 2 * 3 * 3 * 9
    assert timing._batch(config, datasets.listing(config).train, CPU)[0].shape[0] == 9


def test_other_test_classes_are_another_run(episodes):
    one = episodes(*PROTOTYPES)
    others = replace(one, fewshot=replace(one.fewshot, test_classes=["ring", "star", "heart"]))
    plain = replace(one, fewshot=None)
    assert len({experiment.directory_of(config) for config in (one, others, plain)}) == 3
