"""Where a run computes: device, precision, libraries, memory."""

import functools
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from daft.common import devices, memory
from daft.common.threads import available_cpus
from daft.config.schema import Config

LIBRARIES = ("torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")


def device_and_precision(config: Config) -> tuple[torch.device, str]:
    """Device and precision of a run; raises UserError if the device is not here."""
    device, precision = devices.find(config.compute.device, "compute.device"), config.training.precision
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return device, precision


def set_up(config: Config) -> tuple[torch.device, str]:
    """Make the process ready for a run; its device and precision, as `device_and_precision`."""
    device, precision = device_and_precision(config)
    torch.set_num_threads(num_threads(config))
    if device.type == "cpu":
        memory.keep_freed()
    return device, precision


def num_threads(config: Config) -> int:
    """CPU threads of a run: as configured, or torch's own number within what this process may use."""
    return config.compute.threads or min(torch.get_num_threads(), available_cpus())


def environment(device: torch.device) -> dict[str, Any]:
    """Code version, library versions, device and threads."""
    return {
        "code": _code_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "device": _name(device),
        "threads": torch.get_num_threads(),
    }


def name(device: torch.device) -> str:
    """A device as a user knows it, a CPU with its threads."""
    threads = torch.get_num_threads()
    on_cpu = f" with {threads} thread{'s' * (threads > 1)}"
    return _name(device) + (on_cpu if device.type == "cpu" else "")


def _name(device: torch.device) -> str:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return gpu or f"{device.type} ({platform.machine()})"


class Clock:
    """Seconds of the phases of a run, one after the other; a resumed run counts from its last start."""

    def __init__(self, phase: str) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = phase, time.perf_counter()

    def stop(self) -> None:
        """End the phase."""
        self.seconds[self._phase] = time.perf_counter() - self._since

    def next(self, phase: str) -> None:
        """End the phase, and begin another."""
        self.stop()
        self._phase, self._since = phase, time.perf_counter()


def reset_memory(device: torch.device) -> None:
    """Begin to measure the GPU's peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peaks so far, in GiB: resident, of this process and all its runs; on the GPU, of this run."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss: bytes there, KiB elsewhere
    peaks = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        peaks["gpu_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks


@functools.cache  # what was imported stays as it is
def _code_version() -> str:
    """The commit this code stands at, marked if it was changed since; else the package's version."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return _version("domain-aware-fine-tuning")
        changed = git("status", "--porcelain", "--", "daft", "conf", "scripts")
        return git("rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return _version("domain-aware-fine-tuning")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
