"""Kill a sweep of 20 small runs at random times, run the same command again, and compare the records.

python scripts/kill_test.py --rounds 20 --log results/benchmarks/kill_test.log

In each round the sweep is started, and up to --kills times the driver, a worker, or all of its processes get
SIGKILL after a random time. Then it is left to end. Every record must be that of an undisturbed sweep to the
last bit (times left out), and no run that had finished may be computed again. Linux, CPU.
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
from contextlib import suppress
from pathlib import Path

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


def start(folder: Path, launcher: list[str]) -> subprocess.Popen[bytes]:
    """The sweep in a session of its own."""
    places = [f"paths.{name}={folder / name}" for name in ("runs", "cache")]
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-m", *SWEEP, *places, *launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, start_new_session=True, env=environment, stdout=nowhere, stderr=nowhere)


def workers(driver: int) -> list[int]:
    """The other processes of the driver's session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == driver and int(stat.parent.name) != driver:
            found.append(int(stat.parent.name))
    return found


def kill(driver: int, what: str) -> None:
    """SIGKILL to the driver, to one worker, or to everything."""
    others = workers(driver)
    chosen = {"driver": [driver], "worker": random.sample(others, min(len(others), 1))}
    for process in chosen.get(what, [driver, *others]):
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


def disturbed(folder: Path, launcher: list[str], kills: int) -> tuple[list[str], int]:
    """One round: what was killed when, and how many finished runs were computed again."""
    told, again = [], 0
    while True:
        before = stamps(folder)
        process = start(folder, launcher)
        while len(told) < kills:
            what = random.choice(["driver", "worker", "all"] if launcher else ["driver"])
            seconds = random.uniform(4, 16)
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                kill(process.pid, what)
                told.append(f"{what} after {seconds:.1f} s with {len(stamps(folder))} runs done")
            if what != "worker":
                break
        code = process.wait()
        for left in workers(process.pid):  # orphans end with their run; the next driver would wait for them
            _end(left)
        after = stamps(folder)
        again += sum(after[run] != written for run, written in before.items())
        if code == 0:
            return told, again


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
            folder, since = Path(scratch) / str(number), time.monotonic()
            told, again = disturbed(folder, launcher, args.kills)
            same = contents(folder) == right
            bad += not same or bool(again)
            where = "2 workers" if launcher else "in process"
            verdict = f"{'same bits' if same else 'OTHER RECORDS'}, {again} finished run(s) computed again"
            say(f"round {number} ({where}, {time.monotonic() - since:.0f} s): {'; '.join(told)}: {verdict}")
        say(f"{args.rounds - bad} of {args.rounds} rounds ended as if undisturbed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
