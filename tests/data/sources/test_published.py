"""Claims about the readers of the paper's datasets, on miniatures in the published formats."""

import functools
import hashlib
import os
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from torch import Tensor

from daft.common.errors import UserError
from daft.config.check import validate
from daft.config.schema import Config
from daft.data import datasets
from daft.data.labelled import Labelled
from daft.data.sources import cifar, imagenet
from tests.helpers import fabricate

CONF = Path(__file__).resolve().parents[3] / "conf"

BREEDS = ["living17", "entity30", "entity13", "nonliving26"]


@functools.cache
def composed(name: str) -> DictConfig:
    """A dataset's own configuration; composing it takes longer than reading a miniature."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"dataset={name}"])


@pytest.fixture
def miniature(tmp_path: Path) -> Callable[..., Config]:
    """That configuration over the fabricated files below tmp_path, and with these overrides."""

    def build(name: str, *overrides: str) -> Config:
        cfg = composed(name)
        splits = ["train", "id", *(f"ood.{ood}" for ood in cfg.dataset.ood)]
        changes = [
            *(f"dataset.{split}.known_images=null" for split in splits),
            "dataset.train.least_per_folder=null",
            f"dataset.root={tmp_path}",
            f"paths.cache={tmp_path}/cache",
            "compute.device=cpu",
            "compute.workers=0",
            *overrides,
        ]
        with open_dict(cfg):
            changed = OmegaConf.merge(cfg, OmegaConf.from_dotlist(changes))
        assert isinstance(changed, DictConfig)
        return validate(changed)

    return build


def read(config: Config, name: str) -> Labelled:
    """One split of a dataset; name: train, id or an OOD set's."""
    cfg = config.dataset
    splits = {"train": cfg.train, "id": cfg.id, **cfg.ood}
    return datasets.read_split(cfg, splits[name], name, datasets.class_names(cfg))


def pixels(split: Labelled) -> Tensor:
    assert isinstance(split.images, Tensor)
    return split.images


def names(split: Labelled, classes: list[str]) -> list[tuple[str, str]]:
    """(file name, class) of each image."""
    assert isinstance(split.images, list)
    return [(p.name, classes[label]) for p, label in zip(split.images, split.labels.tolist(), strict=True)]


def refused(config: Config, name: str, *words: str) -> None:
    """Reading this split fails, and the message has these words."""
    with pytest.raises(UserError) as caught:
        read(config, name)
    for word in words:
        assert word in str(caught.value)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """What removes a file and makes something else of its name."""

    def harm(file: Path) -> None:
        file.unlink()
        make(file)

    return harm


def write_fmow(root: Path, config: Config) -> None:
    """Two training images and one of each other kind."""
    park, zoo = "park", "zoo"
    assert {park, zoo} <= set(config.dataset.classes or [])
    rows = [
        ("train", park, "USA", "2010-05-01T10:00:00Z"),
        ("train", zoo, "BRA", "2011-05-01T10:00:00.123456Z"),
        ("val", zoo, "USA", "2010-05-01T10:00:00Z"),
        ("val", park, "FRA", "2010-05-01T10:00:00Z"),
        ("val", park, "KEN", "2014-05-01T10:00:00Z"),
    ]
    fabricate.fmow(root, rows)


def write_breeds(root: Path, hierarchy: str, layout: str = "sorted") -> None:
    rows = imagenet.hierarchies()[hierarchy]
    source, target = ([wnid for row in rows for wnid in row[domain]] for domain in ("source", "target"))
    fabricate.imagenet(root, source, target, layout)


def write(root: Path, config: Config) -> None:
    """The fabricated files of a configuration."""
    cfg = config.dataset
    if cfg.source == "cifar":
        fabricate.cifar10(root)
        fabricate.cifar10_1(root)
        fabricate.stl10(root)
    elif cfg.source == "imagenet":
        write_breeds(root, cfg.name)
    elif cfg.source == "domainnet":
        fabricate.domainnet(root, cfg.classes or [])
    else:
        write_fmow(root, config)


@pytest.mark.parametrize("name", ["cifar10", *BREEDS, "domainnet", "fmow"])
def test_every_configuration_goes_from_published_files_to_batches_of_224_pixels(miniature, tmp_path, name):
    config = miniature(name, "training.batch_size=4")
    write(tmp_path, config)
    listed = datasets.listing(config)
    loaded = datasets.load(config, listed, torch.device("cpu"))
    for split, loader in {"train": loaded.train, **loaded.evaluation}.items():
        images, labels = next(loader.epoch())
        assert images.shape == (min(4, len(loader)), 3, 224, 224), split
        assert labels.dtype == torch.int64
        assert labels.max() < len(listed.classes)


# Masks


