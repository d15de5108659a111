"""The paper's datasets in miniature, byte for byte in the formats in which they are published.

Every function writes below `root` and returns what a reader must find there, where that is not plain to see.
"""

import csv
import pickle
import struct
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
from PIL import Image

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

CIFAR_CORRUPTIONS = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur"),
    *("zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate"),
    *("jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate"),
]

STL_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

FMOW_COLUMNS = (
    *("split", "img_filename", "img_path", "spatial_reference", "epsg", "category", "visible"),
    *("img_width", "img_height", "country_code", "cloud_cover", "timestamp", "lat", "lon"),
)

FMOW_COUNTRIES = {
    "CHN": "Asia",
    "FRA": "Europe",
    "KEN": "Africa",
    "NAM": "Africa",
    "USA": "Americas",
    "BRA": "Americas",
    "AUS": "Oceania",
    "ATA": "",
}


def noise(seed: int, *shape: int) -> np.ndarray:
    """uint8 of this shape."""
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def picture(file: Path, seed: int, width: int = 40, height: int = 32) -> None:
    """An image file of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, height, width, 3)).save(file, "PNG" if file.suffix == ".png" else "JPEG")


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 did: in bytes."""

    def save_bytes(self, value: str | bytes) -> None:
        encoded = value.encode("latin1") if isinstance(value, str) else value
        pickler: Any = self  # the standard library's stubs leave out the pickler that is written in Python
        pickler.write(pickle.BINSTRING + struct.pack("<i", len(encoded)) + encoded)
        pickler.memoize(value)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, str: save_bytes, bytes: save_bytes}


def python2_pickle(value: Any) -> bytes:
    """Protocol 2, by Python 2 and a NumPy of its time."""
    written = BytesIO()
    Python2Pickler(written, protocol=2).dump(value)
    return written.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10(root: Path, per_class: int = 1) -> None:
    """Five training batches and a test batch, each with `per_class` images of each class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), per_class)).tolist()
        batch = {
            "batch_label": f"batch {seed}",
            "labels": labels,
            "data": noise(seed, len(labels), 3072),
            "filenames": [f"image_{i}.png" for i in range(len(labels))],
        }
        (folder / name).write_bytes(python2_pickle(batch))
    meta = {"num_cases_per_batch": 10, "label_names": CIFAR_CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))


def cifar10_1(root: Path, version: str = "v6", images: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N], as returned."""
    root.mkdir(parents=True, exist_ok=True)
    pixels, labels = noise(7, images, 32, 32, 3), (np.arange(images) * 3 % 10).astype(np.int32)
    np.save(root / f"cifar10.1_{version}_data.npy", pixels)
    np.save(root / f"cifar10.1_{version}_labels.npy", labels)
    return pixels, labels


