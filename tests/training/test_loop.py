"""Claims about the loop: schedule, selection, divergence, resume."""

import io
import math
import re
import signal
from dataclasses import fields

import pytest
import torch
from rich.console import Console
from torch import nn

from daft.common import progress
from daft.data.images import Resident
from daft.data.loader import Loader
from daft.training import loop
from daft.training.checkpoints import LAST, Checkpoints, TrainingState
from daft.training.schedules import Schedule


def loader(images: int = 10, batch_size: int = 4) -> Loader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(images) % 2
    cpu = torch.device("cpu")
    return Loader("train", Resident(pixels), labels, "x", [], batch_size, 0, True, cpu, 0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(48, 2), nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.drop(images.float().flatten(1) / 255))


def train_mode(model: nn.Module) -> None:
    model.train()


def fit(folder, *, model=None, epochs=4, evaluate=None, lr=0.1, **options):
    torch.manual_seed(1)
    model = model or Net()
    scores = iter(range(epochs + 1))
    return model, loop.fit(
        model,
        options.pop("loader", loader()),
        [{"name": "head", "params": list(model.parameters()), "lr": lr, "initial_lr": lr}],
        loop.LoopHooks(
            set_train_mode=train_mode,
            evaluate=evaluate or (lambda m: float(next(scores))),
            **{f.name: options.pop(f.name) for f in fields(loop.LoopHooks) if f.name in options},
        ),
        epochs=epochs,
        momentum=0.9,
        weight_decay=0.0,
        folder=folder,
        **options,
    )


