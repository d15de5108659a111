"""Claims about the probe of a plan."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from daft.common.errors import UserError
from daft.data import datasets
from daft.sweep import timing

SMALL = ["dataset.train.images=20", "dataset.id.images=20", "training.batch_size=4"]


@pytest.fixture(autouse=True)
def clock(request, monkeypatch):
    """A clock that each look moves on by so many seconds."""
    times = itertools.count(0, getattr(request, "param", 1))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=times.__next__))


@pytest.mark.parametrize(
    ("clock", "seconds"), [(1, 1), (timing.SECONDS, timing.SECONDS), (60, 60)], indirect=["clock"]
)
@pytest.mark.parametrize("dataset", ["shapes", "shapes_masks"])
def test_every_task_is_timed_on_its_own_images_and_threads_are_as_before(configure, dataset, seconds):
    """A step of 4 images takes as long as the clock says; at least one is timed, however long it takes."""
    config = configure(f"dataset={dataset}", "method=daft", *SMALL, "compute.threads=1")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert timing.seconds_per_image(config, datasets.listing(config)) == seconds / 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_no_weights_are_needed(configure, tmp_path):
    """A plan is made before anything is fetched."""
    config = configure("method=ft", *SMALL, "backbone=resnet18_tin64", f"paths.weights={tmp_path}")
    assert timing.seconds_per_image(config, datasets.listing(config)) > 0


def test_a_gpu_that_is_not_here_is_an_error_and_not_the_time_of_a_cpu(configure):
    config = configure("method=ft", *SMALL, f"compute.device=cuda:{torch.cuda.device_count()}")
    with pytest.raises(UserError, match=r"compute\.device=cuda"):
        timing.seconds_per_image(config, datasets.listing(config))