def test_vocs_masks_are_its_palette_indices_and_trainaug_has_sbds(miniature, tmp_path):
    fabricate.voc(tmp_path, train=["2007_1"], extra=["2008_1"], val=["2009_1", "2009_2"])
    files = tmp_path / "VOCdevkit/VOC2012"
    for path, ignored in (("trainaug", True), ("sbd/trainaug", False)):
        split = read(miniature("voc", f"dataset.train.path={path}"), "train")
        assert split.masks is not None
        for i, name in enumerate(["2007_1", "2008_1"]):
            mask = split.masks.read(i)
            right = np.array(Image.open(files / f"SegmentationClassAug/{name}.png"))
            if name == "2008_1" and not ignored:  # SBD's own file has no contours
                right = np.where(right == 255, 0, right)
            assert np.array_equal(mask, right), (path, name)
    evaluated = read(miniature("voc"), "id")
    assert evaluated.masks is not None
    assert {file.parent.name for file in evaluated.masks.files} == {"SegmentationClass"}
    palette = Image.open(evaluated.masks.files[0])
    assert palette.mode == "P"
    assert np.array_equal(evaluated.masks.read(0), np.asarray(palette))


def test_cityscapes_ids_become_the_19_train_ids_and_255(miniature, tmp_path):
    fabricate.cityscapes(tmp_path)
    split = read(miniature("cityscapes"), "id")
    assert split.masks is not None
    ids = np.array(Image.open(split.masks.files[0])).astype(np.int8)  # -1 is a licence plate
    # labels.py of cityscapesScripts: (id, trainId) of all that have one
    trained = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    trained |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert set(np.unique(ids)) == set(range(-1, 34))
    right = [[trained.get(value, 255) for value in row] for row in ids.tolist()]
    assert split.masks.read(0).tolist() == right
    assert len(read(miniature("cityscapes"), "train")) == 4


def test_masks_that_are_none_are_named(miniature, tmp_path):
    fabricate.voc(tmp_path, train=["2007_1", "2007_2"], extra=[], val=["2009_1"])
    folder = tmp_path / "VOCdevkit/VOC2012"
    config = miniature("voc", "dataset.eval_transform=[{center_crop: 16}]")
    for content, words in (
        (np.full((36, 48), 21, np.uint8), "value 21, which is no class"),
        (np.zeros((36, 47), np.uint8), "36 x 47 pixels, but its image has 36 x 48"),
        (np.zeros((36, 48, 3), np.uint8), "one byte a pixel, not the mode RGB"),
    ):
        Image.fromarray(content).save(folder / "SegmentationClass/2009_1.png")
        with pytest.raises(UserError, match=words):
            datasets.load(config, datasets.listing(config), torch.device("cpu"))
    listed = folder / "ImageSets/Segmentation/val.txt"
    for content, words in (
        (b"2009_1\n2009_1\n", "val.txt names an image twice"),
        (b"2009_1  1\n", "val.txt line 1: '2009_1  1' is not the name of one image"),
        (b"\r\ncaf\xe9\r\n", r"caf\xe9.jpg"),
    ):
        listed.write_bytes(content)
        refused(config, "id", words)
    listed.write_bytes("2009_1\r\n\r\n".encode("utf-16"))
    assert len(read(config, "id")) == 1
    (folder / "SegmentationClass/2009_1.png").unlink()
    refused(config, "id", "1 of the 1 file(s) of the masks of val do not exist", "2009_1.png")
    refused(miniature("voc", "dataset.id.path=test"), "id", "choose from train, val, trainaug")


# What is published


IDENTITY_KEYS = {
    "cifar10": [50_000, 10_000, 2_000, 7_200],
    "living17": [None, 1_700, 1_700],
    "entity30": [None, 6_000, 6_000],
    "entity13": [None, 6_500, 6_500],
    "nonliving26": [None, 2_600, 2_600],
    "domainnet": [5_537, 2_399, 6_943, 2_909, 1_616, 6_943 + 2_909 + 1_616],
    "fmow": [None] * 4,
}


@pytest.mark.parametrize("name", IDENTITY_KEYS)
def test_known_counts_are_those_of_the_published_files(name):
    cfg = validate(composed(name)).dataset
    assert [split.known_images for split in (cfg.train, cfg.id, *cfg.ood.values())] == IDENTITY_KEYS[name]


@pytest.mark.parametrize("name", BREEDS)
def test_counts_of_breeds_are_fifty_per_subclass(name):
    cfg = validate(composed(name)).dataset
    for split, domain in ((cfg.id, "source"), (cfg.ood["target"], "target")):
        assert split.known_images == 50 * sum(len(row[domain]) for row in imagenet.hierarchies()[name])


