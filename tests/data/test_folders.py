"""Claims about folders and files as they really are: all images are found, what is left out is told."""

import os
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from daft.common.errors import UserError
from daft.config.schema import Config
from daft.data import datasets
from daft.data import folders as listing
from daft.data.decoding import NO_PICTURES, PLUGINS, image_suffixes, read_image
from daft.data.folders import LeftOut, image_files
from daft.data.labelled import Labelled
from tests.helpers import fabricate

Listed = Callable[..., datasets.Listing]


@pytest.fixture(scope="module")
def config(configure: Callable[..., Config]) -> Config:
    return configure("dataset=folder", "dataset.root=/nowhere")


@pytest.fixture
def listed(tmp_path: Path, config: Config) -> Listed:
    """A function that lists the folders train and val of the test's folder."""
    here = replace(config, dataset=replace(config.dataset, root=str(tmp_path)))
    return lambda: datasets.listing(here)


def fill(folder: Path, *names: str) -> None:
    """Images of noise, every one different."""
    for name in names:
        fabricate.picture(folder / name, zlib.crc32(os.fsencode(folder / name)), 8, 8)


def two_splits(root: Path) -> None:
    fill(
        root,
        *(f"{split}/{label}/{n}.png" for split in ("train", "val") for label in ("cat", "dog") for n in "01"),
    )


def files(split: Labelled, below: Path) -> list[str]:
    assert isinstance(split.images, list)
    return [str(file.relative_to(below)) for file in split.images]


