"""Claims about the processes that read images for a run: what they cannot give ends the run, in one line."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from daft.common.errors import UserError
from daft.common.threads import available_cpus
from daft.data import loader
from daft.data.images import Streamed
from daft.data.loader import Loader
from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]


class Made(Streamed):
    """Images of 3 x 8 x 8 whose value is their index; `trouble` is what becomes of the sixth in a worker."""

    trouble = staticmethod(lambda: None)

    def __init__(self, images: int = 12) -> None:
        super().__init__([Path(f"{i}.png") for i in range(images)])

    def read(self, index: int) -> Tensor:
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            self.trouble()
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


def reading(images: Streamed, workers: int, batch_size: int = 4) -> Loader:
    labels = torch.arange(len(images.paths))
    device = torch.device("cpu")
    return Loader(
        "id",
        images,
        labels,
        "",
        [],
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        device=device,
        workers=workers,
    )


def labels_of(loader: Loader) -> list[int]:
    return [int(label) for _, labels in loader.epoch() for label in labels]


def test_what_workers_give_is_what_the_process_itself_reads() -> None:
    for (ours, mine), (theirs, its) in zip(
        reading(Made(), 0).epoch(), reading(Made(), 3).epoch(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert torch.equal(mine, its)


def start_method() -> str:
    return multiprocessing.get_start_method()


def test_a_process_of_a_sweep_has_workers_too() -> None:
    """In a process of joblib's, new processes are joblib's as well, which torch cannot start."""
    loky = pytest.importorskip("joblib.externals.loky")
    with loky.ProcessPoolExecutor(1) as pool:
        assert pool.submit(start_method).result(HANG_SECONDS) == "loky"
        given = pool.submit(labels_of, reading(Made(), 2)).result(HANG_SECONDS)
    assert given == list(range(12))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stalls_ends_the_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(Made, "trouble", staticmethod(lambda: os.kill(os.getpid(), number)))
    with pytest.raises(UserError, match=r"^compute\.workers=2: one that reads dataset\.id died or stalled"):
        labels_of(reading(Made(), 2))


def test_a_worker_that_is_slow_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes four times as long as the loader waits, but no image does."""
    monkeypatch.setattr(loader, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(
        Made, "read", lambda self, i: time.sleep(0.5) or torch.zeros(3, 8, 8, dtype=torch.uint8)
    )
    assert labels_of(reading(Made(8), 1, batch_size=8)) == [*range(8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_gone_is_named_without_a_traceback(workers: int, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "here.png")
    with pytest.raises(UserError) as raised:
        labels_of(reading(Streamed([tmp_path / "here.png", tmp_path / "gone.png"]), workers))
    assert str(raised.value).startswith(f"dataset.id: {tmp_path}/gone.png cannot be read any more (")
    assert "\n" not in str(raised.value)


SMALL_MEMORY = """
mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 77
exec "$0" -c "$1"
"""

BATCHES = """
import torch
from daft.data import loader
from tests.data.test_loader_workers import Made, labels_of, reading
class Large(Made):
    def read(self, index):
        return torch.full((3, 256, 256), index, dtype=torch.uint8)  # a batch of 4 is 0.75 MiB
for _ in range(2):
    print(labels_of(reading(Large(), 8)))
loader._fitting_workers = lambda workers, size: workers  # as where others fill the memory later on
try:
    labels_of(reading(Large(), 8))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_shared_memory_that_is_too_small_means_fewer_workers_or_one_line() -> None:
    """Torch alone would wait for ever, for a batch that its worker's thread could not write."""
    command = ["unshare", "--mount", "sh", "-c", SMALL_MEMORY, sys.executable, BATCHES]
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"needs the right to mount: {done.stderr}")
    *read, refused = done.stdout.splitlines()
    assert read == [str([*range(12)])] * 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("compute.workers")]
    assert len(said) == 1
    assert said[0].startswith(
        "compute.workers: 0 instead of 8, for each needs 2 MiB of /dev/shm, where 1 of 1 MiB"
    )
    assert refused.startswith("UserError dataset.id: a worker cannot hand over a batch (")
    assert "by /dev/shm, where" in refused
    assert "compute.workers" in refused


@pytest.fixture
def one_core() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_of_a_machine_counts_what_the_process_may_use(one_core: None) -> None:
    assert available_cpus() == 1
