"""Claims about YAML that people write: one line with the file, the line and the column, and no hang."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from daft.common.errors import UserError
from daft.config import options, yaml_files
from daft.config.compose import configuration
from daft.data import corruptions
from daft.report import paper

GOOD = """name: mine
source: folder
root: pics
train: {path: train}
id: {path: val}
ood: {}
train_transform: [{resize: [64, 64]}]
eval_transform: [{resize: [64, 64]}]
epochs: 1
"""

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)
"""Ten lines that stand for ten billion words."""

WRONG = {
    "indent": (GOOD.replace("\nid:", "\n  id:"), 5, "mapping values|did not find expected key"),
    "tab": (GOOD.replace("ood: {}", "ood:\n\tday: {path: x}"), 7, "tab|cannot start any token"),
    "open brace": (GOOD + "files: {a: 1\n", 11, "expected ','"),
    "open quote": (GOOD + "manual: 'abc\n", 11, "end of stream"),
    "twice the same key": (GOOD + "name: again\n", 10, "duplicate key name"),
    "no alias of that name": (GOOD + "manual: *nope\n", 10, "nope"),
    "two documents": (GOOD + "---\nname: b\n", 10, "another document|single document"),
    "runs code": (GOOD + "manual: !!python/object/apply:os.system [echo]\n", 10, "constructor"),
    "alias of itself": (GOOD + "manual: &a [*a]\n", 10, r"\*a stands within itself"),
    "deep": (GOOD + "manual: " + "[" * 500 + "]" * 500 + "\n", 10, "deeper than 50"),
    "deep by indents": (GOOD + "".join(f"{' ' * i}a:\n" for i in range(400)), 60, "deeper than 50"),
    "aliases without end": (GOOD + BOMB, 14, "more than 100,000"),
    "no number": (GOOD.replace("epochs: 1", "epochs: !!int x"), 9, "invalid literal"),
    "control characters": (GOOD + "manual: \x07\n", 10, "character"),
    "Latin-1": (GOOD.replace("pics", "été").encode("latin-1"), 3, "0xe9 is no UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), 1, "0xff is no UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line_with_file_line_and_reason(case: str, tmp_path: Path):
    text, line, reason = WRONG[case]
    (tmp_path / "dataset").mkdir()
    file = tmp_path / "dataset" / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        configuration("dataset=mine", f"hydra.searchpath=['file://{tmp_path}']")
    message = str(caught.value)
    assert re.match(f"{re.escape(str(file))} line {line}( column \\d+)?: ", message)
    assert re.search(reason, message)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("defaults: [mine]\n", "mine.yaml: its defaults name the file itself"),
        ("defaults: [other]\n", "other.yaml: its defaults name the file itself, or one that leads back"),
        ("defaults: [nope]\n", "defaults of dataset/mine: dataset=nope: no such option"),
        ("defaults: nope\n", "mine.yaml: defaults: 'nope' is no list"),
        ("defaults: [3]\n", "mine.yaml: defaults: 3 is no option"),
        ("defaults: [{a: b, c: d}]\n", "mine.yaml: defaults: {'a': 'b', 'c': 'd'} is no option"),
        ("# @package\n", "mine.yaml: Expected header format"),
    ],
)
def test_defaults_that_make_no_sense_are_named_with_their_file(start: str, words: str, tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(start + GOOD)
    (tmp_path / "dataset" / "other.yaml").write_text("defaults: [mine]\n")
    with pytest.raises(UserError) as caught:
        configuration("dataset=mine", f"hydra.searchpath=['file://{tmp_path}']")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3\n", "- a\n", "text\n"])
def test_a_file_without_keys_is_refused(text: str, tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml: .*not keys with values"):
        configuration("dataset=mine", f"hydra.searchpath=['file://{tmp_path}']")


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    content = GOOD.replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / "dataset" / "mine.yaml").write_bytes(content)
    config = configuration("dataset=mine", f"hydra.searchpath=['file://{tmp_path}']")
    assert config.dataset.name == "mine"
    assert config.dataset.root == "pics"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * yaml_files.MAX_BYTES)
    with pytest.raises(UserError, match=r"large\.yaml: more than 4,194,304 bytes"):
        yaml_files.read(tmp_path / "large.yaml")


def test_every_file_of_ours_is_read_as_yaml_reads_it():
    files = sorted(options.CONF.rglob("*.yaml"))
    assert len(files) > 50
    for file in files:
        assert yaml_files.load(file) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("module", "folder", "name", "read"),
    [
        (options, "CONF", "train", options.help_page),
        (paper, "DEFINITIONS", "mine", lambda: paper.load("mine")),
        (corruptions, "PUBLISHED", "mine", corruptions._published.__wrapped__),
    ],
)
def test_what_scripts_read_by_themselves_is_checked_too(
    module: ModuleType, folder: str, name: str, read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / f"{name}.yaml").write_text("seed: [0\n")
    monkeypatch.setattr(module, folder, tmp_path)
    with pytest.raises(UserError, match=rf"{name}\.yaml line 2 column 1: "):
        read()