def test_the_schedule_is_torchs_cosine_annealing_stepped_once_an_epoch(tmp_path):
    _, fitted = fit(tmp_path, epochs=20, lr=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for row in fitted.history:
        # torch multiplies a ratio onto the last rate every epoch, each time within a few ulp of 1e-16
        assert row["lr/head"] == pytest.approx(schedule.get_last_lr()[0], rel=1e-13, abs=1e-16)
        optimizer.step()
        schedule.step()
    assert fitted.history[0]["lr/head"] == 0.3


@pytest.mark.parametrize(
    ("scores", "best"), [([1.0, 3.0, 2.0], 2), ([2.0, 3.0, 3.0], 2), ([5.0, 5.0, 5.0], 1), ([0, 0, 1], 3)]
)
def test_the_best_epoch_is_kept_and_ties_keep_the_earlier(tmp_path, scores, best):
    values, states = iter(scores), []

    def evaluate(model):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return float(next(values))

    model, fitted = fit(tmp_path, epochs=3, evaluate=evaluate)
    assert fitted.best_epoch == best
    assert len(states) == 3  # nothing is evaluated before training, all epochs run
    for key, value in model.state_dict().items():
        assert torch.equal(value, states[best - 1][key])


def test_the_update_is_sgd_with_momentum_on_the_mean_cross_entropy(tmp_path):
    """Against the update written out: v = 0.9 v + g, w = w - η v."""
    data = loader(images=8, batch_size=4)
    model, _ = fit(tmp_path, epochs=2, model=_without_dropout(), loader=data)
    expected = _without_dropout()
    velocity = [torch.zeros_like(p) for p in expected.parameters()]
    for epoch in (1, 2):
        lr = 0.1 * (1 + math.cos(math.pi * (epoch - 1) / 2)) / 2
        for images, labels in data.epoch(epoch):
            log_p = expected(images).log_softmax(1)
            loss = -log_p[torch.arange(len(labels)), labels].mean()
            gradients = torch.autograd.grad(loss, list(expected.parameters()))
            for p, v, g in zip(expected.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g)
                p.data.sub_(lr * v)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        # four steps of float32 rounding on values below 1
        assert torch.allclose(p, q, rtol=0, atol=1e-6)


def _without_dropout() -> Net:
    torch.manual_seed(1)
    model = Net()
    model.drop.p = 0.0
    return model


@pytest.mark.parametrize("when", ["before the first step", "in an epoch", "after an epoch", "while saving"])
def test_a_run_that_was_cut_off_ends_bit_equal_to_one_that_was_not(tmp_path, monkeypatch, when):
    scores = {1: 1.0, 2: 9.0, 3: 2.0, 4: 3.0}

    def run(folder, **options):
        torch.manual_seed(1)
        model = Net()
        checkpoints = Checkpoints(folder, model, torch.optim.SGD(model.parameters()))
        done = len(checkpoints.resume()[0].history)
        epochs = iter(range(done + 1, 5))
        return fit(folder, evaluate=lambda m: scores[next(epochs)], **options)

    whole, fitted = run(tmp_path / "whole")
    steps = iter(range(1000))
    stop_at = {"before the first step": 0, "in an epoch": 7}.get(when)

    def step(model, batch):
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return loop.cross_entropy(model, batch)

    def report(row):
        if when == "after an epoch" and row["epoch"] == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        if when == "while saving":  # the best weights of epoch 2 are written, its checkpoint is not
            save = torch.save
            calls = iter(range(9))

            def failing(*arguments):
                if next(calls) == 1:
                    raise KeyboardInterrupt
                save(*arguments)

            patch.setattr(torch, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            run(folder, compute_loss=step, report=report)
    resumed, refitted = run(folder)
    assert refitted.best_epoch == fitted.best_epoch == 2
    assert without_times(refitted) == without_times(fitted)
    assert_equal(whole, resumed)
    assert [p.name for p in folder.glob("best-*")] == ["best-0002.safetensors"]
    assert not list(folder.glob(".*"))  # no half-written files


def without_times(fitted):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images/s")} for row in fitted.history]


def assert_equal(one, other):
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


STEPS = 4 * 3  # of epochs, and of batches in each


@pytest.mark.parametrize("when", ["in a step", "between steps", "in the evaluation"])
def test_an_interrupted_epoch_goes_on_with_its_next_step_and_ends_bit_equal(tmp_path, when):
    whole, fitted = fit(tmp_path / "whole", evaluate=lambda model: 5.0)
    taken, interrupted = [], []

    def interrupt(at):
        if when == at and len(taken) >= 8 and not interrupted:
            interrupted.append(len(taken))
            signal.raise_signal(signal.SIGINT)

    def step(model, batch):
        taken.append(1)
        interrupt("in a step")
        return loop.cross_entropy(model, batch)

    class Interrupting(Loader):
        def steps(self, steps):
            for batch in super().steps(steps):
                interrupt("between steps")
                yield batch

    def evaluate(model):
        interrupt("in the evaluation")
        return 5.0

    data = Interrupting(**{f.name: getattr(loader(), f.name) for f in fields(Loader)})
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", loader=data, compute_loss=step, evaluate=evaluate)
    assert [len(taken)] == interrupted == [9 if when == "in the evaluation" else 8]
    resumed, refitted = fit(tmp_path / "cut", compute_loss=step, evaluate=lambda model: 5.0)
    assert len(taken) == STEPS  # none is done twice
    assert without_times(refitted) == without_times(fitted)
    assert_equal(whole, resumed)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tmp_path):
    epochs = []

    def step(model, batch):
        loss = loop.cross_entropy(model, batch)["loss"]
        return {"loss": loss * (math.nan if len(epochs) == 1 else 1)}

    _, fitted = fit(tmp_path, compute_loss=step, report=epochs.append)
    assert fitted.diverged
    assert fitted.best_epoch == 1
    assert [row["epoch"] for row in fitted.history] == [1, 2]
    _, again = fit(tmp_path)  # resuming does not train a diverged network further
    assert again.diverged
    assert len(again.history) == 2


def test_logits_that_are_not_finite_end_the_run_as_diverged(tmp_path):
    _, fitted = fit(tmp_path, evaluate=lambda model: math.nan)
    assert fitted.diverged
    assert fitted.best_epoch is None


def test_hooks_of_a_method_see_every_epoch_and_may_change_rates(tmp_path):
    """The seams for what a method adds: a schedule per epoch, a loss with more terms."""
    seen = []

    def before_epoch(epoch, optimizer):
        optimizer.param_groups[0]["lr"] = 0.0
        seen.append(epoch)

    model = Net()
    before = [p.clone() for p in model.parameters()]
    _, fitted = fit(tmp_path, model=model, before_epoch=before_epoch)
    assert seen == [1, 2, 3, 4]
    assert fitted.history[0]["lr/head"] == 0.0
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_the_polynomial_schedule_is_torchs_stepped_at_every_step(tmp_path):
    rates = []

    def step(model, batch):
        rates.append(optimizers[0].param_groups[0]["lr"])
        return loop.cross_entropy(model, batch)

    optimizers = []
    fit(
        tmp_path,
        epochs=2,
        steps=7,
        poly_power=0.9,
        compute_loss=step,
        before_epoch=lambda epoch, optimizer: optimizers.append(optimizer),
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=7, power=0.9)
    expected = []
    for _ in range(7):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    # torch multiplies a ratio onto the last rate at every step, each time within a few ulp
    assert rates == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("epochs", "steps"), [(3, 7), (4, 4), (30, 30000), (20, 20 * 157)])
