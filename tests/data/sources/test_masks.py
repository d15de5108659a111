"""Claims about lists of images and masks: each pair is read, and what is wrong with a list is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daft.common.errors import UserError
from daft.config.check import validate
from daft.config.compose import composed
from daft.config.schema import Config
from daft.data import datasets
from daft.data.labelled import IGNORED, Labelled

CLASSES = ["sky", "road", "car"]
VOID = 3
SPLITS = {"train": ["a", "b c", "d"], "id": ["e"], "ood.dusk": ["f"]}


def picture(file: Path, mask: Path, seed: int) -> np.ndarray:
    """Make an image and its mask; returns the mask."""
    random = np.random.default_rng(seed)
    values = random.integers(0, VOID + 1, (12, 16), dtype=np.uint8)
    for path, pixels in ((file, random.integers(0, 256, (12, 16, 3), dtype=np.uint8)), (mask, values)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return values


@pytest.fixture
def drives(tmp_path: Path) -> dict[str, np.ndarray]:
    """Images and masks in folders, a list per split in each of the three ways; the masks by name."""
    masks = {}
    for names in SPLITS.values():
        for name in names:
            seed = len(masks)
            masks[name] = picture(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png", seed)
    (tmp_path / "train.csv").write_text(
        "image,mask\n" + "".join(f"images/{n}.jpg,masks/{n}.png\n" for n in SPLITS["train"])
    )
    (tmp_path / "id.txt").write_text("images/e.jpg masks/e.png\n")
    (tmp_path / "dusk.txt").write_text("\nf\n")
    return masks


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    def build(*overrides: str) -> Config:
        return validate(
            composed(
                "dataset=camvid",
                f"dataset.root={tmp_path}",
                f"dataset.classes=[{','.join(CLASSES)}]",
                f"dataset.ignored_values=[{VOID}]",
                "dataset.train={path: train.csv, known_images: null}",
                "dataset.id={path: id.txt, known_images: null}",
                "dataset.ood={}",
                "dataset.train_transform=[flip]",
                f"paths.cache={tmp_path}/cache",
                "compute.device=cpu",
                "compute.workers=0",
                *overrides,
            )
        )

    return build


def read(config: Config, name: str = "train") -> Labelled:
    cfg = config.dataset
    splits = {"train": cfg.train, "id": cfg.id, **cfg.ood}
    return datasets.read_split(cfg, splits[name], name, datasets.class_names(cfg, with_masks=True))


def test_tables_pairs_and_names_give_each_image_its_mask(drives, configured, tmp_path: Path):
    config = configured("dataset.ood.dusk.path=dusk.txt")
    for split, names in SPLITS.items():
        found = read(config, split.removeprefix("ood."))
        assert found.masks is not None
        assert found.images == [tmp_path / f"images/{name}.jpg" for name in names]
        for i, name in enumerate(names):
            right = np.where(drives[name] == VOID, IGNORED, drives[name])
            assert np.array_equal(found.masks.read(i), right), name
    data = datasets.load(config, datasets.listing(config), torch.device("cpu"))
    assert data.classes == CLASSES
    images, masks = next(iter(data.train.epoch()))
    assert images.shape == (3, 3, 12, 16)
    assert {*masks.unique().tolist()} == {0, 1, 2, IGNORED}


def test_what_is_ignored_is_part_of_what_the_images_are(drives, configured):
    assert read(configured()).fingerprint != read(configured("dataset.ignored_values=[3,4]")).fingerprint


@pytest.mark.parametrize(
    ("file", "content", "overrides", "words"),
    [
        ("train.csv", "image,mask\n", [], "dataset.train: .*train.csv names no image"),
        ("train.csv", "image,mask\nimages/a.jpg,\n", [], "train.csv line 2 has no mask"),
        ("train.csv", "picture,mask\nx,y\n", [], "first line must name image,mask"),
        ("train.csv", "image,mask\n" + "images/a.jpg,masks/a.png\n" * 2, [], r"names images/a\.jpg twice"),
        ("train.csv", "image,mask\nimages/a.jpg,masks/nope.png\n", [], "1 of the 1 file.* of the masks of"),
        ("id.txt", "one two three\n", [], "id.txt line 1: 3 words; .* need a CSV"),
        ("id.txt", "nope\n", [], "dataset.id: .*id.txt line 1: 'nope' is no file of .*images"),
        ("images/e.png", "", ["dataset.id.path=names.txt"], "'e' is several files .images/e.*of .*images"),
        ("none", "", ["dataset.ignored_values=[2]"], "dataset.ignored_values: 2, but 0 to 2 are classes"),
        ("none", "", ["dataset.ignored_values=[256]"], "dataset.ignored_values.0: 256 is not allowed"),
        ("none", "", ["dataset.classes=null"], "dataset.classes: null; name the classes"),
        ("none", "", ["dataset.ignored_values=[]"], "a.png: has pixels of value 3, which is no class"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(
    file: str, content: str, overrides: list[str], words: str, drives, configured, tmp_path: Path
):
    (tmp_path / "names.txt").write_text("e\n")
    (tmp_path / file).write_text(content)

    def load() -> None:
        config = configured(*overrides)
        datasets.load(config, datasets.listing(config), torch.device("cpu"))

    with pytest.raises(UserError, match=words) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 1