@pytest.mark.parametrize(
    ("name", "superclasses", "source", "target"),
    [  # first digits of sha256 over the wnids, one a line, as the generator of BREEDS gives them
        ("living17", 17, "7e9adfb425a48ea0", "badc9611d06fc646"),
        ("entity30", 30, "a4b48a0a978b8810", "88d1d856d1b4a87c"),
        ("entity13", 13, "8a9746c87c17bf56", "42eb46b7e92f9e34"),
        ("nonliving26", 26, "c0f871f9888a573c", "725ee46db300ba80"),
    ],
)
def test_subclasses_are_those_of_the_generator_and_no_one_is_in_both_domains(
    name, superclasses, source, target
):
    table = imagenet.hierarchies()[name]
    assert len(table) == superclasses
    wnids = {domain: [w for row in table for w in row[domain]] for domain in ("source", "target")}
    for domain, digest in (("source", source), ("target", target)):
        assert hashlib.sha256("\n".join(wnids[domain]).encode()).hexdigest().startswith(digest)
    assert len({*wnids["source"], *wnids["target"]}) == len(wnids["source"]) + len(wnids["target"])


def test_domainnet_and_fmow_have_their_classes_in_published_order():
    domainnet = composed("domainnet").dataset.classes
    assert len(domainnet) == len(set(domainnet)) == 40
    assert domainnet[35:] == ["truck", "butterfly", "sheep", "drums", "donut"]  # alphabetical before
    assert domainnet[:36] == sorted(domainnet[:36])
    fmow = composed("fmow").dataset.classes
    assert len(fmow) == len(set(fmow)) == 62
    assert fmow == sorted(fmow)


@pytest.mark.parametrize("name", IDENTITY_KEYS)
def test_no_split_is_thinned_and_ood_means_are_the_papers(name):
    cfg = validate(composed(name)).dataset
    assert all(split.images is None for split in (cfg.train, cfg.id, *cfg.ood.values()))
    assert cfg.ood_mean == {"domainnet": ["pooled"], "fmow": ["id_val"]}.get(name)


# CIFAR-10, CIFAR-10.1, STL-10


@pytest.mark.parametrize(("name", "is_train"), [("train", True), ("id", False)])
def test_cifar10_is_what_torchvision_reads(miniature, tmp_path, monkeypatch, name, is_train):
    fabricate.cifar10(tmp_path, per_class=2)
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    expected = kind(str(tmp_path), train=is_train)
    assert expected.classes == [*cifar.CLASSES]
    found = read(miniature("cifar10"), name)
    order = np.argsort(expected.targets, kind="stable")
    assert found.labels.tolist() == [expected.targets[i] for i in order]
    assert np.array_equal(pixels(found).permute(0, 2, 3, 1).numpy(), expected.data[order])


@pytest.mark.parametrize("part", ["train", "test"])
def test_stl10_is_what_torchvision_reads_without_monkeys_and_by_class_name(
    miniature, tmp_path, monkeypatch, part
):
    fabricate.stl10(tmp_path, images=30)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    stl: Any = torchvision.datasets.STL10(str(tmp_path), split=part)
    called = [stl.classes[label] for label in stl.labels]
    found = read(miniature("cifar10", f"dataset.ood.stl10.path=stl10/{part}"), "stl10")
    ours = {"car": "automobile"}
    expected = {
        (stl.data[i].tobytes(), ours.get(name, name)) for i, name in enumerate(called) if name != "monkey"
    }
    assert len(found) == len(expected) == 27
    read_as = [cifar.CLASSES[label] for label in found.labels]
    assert {(p.numpy().tobytes(), c) for p, c in zip(pixels(found), read_as, strict=True)} == expected
    assert "frog" not in read_as


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_cifar10_1_keeps_pixels_and_labels_of_the_chosen_version(miniature, tmp_path, version):
    images, labels = fabricate.cifar10_1(tmp_path, version)
    found = read(miniature("cifar10", f"dataset.ood.cifar10_1.path=cifar10.1/{version}"), "cifar10_1")
    order = np.argsort(labels, kind="stable")
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == labels[order].tolist()
    assert np.array_equal(pixels(found).permute(0, 2, 3, 1).numpy(), images[order])


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_with_code_in_it_is_refused_and_the_code_is_not_run(miniature, tmp_path, protocol):
    fabricate.cifar10(tmp_path)
    mark, batch = tmp_path / "run", tmp_path / "cifar-10-batches-py/test_batch"
    batch.write_bytes(pickle.dumps({"data": Bomb(mark), "labels": []}, protocol))
    refused(miniature("cifar10"), "id", "test_batch", "mkdir", "not opened")
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_batches_pickled_anew_are_read(miniature, tmp_path, protocol, core):
    """By Python 3 with NumPy 2 or, as far as the names go, 1; with keys as bytes, and labels as NumPy's."""
    fabricate.cifar10(tmp_path)
    published = read(miniature("cifar10"), "id")
    file = tmp_path / "cifar-10-batches-py/test_batch"
    batch = pickle.loads(file.read_bytes(), encoding="latin1")
    variants = [
        batch,
        {key.encode(): value for key, value in batch.items()},
        {**batch, "labels": np.array(batch["labels"])},
        {**batch, "labels": [*np.array(batch["labels"])]},
        {**batch, "data": np.asfortranarray(batch["data"])},
    ]
    for variant in variants:
        file.write_bytes(pickle.dumps(variant, protocol).replace(b"numpy._core", core))
        if protocol >= 4:  # whose names have their length before them
            file.write_bytes(pickle.dumps(variant, protocol))
        assert read(miniature("cifar10"), "id").fingerprint == published.fingerprint


