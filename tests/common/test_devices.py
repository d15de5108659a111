"""Claims about devices and how they are used."""

import pytest
import torch

from daft.common import devices


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


LEAST = devices.STEPS_WORTH_TUNING


@pytest.mark.parametrize(("steps", "tuned"), [(LEAST - 1, False), (LEAST, True)])
def test_convolutions_are_tuned_in_long_trainings_alone_and_not_after_them(steps: int, tuned: bool):
    def train() -> None:
        with devices.tuned_convolutions(steps):
            assert torch.backends.cudnn.benchmark is tuned
            raise RuntimeError("loss")

    with pytest.raises(RuntimeError, match="loss"):
        train()
    assert torch.backends.cudnn.benchmark is False


def test_what_a_caller_has_switched_on_stays_on():
    torch.backends.cudnn.benchmark = True
    with devices.tuned_convolutions(1):
        assert torch.backends.cudnn.benchmark is True
    assert torch.backends.cudnn.benchmark is True