def test_epochs_divide_the_steps_among_them(epochs, steps):
    schedule = Schedule(epochs, steps)
    ranges = [schedule.steps_of_epoch(epoch) for epoch in range(1, epochs + 1)]
    assert [step for steps_of_one in ranges for step in steps_of_one] == list(range(steps))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_steps_go_on_through_passes_over_the_images():
    data = loader(images=10, batch_size=4)  # three batches a pass
    whole = [images for number in (1, 2, 3) for images, _ in data.epoch(number)]
    parts = [images for span in (range(2), range(2, 7), range(7, 9)) for images, _ in data.steps(span)]
    assert len(whole) == len(parts) == 9
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_run_of_steps_that_was_cut_off_in_a_pass_ends_bit_equal_and_keeps_its_last_epoch(tmp_path):
    def run(folder, **options):
        counted = {"steps": 8, "poly_power": 0.9, "keep": "last", "metric": "miou"}
        return fit(folder, epochs=3, evaluate=lambda model: 5.0, **counted, **options)

    whole, fitted = run(tmp_path / "whole")
    assert [row["step"] for row in fitted.history] == [2, 5, 8]
    assert fitted.best_epoch == 3  # though the first was as good
    assert {row["selection/miou"] for row in fitted.history} == {5.0}
    steps = iter(range(100))

    def step(model, batch):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return loop.cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", compute_loss=step)
    resumed, refitted = run(tmp_path / "cut")
    assert [row["train/loss"] for row in refitted.history] == [row["train/loss"] for row in fitted.history]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_no_epochs_train_nothing(tmp_path):
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, fitted = fit(tmp_path, model=model, epochs=0)
    assert (fitted.history, fitted.best_epoch, fitted.diverged) == ([], None, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_train_trains_nothing(tmp_path):
    fitted = loop.fit(
        Net(),
        loader(),
        [],
        loop.LoopHooks(lambda m: pytest.fail("trained"), lambda m: pytest.fail("evaluated")),
        epochs=3,
        momentum=0.9,
        weight_decay=0,
        folder=tmp_path,
    )
    assert fitted == TrainingState()


def test_a_checkpoint_of_a_run_that_was_interrupted_under_older_names_goes_on_bit_equal(tmp_path):
    """What an epoch had done was once called `part`, with its `luck`."""
    whole, fitted = fit(tmp_path / "whole", evaluate=lambda model: 5.0)
    taken = []

    def step(model, batch):
        taken.append(1)
        if len(taken) == 5:
            signal.raise_signal(signal.SIGINT)
        return loop.cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", compute_loss=step, evaluate=lambda model: 5.0)
    file = tmp_path / "cut" / LAST
    checkpoint = torch.load(file, weights_only=True)
    part = checkpoint.pop("epoch_progress")
    assert part["steps"] == 2
    torch.save(checkpoint | {"part": part | {"luck": part.pop("rng_state")}}, file)
    resumed, refitted = fit(tmp_path / "cut", evaluate=lambda model: 5.0)
    assert without_times(refitted) == without_times(fitted)
    assert_equal(whole, resumed)


def test_a_checkpoint_from_before_epochs_could_be_interrupted_goes_on_after_its_last_epoch(tmp_path):
    whole, fitted = fit(tmp_path / "whole", evaluate=lambda model: 5.0)

    def report(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", evaluate=lambda model: 5.0, report=report)
    file = tmp_path / "cut" / LAST
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint.pop("epoch_progress") is None
    torch.save(checkpoint, file)
    resumed, refitted = fit(tmp_path / "cut", evaluate=lambda model: 5.0)
    assert without_times(refitted) == without_times(fitted)
    assert_equal(whole, resumed)


def test_without_a_terminal_an_epoch_is_a_line_with_loss_metric_rate_and_time_left(tmp_path, capfd):
    fit(tmp_path, epochs=3, name="runs of [mine]", metric_title="holdout")
    lines = capfd.readouterr().err.splitlines()
    number = r"\d+\.\d{3}"
    for epoch, (line, rate) in enumerate(zip(lines, ("0.1", "0.075", "0.025"), strict=True), 1):
        told = rf"loss {number}, holdout {epoch - 1}\.00 %, rate {rate}, 0:00:\d\d left"
        assert re.fullmatch(rf"runs of \[mine\]: epoch {epoch} of 3, {told}", line), line


@pytest.mark.parametrize("known", [False, True])
def test_the_bar_shows_no_number_before_there_is_one(tmp_path, monkeypatch, known):
    shown = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=shown, force_terminal=True, width=200))
    fit(tmp_path, evaluate=(lambda model: math.nan) if known else None)
    text = shown.getvalue()
    assert "nan" not in text
    assert ("ID not finite" if known else "ID 3.00 %") in text