def test_text_in_a_batch_is_encoded_as_bytes_alone(miniature, tmp_path):
    fabricate.cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py/test_batch"
    batch.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.")
    refused(miniature("cifar10"), "id", "test_batch", "would encode text as bz2", "not opened")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def batch_of(file: Path, images: Any, labels: Any) -> None:
    file.write_bytes(fabricate.python2_pickle({"data": images, "labels": labels}))


def test_cifar10_c_has_five_severities_of_a_corruption_one_after_the_other(miniature, tmp_path):
    images, labels = fabricate.cifar10_c(tmp_path)
    found = read(miniature("cifar10_c"), "brightness")
    order = np.argsort(labels, kind="stable")
    assert torch.equal(pixels(found), torch.from_numpy(images[order]).permute(0, 3, 1, 2))
    assert found.labels.tolist() == sorted(labels.tolist())
    blocks, once = cifar.corrupted(tmp_path, "brightness")
    assert np.array_equal(blocks[3], images[60:80])
    assert np.array_equal(once, labels[:20])


BATCH = "cifar-10-batches-py/test_batch"
ZEROS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("name", "file", "harm", "words"),
    [
        ("id", BATCH, Path.unlink, ["does not exist"]),
        ("id", BATCH, in_its_place(os.mkfifo), ["is no file"]),
        ("id", BATCH, in_its_place(Path.mkdir), ["is no file"]),
        ("id", BATCH, cut, ["damaged"]),
        ("id", BATCH, lambda f: f.write_bytes(b"\x80\x02}."), ["'data'"]),
        (
            "id",
            "cifar-10-batches-py/test_batch",
            lambda f: batch_of(f, ZEROS, [3, 10]),
            ["label 10", "0 to 9"],
        ),
        ("id", BATCH, lambda f: batch_of(f, ZEROS, [3]), ["2 whole numbers"]),
        ("id", BATCH, lambda f: batch_of(f, ZEROS, [0.5, 1]), ["float64"]),
        ("id", BATCH, lambda f: batch_of(f, ZEROS[:, 1:], [1, 2]), ["(2, 3071)"]),
        ("id", BATCH, lambda f: batch_of(f, "x", [1, 2]), ["a str"]),
        ("cifar10_1", "cifar10.1_v6_data.npy", cut, ["damaged"]),
        ("cifar10_1", "cifar10.1_v6_data.npy", lambda f: np.save(f, ZEROS), ["(2, 3072)"]),
        ("cifar10_1", "cifar10.1_v6_labels.npy", lambda f: np.save(f, np.array([{}])), ["damaged", "Object"]),
        ("cifar10_1", "cifar10.1_v6_labels.npy", lambda f: np.save(f, np.arange(3)), ["20 whole numbers"]),
        ("cifar10_1", "cifar10.1_v6_labels.npy", lambda f: np.save(f, np.full(20, -1)), ["label -1"]),
        ("cifar10_1", "cifar10.1_v6_data.npy", in_its_place(os.mkfifo), ["is no file"]),
        ("stl10", "stl10_binary/test_X.bin", cut, ["multiple of 3 x 96 x 96"]),
        ("stl10", "stl10_binary/test_y.bin", lambda f: f.write_bytes(bytes(20)), ["label 0", "1 to 10"]),
        ("stl10", "stl10_binary/test_y.bin", lambda f: f.write_bytes(bytes(19)), ["20 whole numbers"]),
        ("stl10", "stl10_binary/class_names.txt", lambda f: f.write_text("cat\ndog"), ["cat, dog", "monkey"]),
    ],
)
def test_a_file_that_is_not_as_published_is_named(miniature, tmp_path, name, file, harm, words):
    config = miniature("cifar10")
    write(tmp_path, config)
    read(config, name)
    harm(tmp_path / file)
    refused(config, name, f"dataset.{name}: ", file, *words)


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        ("fog.npy", Path.unlink, ["does not exist"]),
        ("fog.npy", cut, ["damaged"]),
        ("fog.npy", lambda f: np.save(f, np.array([{}])), ["damaged", "bject"]),
        ("fog.npy", lambda f: np.save(f, np.zeros((100, 3, 32, 32), np.uint8)), ["(100, 3, 32, 32)", "5 N"]),
        ("fog.npy", lambda f: np.save(f, np.zeros((99, 32, 32, 3), np.uint8)), ["(99, 32, 32, 3)", "5 N"]),
        ("fog.npy", lambda f: np.save(f, np.zeros((0, 32, 32, 3), np.uint8)), ["(0, 32, 32, 3)"]),
        ("labels.npy", lambda f: np.save(f, np.zeros(50, np.uint8)), ["100 whole numbers"]),
        ("labels.npy", lambda f: np.save(f, np.arange(100, dtype=np.uint8)), ["label 10"]),
        ("labels.npy", lambda f: np.save(f, np.arange(100, dtype=np.uint8) // 10), ["severities differ"]),
    ],
)
def test_a_file_of_cifar10_c_that_is_not_as_published_is_named(miniature, tmp_path, file, harm, words):
    fabricate.cifar10_c(tmp_path)
    harm(tmp_path / "CIFAR-10-C" / file)
    refused(miniature("cifar10_c"), "fog", "dataset.fog: ", f"CIFAR-10-C/{file}", *words)


