"""Claims about unlabelled images of target domains."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch

from daft.common.errors import UserError
from daft.data import datasets
from daft.prepare import doctor
from tests.helpers.fabricate import picture

CLASSES = ("cat", "dog")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Drawings to train on and to evaluate, and six photos of each class, no two alike."""
    seeds = itertools.count()
    for split, count in (("train", 4), ("id", 2), ("photo", 6)):
        for label, number in itertools.product(CLASSES, range(count)):
            picture(tmp_path / split / label / f"{number}.png", next(seeds), 20, 20)
    return tmp_path


@pytest.fixture
def listed(configure, photos):
    """A listing of the folders, with parts that see target images, given overrides."""

    def found(*overrides: str, load: bool = False):
        config = configure(
            "dataset=folder",
            f"dataset.root={photos}",
            "dataset.train={path: train}",
            "dataset.id={path: id}",
            "dataset.train_transform=[{resize: [16, 16]}]",
            "dataset.eval_transform=[{resize: [16, 16]}]",
            f"paths.cache={photos / 'cache'}",
            "compute.workers=0",
            "method=ft",
            "part=coral",
            *overrides,
        )
        listing = datasets.listing(config)
        return datasets.load(config, listing, torch.device("cpu")) if load else listing

    return found


DIVIDED = ["dataset.eval_every=3", "dataset.ood={photo: {path: photo, part: id}}"]
UNLABELLED = "dataset.unlabelled={photo: {path: photo, part: train}}"


def test_one_folder_is_divided_into_images_that_are_seen_and_others_that_are_evaluated(listed):
    listing = listed(*DIVIDED, UNLABELLED)
    seen, evaluated = listing.unlabelled, listing.evaluation["photo"]
    assert sorted(f"{file.parent.name}/{file.name}" for file in evaluated.images) == [
        f"{label}/{number}.png" for label in CLASSES for number in (2, 5)
    ]
    assert len(seen) == 8
    assert not {*seen.images} & {*evaluated.images}


def test_no_label_is_handed_over_and_batches_are_those_of_the_seed(listed):
    data = listed(*DIVIDED, UNLABELLED, load=True)
    assert data.unlabelled is not None
    assert data.unlabelled.batch_size == data.train.batch_size
    assert data.unlabelled.operations == data.train.operations
    first, second = (next(iter(data.unlabelled.epoch(number))) for number in (1, 2))
    assert first[0].shape == (8, 3, 16, 16)
    assert not first[1].any()
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], next(iter(data.unlabelled.steps(range(1))))[0])
    assert datasets.describe(data)["images"] == {"train": 8, "unlabelled": 8, "id": 4, "photo": 4}


def test_images_need_no_class_folders_and_a_table_no_labels(listed, photos):
    flat = photos / "flat"
    for i, file in enumerate(sorted((photos / "photo").rglob("*.png"))):
        (flat / "some" if i % 2 else flat).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, flat / ("some" if i % 2 else ".") / f"{i}.png")
    (photos / "flat.csv").write_text("path\n" + "".join(f"flat/{i}.png\n" for i in range(0, 12, 2)))
    assert len(listed("dataset.ood={}", "dataset.unlabelled={photo: {path: flat}}").unlabelled) == 12
    table = listed("dataset.ood={}", "dataset.unlabelled={photo: {path: flat.csv}}").unlabelled
    assert [file.name for file in table.images] == [f"{i}.png" for i in (0, 10, 2, 4, 6, 8)]  # as paths sort
    both = "{one: {path: flat.csv}, other: {path: photo, images: 5}}"
    assert len(listed("dataset.ood={}", f"dataset.unlabelled={both}").unlabelled) == 6 + 5


def test_a_listing_has_none_for_a_method_that_does_not_see_them(listed):
    with_part, without = listed(*DIVIDED, UNLABELLED), listed(*DIVIDED, UNLABELLED, "method.parts.coral=null")
    assert without.unlabelled is None
    assert with_part.fingerprints().keys() - without.fingerprints().keys() == {"unlabelled"}


