"""Runs of other processes that a test finds in the middle of a training step, on a machine of any speed."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


def pause_in_step(step: int, file: Path) -> list[str]:
    """Overrides with which a run stops in this step of its training, from 1, once, and goes on at a signal.

    It makes the file when it is there.
    """
    arguments = {"_target_": f"{__name__}.Pause", "step": step, "file": file}
    return [f"+hydra.callbacks.pause.{key}={value}" for key, value in arguments.items()]


class Pause(Callback):
    """Hydra calls it in the process that trains."""

    def __init__(self, step: int, file: str) -> None:
        self.step, self.file = step, Path(file)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Watch all steps of SGD from here on."""
        from torch.optim import SGD
        from torch.optim.optimizer import register_optimizer_step_post_hook

        steps = itertools.count(1)

        def hook(optimizer: object, *_: object) -> None:
            if isinstance(optimizer, SGD) and next(steps) == self.step:
                self._pause()

        self._hook = register_optimizer_step_post_hook(hook)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """The next job of the process counts from 1 again."""
        self._hook.remove()

    def _pause(self) -> None:
        arrived, signalled = os.pipe()  # signal.pause would miss a signal that comes before it waits
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled)
        self.file.touch()
        os.read(arrived, 1)
        signal.set_wakeup_fd(-1)