# BREEDS


def test_a_set_is_the_same_whatever_the_layout_of_imagenet(miniature, tmp_path):
    found = {}
    for layout in ("sorted", "kaggle", "synsets", "devkit"):
        root = tmp_path / layout
        write_breeds(root, "living17", layout)
        before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
        found[layout] = datasets.listing(miniature("living17", f"dataset.root={root}"))
        assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before
    assert len({str(listed.fingerprints()) for listed in found.values()}) == 1
    listed = found["sorted"]
    assert listed.classes[:4] == ["salamander", "turtle", "lizard", "snake"]
    assert Counter(listed.train.labels.tolist()) == dict.fromkeys(range(17), 2)


@pytest.mark.parametrize("layout", ["sorted", "devkit"])
def test_labels_of_breeds_are_rows_of_the_table_whatever_other_folders_there_are(miniature, tmp_path, layout):
    write_breeds(tmp_path, "entity30", layout)
    for part in ("train", "val"):
        fabricate.picture(tmp_path / part / "n00000001" / "first.JPEG", 0)
    config = miniature("entity30")
    row_of = {w: i for i, row in enumerate(imagenet.hierarchies()["entity30"]) for w in row["source"]}
    found = read(config, "train")
    assert isinstance(found.images, list)
    assert len(found) == 120
    for path, label in zip(found.images, found.labels.tolist(), strict=True):
        assert row_of[path.parent.name] == label


def test_the_devkit_gives_the_labels_that_torchvision_reads_from_it(tmp_path, monkeypatch):
    wnids = ["n02110806", "n01440764", "n07745940", "n01440764"]
    fabricate.devkit(tmp_path / "ILSVRC2012_devkit_t12/data", wnids)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    torchvision_imagenet = torchvision.datasets.imagenet
    monkeypatch.setattr(torchvision_imagenet, "_verify_archive", lambda *_: None)
    torchvision_imagenet.parse_devkit_archive(tmp_path)
    assert torchvision_imagenet.load_meta_file(tmp_path)[1] == wnids
    file = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    assert [wnid for _, wnid in imagenet.LABEL_READERS[file.name](file)] == wnids


def test_labels_of_val_can_lie_elsewhere(miniature, tmp_path):
    write_breeds(tmp_path, "living17", "synsets")
    file = tmp_path / "imagenet_2012_validation_synset_labels.txt"
    elsewhere = tmp_path / "elsewhere" / file.name
    elsewhere.parent.mkdir()
    file.rename(elsewhere)
    refused(miniature("living17"), "id", "not sorted", "LOC_val_solution.csv", "dataset.annotations")
    for annotations in (elsewhere, elsewhere.parent):
        assert len(read(miniature("living17", f"dataset.annotations={annotations}"), "id")) == 34


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("layout", "file", "harm", "words"),
    [
        ("sorted", "val", shutil.rmtree, ["no folder val", "CLS-LOC/val", "dataset.root"]),
        ("sorted", "val/n01631663", shutil.rmtree, ["1 of 34", "n01631663"]),
        ("sorted", "val/n01631663", empty, ["1 of 34", "n01631663"]),
        ("devkit", "ILSVRC2012_devkit_t12/data/meta.mat", Path.unlink, ["meta.mat does not exist"]),
        ("devkit", "ILSVRC2012_devkit_t12/data/meta.mat", in_its_place(os.mkfifo), ["meta.mat is no file"]),
        ("devkit", "ILSVRC2012_devkit_t12/data/meta.mat", cut, ["meta.mat", "damaged"]),
        (
            "devkit",
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            lambda f: f.write_text("1\n2000\n"),
            ["'2000'", "ILSVRC2012_ID"],
        ),
        (
            "synsets",
            "imagenet_2012_validation_synset_labels.txt",
            lambda f: f.write_bytes(b"\xff\n"),
            ["n01440764"],
        ),
        (
            "kaggle",
            "LOC_val_solution.csv",
            lambda f: f.write_text("a,b\n1,2\n"),
            ["columns a, b", "must name ImageId,PredictionString"],
        ),
    ],
)
def test_what_is_missing_of_imagenet_is_named(miniature, tmp_path, layout, file, harm, words):
    write_breeds(tmp_path, "living17", layout)
    harm(tmp_path / file)
    refused(miniature("living17"), "id", "dataset.id: ", *words)