def cifar10_c(root: Path, images: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """All 19 corruptions; brightness uint8 [5 N, 32, 32, 3] and labels uint8 [5 N] as returned."""
    folder = root / "CIFAR-10-C"
    folder.mkdir(parents=True)
    labels = np.tile(np.arange(images, dtype=np.uint8) * 3 % 10, 5)
    np.save(folder / "labels.npy", labels)
    for seed, name in enumerate(CIFAR_CORRUPTIONS):
        np.save(folder / f"{name}.npy", noise(100 + seed, len(labels), 32, 32, 3))
    return np.load(folder / "brightness.npy"), labels


def stl10(root: Path, images: int = 20) -> None:
    """Test and training set; pixels column by column, labels counted from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, part in enumerate(["train", "test"]):
        pixels = noise(seed, images, 3, 96, 96)
        (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        labels = np.random.default_rng(seed).permutation(np.arange(images) % 10) + 1
        (folder / f"{part}_y.bin").write_bytes(labels.astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(STL_CLASSES) + "\n")


def imagenet(
    root: Path,
    source: Iterable[str],
    target: Iterable[str],
    layout: str = "sorted",
    train_images: int = 1,
    val_images: int = 1,
) -> None:
    """Training images of the wnids `source`, validation images of both.

    layout: `sorted` (val in folders), or val flat with the labels of `kaggle` (and its folders), of `synsets`
    or of the `devkit`. Whatever the layout, an image is the same and has the same name.
    """
    source, target = list(source), list(target)
    base = root / "ILSVRC/Data/CLS-LOC" if layout == "kaggle" else root
    for i, wnid in enumerate(source):
        for j in range(train_images):
            picture(base / "train" / wnid / f"{wnid}_{j}.JPEG", 1000 + i * train_images + j)
    wnids = list(np.random.default_rng(0).permutation((source + target) * val_images))
    for number, wnid in enumerate(wnids, start=1):
        folder = base / "val" / wnid if layout == "sorted" else base / "val"
        picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    if layout == "kaggle":
        with open(root / "LOC_val_solution.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["ImageId", "PredictionString"])
            for number in np.random.default_rng(1).permutation(len(wnids)):
                wnid = wnids[number]
                rows.writerow([f"ILSVRC2012_val_{number + 1:08d}", f"{wnid} 1 2 30 31 {wnid} 3 4 20 21 "])
    elif layout == "synsets":
        file = root / "imagenet_2012_validation_synset_labels.txt"
        file.write_text("".join(f"{wnid}\n" for wnid in wnids))
    elif layout == "devkit":
        devkit(root / "ILSVRC2012_devkit_t12/data", wnids)


def devkit(folder: Path, wnids: list[str]) -> None:
    """The ground truth of validation images with these wnids: numbers whose order is not that of the wnids.

    meta.mat is an array of structs as in the devkit of ILSVRC 2012, inner nodes of WordNet (which have
    children, and numbers after the leaves') included.
    """
    folder.mkdir(parents=True)
    leaves = sorted(set(wnids), reverse=True)
    kind = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    synsets = np.empty((len(leaves) + 1, 1), dtype=kind)
    for i, wnid in enumerate([*leaves, "n00001740"]):
        is_leaf = i < len(leaves)
        children = np.empty((1, 0)) if is_leaf else np.array([[1.0, 2.0]])
        synsets[i, 0] = (float(i + 1), wnid, "a, b", "c", float(children.size), children, 0.0, 1300.0)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})
    numbers = {wnid: i + 1 for i, wnid in enumerate(leaves)}
    text = "".join(f"{numbers[wnid]}\n" for wnid in wnids)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


def domainnet(root: Path, classes: list[str], train_images: int = 1, test_images: int = 1) -> None:
    """All four domains and the eight lists, groups of classes alphabetical, lines ended by CRLF."""
    lists = root / "SENTRY_splits"
    lists.mkdir(parents=True)
    for d, domain in enumerate(["clipart", "painting", "real", "sketch"]):
        for part, numbers in {
            "train": range(train_images),
            "test": range(train_images, train_images + test_images),
        }.items():
            lines = []
            for c, label in enumerate(sorted(classes)):
                for n in numbers:
                    path = f"{domain}/{label}/{domain}_{c:03}_{n + 1:06}.jpg"
                    picture(root / path, 1000 * d + 10 * c + n)
                    lines.append(f"{path} {classes.index(label)}\r\n")
            (lists / f"{domain}_{part}_mini.txt").write_bytes("".join(lines).encode())


def fmow(root: Path, rows: list[tuple[str, str, str, str]], side: int = 224) -> None:
    """The metadata of WILDS 1.1 with a row per (split, category, country, timestamp), and its images.

    Sequestered rows (split `seq`) have no image.
    """
    folder = root / "fmow_v1.1"
    folder.mkdir(parents=True)
    (folder / "RELEASE_v1.1.txt").touch()
    with open(folder / "rgb_metadata.csv", "w", newline="") as file:
        written = csv.DictWriter(file, FMOW_COLUMNS, restval="0")
        written.writeheader()
        for split, category, country, timestamp in rows:
            row = {"split": split, "category": category, "country_code": country, "timestamp": timestamp}
            written.writerow(row)
    with open(folder / "country_code_mapping.csv", "w", newline="") as file:
        written = csv.writer(file)
        written.writerow(["name", "alpha-2", "alpha-3", "region"])
        written.writerows([code.title(), code[:2], code, region] for code, region in FMOW_COUNTRIES.items())
    for number, (split, *_) in enumerate(rows):
        if split != "seq":
            picture(folder / f"images/rgb_img_{number}.png", number, side, side)


def _contoured(seed: int, height: int, width: int, classes: int) -> np.ndarray:
    """uint8 [height, width]: blocks of classes, 255 between them."""
    blocks = np.random.default_rng(seed).integers(classes, size=(3, 3), dtype=np.uint8)
    values = blocks.repeat(-(-height // 3), 0).repeat(-(-width // 3), 1)[:height, :width].copy()
    values[height // 3] = 255
    return values


def voc(root: Path, train: list[str], extra: list[str], val: list[str], side: int = 36) -> None:
    """VOC 2012 with masks of `train` and `val`, and SegmentationClassAug and SBD of `train` and `extra`.

    Images are `side` high and a third wider, every second one upright. trainaug is `extra`, then `train`;
    SBD's masks have no 255.
    """
    folder = root / "VOCdevkit/VOC2012"
    for name in ("SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    cls = root / "benchmark_RELEASE/dataset/cls"
    cls.mkdir(parents=True)
    for seed, name in enumerate([*train, *extra, *val]):
        height, width = (side, side * 4 // 3)[:: -1 if seed % 2 else 1]
        picture(folder / f"JPEGImages/{name}.jpg", seed, width, height)
        mask = _contoured(seed, height, width, 21)
        if name not in extra:
            palette = Image.fromarray(mask, "P")
            palette.putpalette(noise(0, 768).tobytes())
            palette.save(folder / f"SegmentationClass/{name}.png")
        if name not in val:
            Image.fromarray(mask).save(folder / f"SegmentationClassAug/{name}.png")
            struct_ = np.empty((1, 1), dtype=[("Segmentation", "O"), ("Boundaries", "O")])
            struct_[0, 0] = (np.where(mask == 255, 0, mask), np.zeros(0))
            scipy.io.savemat(cls / f"{name}.mat", {"GTcls": struct_})
    for part, names in {"train": train, "val": val, "trainaug": extra + train}.items():
        (folder / f"ImageSets/Segmentation/{part}.txt").write_text("".join(f"{name}\n" for name in names))


def cityscapes(root: Path, per_city: int = 2, height: int = 32, width: int = 64) -> None:
    """Two cities to train on and one for evaluation, in published folders; beside labelIds other files."""
    parts = {"train": ("aachen", "ulm"), "val": ("lindau",), "test": ("berlin",)}
    for p, (part, cities) in enumerate(parts.items()):
        for c, city in enumerate(cities):
            for n in range(per_city):
                stem, seed = f"{city}_{c:06}_{n:06}", 100 * p + 10 * c + n
                picture(root / f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png", seed, width, height)
                folder = root / f"gtFine/{part}/{city}"
                folder.mkdir(parents=True, exist_ok=True)
                ids = np.arange(height * width, dtype=np.int64).reshape(height, width) % 35 - 1  # -1 ... 33
                Image.fromarray(ids.astype(np.uint8)).save(folder / f"{stem}_gtFine_labelIds.png")
                Image.fromarray(noise(seed, height, width, 4)).save(folder / f"{stem}_gtFine_color.png")
                (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
