"""What the tests share: configurations as the command line composes them, and a run small enough."""

import gc
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from threadpoolctl import threadpool_limits

from daft.config.compose import configuration
from daft.config.schema import Config
from tests.helpers.fake_wandb import KEY, Service, serving
from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[1]

# W&B's client gives its own process 30 seconds to start, which is not enough where much else runs. It reads
# some of these when it is imported.
os.environ |= {
    f"WANDB_{name}": f"{HANG_SECONDS:.0f}"
    for name in ("_SERVICE_WAIT", "INIT_TIMEOUT", "HTTP_TIMEOUT", "SUMMARY_TIMEOUT")
}

FAST = ["training.epochs=2", "wandb.mode=disabled", "compute.device=cpu"]
TINY = [
    "dataset.image_size=32",
    "dataset.train.images=70",  # 64 + 6: the last batch is a smaller one
    "dataset.id.images=40",
    "dataset.ood.photo.images=40",
    "dataset.ood.neon.images=40",
    "~dataset.ood.clipart",
    "~dataset.ood.painting",
    *FAST,
]

gc.disable()  # until all tests are collected, in which it finds nothing


def pytest_collection_finish() -> None:
    """Tests have a garbage collector, as runs do."""
    gc.enable()


LONG = ("test_driver.py", "test_quality.py", "test_doctor.py", "test_experiment.py")
"""Files that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a file is one process's, and none should be left alone with one at the end.

    What is marked `gpu` needs one.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def quiet_children() -> None:
    """The warning of files that are opened without an encoding is for our own code, in these processes."""
    os.environ.pop("PYTHONWARNDEFAULTENCODING", None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests are small: threads cost more than they give, and one thread is reproducible.

    Where other processes are at work too, several threads cost ten times as much: they spin for each other.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy's and scikit-learn's BLAS
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """A validated configuration from command-line overrides."""
    return configuration


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Overrides that keep everything a run writes below a folder of the test."""
    return [f"paths.{name}={tmp_path / name}" for name in ("runs", "cache", "data", "weights")]


@pytest.fixture
def tiny(configure: Callable[..., Config], folders: list[str]) -> Callable[..., Config]:
    """A run of seconds on the embedded images and network."""
    return lambda *overrides: configure(*TINY, *folders, *overrides)


class Done(NamedTuple):
    """How a script ended."""

    code: int
    output: str
    errors: str


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A script with these arguments, as Python runs it, but in this process: it has its libraries already."""

    def run(name: str, *arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # train.py sets it
        code, message = 0, ""
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                code, message = 1, f"{stop.code}\n" if isinstance(stop.code, str) else ""
        output, errors = capfd.readouterr()
        return Done(code, output, errors + message)

    return run


@pytest.fixture(scope="module")
def fake_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The fake, as the service that the client of this process talks to, with an account."""
    import wandb  # takes a second; few tests need it

    folder = str(tmp_path_factory.mktemp("wandb"))
    with serving() as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", service.url)
        patch.setenv("WANDB_API_KEY", KEY)
        for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, folder)
        wandb.teardown()  # what this process knew of another service
        yield service
        wandb.teardown()


@pytest.fixture
def online(fake_wandb: Service) -> Service:
    """The fake with nothing in it."""
    fake_wandb.clear()
    return fake_wandb