@pytest.mark.parametrize("layout", ["kaggle", "synsets", "devkit"])
def test_labels_must_fit_the_images_of_val_one_by_one(miniature, tmp_path, layout):
    write_breeds(tmp_path, "living17", layout)
    file, _ = names(read(miniature("living17"), "id"), ["any"] * 17)[0]
    folder = next(tmp_path.rglob("val"))
    (folder / file).unlink()
    refused(miniature("living17"), "id", "labels for the", f"{file} is not there")
    labels = next(p for p in tmp_path.rglob("*") if p.name in imagenet.LABEL_READERS)
    write_breeds(tmp_path / "again", "living17", layout)
    labels = next(p for p in (tmp_path / "again").rglob("*") if p.name in imagenet.LABEL_READERS)
    first, *rest = labels.read_text().splitlines(keepends=True)
    # A line less moves all labels after it, but in Kaggle's file, which names its images.
    labels.write_text("".join([first, *rest[1:]]) if layout == "kaggle" else "".join(rest))
    refused(miniature("living17", f"dataset.root={tmp_path / 'again'}"), "id", "labels for the", "not named")


def test_a_class_folder_half_unpacked_is_named_and_foreign_files_are_no_images(miniature, tmp_path):
    write_breeds(tmp_path, "living17", "sorted")
    folder = next(p for p in (tmp_path / "train").iterdir())
    (folder / "._hidden.JPEG").touch()
    (tmp_path / "val/ILSVRC2012_val_00000001.JPEG").touch()
    assert len(read(miniature("living17"), "train")) == 34
    assert len(read(miniature("living17"), "id")) == 34
    whole = miniature("living17", "dataset.train.least_per_folder=2")
    refused(whole, "train", "fewer than 2 images", "n01631663 (1)", "least_per_folder=null")


def test_links_and_suffixes_of_imagenet_are_followed_and_the_rest_is_told(miniature, tmp_path, capsys):
    write_breeds(tmp_path, "living17", "sorted")
    before = datasets.listing(miniature("living17")).fingerprints()
    (tmp_path / "disk").mkdir()
    first, second, third = sorted((tmp_path / "train").iterdir())[:3]
    first.rename(tmp_path / "disk" / first.name)
    first.symlink_to(tmp_path / "disk" / first.name)  # curated from several disks
    (tmp_path / "disk/more").mkdir()
    for file in second.iterdir():
        file.rename(tmp_path / "disk/more" / file.name)
    (second / "there").symlink_to(tmp_path / "disk/more")
    assert datasets.listing(miniature("living17")).fingerprints() == before
    assert capsys.readouterr().err == ""
    for name in ("small.jpg", ".hidden.JPEG", "Thumbs.db"):
        (third / name).touch()
    (tmp_path / "val/ILSVRC2012_val_99999999.JPEG").touch()
    assert datasets.listing(miniature("living17")).fingerprints() == before
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        f"dataset.train: 34 images below {tmp_path}/train; left out: 1 hidden, 1 Thumbs.db, 1 .jpg"
    )
    assert told[1] == f"dataset.id: 34 images below {tmp_path}/val; left out: 1 in no class folder"


# Tiny-ImageNet


def test_labels_of_tiny_imagenet_are_one_for_one(miniature, tmp_path, capsys):
    folder = tmp_path / "tiny-imagenet-200"
    images = "train/n1/images/n1_0", "train/n2/images/n2_0", "val/images/v0", "val/images/v1"
    for seed, name in enumerate(images):
        fabricate.picture(folder / f"{name}.JPEG", seed, 64, 64)
    (folder / "train/n1/n1_boxes.txt").touch()  # as published
    (folder / "wnids.txt").write_bytes("n2\r\nn1\r\n".encode("utf-8-sig"))
    notes, config = folder / "val/val_annotations.txt", miniature("tiny_imagenet")
    notes.write_text("v1.JPEG\tn1\t0\t1\t2\t3\nv0.JPEG\tn2\t0\t1\t2\t3\n\n")
    assert names(read(config, "train"), ["n1", "n2"]) == [("n1_0.JPEG", "n1"), ("n2_0.JPEG", "n2")]
    assert names(read(config, "id"), ["n1", "n2"]) == [("v1.JPEG", "n1"), ("v0.JPEG", "n2")]
    assert capsys.readouterr().err == ""
    fabricate.picture(folder / "val/images/v2.JPEG", 9, 64, 64)
    assert len(read(config, "id")) == 2
    assert "left out: 1 not in val_annotations.txt" in capsys.readouterr().err
    for line, words in (
        ("v2.JPEG\tn3\t0\n", "line 4: 'n3' is no class of wnids.txt"),
        ("v2.JPEG\n", "line 4: '' is no class of wnids.txt"),
        ("v0.JPEG\tn1\t0\n", "v0.JPEG is in two classes, 'n1' and 'n2'"),
    ):
        notes.write_text(f"v1.JPEG\tn1\t0\nv0.JPEG\tn2\t0\n\n{line}")
        refused(config, "id", words)


