"""Files are whole or absent, and what is kept on disk is made once."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daft.common.errors import UserError
from daft.common.files import PARTIAL, cached_file, write_atomically
from tests.helpers.waiting import HANG_SECONDS, wait_until


def test_a_cached_file_is_made_once_and_then_left_alone(tmp_path: Path) -> None:
    file, made = tmp_path / "new" / "folder" / "file.json", []

    def make() -> str:
        made.append(1)
        return "[1]"

    assert [cached_file(file, make).read_text() for _ in range(3)] == ["[1]"] * 3
    assert made == [1]


@pytest.mark.parametrize("content", ["text", b"text", lambda path: path.write_text("text")])
def test_content_is_text_bytes_or_what_a_function_writes(
    content: str | bytes | Callable[[Path], object], tmp_path: Path
) -> None:
    assert cached_file(tmp_path / "file", lambda: content).read_text() == "text"


def test_what_cannot_be_made_leaves_no_file_and_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def fail() -> str:
        raise UserError("no images")

    with pytest.raises(UserError, match=r"^no images$"):
        cached_file(file, fail)
    assert not file.exists()
    assert not list(tmp_path.glob(f"*{PARTIAL}"))
    assert cached_file(file, lambda: "now").read_text() == "now"


def _make_slowly(file: Path, log: Path, come: Path) -> None:
    """Make it once four processes have come by."""
    (come / str(os.getpid())).touch()

    def make() -> str:
        with log.open("a") as out:
            out.write(f"{os.getpid()}\n")
        wait_until(lambda: len(list(come.iterdir())) == 4)
        return "made"

    assert cached_file(file, make).read_text() == "made"


def test_processes_that_need_a_file_meanwhile_wait_for_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "file", tmp_path / "log", come := tmp_path / "come")
    come.mkdir()
    processes = [context.Process(target=_make_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_SECONDS)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
