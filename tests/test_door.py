"""Claims about the scripts' door: help is quick, and a `daft` that is not ours is named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daft.runs.results import KINDS
from tests.helpers.waiting import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(file.name for file in (ROOT / "scripts").glob("[!_]*.py"))
HEAVY = {"torch", "torchvision", "timm", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "PIL"}
HEAVY |= {"hydra", "omegaconf", "pydantic", "wandb", "requests"}
INSTALL = "`pip install -e .`"


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=os.environ | environment,
        check=False,
    )


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that python -X importtime names."""
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_imports_nothing_heavy(name: str):
    done = python("-X", "importtime", ROOT / "scripts" / name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{name}" in done.stdout or done.stdout.startswith("usage: " + name)
    assert not imported(done) & HEAVY
    assert len(imported(done)) < 300  # modules, in 0.1 to 0.3 seconds on an idle core; torch has 1,500


def test_importing_the_package_imports_nothing_heavy():
    done = python("-X", "importtime", "-c", "import daft; print(daft.__all__)")
    assert "load_run" in done.stdout, done.stderr
    assert not imported(done) & HEAVY


def test_the_state_of_runs_is_shown_without_anything_heavy(tmp_path: Path):
    (tmp_path / "a-daft-s0-0123456789ab").mkdir()
    done = python("-X", "importtime", ROOT / "scripts" / "status.py", tmp_path)
    assert "1 interrupted" in done.stdout, done.stderr
    assert imported(done) & HEAVY == {"pydantic"}  # which checks what is read


def test_a_run_that_is_not_mirrored_does_without_wandb_and_ends_in_silence():
    """timm imports it where it is installed. Nor is there a list of objects that triton misses at the end."""
    run = ("method=ft", "paths.cache=/dev/null/cache", "wandb.mode=disabled")
    done = python("-X", "importtime", ROOT / "scripts" / "train.py", *run)
    assert "train.py: paths.cache" in done.stderr
    assert "timm" in imported(done)
    assert not {name for name in imported(done) if name.startswith("wandb.")}
    assert "leaked" not in done.stderr


ENDING = """
import atexit, os, sys
from _door import cli

class Large:
    def __del__(self):
        print("taken apart")

atexit.register(print, "farewell")
large = Large()
large.itself = large

def main():
    print("done", end=" ")
    {end}

if __name__ == "__main__":
    cli.run(main)
"""


def script(root: Path, end: str) -> Path:
    """A script beside ours whose main ends so."""
    for folder in ("scripts", "daft/common"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "daft" / "__init__.py", root / "daft")
    (file := root / "scripts" / "ending.py").write_text(ENDING.format(end=end))
    return file


@pytest.mark.parametrize(
    ("end", "code", "said", "error"),
    [
        ("return", 0, "done farewell\n", ""),
        ("return 3", 3, "done farewell\n", ""),
        ("raise KeyboardInterrupt", 130, "done farewell\n", "interrupted; "),
        ("open('/none')", 1, "done farewell\n", "ending.py: [Errno 2] "),
        ("sys.exit('so')", 1, "done farewell\n", "so\n"),
        ("sys.stdout = None", 0, "done ", ""),
        ("sys.exit(2.5)", 1, "done farewell\ntaken apart\n", "2.5\n"),
        ("raise ValueError", 1, "done farewell\ntaken apart\n", "Traceback "),
    ],
)
def test_a_script_that_has_ended_says_all_and_is_not_taken_apart(
    end: str, code: int, said: str, error: str, tmp_path: Path
):
    done = python(script(tmp_path, end), PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (code, said)
    if error.endswith(" "):
        assert done.stderr.startswith(error)
    else:
        assert done.stderr == error


def test_a_script_whose_reader_has_gone_ends_as_python_does(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, script(tmp_path, "return 3")],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG_SECONDS,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert done.returncode == 120
    assert done.stderr.count("BrokenPipeError") == 1


@pytest.mark.parametrize(
    "call",
    [
        "import runpy; runpy.run_path({path!r}, run_name='__main__')",
        "import ending; ending.cli.run(ending.main)",
    ],
)
def test_a_program_that_runs_a_script_has_a_code_of_its_own(call: str, tmp_path: Path):
    """As pytest has."""
    file = script(tmp_path, "return 3")
    (program := tmp_path / "program.py").write_text(
        f"import sys\ntry:\n    {call.format(path=str(file))}\nexcept SystemExit:\n    sys.exit(5)\n"
    )
    done = python(program, PYTHONPATH=os.pathsep.join([str(tmp_path), str(file.parent)]))
    assert (done.returncode, done.stdout.count("done")) == (5, 1), done.stderr


def test_what_registered_before_a_script_is_called_and_a_prompt_after_it_has_the_last_word(tmp_path: Path):
    file = script(tmp_path, "return 3")
    (tmp_path / "sitecustomize.py").write_text("import atexit\natexit.register(print, 'first')\n")
    done = python(file, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "done farewell\nfirst\ntaken apart\n")
    (tmp_path / "sitecustomize.py").unlink()
    done = subprocess.run(
        [sys.executable, "-i", file],
        input="import sys; sys.exit(7)",
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 7


def test_help_names_what_the_code_has():
    kinds = re.search(r"--on \{(.+?)\}", python(ROOT / "scripts" / "robustness.py", "--help").stdout)
    assert kinds is not None
    assert kinds[1].split(",") == list(KINDS)


@pytest.mark.parametrize(
    ("encoding", "sign"), [("utf-8", "η_θ"), ("iso-8859-1", "eta_theta"), ("ascii", "eta_theta")]
)
def test_a_terminal_without_a_sign_shows_a_substitute(encoding: str, sign: str):
    code = "from daft.common import cli; cli.run(lambda: print('η_θ, 1 ± 2 \\udce9 ☃'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=True,
    )
    shown = done.stdout.decode(encoding)
    assert shown.startswith(f"{sign}, 1 ")
    assert shown.endswith("? ☃\n" if encoding == "utf-8" else "? ?\n")


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a script ended."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert INSTALL in line
    return line


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("file", ["daft/__init__.py", "daft.py"])
def test_another_package_of_that_name_is_named(name: str, file: str, tmp_path: Path):
    foreign = tmp_path / file
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("import pandas\n")
    line = refused(python(ROOT / "scripts" / name, "--help", PYTHONPATH=str(tmp_path)))
    assert line.startswith(f"{name}: `import daft` finds {foreign}, not {ROOT / 'daft'}")


def test_that_it_is_not_installed_is_said():
    line = refused(python("-E", "-S", ROOT / "scripts" / "train.py", "method=ft"))  # no site-packages
    assert line.startswith("train.py: daft is not installed")


def test_another_package_that_lies_over_this_one_is_named(tmp_path: Path):
    for folder in ("scripts", "daft/common"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    foreign = tmp_path / "daft" / "__init__.py"
    foreign.write_text("__all__ = ['PGM']\n")
    told = f"{foreign} is another package's, installed over Domain-Aware Fine-Tuning"
    line = refused(python(tmp_path / "scripts" / "status.py", PYTHONPATH=str(tmp_path)))
    assert line.startswith(f"status.py: {told}")
    done = python("-P", "-c", "import daft.common.files", PYTHONPATH=str(tmp_path))
    assert f"ImportError: {told}" in done.stderr


def test_plugins_are_found_without_any_path_from_any_folder(tmp_path: Path):
    code = "import hydra_plugins.staged_sweeper as s, daft; print(s.__file__); print(daft.__file__)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    sweeper, package = (Path(line) for line in done.stdout.splitlines())
    assert sweeper.name == "staged_sweeper.py"
    assert sweeper.parent.parent == package.parent.parent