# DomainNet


def test_domainnet_pools_its_domains_and_labels_by_the_lists_not_by_the_alphabet(miniature, tmp_path):
    config = miniature("domainnet")
    classes = config.dataset.classes
    fabricate.domainnet(tmp_path, classes, train_images=2)
    train, pooled = read(config, "train"), read(config, "pooled")
    assert isinstance(train.images, list)
    assert len(train) == 80
    assert len(pooled) == sum(len(read(config, domain)) for domain in ("real", "painting", "clipart")) == 120
    for path, label in zip(train.images, train.labels.tolist(), strict=True):
        assert path.parent.name == classes[label]
        assert path.parent.parent.name == "sketch"
    assert [p.parent.name for p, label in zip(train.images, train.labels, strict=True) if label == 39] == [
        "donut",
        "donut",
    ]


def relabelled(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"000002.jpg 39\r\n", b"000002.jpg 38\r\n"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, ["real_test_mini.txt does not exist", "prepare.py dataset=domainnet"]),
        (relabelled, ["real_test_mini.txt line ", "38'", "donut is label 39"]),
        (lambda f: f.write_text("real/zebra/real_1.jpg 0\n"), ["line 1", "zebra is none"]),
        (lambda f: f.write_text("real/bird/real_1.jpg\n"), ["line 1", "real/bird/real_1.jpg"]),
        (lambda f: f.write_text("\n\nreal/bird/real_1.jpg 10 0.9\n"), ["line 3", "real_1.jpg 10 0.9'"]),
        (lambda f: f.write_bytes(b"real/bird/caf\xe9.jpg 10\n"), ["do not exist", r"caf\xe9.jpg"]),
        (lambda f: f.write_text("real/bird/real_9.jpg 10\n"), ["do not exist", "real_9.jpg"]),
        (lambda f: f.write_bytes(b"\xfe\n"), ["line 1"]),
        (lambda f: f.write_bytes(b"\xff\xfe\n"), ["UTF-16", "damaged"]),
    ],
)
def test_a_list_of_domainnet_that_does_not_fit_is_named_with_the_line(miniature, tmp_path, harm, words):
    config = miniature("domainnet")
    fabricate.domainnet(tmp_path, config.dataset.classes)
    harm(tmp_path / "SENTRY_splits/real_test_mini.txt")
    refused(config, "real", "dataset.real: ", *words)


# fMoW


FMOW = [  # split, category, country, timestamp; what it belongs to by hand
    ("train", "zoo", "USA", "2012-12-31T23:59:59.999999Z", "train/Americas"),
    ("seq", "zoo", "USA", "2010-01-01T00:00:00Z", None),
    ("train", "airport", "BRA", "2002-02-03T04:05:06Z", "train/Americas"),
    ("train", "airport", "BRA", "2013-01-01T00:00:00Z", None),
    ("train", "airport", "USA", "2017-01-01T00:00:00Z", None),
    ("val", "park", "USA", "2012-12-31T23:59:59Z", "id_val/Americas"),
    ("val", "park", "FRA", "2010-06-01T12:00:00.5Z", "id_val/Europe+Africa"),
    ("val", "port", "NAM", "2010-06-01T12:00:00Z", "id_val/Europe+Africa"),
    ("val", "park", "KEN", "2013-01-01T00:00:00Z", "val/Europe+Africa"),
    ("val", "park", "FRA", "2015-12-31T23:59:59.999Z", "val/Europe+Africa"),
    ("val", "park", "FRA", "2016-01-01T00:00:00Z", None),
    ("seq", "zoo", "FRA", "2014-01-01T00:00:00Z", None),
    ("test", "dam", "CHN", "2012-01-01T00:00:00Z", "id_test/Asia"),
    ("test", "dam", "CHN", "2014-01-01T00:00:00Z", None),
    ("test", "dam", "AUS", "2016-01-01T00:00:00Z", "test/Oceania"),
    ("test", "dam", "ATA", "2016-01-01T00:00:00Z", "test/Other"),
    ("test", "dam", "XYZ", "2017-01-01T00:00:00Z", "test/Other"),
    ("val", "zoo", "FRA", "2012-12-31T22:00:00-05:00", "val/Europe+Africa"),  # 2013 in UTC
]


