"""Claims about accuracy, features and their distortion, against formulas written out."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from daft.data.images import Resident
from daft.data.loader import Loader
from daft.training import distortion, evaluation
from daft.training.evaluation import PretrainedFeatures
from tests.helpers.waiting import wait_until


def loader(fingerprint: str = "x", images: int = 9) -> Loader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels, cpu = torch.arange(images) % 3, torch.device("cpu")
    return Loader("id", Resident(pixels), labels, fingerprint, [], 4, 0, False, cpu, 0)


class Answers(nn.Module):
    """Logits that are right for the first `right` images in order."""

    def __init__(self, right: int, last: float = 1.0) -> None:
        super().__init__()
        self.right, self.last, self.seen = right, last, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        i = torch.arange(self.seen, self.seen + len(images))
        self.seen += len(images)
        logits = nn.functional.one_hot((i + (i >= self.right)) % 3, 3).float()
        logits[i == 8] *= self.last
        return logits


@pytest.mark.parametrize("right", [0, 4, 9])
def test_accuracy_is_the_percentage_of_right_answers_in_test_mode(right):
    model, head = Answers(right).train(), nn.Identity()
    assert evaluation.accuracy(model, head, loader(), nullcontext) == pytest.approx(100 * right / 9)
    assert not model.training
    assert not head.training


def test_one_logit_that_is_not_finite_makes_the_accuracy_nan():
    infinite = Answers(9, last=float("inf"))
    assert math.isnan(evaluation.accuracy(infinite, nn.Identity(), loader(), nullcontext))


def test_head_accuracy_on_features_is_the_accuracy_of_the_whole_network():
    torch.manual_seed(0)
    backbone, head = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(48, 5)), nn.Sequential(nn.Linear(5, 3))
    whole = evaluation.accuracy(backbone, head, loader(), nullcontext)
    extracted = evaluation.features(backbone, loader(), nullcontext)
    assert extracted.shape == (9, 5)
    assert evaluation.head_accuracy(head, extracted, loader()) == whole


class Scale(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255


def test_pretrained_features_are_extracted_once_per_network_and_images(tmp_path: Path):
    calls = []

    class Counting(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return images.float().flatten(1)

    first = PretrainedFeatures(Counting(), 48, "network", nullcontext, tmp_path)
    extracted = first(loader())
    again = PretrainedFeatures(Counting(), 48, "network", nullcontext, tmp_path)(loader())
    assert sum(calls) == 9
    assert torch.equal(extracted, again)
    first(loader("other images"))
    PretrainedFeatures(Counting(), 48, "other network", nullcontext, tmp_path)(loader())
    assert sum(calls) == 27


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half a file",
        safetensors.torch.save({"features": torch.zeros(9, 48)})[:-1],
        safetensors.torch.save({"features": torch.zeros(8, 48)}),
        safetensors.torch.save({"features": torch.zeros(9, 47)}),
        safetensors.torch.save({"features": torch.zeros(9, 48, dtype=torch.float64)}),
        safetensors.torch.save({"others": torch.zeros(9, 48)}),
    ],
)
def test_damaged_features_are_extracted_anew_with_a_word(tmp_path: Path, content: bytes, capsys):
    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)

    pretrained = PretrainedFeatures(Flat(), 48, "network", nullcontext, tmp_path)
    extracted = pretrained(loader()).clone()  # it is mapped from the file
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(content)
    assert torch.equal(pretrained(loader()), extracted)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{file}: damaged (")
    assert torch.equal(pretrained(loader()), extracted)
    assert capsys.readouterr().err == ""


def test_those_who_need_the_same_features_at_once_wait_for_the_one_who_extracts_them(tmp_path: Path):
    calls = []

    def waiting() -> int:
        """Threads that are in the code of filelock."""
        return sum("filelock" in frame.f_code.co_filename for frame in sys._current_frames().values())

    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            wait_until(lambda: waiting() == 3 or sum(calls) > 9)
            return images.float().flatten(1)

    pretrained = [PretrainedFeatures(Slow(), 48, "network", nullcontext, tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda features: features(loader()), pretrained))
    assert sum(calls) == 9
    assert all(torch.equal(found[0], features) for features in found)


def test_feature_distortion_of_hand_worked_vectors():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    after = torch.tensor([[4.0, 3.0], [0.0, 1.0], [-2.0, 0.0]])
    found = distortion.feature_distortion(before, after)
    # cosines 24/25, 0, -1; distances √2, √2, 4
    assert found["cosine"]["mean"] == pytest.approx((0.96 + 0 - 1) / 3, abs=1e-6)
    assert found["l2"]["mean"] == pytest.approx((2 * 2**0.5 + 4) / 3, abs=1e-6)
    assert found["cosine"]["edges"][0] == -1
    assert found["cosine"]["edges"][-1] == 1
    assert found["l2"]["edges"][-1] == 4
    for measure in ("cosine", "l2"):
        assert sum(found[measure]["counts"]) == 3  # both ends included


def test_unmoved_features_have_cosine_one_and_distance_zero():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = distortion.feature_distortion(x, x.clone())
    assert found["cosine"]["mean"] == pytest.approx(1, abs=1e-6)
    assert found["cosine"]["counts"][-1] == 5
    assert found["l2"]["mean"] == 0
    assert sum(found["l2"]["counts"]) == 5


def test_relative_change_is_equation_6_for_parameters_and_bn_statistics():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = model.state_dict()  # tensors that share the model's memory
    state["0.weight"].copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1))
    state["0.bias"].zero_()
    start = distortion.snapshot(model)
    state["0.weight"].add_(1)  # ‖(1, 1)‖ / ‖(3, 4)‖ = √2 / 5
    state["0.bias"].add_(1)  # from zero: no relative change
    state["1.running_var"].add_(0.5)  # ‖(0.5, 0.5)‖ / ‖(1, 1)‖
    rows = {row["name"]: (row["kind"], row["value"]) for row in distortion.relative_change(start, model)}
    assert rows["0.weight"] == ("weight", pytest.approx(2**0.5 / 5))
    assert rows["0.bias"] == ("bias", None)
    assert rows["1.weight"] == ("bn_scale", 0)
    assert rows["1.bias"] == ("bn_shift", None)
    assert rows["1.running_mean"] == ("bn_mean", None)
    assert rows["1.running_var"] == ("bn_var", pytest.approx(0.5))
