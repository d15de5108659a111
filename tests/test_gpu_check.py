"""Claims about the check of a GPU machine, at toy size on the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest

from daft.common.errors import UserError
from daft.report import paper
from tests.gpu_check import __main__ as check
from tests.gpu_check import hours, runs, speed, suite
from tests.gpu_check.lines import Fact, Line, record, recorded
from tests.gpu_check.parts import PARTS, Part
from tests.gpu_check.size import TOY


def ratio(line: object) -> float:
    """The median that a line begins with."""
    assert isinstance(line, Line)
    return float(line.measured.partition(" ")[0])


def test_rates_are_measured_in_each_precision_and_for_each_network_of_the_tables():
    found = [*speed.rates(TOY)]
    assert [fact.name for fact in found if isinstance(fact, Fact)] == [
        *("resnet50 fp32", "resnet50_clip fp32", "resnet50 bf16")  # bf16 is no default on a CPU
    ]
    assert all(fact.value > 0 for fact in found if isinstance(fact, Fact))
    assert all(ratio(line) > 0 for line in found if isinstance(line, Line))


def test_conversion_the_probe_and_the_published_loop_are_lines_with_goals():
    lines = [*speed.conversion(TOY), *speed.probe(TOY), *speed.against_published(replace(TOY, photos=20))]
    assert [line.goal for line in lines if isinstance(line, Line)] == ["<= 1.05", ">= 3", ">= 1", ">= 1"]
    assert all(ratio(line) > 0 for line in lines)


def test_each_method_that_it_is_given_finishes_on_generated_images_in_the_layout_of_pacs(monkeypatch):
    """Two stand for all here, which are those of the tables."""
    assert {*runs.METHODS} == {method for name in hours.TABLES for method in paper.load(name).methods}
    monkeypatch.setattr(runs, "METHODS", ("lp", "daft"))
    lines = [line for line in runs.pacs(TOY) if isinstance(line, Line)]
    assert [line.what.partition(": ")[2] for line in lines] == ["lp", "daft"]
    assert {line.verdict for line in lines} == {"met"}, lines


def test_generated_images_are_as_many_as_pacs_has(monkeypatch, tmp_path):
    """The fifth of each class that evaluates, too: the run itself compares with what PACS publishes."""
    written: dict[str, int] = {}
    monkeypatch.setattr(
        runs, "write_photos", lambda counts, *_: written.update({p.name: n for p, n in counts.items()})
    )
    runs._generated(tmp_path, 1.0)
    assert written == {"sketch": 3929, "photo": 1670, "art_painting": 2048, "cartoon": 2344}
    fifths = sum((3929 // 7 + (i < 3929 % 7)) // 5 for i in range(7))
    assert fifths == 784


def test_hours_are_forward_passes_of_all_runs_by_the_rate_of_the_network():
    """On CIFAR-10 10 runs of 20 epochs of 50,000 images; 10,000 select, and 19,200 are evaluated twice."""
    facts = {"resnet50 bf16": 1000.0, "resnet50_clip bf16": 500.0}
    cell = hours.cost(hours.CellKey("cifar10", "swav", "daft"), "paper", facts, "bf16")
    passes = 3 * 20 * 50_000 + 20 * 10_000 + 2 * 19_200
    assert cell.runs == 4 + 4 + 2
    assert cell.hours == pytest.approx(10 * passes / 3000 / 3600)
    slower = hours.cost(hours.CellKey("cifar10", "clip_rn50", "ft"), "paper", facts, "bf16")
    assert slower.hours == pytest.approx(10 * passes / 1500 / 3600)
    with pytest.raises(UserError, match="no rate of resnet50 fp32"):
        hours.cost(hours.CellKey("cifar10", "swav", "daft"), "paper", facts, "fp32")


def test_what_was_measured_before_a_part_failed_stays_in_the_report(tmp_path: Path):
    found = tmp_path / "found.jsonl"

    def failing():
        yield Line("first", ">= 1", "2", "met")
        yield Fact("rate", 3.0)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        record(failing(), found)
    with found.open("a") as file:
        file.write('{"line": {"what": "cut')  # a process that was killed while it wrote
    assert [*recorded(found)] == [Line("first", ">= 1", "2", "met"), Fact("rate", 3.0)]


def test_a_part_that_fails_or_takes_too_long_is_a_line_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """The processes are real ones; what they do is not what parts do."""
    does = {
        "breaks": "raise SystemExit('CUDA error: out of memory')",
        "hangs": "print('half way', flush=True); import time; time.sleep(60)",
        "works": "open(sys.argv[1], 'a').write(line + chr(10))",
    }
    line = '{"line": {"what": "w", "goal": "", "measured": "1", "verdict": "stated"}}'

    def command(name: str, found: Path, seconds: float, toy: bool) -> list[str]:
        return [check.sys.executable, "-c", f"import sys; line = {line!r}; {does[name]}", str(found)]

    monkeypatch.setattr(check, "command", command)
    monkeypatch.setattr(check, "LEAST", 0.1)
    limits = {"breaks": 30, "hangs": 1, "works": 30}
    parts = {name: Part(name, "a goal", limit, PARTS["rates"].find) for name, limit in limits.items()}
    assert check.Check("Some GPU", parts, tmp_path, toy=False).run() == 1
    report = (tmp_path / "some-gpu.md").read_text()
    assert "| breaks | a goal | exit code 1: CUDA error: out of memory | FAILED |" in report
    assert (
        "| hangs | a goal | ended after 1 s, its time limit; the last it said: half way | FAILED |" in report
    )
    assert "| w | none | 1 | stated |" in report
    assert "[3 of 3] works" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_it_would_do_and_that_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(check.sys, "argv", ["gpu_check"])
    monkeypatch.setattr(check, "gpu_name", lambda: None)
    assert check.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("no GPU here")
    assert all(part.title in said for part in PARTS.values())


def test_toy_sizes_never_write_into_the_results(monkeypatch, capsys):
    monkeypatch.setattr(check.sys, "argv", ["gpu_check", "--toy"])
    with pytest.raises(SystemExit):
        check.main()
    assert "--out" in capsys.readouterr().err


XDIST = """\
[gw0] [ 25%] PASSED tests/a.py::test_one
[gw1] [ 50%] FAILED tests/a.py::test_two
[gw1] [ 75%] SKIPPED tests/b.py::test_three
FAILED tests/a.py::test_two - assert 1 == 2
"""


@pytest.mark.parametrize(
    ("output", "code", "late", "verdict", "words"),
    [
        (XDIST, 1, None, "MISSED", "1 passed, 1 failed, 1 skipped: tests/a.py::test_two"),
        (XDIST.splitlines()[0], 0, None, "met", "1 passed"),
        (XDIST.splitlines()[0], -15, 60.0, "FAILED", "1 passed; ended after 60 s"),
        ("ImportError: no torch", 4, None, "FAILED", "ImportError: no torch"),
    ],
)
def test_the_line_of_the_tests_names_what_failed(output, code, late, verdict, words):
    line = suite.verdict("the tests", output, code, late)
    assert line.verdict == verdict
    assert line.measured.startswith(words)


def test_half_of_all_limits_fits_into_ten_minutes():
    """A part that takes all of its own takes it from the last ones."""
    assert sum(part.limit for part in PARTS.values()) / 2 < 60 * check.MINUTES < 600