def write_fmow_table(root: Path) -> None:
    fabricate.fmow(root, [row[:4] for row in FMOW], side=8)


@pytest.mark.parametrize("path", sorted({row[4] for row in FMOW if row[4]}))
def test_fmow_splits_are_by_period_in_utc_and_region_and_rows_count_sequestered_ones(
    miniature, tmp_path, path
):
    write_fmow_table(tmp_path)
    config = miniature("fmow", f"dataset.ood.val.path={path}")
    expected = {(f"rgb_img_{i}.png", row[1]) for i, row in enumerate(FMOW) if row[4] == path}
    assert expected
    assert set(names(read(config, "val"), config.dataset.classes)) == expected


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("rgb_metadata.csv", "dam", "Dam", ["'Dam'", "dataset.classes"]),
        ("rgb_metadata.csv", "2014-01-01T00:00:00Z", "01.02.2014", ["'01.02.2014'", "ISO 8601"]),
        ("rgb_metadata.csv", "timestamp", "time", ["must name", "timestamp"]),
        ("country_code_mapping.csv", "Asia", "asia", ["no country in Asia"]),
        ("country_code_mapping.csv", "alpha-3", "alpha3", ["must name alpha-3,region"]),
    ],
)
def test_metadata_that_is_not_as_published_is_named(miniature, tmp_path, file, old, new, words):
    write_fmow_table(tmp_path)
    changed = tmp_path / "fmow_v1.1" / file
    changed.write_text(changed.read_text().replace(old, new))
    config = miniature("fmow", "dataset.id.path=id_test/Asia")
    refused(config, "id", "dataset.id: ", file, *words)


def test_metadata_is_read_as_spreadsheets_save_it(miniature, tmp_path):
    write_fmow_table(tmp_path)
    config = miniature("fmow")
    before = datasets.listing(config).fingerprints()
    for name in ("rgb_metadata.csv", "country_code_mapping.csv"):
        file = tmp_path / "fmow_v1.1" / name
        head, *rows = file.read_text().splitlines()
        text = "\r\n".join([head, *(f"{row},surplus,more" for row in rows)])
        file.write_bytes(text.replace(",", ";").encode("utf-8-sig"))
    assert datasets.listing(config).fingerprints() == before


def test_absent_metadata_and_images_are_named(miniature, tmp_path):
    refused(miniature("fmow"), "train", "country_code_mapping.csv does not exist", "prepare.py dataset=fmow")
    write_fmow_table(tmp_path)
    (tmp_path / "fmow_v1.1/images/rgb_img_2.png").unlink()
    refused(miniature("fmow"), "train", "do not exist", "rgb_img_2.png")


# All of them


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("cifar10", ["dataset.id.path=cifar10.1/v5"], ["'cifar10.1/v5'", "cifar10.1/v6"]),
        ("cifar10", ["dataset.classes=[a, b]"], ["dataset.classes", "CIFAR-10's"]),
        ("living17", ["dataset.id.path=living17/source"], ["'living17/source'", "entity30"]),
        ("living17", ["dataset.id.path=entity30/source/val"], ["entity30", "living17/source/train"]),
        ("living17", ["dataset.train.path=living18/source/train"], ["living18"]),
        ("living17", ["dataset.classes=[a, b]"], ["dataset.classes", "superclasses"]),
        ("domainnet", ["dataset.id.path=sketch+photo/test"], ["photo", "clipart, painting, real, sketch"]),
        ("domainnet", ["dataset.id.path=sketch/val"], ["'sketch/val'"]),
        ("domainnet", ["dataset.classes=null"], ["dataset.classes: null"]),
        ("domainnet", ["dataset.annotations=null"], ["dataset.annotations: null"]),
        ("fmow", ["dataset.id.path=ood_val/Asia"], ["'ood_val/Asia'", "id_val"]),
        ("fmow", ["dataset.id.path=id_val"], ["'id_val'", "Americas"]),
        ("fmow", ["dataset.id.path=id_val/3"], ["'id_val/3'", "Americas"]),
        ("fmow", ["dataset.classes=null"], ["dataset.classes: null"]),
    ],
)
def test_a_path_or_classes_that_the_source_does_not_know_are_named(miniature, name, overrides, words):
    refused(miniature(name, *overrides), "id", "dataset.", *words)


def test_a_number_of_images_other_than_the_published_is_an_error(miniature, tmp_path):
    write_fmow_table(tmp_path)
    refused(miniature("fmow", "dataset.train.known_images=3"), "train", "2 images", "must be 3")
