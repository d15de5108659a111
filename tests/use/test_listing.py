"""Claims about which images are meant, and of which class they are."""

from pathlib import Path

import pytest

from daft.common.errors import UserError
from daft.use.listing import find

CLASSES = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "dog/b.png",
        "dog/cat/c.png",
        "cat/z.jpg",
        "cat/a.png",
        "zebra/x.png",
        "loose.png",
        "cat/notes.md",
    ):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(*places: str) -> list[tuple[str, str | None]]:
    return [(str(image.file), image.label) for image in find(places, CLASSES)]


def test_the_class_is_the_folder_below_what_is_given_then_that_itself_then_the_nearest(folder: Path):
    assert labels("photos") == [
        ("photos/cat/a.png", "cat"),
        ("photos/cat/z.jpg", "cat"),
        ("photos/dog/b.png", "dog"),
        ("photos/dog/cat/c.png", "dog"),
        ("photos/loose.png", None),
        ("photos/zebra/x.png", None),
    ]
    assert labels("photos/dog/cat") == [("photos/dog/cat/c.png", "cat")]
    assert labels("photos/zebra", "photos/loose.png") == [
        ("photos/zebra/x.png", None),
        ("photos/loose.png", None),
    ]
    assert labels("photos/dog/cat/c.png") == [("photos/dog/cat/c.png", "cat")]


def test_folders_above_what_is_given_are_no_classes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "cat").mkdir()
    (folder / "photos" / "zebra").rename(folder / "cat" / "zebra")
    assert labels("cat/zebra") == [("cat/zebra/x.png", None)]
    assert labels(str(folder / "cat" / "zebra" / "*")) == [(str(folder / "cat" / "zebra" / "x.png"), None)]
    assert labels("cat/*/*") == [("cat/zebra/x.png", "cat")]
    assert labels("photos/*/cat/*") == [("photos/dog/cat/c.png", "cat")]
    monkeypatch.chdir(folder / "cat")
    assert labels(".") == [("zebra/x.png", "cat")]


def test_images_of_known_classes_are_in_the_order_of_a_split_each_once(folder: Path):
    expected = [("photos/cat/a.png", "cat"), ("photos/cat/z.jpg", "cat"), ("photos/dog/b.png", "dog")]
    assert labels("photos/dog/b.png", "photos/cat", "photos/cat/a.png") == expected
    assert labels("photos/**/[ab].png") == [expected[0], expected[2]]
    assert labels("photos/c*") == expected[:2]  # a folder that a pattern fits


def test_a_table_may_name_classes(folder: Path):
    (folder / "list.csv").write_text("label,path\ndog,photos/loose.png\ncat,photos\\cat\\a.png\n")
    assert labels("list.csv") == [("photos/cat/a.png", "cat"), ("photos/loose.png", "dog")]
    (folder / "list.csv").write_text("path\nphotos/cat/a.png\n")
    assert labels("list.csv") == [("photos/cat/a.png", None)]
    (folder / "list.csv").write_text("path,label\nphotos/cat/a.png,lion\n")
    with pytest.raises(
        UserError, match=r"list.csv line 2: label 'lion' is no class of the run; it has cat, dog"
    ):
        labels("list.csv")
    (folder / "list.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"list.csv: has no image"):
        labels("list.csv")


def test_what_is_not_there_is_named(folder: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"photo: no such file or folder, and no file fits it as a pattern"):
        labels("photos", "photo")
    (folder / "none").mkdir()
    with pytest.raises(UserError, match="none: no images below it"):
        labels("none")
    labels("photos")
    assert "2 of 6 images are in folders that are no class (photos, zebra)" in capfd.readouterr().err