@pytest.mark.parametrize("how", ["same folder", "link", "copy"])
def test_an_image_that_is_evaluated_is_refused_among_them(listed, photos, how):
    path = "photo"
    if how != "same folder":
        (path := "others")
        (photos / path).mkdir()
        place = os.link if how == "link" else shutil.copy
        for number in range(4):
            place(photos / "photo" / "cat" / f"{number}.png", photos / path / f"{number}.png")
    told = "copies of images in" if how == "copy" else "also in"
    with pytest.raises(UserError, match=rf"^dataset\.ood\.photo: .* images are {told} dataset\.unlabelled"):
        listed(
            "dataset.ood={photo: {path: photo}}", f"dataset.unlabelled={{photo: {{path: {path}}}}}", load=True
        )


def test_drawn_images_of_a_seed_that_is_evaluated_are_refused(configure):
    target = ["dataset=shapes_unlabelled", "part=coral", "dataset.image_size=16"]
    unlabelled = datasets.listing(configure(*target)).unlabelled
    assert unlabelled is not None
    assert len(unlabelled) == 2000
    with pytest.raises(UserError, match=r"clipart images of seed 2 are in dataset\.unlabelled too"):
        datasets.listing(configure(*target, "dataset.unlabelled.clipart.seed=2"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dataset.unlabelled={photo: {path: nowhere}}"],
            r"dataset\.unlabelled\.photo\.path: no images below",
        ),
        (["dataset.unlabelled={photo: {path: photo, images: 1}}"], r"dataset\.unlabelled: 1 image\(s\)"),
        (
            ["dataset.unlabelled={photo: {path: photo, images: 99}}"],
            r"dataset\.unlabelled\.photo\.images: 99",
        ),
        (["dataset.unlabelled={photo: {path: photo, known_images: 3}}"], r"dataset\.unlabelled\.photo: 12 "),
        (
            ["dataset.unlabelled={photo: {path: photo, shift: [grayscale]}}"],
            r".*unlabelled\.photo\.shift: only",
        ),
        (
            ["dataset.unlabelled={photo: {path: photo, part: train}}"],
            r".*unlabelled\.photo\.part: .*eval_every",
        ),
        (["dataset.unlabelled={photo: {path: photo, sead: 1}}"], r".*unlabelled\.photo\.sead: no such key"),
        (["dataset.ood={unlabelled: {path: photo}}"], r"dataset\.ood\.unlabelled: this name is taken"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(listed, overrides, message):
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        listed(*["dataset.ood={}"][: "ood" not in overrides[0]], *overrides)


def test_prepare_checks_them_too(configure, photos):
    config = configure(
        "dataset=folder",
        f"dataset.root={photos}",
        "dataset.train={path: train}",
        "dataset.id={path: id}",
        "dataset.ood={}",
        "dataset.unlabelled={photo: {path: photo}}",
    )
    found = {finding.what: finding for finding in doctor.check_dataset(config.dataset)}
    assert found["unlabelled.photo"].state == "present"
    assert "12 images" in found["unlabelled.photo"].detail
    assert "no labels read" in found["unlabelled.photo"].detail


def test_the_photos_of_pacs_are_divided_between_evaluation_and_what_is_seen(configure):
    dataset = configure("dataset=pacs_unlabelled", "part=dann").dataset
    assert dataset.unlabelled is not None
    photo, unlabelled = dataset.ood["photo"], dataset.unlabelled["photo"]
    assert (photo.path, unlabelled.path) == ("photo", "photo")
    assert (photo.part, unlabelled.part) == ("id", "train")
    assert (
        photo.known_images + unlabelled.known_images
        == configure("dataset=pacs").dataset.ood["photo"].known_images
    )
    assert {*dataset.ood} == {"photo", "art_painting", "cartoon"}
