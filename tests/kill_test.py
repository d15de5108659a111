"""Kill a sweep of 20 small runs at random times, run the same command again, and compare the records.

python tests/kill_test.py --rounds 20 --log results/benchmarks/kill_test.log

In each round the sweep is started, and up to --kills times the driver, a worker, or all of its processes get
SIGKILL at a random time: seconds after a random number of runs is done. Then it is left to end. Every record
must be that of an undisturbed sweep to the last bit (times left out), and no run that had finished may be
computed again. Linux, CPU.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

ROOT = Path(__file__).resolve().parent.parent
SWEEP = [
    "sweep=paper",
    "method=lp,ft,ft_bnc,lp_ft,daft",
    "sweep.seeds=[0,1]",
    *(f"sweep.grids.{method}=[0.1,0.03,0.01]" for method in ("ft", "ft_bnc", "lp_ft", "daft")),
    "sweep.head_factors=[3,0.3]",
    "dataset.image_size=32",
    *(f"dataset.{split}.images=60" for split in ("train", "id", "ood.photo")),
    *(f"~dataset.ood.{style}" for style in ("clipart", "painting", "neon")),
    "training.epochs=2",
    "compute.device=cpu",
    "compute.threads=1",
    "wandb.mode=disabled",
]
RUNS = 2 + 3 * (3 + 1) + (3 + 2 + 1)
WORKERS = ["hydra/launcher=workers", "hydra.launcher.n_jobs=2"]


class Process(Protocol):
    """The driver of a sweep, in a session of its own."""

    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Kill(NamedTuple):
    """What gets SIGKILL, and when."""

    victim: str
    """driver, worker or all"""
    seconds: float
    runs: int = 0
    """wait until so many are done, and then these seconds"""

    def __str__(self) -> str:
        return f"{self.victim} after {self.seconds:.1f} s"


def start(folder: Path, launcher: list[str]) -> subprocess.Popen[bytes]:
    """The sweep in a session of its own."""
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-m", *SWEEP, *places(folder), *launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, start_new_session=True, env=environment, stdout=nowhere, stderr=nowhere)


def places(folder: Path) -> list[str]:
    """Overrides that keep what a sweep writes below a folder."""
    return [f"paths.{name}={folder / name}" for name in ("runs", "cache")]


def others(driver: int) -> dict[int, str]:
    """The other processes of the driver's session, with their command lines."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(") ")[2].split()
            if int(fields[3]) == driver and int(stat.parent.name) != driver:
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
    return found


def kill(driver: int, what: str) -> None:
    """SIGKILL to the driver, to one worker, or to everything."""
    rest = others(driver)
    workers = [process for process, command in rest.items() if "popen_loky" in command]
    chosen = {"driver": [driver], "worker": random.sample(workers, min(len(workers), 1))}
    for process in chosen.get(what, [driver, *rest]):
        _end(process)


def _end(process: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process, signal.SIGKILL)


def contents(folder: Path) -> dict[str, str]:
    """What each record says, without times and code version, by run."""
    found = {}
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        for row in record["history"]:
            del row["seconds"], row["images/s"]
        kept = ("status", "best_epoch", "metrics", "history", "distortion", "relative_change", "probe")
        found[record["run"]] = json.dumps([record[key] for key in kept])
    return found


def stamps(folder: Path) -> dict[str, int]:
    """When each record was written, in nanoseconds, by run directory."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("runs/*/record.json")}


def disturbed(begin: Callable[[], Process], folder: Path, kills: Sequence[Kill]) -> tuple[list[str], int]:
    """One round: what was killed when, and how many finished runs were computed again."""
    told, again = [], 0
    while True:
        before = stamps(folder)
        process = begin()
        while len(told) < len(kills) and _goes_on(process, folder, planned := kills[len(told)]):
            kill(process.pid, planned.victim)
            told.append(f"{planned} with {len(stamps(folder))} runs done")
            if planned.victim != "worker":
                break
        code = process.wait()
        for left in others(process.pid):  # orphans end with their run; the next driver would wait for them
            _end(left)
        after = stamps(folder)
        again += sum(after[run] != written for run, written in before.items())
        if code == 0:
            return told, again


def _goes_on(process: Process, folder: Path, planned: Kill) -> bool:
    """Wait for the moment of a kill; False if the sweep has ended before it."""
    while len(stamps(folder)) < planned.runs:
        if _ends(process, 0.01):
            return False
    return not _ends(process, planned.seconds)


def _ends(process: Process, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def main() -> None:
    """Run the rounds; exit code 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="in a round, at most")
    parser.add_argument("--seed", type=int, default=0, help="of times and victims")
    parser.add_argument("--log", type=Path, help="where to write what happened, too")
    args = parser.parse_args()
    random.seed(args.seed)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if args.log:
            args.log.write_text("\n".join(lines) + "\n")

    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "undisturbed"
        if start(reference, []).wait() != 0:
            sys.exit("kill_test.py: the undisturbed sweep failed; try it without this script")
        right = contents(reference)
        say(f"undisturbed: {len(right)} runs of {RUNS}")
        for number in range(1, args.rounds + 1):
            launcher = WORKERS if number % 2 else []
            victims = ["driver", "worker", "all"] if launcher else ["driver"]
            while True:
                folder, since = Path(tempfile.mkdtemp(dir=scratch)), time.monotonic()
                moments = sorted(random.randrange(RUNS - 4) for _ in range(args.kills))
                kills = [Kill(random.choice(victims), random.uniform(0, 2), runs) for runs in moments]
                told, again = disturbed(partial(start, folder, launcher), folder, kills)
                if told:  # a sweep that ended before its first kill shows nothing
                    break
            same = contents(folder) == right
            bad += not same or bool(again)
            where = "2 workers" if launcher else "in process"
            verdict = f"{'same bits' if same else 'OTHER RECORDS'}, {again} finished run(s) computed again"
            say(f"round {number} ({where}, {time.monotonic() - since:.0f} s): {'; '.join(told)}: {verdict}")
        say(f"{args.rounds - bad} of {args.rounds} rounds ended as if undisturbed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
