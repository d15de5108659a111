"""Claims about lists and tables: read as spreadsheets and scripts write them, or refused with the line."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daft.common.errors import UserError
from daft.config.schema import Config, SplitConfig
from daft.data import datasets
from daft.data.labelled import Labelled
from daft.data.tables import read_lines, read_table
from tests.helpers import fabricate

ROWS = [("images/a.png", "cat"), ("images/b.png", "dog"), ("images/c d.png", "cat")]
BODY = "".join(f"{path},{label}\n" for path, label in ROWS)
PLAIN = f"path,label\n{BODY}"

Read = Callable[..., Labelled]


@pytest.fixture(scope="module")
def config(configure: Callable[..., Config]) -> Config:
    return configure("dataset=folder", "dataset.root=/nowhere", "dataset.classes=[cat, dog]")


@pytest.fixture
def read(tmp_path: Path, config: Config) -> Read:
    """A function that writes a table beside the images and lists it as a split."""
    for n, (path, _) in enumerate(ROWS):
        fabricate.picture(tmp_path / path, n, 8, 8)

    def written(content: str | bytes, name: str = "train.csv", classes: list[str] | None = None) -> Labelled:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        cfg = replace(config.dataset, root=str(tmp_path), train=SplitConfig(path=name))
        return datasets.read_split(cfg, cfg.train, "train", classes or ["cat", "dog"])

    return written


WAYS = {
    "crlf": PLAIN.replace("\n", "\r\n"),
    "cr": PLAIN.replace("\n", "\r"),
    "no last line end": PLAIN.rstrip(),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "Excel's separator line": "sep=;\r\n" + PLAIN.replace(",", ";"),
    "capitals": PLAIN.replace("path,label", "Path,LABEL"),
    "spaces": PLAIN.replace(",", ", "),
    "spaces behind": PLAIN.replace(",", " ,").replace("\n", " \n"),
    "quoted": "".join(f'"{path}", "{label}"\n' for path, label in [("path", "label"), *ROWS]),
    "blank lines": f"\n \n{PLAIN}\n,\n ,  \n",
    "trailing commas": PLAIN.replace("\n", ",\n"),
    "backslashes": PLAIN.replace("/", "\\"),
    "other order": "label,path\n" + "".join(f"{label},{path}\n" for path, label in ROWS),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_table_is_the_same_split_however_it_is_written(read: Read, way: str, capsys) -> None:
    expected, found = read(PLAIN), read(WAYS[way])
    assert (found.images, found.fingerprint) == (expected.images, expected.fingerprint)
    assert found.labels.tolist() == [0, 0, 1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_encodings_that_name_themselves_are_read(read: Read, encoding: str) -> None:
    assert read(PLAIN.encode(encoding)).fingerprint == read(PLAIN).fingerprint


@pytest.mark.parametrize("name", ["LIST.CSV", "list.tsv", "List.Txt"])
def test_the_case_of_the_suffix_does_not_matter(read: Read, name: str) -> None:
    assert len(read(PLAIN, name)) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PLAIN.replace("label\n", "label,score\n").replace("cat\n", "cat,0.9\n"), "score"),
        (PLAIN.replace("cat\n", "cat,0.9\n"), "one without a name in 2 rows"),
        (
            "id,path,,label\n" + "".join(f"7,{p},x,{c},0.9\n" for p, c in ROWS),
            "id, one without a name in 3 rows",
        ),
    ],
)
def test_surplus_columns_are_not_read_and_named_once(
    read: Read, tmp_path: Path, capsys, content: str, told: str
) -> None:
    assert read(content).fingerprint == read(PLAIN).fingerprint
    read(content)
    assert capsys.readouterr().err == (
        f"dataset.train: {tmp_path / 'train.csv'}: only path and label are read; not read: {told}\n"
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (BODY, r"has columns images/a\.png, cat; the first line must name path,label"),
        ("", r"is empty; the first line must name path,label"),
        (PLAIN + "x" * 300 + ",cat\n", r"1 of the 4 file\(s\) .* do not exist: .*/x+"),
        (PLAIN.encode("utf-16-le"), r"has columns p\\x00a\\x00.*save it as UTF-8"),
        (b"\xff\xfe" + b"p", r"begins as UTF-16, but is damaged"),
        (PLAIN + "images/a.png\n", r"line 5 has no label"),
        (PLAIN + "\n\nimages/a.png,\n", r"line 7 has no label"),
        (PLAIN + ",cat\n", r"line 5 has no path"),
        (PLAIN + 'images/a.png,"cat\n', r"is no CSV of path,label \(unexpected end of data\)"),
        (PLAIN.replace("label", "label,Label"), r"two columns label; each must be there once"),
        (PLAIN + "images/a.png,dog\n", r"images/a\.png is in two classes, 'cat' and 'dog'"),
        (PLAIN + "./images/../images/a.png,dog\n", r"a\.png is in two classes, 'cat' and 'dog'"),
        (PLAIN + "images/z.png,cat\n", r"1 of the 4 file\(s\) .* do not exist: .*/images/z\.png"),
        (PLAIN + "images/\x00.png,cat\n", r"line 5: images/\\x00\.png does not exist"),
        (PLAIN + "images,cat\n", r"/images: named as an image of train\.csv, but no file"),
        (
            PLAIN.encode() + b"images/caf\xe9.png,cat\n",
            r"line 5: images/caf\\xe9\.png does not exist.*as UTF-8",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(read: Read, content: str | bytes, named: str) -> None:
    with pytest.raises(UserError, match=rf"dataset\.train: .*{named}"):
        read(content)


def test_a_file_listed_twice_in_one_class_is_told_and_counts_twice(read: Read, capsys) -> None:
    assert len(read(PLAIN + "images/a.png,cat\n")) == 4
    assert capsys.readouterr().err == (
        "train.csv: 1 image(s) are there more than once, and count as often: images/a.png\n"
    )


def test_any_name_of_a_file_can_be_listed(read: Read, tmp_path: Path) -> None:
    names = [
        " lead.png",
        "trail.png ",
        "a\\b.png",
        '5" x.png',
        "x,y.png",
        "caf\udce9.png",
        "café.png",
        "日.png",
    ]
    for n, name in enumerate(names):
        (tmp_path / "x.png").unlink(missing_ok=True)
        fabricate.picture(tmp_path / "x.png", 10 + n, 8, 8)
        os.rename(tmp_path / "x.png", tmp_path / name)
    quoted = "".join('"{}",cat\n'.format(name.replace('"', '""')) for name in names)
    found = read((PLAIN + quoted).encode("utf-8", "surrogateescape"))
    assert isinstance(found.images, list)
    assert {file.name for file in found.images} >= set(names)
    labels = PLAIN.encode().replace(b"dog", b"caf\xe9")
    assert read(labels, classes=["cat", r"caf\xe9"]).labels.tolist() == [0, 0, 1]


def test_accents_of_macos_find_the_file_of_others(read: Read, tmp_path: Path) -> None:
    fabricate.picture(tmp_path / "é.png", 9, 8, 8)
    assert len(read(PLAIN + "e\N{COMBINING ACUTE ACCENT}.png,cat\n")) == 4


def test_labels_that_look_like_numbers_are_text(read: Read) -> None:
    content = PLAIN.replace("cat", "01").replace("dog", "1")
    assert read(content, classes=["01", "1"]).labels.tolist() == [0, 0, 1]
    assert read(content.replace("01", "NA").replace(",1", ",null"), classes=["NA", "null"]).labels.sum() == 1


def test_columns_and_lines_of_any_file(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("A,B,C\n1, 2,3\n\n4,5\n")
    with pytest.raises(UserError, match="line 4 has no c"):
        read_table(file, ["c", "a"])
    assert read_table(file, ["b"]) == ([[" 2"], ["5"]], [2, 4], ["A", "C"])
    file.write_bytes("a b\r\n\r\n  \r\ncafé\rlast".encode("utf-16"))
    assert read_lines(file) == [(1, "a b"), (4, "café"), (5, "last")]
    with pytest.raises(UserError, match="y does not exist"):
        read_lines(tmp_path / "y")
    with pytest.raises(UserError, match="is no file"):
        read_lines(tmp_path)