def said(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().err.splitlines()


# --- links -----------------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(tmp_path: Path, listed: Listed, capsys) -> None:
    two_splits(tmp_path)
    fill(tmp_path / "disk", "cats/deep/5.png", "dogs/6.png", "ants/7.png", "ants/8.png", "one.png")
    (tmp_path / "train/cat/disk2").symlink_to(tmp_path / "disk/cats")
    (tmp_path / "train/dog/disk2").symlink_to("../../disk/dogs")
    (tmp_path / "train/dog/link.png").symlink_to(tmp_path / "disk/one.png")
    for split, name in (("train", "7.png"), ("val", "8.png")):  # all of a class is behind links
        (tmp_path / "disk" / split).mkdir()
        (tmp_path / "disk/ants" / name).rename(tmp_path / "disk" / split / name)
        (tmp_path / split / "ant").mkdir()
        (tmp_path / split / "ant/there").symlink_to(tmp_path / "disk" / split)
    found = listed()
    assert found.classes == ["ant", "cat", "dog"]
    assert files(found.train, tmp_path / "train") == [
        *("ant/there/7.png", "cat/0.png", "cat/1.png", "cat/disk2/deep/5.png"),
        *("dog/0.png", "dog/1.png", "dog/disk2/6.png", "dog/link.png"),
    ]
    assert said(capsys) == []


def test_links_in_circles_end_and_what_is_reached_twice_counts_once(
    tmp_path: Path, listed: Listed, capsys
) -> None:
    two_splits(tmp_path)
    fill(tmp_path / "train/cat/real", "9.png")
    before = listed()
    cat = tmp_path / "train/cat"
    links = {
        "a_copy": cat / "real",
        "up": cat,
        "split": cat.parent,
        "root": tmp_path,
        "real/back": cat / "real",
    }
    for name, target in links.items():
        (cat / name).symlink_to(target)
    (cat / "ring").mkdir()
    (cat / "ring/one").symlink_to(cat / "ring/two")
    (cat / "ring/two").symlink_to(cat / "ring/one")
    after = listed()
    assert files(after.train, cat.parent) == files(before.train, cat.parent)
    assert after.fingerprints() == before.fingerprints()
    [line] = said(capsys)
    assert "5 link(s) to a folder that is read already" in line
    assert "2 without suffix" in line


def test_one_image_in_two_classes_is_refused(tmp_path: Path, listed: Listed) -> None:
    two_splits(tmp_path)
    (tmp_path / "train/cat/more").symlink_to(tmp_path / "train/dog")
    with pytest.raises(UserError, match=r"dog/0\.png is in two classes, 'cat' and 'dog' \(cat/more/"):
        listed()


def test_the_same_image_several_times_in_a_class_is_told(tmp_path: Path, listed: Listed, capsys) -> None:
    two_splits(tmp_path)
    os.link(tmp_path / "train/cat/0.png", tmp_path / "train/cat/again.png")
    assert len(listed().train) == 5
    assert said(capsys) == ["train: 1 image(s) are there more than once, and count as often: cat/again.png"]


# --- formats ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:IM image format")
def test_every_format_that_pillow_writes_and_reads_is_listed_and_decoded(tmp_path: Path) -> None:
    Image.init()
    kinds = {kind: suffix for suffix, kind in Image.registered_extensions().items()}
    both = {kind: suffix for kind, suffix in kinds.items() if kind in Image.SAVE and kind in Image.OPEN}
    assert {"JPEG", "PNG", "AVIF", "WEBP", "TGA", "JPEG2000"} <= both.keys()
    written = 0
    for kind, suffix in both.items():
        image = Image.new("RGB", (16, 16), "gray")
        file = tmp_path / f"{kind}{suffix.upper()}"
        for mode in ("RGB", "L", "1", "P"):
            try:
                image.convert(mode).save(file, kind)
                break
            except (OSError, ValueError, KeyError):
                file.unlink(missing_ok=True)
        if file.exists():
            written += 1
            found = image_files(tmp_path, LeftOut())
            assert found == ([] if kind in NO_PICTURES else [file]), kind
            if found and kind != "SPIDER":  # of floating-point numbers
                assert len(read_image(file)) == 3, kind
            file.unlink()
    assert written > 20


@pytest.mark.parametrize(
    "suffix", [".jfif", ".JPE", ".avif", ".mpo", ".tga", ".apng", ".j2k", ".pnm", ".qoi"]
)
def test_images_under_less_usual_names_are_found(suffix: str) -> None:
    assert suffix.lower() in image_suffixes()


@pytest.mark.parametrize("suffix", [".pdf", ".h5", ".mpg", ".eps", ".ps", ".wmf", ".txt", ".npy", ""])
def test_what_pillow_only_knows_by_name_is_no_image(suffix: str) -> None:
    assert suffix not in image_suffixes()


# --- left out, with a word -------------------------------------------------------------------------


def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package for HEIC were not installed, which it may be."""
    suffixes = image_suffixes() - PLUGINS.keys()
    monkeypatch.setattr(listing, "image_suffixes", lambda: suffixes)


def test_all_that_is_left_out_is_told_in_one_line_a_split(
    tmp_path: Path, listed: Listed, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_splits(tmp_path)
    without_heif(monkeypatch)
    train = tmp_path / "train"
    fill(train, "stray.jpg", "cat/.hidden.png", ".trash/a.png", "@eaDir/cat/t.jpg", "cat/@eaDir/0.png/S.jpg")
    fill(train, "dog/@eaDir/0.png/S.jpg", "dog/.ipynb_checkpoints/0.png", "cat/album.png/inside.png")
    (train / "dog/deep").mkdir()
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/Thumbs.db", "dog/a.txt", "dog/README", "dog/deep/x.dng"):
        (train / name).touch()
    for name in ("cat/empty.png", "owl", "emu/@eaDir"):
        (train / name).mkdir(parents=True)
    (train / "LICENSE").touch()
    assert len(listed().train) == 5  # the folder album.png has an image in it
    told = [
        *("4 folder(s) @eaDir", "3 hidden", "2 .heic (pip install pillow-heif)"),
        *("2 class folder(s) without an image (emu, owl)", "1 folder(s) named like an image"),
        *("1 without suffix", "1 Thumbs.db", "1 .txt", "2 others"),
    ]
    assert said(capsys) == [f"dataset.train: 5 images below {train}; left out: {', '.join(told)}"]
    assert said(capsys) == []
    listed()
    assert said(capsys) == []  # once a process


def test_a_class_of_which_nothing_is_read_is_named_before_the_refusal(
    tmp_path: Path, listed: Listed, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_heif(monkeypatch)
    two_splits(tmp_path)
    for file in (tmp_path / "train/dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"two or more distinct names, not \['cat'\]"):
        listed()
    [line] = said(capsys)
    assert "2 .heic (pip install pillow-heif)" in line
    assert "class folder(s) without an image (dog)" in line


# --- names -----------------------------------------------------------------------------------------


def test_any_bytes_are_a_name_of_a_file_and_of_a_class(tmp_path: Path, listed: Listed, capsys) -> None:
    two_splits(tmp_path)
    for split in (b"train", b"val"):
        folder = os.fsencode(tmp_path) + b"/" + split + b"/"
        os.rename(folder + b"cat", folder + b"caf\xe9")
        os.rename(folder + b"caf\xe9/0.png", folder + b"caf\xe9/\xfcber\n\x1b[31m.png")
    found = listed()
    assert found.classes == [r"caf\xe9", "dog"]
    assert len(found.train) == 4
    assert len(set(found.fingerprints().values())) == 2
    os.rename(folder + b"caf\xe9/1.png", folder + b"caf\xe9/\xe8.png")
    changed = listed()
    os.rename(folder + b"caf\xe9/\xe8.png", folder + b"caf\xe9/\xe9.png")
    assert len({str(one.fingerprints()) for one in (found, changed, listed())}) == 3
    assert said(capsys) == []


def test_such_names_are_shown_as_escapes_in_one_line(tmp_path: Path, listed: Listed) -> None:
    two_splits(tmp_path)
    name = b"/train/cat/\xfcber\n\x1b[31m.png"
    os.symlink("nowhere", os.fsencode(tmp_path) + name)
    with pytest.raises(UserError) as caught:
        listed()
    assert r"1 of the 5 file(s) of train do not exist" in str(caught.value)
    assert str(caught.value).endswith(r"/train/cat/\xfcber\n\x1b[31m.png")
    assert str(caught.value).isprintable()


def test_class_names_that_look_like_other_things_are_text(tmp_path: Path, listed: Listed) -> None:
    labels = ["01", "1", "1e3", "2018", "False", "null", "yes", "~"]
    fill(
        tmp_path,
        *(f"{split}/{label}/{n}.png" for split in ("train", "val") for label in labels for n in "01"),
    )
    found = listed()
    assert found.classes == labels
    assert found.train.labels.tolist() == [number for number in range(8) for _ in "01"]


def test_a_class_is_the_same_however_its_accents_are_written(tmp_path: Path, listed: Listed) -> None:
    for label in ("café", "thé"):
        fill(tmp_path / "train" / unicodedata.normalize("NFD", label), "0.png", "1.png")  # as macOS has it
        fill(tmp_path / "val" / unicodedata.normalize("NFC", label), "0.png")
    assert listed().classes == ["café", "thé"]


def test_classes_that_look_alike_are_told_apart(tmp_path: Path, listed: Listed) -> None:
    fill(tmp_path, "train/cat/0.png", "train/dog/0.png", "val/cat /0.png", "val/dоg/0.png")  # Cyrillic о
    with pytest.raises(UserError) as caught:
        listed()
    assert r"missing cat, dog; extra 'cat ', dоg ('d\u043eg'); expected cat, dog" in str(caught.value)


def test_a_folder_or_a_pipe_in_the_place_of_an_image_is_named(tmp_path: Path, listed: Listed) -> None:
    two_splits(tmp_path)
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    with pytest.raises(UserError, match=r"train/cat/pipe\.png: named as an image of train, but no file"):
        listed()


def test_images_of_published_sets_are_found_behind_links_too(
    tmp_path: Path, configure: Callable[..., Config], capsys
) -> None:
    fabricate.cityscapes(tmp_path / "full")
    config = configure("dataset=cityscapes", f"dataset.root={tmp_path}", "dataset.train.known_images=4")
    for name in ("gtFine", "leftImg8bit/val"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "full" / name)
    (tmp_path / "leftImg8bit/train").mkdir()
    for city in ("aachen", "ulm"):
        (tmp_path / f"leftImg8bit/train/{city}").symlink_to(tmp_path / f"full/leftImg8bit/train/{city}")
    (tmp_path / "full/leftImg8bit/train/ulm/._ulm_000001_000000_leftImg8bit.png").touch()  # macOS's
    cfg = config.dataset
    split = datasets.read_split(cfg, cfg.train, "train", datasets.class_names(cfg))
    assert split.masks is not None
    assert torch.equal(split.masks.read(0), split.masks.read(3))
    assert said(capsys) == [f"dataset.train: 4 images below {tmp_path}/leftImg8bit/train; left out: 1 hidden"]
