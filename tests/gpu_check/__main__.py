"""Take a GPU machine's measure, in less than ten minutes: `make gpu-check`.

Each part is a process of its own with a time limit. The report, results/benchmarks/<gpu>.md, is written
after each of them: a line per measurement, with its goal and a verdict. A part that fails is a line with the
reason.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

from daft.common import cli
from daft.common.files import write_atomically
from daft.common.threads import available_cpus
from daft.config.options import ROOT
from tests.gpu_check.lines import Fact, Line, record, recorded
from tests.gpu_check.parts import PARTS, Part

MINUTES = 9.5
"""Of the whole check; what is left of the ten is for starts and ends of processes."""

LEAST = 15.0
"""Seconds without which a part does not begin."""

GRACE = 5.0
"""Seconds of a part's limit in which it says itself that it ran out of time."""

NO_GPU = "no GPU here: `make gpu-check` measures one, in less than ten minutes, and writes"


def main() -> int:
    """Measure what --only names, or all; without a GPU say what would be measured."""
    parser = cli.parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="parts; default: all of them")
    parser.add_argument("--out", type=cli.path, default=ROOT / "results" / "benchmarks", help="folder")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU, to try it; needs --out")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return measure(args.part, args.found, args.seconds, toy=args.toy)
    if args.toy and args.out == parser.get_default("out"):
        parser.error("--toy measures nothing that belongs into results; name another folder by --out")
    chosen = {name: PARTS[name] for name in args.only or PARTS}
    if (gpu := "toy sizes on the CPU" if args.toy else gpu_name()) is None:
        print(plan(chosen))
        return 0
    cli.require_out(args.out)
    return Check(gpu, chosen, args.out, toy=args.toy).run()


def gpu_name() -> str | None:
    """The name of the first GPU, None if there is none; asked in a process that leaves it free."""
    ask = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip() or None


def plan(parts: dict[str, Part]) -> str:
    """What would be measured, in a few lines."""
    lines = [f"{NO_GPU} results/benchmarks/<gpu>.md:"]
    lines += [f"  {part.title} ({part.goal})" for part in parts.values()]
    return "\n".join([*lines, "Here it does nothing. --toy --out FOLDER tries the parts at tiny sizes."])


def measure(name: str, found: Path, seconds: float, *, toy: bool) -> int:
    """Measure one part, in its own process; what it finds goes to `found`, as of earlier parts."""
    import torch

    from tests.gpu_check.size import FULL, TOY

    torch.backends.cudnn.benchmark = True  # as in a long training
    facts = dict(fact for fact in recorded(found) if isinstance(fact, Fact))
    record(PARTS[name].find(TOY if toy else FULL, facts, seconds), found)
    return 0


class Check:
    """The parts one after the other, and the report after each."""

    def __init__(self, gpu: str, parts: dict[str, Part], out: Path, *, toy: bool) -> None:
        self.gpu, self.parts, self.toy = gpu, parts, toy
        self.file = out / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.md"
        self.until = time.monotonic() + 60 * MINUTES
        self.shown = 0

    def run(self) -> int:
        """1 if a line is missed or failed."""
        lines: list[Line] = []
        with tempfile.TemporaryDirectory() as scratch:
            found = Path(scratch) / "found.jsonl"
            for number, (name, part) in enumerate(self.parts.items(), 1):
                limit = min(part.limit, self.until - time.monotonic())
                print(f"[{number} of {len(self.parts)}] {part.title}, at most {limit:.0f} s", flush=True)
                try:
                    why = self._measure(name, limit, found, Path(scratch) / f"{name}.log")
                except KeyboardInterrupt:
                    record(
                        [Line(part.title, part.goal, "interrupted; so is what comes after", "FAILED")], found
                    )
                    self._write(found)
                    raise
                if why:
                    record([Line(part.title, part.goal, why, "FAILED")], found)
                lines = self._write(found)
        print(f"report: {self.file}")
        return int(any(line.verdict in ("MISSED", "FAILED") for line in lines))

    def _measure(self, name: str, limit: float, found: Path, log: Path) -> str | None:
        """One part in a process group of its own, which ends with it; why it has not ended well."""
        if limit < LEAST:
            return f"not begun: the {MINUTES:g} minutes of the check are over"
        with log.open("wb") as output:
            part = subprocess.Popen(
                command(name, found, limit - GRACE, self.toy),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = part.wait(limit)
                return f"exit code {code}: {last_line(log)}" if code else None
            except subprocess.TimeoutExpired:
                return f"ended after {limit:.0f} s, its time limit; the last it said: {last_line(log)}"
            finally:
                with suppress(ProcessLookupError):  # the usual case: nothing is left of it
                    os.killpg(part.pid, signal.SIGKILL)
                part.wait()

    def _write(self, found: Path) -> list[Line]:
        """Write the report of what is found so far, and show what is new; returns its lines."""
        lines = [line for line in recorded(found) if isinstance(line, Line)]
        write_atomically(self.file, report(self.gpu, lines, toy=self.toy))
        for line in lines[self.shown :]:
            print(f"  {line.verdict}: {line.what} {line.goal}: {line.measured}", flush=True)
        self.shown = len(lines)
        return lines


def command(name: str, found: Path, seconds: float, toy: bool) -> list[str]:
    """What measures one part."""
    line = [sys.executable, "-m", "tests.gpu_check", "--part", name, "--found", str(found)]
    return [*line, f"--seconds={seconds}", *(["--toy"] if toy else [])]


def last_line(log: Path) -> str:
    """What a part printed last."""
    printed = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(printed) if line.strip()), "nothing")


def report(gpu: str, lines: Sequence[Line], *, toy: bool) -> str:
    """The report as Markdown."""
    rows = [[line.what, line.goal or "none", line.measured, line.verdict] for line in lines]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    machine = f"{gpu}, {available_cpus()} CPU cores. Python {platform.python_version()}, {libraries}"
    return "\n".join(
        [
            f"# GPU check: {gpu}\n",
            "| what | goal | measured | verdict |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
            f"\nMachine: {machine}; {date.today()}.",
            f"Command: `make gpu-check`{' with --toy: these numbers mean nothing' if toy else ''}\n",
            NOTES,
        ]
    )


NOTES = """\
Ratios are medians, with range and n. The variants of a ratio take turns within one process, in rotating
order and after a warm-up; each time is taken when the device has done its work. But for PACS, networks have
random weights.

- Training end to end is an epoch of the loop over random images in memory (uint8; crop and flip on the
  device), without its evaluation and checkpoint; one batch is the same optimiser step on one resident batch.
  fp32 is torch's default, with TF32 in convolutions.
- BN conversion and the pass it is held against compute in float32 without TF32.
- The authors' loop is a plain one as they publish it: fp32, Pillow and torchvision's transforms in 12
  workers, the loss read each step. Its workers stay from epoch to epoch, theirs start anew. "By default"
  keeps the decoded images in memory and computes in bf16 if the GPU has it.
- Small runs are six of the embedded network, as whole commands with their start.
- Device-hours are runs by the paper's grids and seeds, times images that they see, by the rate end to end. A
  forward pass counts for a third of a training step. Reading from disk, the solver of LP and BN conversion
  are not in it.
"""

if __name__ == "__main__":
    cli.run(main)
