"""Claims about memory: the machine's, a container's limit, what failure is called, and what is kept."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from daft.common import memory
from daft.common.errors import UserError

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 10 GiB free, whose files of control groups a test writes."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc/meminfo", f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {10 * 2**20} kB\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def group(folder: Path, most: object, used: int, reclaimable: int, *, version: int = 2) -> None:
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    for name, value in zip(names, (most, used), strict=True):
        write(folder / f"memory.{name}", f"{value}\n")
    write(folder / "memory.stat", f"anon 5\ninactive_file {reclaimable}\n")


def test_without_a_container_it_is_what_the_machine_has_free(machine: Path):
    assert memory.available() == 10 * GIB
    write(machine / "proc/self/cgroup", "0::/user.slice\n")
    group(machine / "cgroup/user.slice", "max", 3 * GIB, 0)
    assert memory.available() == 10 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_limit_around_the_process_counts_less_what_it_holds(machine: Path, version: int):
    root = machine / "cgroup" if version == 2 else machine / "cgroup/memory"
    line = "0::/pod/box\n" if version == 2 else "3:cpu,cpuacct:/x\n4:memory:/pod/box\n0::/\n"
    write(machine / "proc/self/cgroup", line)
    group(root / "pod/box", 8 * GIB, 3 * GIB, GIB, version=version)
    assert memory.available() == 6 * GIB  # files that are kept in memory can be forgotten
    group(root / "pod", 5 * GIB, 4 * GIB, 0, version=version)
    assert memory.available() == GIB
    group(root / "pod", GIB, 4 * GIB, 0, version=version)
    assert memory.available() == 0


def test_in_a_container_its_own_group_is_the_root(machine: Path):
    write(machine / "proc/self/cgroup", "0::/somewhere/outside\n")
    group(machine / "cgroup", 2 * GIB, GIB, 0)
    assert memory.available() == GIB


def test_more_than_there_is_is_refused_with_both_numbers(machine: Path):
    memory.require(10 * GIB, "x", "y")
    with pytest.raises(UserError) as caught:
        memory.require(11 * GIB, "a=9: 3 images", "make them smaller")
    told = "a=9: 3 images: 11.0 GiB of memory are needed, but 10.0 are free; make them smaller"
    assert str(caught.value) == told


def test_this_machine_has_memory():
    assert 2**20 < memory.available() < 2**50


def test_an_allocation_that_fails_is_known_by_its_error():
    def of(allocate) -> BaseException:
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            allocate()
        return caught.value

    assert memory.is_lack_of_memory(of(lambda: torch.empty(2**60, dtype=torch.uint8)))
    assert memory.is_lack_of_memory(of(lambda: np.empty(2**60, np.uint8)))
    assert memory.is_lack_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not memory.is_lack_of_memory(of(lambda: torch.ones(2) @ torch.ones(3)))
    assert not memory.is_lack_of_memory(ValueError("out of memory"))


PAGE_FAULTS = """
import resource, sys, torch
from daft.common import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 48 MiB: glibc asks the system for blocks over 32 MiB, each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given = faults()
memory.keep_freed()
faults()  # aligned blocks need a little more than their size, so the first ones still ask
print(given, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
        {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=1024"},
    ],
)
def test_freed_memory_is_kept_unless_the_user_has_set_malloc(own: dict[str, str]):
    settings = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    command = [sys.executable, "-c", PAGE_FAULTS]
    told = subprocess.run(command, env=environment | own, check=True, capture_output=True, text=True).stdout
    before, after = map(int, told.split())
    assert after > 0.9 * before if "65536" in str(own) else after < before / 10, told
