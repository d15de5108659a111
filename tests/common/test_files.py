"""Files are whole or absent, and what is kept on disk is made once."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daft.common import files
from daft.common.errors import UserError
from daft.common.files import PARTIAL, cached, read_json, read_text, write_atomically
from tests.helpers.waiting import HANG_SECONDS, wait_until


def numbers(file: Path) -> list[int]:
    """A list of whole numbers, as a cache may hold."""
    found = read_json(file)
    if not isinstance(found, list) or not all(isinstance(number, int) for number in found):
        raise ValueError("no list of numbers")
    return found


def test_a_cached_file_is_made_once_and_then_left_alone(tmp_path: Path) -> None:
    file, made = tmp_path / "new" / "folder" / "file.json", []

    def make() -> str:
        made.append(1)
        return "[1]"

    assert [cached(file, make, numbers) for _ in range(3)] == [[1]] * 3
    assert made == [1]


@pytest.mark.parametrize("content", ["text", b"text", lambda path: path.write_text("text")])
def test_content_is_text_bytes_or_what_a_function_writes(
    content: str | bytes | Callable[[Path], object], tmp_path: Path
) -> None:
    assert cached(tmp_path / "file", lambda: content, read_text) == "text"


def test_what_cannot_be_made_leaves_no_file_and_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def fail() -> str:
        raise UserError("no images")

    with pytest.raises(UserError, match=r"^no images$"):
        cached(file, fail, read_text)
    assert not file.exists()
    assert not list(tmp_path.glob(f"*{PARTIAL}"))
    assert cached(file, lambda: "now", read_text) == "now"


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": Path.touch,
    "cut": lambda file: file.write_text("[1, 2"),
    "zeros": lambda file: file.write_bytes(bytes(100)),
    "not UTF-8": lambda file: file.write_bytes(b'["\xe9"]'),
    "of another kind": lambda file: file.write_text('{"a": 1}'),
    "NaN": lambda file: file.write_text("[NaN]"),
    "a key twice": lambda file: file.write_text('{"a": 1, "a": 2}'),
    "deep": lambda file: file.write_text("[" * 100 + "]" * 100),
    "deeper": lambda file: file.write_text("[" * 100_000),
    "an empty folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to nothing": lambda file: file.symlink_to("nothing"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_cached_file_is_made_anew_with_a_word(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "[a] file"
    DAMAGED[kind](file)
    assert cached(file, lambda: "[1]", numbers) == [1]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{file}: damaged (")
    assert cached(file, lambda: "[2]", numbers) == [1]
    assert capsys.readouterr().err == ""


def test_a_full_folder_in_the_place_of_a_cached_file_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "file" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"file: a folder with something in it, .* remove it"):
        cached(tmp_path / "file", lambda: "[1]", numbers)
    assert (tmp_path / "file" / "mine").exists()


def test_what_the_machine_refuses_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("[1]")

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(PermissionError):
        cached(file, lambda: "[2]", refused)
    assert file.read_text() == "[1]"


def test_a_text_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 2**20)
    (tmp_path / "file").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_text(tmp_path / "file")


def _make_slowly(file: Path, log: Path, come: Path) -> None:
    """Make it once four processes have come by."""
    (come / str(os.getpid())).touch()

    def make() -> str:
        with log.open("a") as out:
            out.write(f"{os.getpid()}\n")
        wait_until(lambda: len(list(come.iterdir())) == 4)
        return "made"

    assert cached(file, make, read_text) == "made"


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
