"""Claims about the door of the scripts: exit codes and the one line that says why."""

import argparse
import errno
import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from daft.common import cli
from daft.common.errors import ConfigError, UserError

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x")


def ended(monkeypatch, raises: BaseException | None = None, code: int | None = None) -> object:
    """The exit code, or the line, of a script whose main ends so."""

    def main() -> int | None:
        if raises:
            raise raises
        return code

    monkeypatch.setattr("sys.argv", ["/somewhere/tables.py"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def test_a_script_ends_with_its_code(monkeypatch):
    assert ended(monkeypatch) is None
    assert ended(monkeypatch, code=1) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("runs: no records"), "runs: no records"),
        (ConfigError("seed", "'one' is no number"), "seed: 'one' is no number"),
        (FULL, f"[Errno {errno.ENOSPC}] No space left on device: 'runs/x'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_with_the_scripts_name(monkeypatch, error, text):
    assert ended(monkeypatch, error) == f"tables.py: {text}"  # python prints it and exits with 1


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    assert ended(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it was\n"


@pytest.fixture
def killable() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("killable")
def test_a_kill_is_as_ctrl_c_unless_it_is_ignored(monkeypatch):
    def main() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 7

    def code() -> object:
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        return caught.value.code

    assert code() == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert code() == 7


def test_a_script_may_run_in_a_thread():
    with ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit) as caught:
        pool.submit(cli.run, lambda: 7).result()
    assert caught.value.code == 7


def test_a_traceback_is_shown_on_demand_and_for_what_is_no_ones_mistake(monkeypatch):
    def main() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(main)
    monkeypatch.setattr(cli, "FULL_ERROR", True)
    with pytest.raises(UserError, match="mine"):
        ended(monkeypatch, UserError("mine"))


def test_lists_and_counts_are_read(monkeypatch):
    assert cli.names(" lp, daft,,") == ["lp", "daft"]
    assert cli.count("12") == 12
    for wrong in ("0", "-1", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 1"):
            cli.count(wrong)


def test_the_folder_of_runs_is_that_of_the_environment_unless_it_is_named(monkeypatch):
    for name, given in (("--runs", ["--runs", "mine"]), ("runs", ["mine"])):
        for folder in ("elsewhere", None):
            if folder:
                monkeypatch.setenv("DAFT_RUNS", folder)
            else:
                monkeypatch.delenv("DAFT_RUNS")
            parser = cli.parser("doc")
            cli.add_runs(parser, name)
            assert parser.parse_args([]).runs == Path(folder or "runs")
            assert parser.parse_args(given).runs == Path("mine")


@pytest.mark.parametrize("text", ["", " "])
def test_a_path_and_a_text_are_not_empty(text: str, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for kind in (cli.path, cli.text):
        with pytest.raises(argparse.ArgumentTypeError, match="not be empty"):
            kind(text)
    with pytest.raises(argparse.ArgumentTypeError, match="has no name"):
        cli.names(text)
    assert cli.path("~/runs") == Path("/home/me/runs")


@pytest.mark.parametrize(
    "text", ["x", "-1", "1.5", "99999999999999", "2147483648", "1e3", "²", "٣", "0x1", "9" * 5000]
)
def test_a_seed_is_a_whole_number_that_torch_takes(text: str):
    assert cli.seeds("0, 2147483647,0") == [0, 2147483647]
    with pytest.raises(argparse.ArgumentTypeError, match="is no seed; write whole numbers below 2147483648"):
        cli.seeds(f"1,{text}")


@pytest.mark.parametrize("text", ["tpu", "meta", "cuda:", "cuda:x", "cuda:9999", "", "CPU"])
def test_a_device_is_named_as_torch_names_it(text: str):
    assert [cli.device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(argparse.ArgumentTypeError, match="write cpu, cuda or cuda:N"):
        cli.device(text)


@pytest.mark.parametrize("text", ["", "a/b", "a\\b", "a#", "a?", "a%", "a:", "x" * 129, "a\nb"])
def test_a_project_is_named_as_wandb_takes_it(text: str):
    assert cli.project("daft v2, ours") == "daft v2, ours"
    with pytest.raises(argparse.ArgumentTypeError, match="a project of W&B has 1 to 128 characters"):
        cli.project(text)
    with pytest.raises(argparse.ArgumentTypeError, match="a team or an account of W&B"):
        cli.entity(f"{text}/")


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder with what an output can run into."""
    (tmp_path / "file.png").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "suffixes", "words"),
    [
        ("a.gif", ("png", "pdf"), "name a file that ends in .png or .pdf"),
        ("a", ("png",), "name a file that ends in .png"),
        ("folder.png", ("png",), "there is a folder of that name"),
        ("pipe.png", ("png",), "a device or a pipe"),
        ("file.png/a.png", ("png",), "file.png is no folder"),
        ("file.png", (), "file.png is no folder"),
        ("file.png/a", (), "file.png is no folder"),
        ("pipe.png", (), "pipe.png is no folder"),
        ("dangling", (), "dangling is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(messy: Path, name: str, suffixes, words: str):
    with pytest.raises(UserError) as caught:
        cli.require_out(messy / name, *suffixes)
    assert str(caught.value).startswith(f"--out {messy / name}: ")
    assert words in str(caught.value)
    for fine, kinds in (
        ("file.png", ["png"]),
        ("new/deep/a.png", ["png"]),
        ("folder.png", []),
        ("new/deep", []),
    ):
        cli.require_out(messy / fine, *kinds)
    assert not (messy / "new").exists()


def test_a_folder_that_is_read_only_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)  # root may write anywhere
    with pytest.raises(UserError, match="cannot be written"):
        cli.require_out(tmp_path / "new" / "a.png", "png")


def test_a_wrong_argument_is_one_line_and_code_2(capsys):
    parser = cli.parser("doc")
    parser.add_argument("--images", type=cli.count)
    for wrong in (["--images", "0"], ["--nope"]):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(wrong)
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert wrong[0] in line
        assert line.endswith("see --help")


def test_a_lack_of_memory_is_one_line_too(monkeypatch):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert str(ended(monkeypatch, caught.value)).startswith("tables.py: out of memory (")
    with pytest.raises(RuntimeError, match="a bug"):
        ended(monkeypatch, RuntimeError("a bug"))


def test_a_warning_of_a_library_is_one_line_that_names_it(monkeypatch, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # as it was, once this has ended
        cli.show_warnings_in_a_line()
        library = "/env/lib/python3.12/site-packages/torch/optim/adam.py"
        warnings.warn_explicit("two\n  lines", UserWarning, library, 7)
        warnings.warn_explicit("ours", UserWarning, "/repository/daft/methods/probe.py", 7)
    assert capsys.readouterr().err == "torch: two lines\nprobe: ours\n"
