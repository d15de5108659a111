"""Claims about image files as pixels: scaled or refused, never clipped; choices; why one is not read."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base

from daft.common.errors import ConfigError, UserError
from daft.config.operations import Interpolation, Resize
from daft.config.schema import Config
from daft.data import datasets, decoding
from daft.data.decoding import JPEG_START, Decoding, UnknownWhiteError, image_size, read_image
from daft.data.images import Streamed
from daft.data.labelled import Masks
from daft.data.transforms import NO_UNIFORMS, transform

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
"""Every grey of eight bits, in order."""

DEEP = RAMP * 256 + 17


def tiff(path: Path, pixels: np.ndarray, bits: int, **tags: int) -> Path:
    """A grey TIFF without compression, as the specification has it; tags: of sample format and of white."""
    data = pixels.tobytes()
    entries = {256: (3, pixels.shape[1]), 257: (3, pixels.shape[0]), 258: (3, bits), 259: (3, 1)}
    entries |= {262: (3, tags.get("photometric", 1)), 273: (4, 8), 277: (3, 1), 278: (3, pixels.shape[0])}
    entries |= {279: (4, len(data)), 339: (3, tags.get("sample_format", 1))}
    directory = struct.pack("<H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 0))
    return path


def pgm(path: Path, pixels: np.ndarray, white: int) -> Path:
    path.write_bytes(b"P5\n%d %d\n%d\n" % (*pixels.shape[::-1], white) + pixels.astype(">u2").tobytes())
    return path


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


# --- scaled, not clipped ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: saved(folder / "deep.png", DEEP),
        lambda folder: saved(folder / "deep.tif", DEEP),
        lambda folder: saved(folder / "deep.tif", DEEP, compression="tiff_lzw"),
        lambda folder: tiff(folder / "deep.tif", DEEP, 16),
        lambda folder: tiff(folder / "white_is_zero.tif", 65535 - DEEP, 16, photometric=0),
        lambda folder: pgm(folder / "deep.pgm", DEEP, 65535),
        lambda folder: pgm(folder / "twelve_bits.pgm", RAMP * 16 + 3, 4095),
        lambda folder: saved(folder / "deep.jp2", DEEP, irreversible=False),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_by_its_white(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    assert torch.equal(read_image(write(tmp_path))[0], torch.arange(256).view(16, 16).byte())


def test_twelve_bits_in_a_tiff_are_not_taken_for_sixteen(tmp_path: Path) -> None:
    levels = (RAMP * 16 + 3).ravel()
    pairs = zip(levels[::2].tolist(), levels[1::2].tolist(), strict=True)
    packed = bytes(byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    file = tiff(tmp_path / "twelve.tif", np.frombuffer(packed, np.uint8).reshape(16, 24), 12)
    content = bytearray(file.read_bytes())
    width = content.index(struct.pack("<HHI", 256, 3, 1)) + 8
    content[width : width + 4] = struct.pack("<I", 16)
    file.write_bytes(content)
    assert torch.equal(read_image(file)[0], torch.arange(256).view(16, 16).byte())


def png(path: Path, rows: list[bytes], width: int, bits: int, colour: int) -> Path:
    """A PNG of these rows of pixels, as the specification has it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    return path


def test_colours_of_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    deep = np.stack([DEEP, DEEP[::-1], DEEP.T, DEEP], -1)
    right = torch.from_numpy((deep[..., :3] >> 8).astype(np.uint8)).permute(2, 0, 1)
    rgba = png(tmp_path / "deep.png", [row.astype(">u2").tobytes() for row in deep], 16, 16, 6)
    assert torch.equal(read_image(rgba), right)
    ppm = tmp_path / "deep.ppm"
    ppm.write_bytes(b"P6\n16 16\n65535\n" + deep[..., :3].astype(">u2").tobytes())
    assert (read_image(ppm).int() - right.int()).abs().max() <= 1  # Pillow rounds to the nearest of 255 steps


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda folder: saved(folder / "x.tif", RAMP.astype(np.int32)), "signed 32-bit pixels of TIFF"),
        (lambda folder: tiff(folder / "x.tif", RAMP.astype(np.uint32), 32), "32-bit pixels of TIFF"),
        (lambda folder: tiff(folder / "x.tif", RAMP.astype(np.int16), 16, sample_format=2), "signed 16-bit"),
        (lambda folder: tiff(folder / "x.tif", RAMP.astype(np.int8), 8, sample_format=2), "signed 8-bit"),
        (lambda folder: saved(folder / "x.tif", RAMP.astype(np.float32)), "floating-point pixels of TIFF"),
    ],
)
def test_pixels_whose_white_nobody_knows_are_refused_by_name(
    tmp_path: Path, write: Callable[[Path], Path], named: str
) -> None:
    file = write(tmp_path)
    with pytest.raises(UnknownWhiteError, match=rf"^{file}: {named}.*8 bits, or as 16-bit PNG$"):
        read_image(file)
    assert Streamed([file]).problem(0).startswith(f"{file}: {named}")


def test_every_mode_of_file_becomes_rgb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
    alpha = rng.integers(256, size=(9, 7, 1), dtype=np.uint8)
    image = Image.fromarray(rgb)
    palette = image.quantize(16)
    files = {
        "L.png": image.convert("L"),
        "RGBA.png": Image.fromarray(np.concatenate([rgb, alpha], 2)),
        "P.gif": palette,
        "P.png": palette,
        "1.png": image.convert("1"),
        "LA.png": image.convert("L").convert("LA"),
        "CMYK.tif": image.convert("CMYK"),
        "CMYK.jpg": image.convert("CMYK"),
        "YCbCr.tif": image.convert("YCbCr"),
    }
    for name, made in files.items():
        options: dict[str, Any] = {"transparency": bytes(range(0, 256, 16))} if name == "P.png" else {}
        made.save(tmp_path / name, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", EncodingWarning)  # Pillow's own, where it maps a file
            read = read_image(tmp_path / name)
        assert read.dtype == torch.uint8
        assert read.shape == (3, 9, 7)
        with Image.open(tmp_path / name) as opened, warnings.catch_warnings(action="ignore"):
            assert opened.mode == name.split(".")[0]
            assert np.array_equal(read.permute(1, 2, 0), np.array(opened.convert("RGB")))
    # Independent of convert(): grey is repeated, alpha dropped, the palette looked up.
    assert torch.equal(read_image(tmp_path / "RGBA.png"), torch.from_numpy(rgb).permute(2, 0, 1))
    grey = torch.from_numpy(np.array(files["L.png"]))
    assert torch.equal(read_image(tmp_path / "L.png"), grey.expand(3, -1, -1))
    colours = palette.getpalette()
    assert colours is not None
    looked_up = np.array(colours).reshape(-1, 3)[np.array(palette)]
    for name in ("P.gif", "P.png"):
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), looked_up)


def test_lab_is_converted_by_its_meaning(tmp_path: Path) -> None:
    """CIE's L of a grey is its lightness: 53.4 of 100 for the grey of 127, within the rounding of 8 bits."""
    grey = Image.new("RGB", (4, 4), (127, 127, 127))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    made = ImageCms.applyTransform(grey, transform)
    assert made is not None
    assert abs(np.array(made)[0, 0, 0] / 2.55 - 53.4) < 0.5
    made.save(tmp_path / "lab.tif")
    assert (read_image(tmp_path / "lab.tif").int() - 127).abs().max() <= 1


def test_of_several_frames_the_first_is_read_and_this_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_framed", [])

    def save(name: str, count: int) -> None:
        first, *others = (Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")[:count])
        first.save(tmp_path / name, save_all=count > 1, append_images=others)

    for name, count in (("one.gif", 1), ("one.tif", 1), ("one.webp", 1), ("preview.mpo", 3)):
        save(name, count)  # telephones put previews into MPO
        read_image(tmp_path / name)
    assert capsys.readouterr().err == ""
    for name in ("a.gif", "b.tif", "c.webp", "d.png", "e.avif"):
        save(name, 3)
        red, *others = read_image(tmp_path / name).float().mean((1, 2))
        assert red > 240
        assert max(others) < 15
    said = capsys.readouterr().err
    assert said.count("of such files the first is the image") == 1
    assert f"{tmp_path / 'a.gif'}: has several frames" in said.replace("\n", "")


# --- choices ---------------------------------------------------------------------------------------


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # the first row is the right side: turned clockwise
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""By EXIF orientation, what the camera means by the pixels that it stores."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_ignored_or_applied_and_the_size_agrees(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    for name in ("x.png", "x.tif", "x.webp"):
        options: dict[str, Any] = {"lossless": True} if name == "x.webp" else {}
        Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
        for how in (Decoding(), Decoding(exif_orientation="apply")):
            read = read_image(tmp_path / name, how)
            assert image_size(tmp_path / name, how) == read.shape[1:]
            applied = how.exif_orientation == "apply" or name == "x.tif"  # Pillow turns TIFF itself
            right = UPRIGHT[orientation](stored) if applied else stored
            assert np.array_equal(read.permute(1, 2, 0), right)


def test_transparency_is_dropped_or_laid_on_a_ground(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
    alpha = rng.integers(256, size=(9, 7), dtype=np.uint8)
    image, grey = Image.fromarray(rgb), Image.fromarray(rgb).convert("L")
    indexed = image.quantize(16)
    colours, steps = indexed.getpalette(), bytes(range(0, 256, 16))
    assert colours is not None
    looked_up, indices = np.array(colours).reshape(-1, 3)[np.array(indexed)], np.array(indexed)
    key = tuple(int(value) for value in rgb[3, 2])
    files: list[tuple[str, Image.Image, Any, np.ndarray, np.ndarray]] = [
        ("RGBA.png", Image.merge("RGBA", [*image.split(), Image.fromarray(alpha)]), None, rgb, alpha),
        ("LA.png", Image.merge("LA", [grey, Image.fromarray(alpha)]), None, np.array(grey)[..., None], alpha),
        ("P.png", indexed, steps, looked_up, np.array([*steps])[indices]),
        ("P2.png", indexed, 3, looked_up, np.where(indices == 3, 0, 255)),
        ("RGB.png", image, key, rgb, np.where((rgb == key).all(-1), 0, 255)),
        ("opaque.png", image, None, rgb, np.full((9, 7), 255)),
    ]
    grounds: list[tuple[Literal["white", "black"], int]] = [("white", 255), ("black", 0)]
    for name, made, transparency, drawn, opacity in files:
        options = {} if transparency is None else {"transparency": transparency}
        made.save(tmp_path / name, **options)
        dropped = read_image(tmp_path / name).permute(1, 2, 0).numpy()
        assert np.array_equal(dropped, np.broadcast_to(drawn, dropped.shape))
        for ground, level in grounds:
            share = opacity[..., None] / 255
            laid = read_image(tmp_path / name, Decoding(transparency=ground)).permute(1, 2, 0).numpy()
            assert np.abs(laid - (share * drawn + (1 - share) * level)).max() <= 1, (name, ground)


def test_a_folder_is_read_as_its_dataset_says_whatever_else_was_kept_of_it(
    tmp_path: Path, configure: Callable[..., Config], folders: list[str]
) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    for seed, split in enumerate(("train", "val")):
        for n, label in enumerate(("cat", "cat", "dog", "dog")):
            noise = np.random.default_rng([seed, n]).integers(256, size=(20, 30, 4), dtype=np.uint8)
            file = tmp_path / "data" / split / label / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(file, exif=exif)
    files = sorted((tmp_path / "data/train").rglob("*.png"))
    fixed = ["dataset=folder", f"dataset.root={tmp_path / 'data'}", "dataset.train_transform=[]", *folders]
    fixed += ["dataset.eval_transform=[]", "compute.device=cpu", "compute.workers=0"]
    config, identities = configure(*fixed), []
    for how in (Decoding(), Decoding("apply"), Decoding("ignore", "white"), Decoding("apply", "black")):
        for gib, side in ((1, None), (0, None), (0, 16)):
            chosen = {"exif_orientation": how.exif_orientation, "transparency": how.transparency}
            cfg = replace(config.dataset, cache_side=side, **chosen)
            changed = replace(config, dataset=cfg, compute=replace(config.compute, resident_gib=gib))
            loaded = datasets.load(changed, datasets.listing(changed), torch.device("cpu")).train
            batch = torch.cat([images for images, _ in loaded.epoch()])
            if side is None:
                images = torch.stack([read_image(file, how) for file in files])
                assert torch.equal(batch[loaded.order().argsort()], images)
            assert batch.shape[2:] == loaded.shape()[1:]
            assert (batch.shape[2] > batch.shape[3]) == (how.exif_orientation == "apply")
            identities.append(str(loaded.identity))
    assert len({*identities}) == 4 * 2  # resident and streamed are the same
    assert len([*(tmp_path / "cache/pixels").glob("*.pixels")]) == 4 * 2
    assert len([*(tmp_path / "cache/verified").glob("*.json")]) == 4 * 2


def test_masks_have_no_orientation(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.exif_orientation: apply, but masks"):
        configure("dataset=shapes_masks", "dataset.exif_orientation=apply")


# --- what is not read ------------------------------------------------------------------------------


def test_a_larger_image_than_allowed_is_refused_with_the_key_and_others_do_not_warn(tmp_path: Path) -> None:
    file = saved(tmp_path / "scan.png", np.zeros((120, 100), np.uint8))
    for limit in (0.0119, 0.005):  # Pillow's own refusal is at twice as many
        with (
            pytest.raises(
                UserError, match=r"/scan\.png: 0\.0 megapixels, more than dataset\.max_megapixels=0\.0"
            ),
            warnings.catch_warnings(action="ignore"),
        ):
            read_image(file, Decoding(max_megapixels=limit))
    with warnings.catch_warnings(action="error"):
        assert read_image(file, Decoding(max_megapixels=0.012)).shape == (3, 120, 100)
        assert read_image(file).shape == (3, 120, 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_larger_image_than_allowed_is_refused_or_where_such_are_skipped_left_out_with_the_reason(
    tmp_path: Path,
    configure: Callable[..., Config],
    folders: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = [tmp_path / "d" / split / label for split in ("train", "val") for label in ("cat", "dog")]
    for n, folder in enumerate(2 * places):
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(n).integers(256, size=(90, 100, 3), dtype=np.uint8)
        saved(folder / f"{n}.png", noise)
    saved(tmp_path / "d/train/cat/big.png", np.zeros((91, 100, 3), np.uint8))
    settings = ["dataset=folder", f"dataset.root={tmp_path / 'd'}", *folders, "compute.device=cpu"]
    settings += ["dataset.train_transform=[{random_crop: 8}]", "dataset.eval_transform=[{center_crop: 8}]"]
    config = configure(*settings, "compute.workers=0", "compute.unreadable=skip")
    for gib, side in ((1, None), (0, None), (0, 32)):

        def load(limit: float, unreadable: Any, gib: float = gib, side: int | None = side) -> datasets.Data:
            cfg = replace(config.dataset, cache_side=side, max_megapixels=limit)
            compute = replace(config.compute, resident_gib=gib, unreadable=unreadable)
            changed = replace(config, dataset=cfg, compute=compute)
            return datasets.load(changed, datasets.listing(changed), torch.device("cpu"))

        for _ in range(2):  # whatever is kept of a look before, at this limit or another
            with pytest.raises(UserError, match=r"/d/train/cat/big\.png: 0\.0 megapixels, .*max_megapixels"):
                load(0.009, "error")
            assert len(load(0.0091, "error").train) == 5
            skipped = load(0.009, "skip")
            assert (len(skipped.train), skipped.unreadable) == (4, {"train": 1})
            assert len(load(0.0091, "skip").train) == 5
        told = capfd.readouterr().err
        assert gib != 1 or re.search(r"train: 1 of 5 .* left out: .*/big\.png: 0\.0 megapixels, more", told)


def heic() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (bytes(2000), "nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"  <HTML>", "a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "quota"}', "JSON"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04" + bytes(50), "a ZIP archive"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
        (b"\xff\x0a" + bytes(50), "pip install pillow-jxl-plugin"),
        (heic(), "pip install pillow-heif"),
        (b"just text", "no image format that Pillow knows"),
    ],
)
def test_a_file_that_is_no_image_is_told_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    told = Streamed([tmp_path / "x.jpg"]).problem(0)
    assert told.startswith(f"{tmp_path / 'x.jpg'}: ")
    assert reason in told


def test_a_cut_file_and_a_damaged_mask_are_told_with_the_file_that_is_to_blame(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(30, 30, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png", "cut.tif", "cut.webp"):
        file = saved(tmp_path / name, noise)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert "copy it again" in Streamed([file]).problem(0) or name == "cut.webp"
    whole = saved(tmp_path / "whole.png", noise)
    (tmp_path / "mask.png").write_bytes(b"")
    masks = Masks([tmp_path / "mask.png"], torch.zeros(256, dtype=torch.int16))
    assert Streamed([whole], masks).problem(0) == f"{tmp_path / 'mask.png'}: empty (0 bytes)"
    assert Streamed([whole]).problem(0).endswith("can be read now; try again")


def test_of_many_unreadable_files_the_first_dozen_are_explained(
    tmp_path: Path, configure: Callable[..., Config], folders: list[str]
) -> None:
    for n in range(15):
        file = tmp_path / "d/train" / ("cat", "dog")[n % 2] / f"{n:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"<html>" * n)
    for n, label in enumerate(("cat", "dog")):
        (tmp_path / "d/val" / label).mkdir(parents=True)
        saved(tmp_path / "d/val" / label / "x.png", np.full((300, 300), n, np.uint8))
    config = configure("dataset=folder", f"dataset.root={tmp_path / 'd'}", "compute.workers=0", *folders)
    with pytest.raises(UserError) as caught:
        datasets.load(config, datasets.listing(config), torch.device("cpu"))
    first, *listed, rest = str(caught.value).splitlines()
    assert first.startswith("15 image(s) cannot be read")
    assert len(listed) == 12
    assert all(": empty (0 bytes)" in line or ": a web page" in line for line in listed)
    assert rest.strip() == "and 3 more"


# --- masks -----------------------------------------------------------------------------------------


def test_a_mask_is_bytes_or_refused_never_something_near(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    masks = lambda file: Masks([file], torch.arange(256).short())  # noqa: E731
    right = torch.from_numpy(values)
    for name, image in (("L.png", Image.fromarray(values)), ("P.png", Image.fromarray(values, "P"))):
        if image.mode == "P":
            image.putpalette(np.random.default_rng(0).integers(256, size=768).astype(np.uint8).tobytes())
        image.save(tmp_path / name)
        assert torch.equal(masks(tmp_path / name).read(0), right)
    nibbles = [bytes([row[0] << 4 | row[1], row[2] << 4 | row[3]]) for row in values.tolist()]
    refusals = [
        (png(tmp_path / "four_bits.png", nibbles, 4, 4, 0), r"one byte a pixel, not L;4"),
        (saved(tmp_path / "deep.png", values.astype(np.uint16)), "not the mode I;16"),
        (saved(tmp_path / "rgb.png", np.stack([values] * 3, -1)), "not the mode RGB"),
        (saved(tmp_path / "lossy.jpg", values), "JPEG does not keep the values"),
        (tiff(tmp_path / "white_is_zero.tif", values, 8, photometric=0), "not L;I"),
    ]
    for file, named in refusals:
        with pytest.raises(UserError, match=rf"{file.name}: .*{named}"):
            masks(file).read(0)


# --- the fast decoder of JPEG, and its scaled decoding -----------------------------------------------


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Blobs with grain, which have about the spectrum of a photo."""
    generator = np.random.default_rng(seed)
    blobs = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def by_pillow(path: Path) -> np.ndarray | str:
    """What Pillow alone makes of a file: its pixels, or its error."""
    try:
        with Image.open(path) as file:
            return np.array(file.convert("RGB"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_jpegs_have_pillows_pixels_or_its_error_whole_or_damaged(tmp_path: Path) -> None:
    generator, file, outcomes = np.random.default_rng(0), tmp_path / "x.jpg", []
    for i in range(160):
        width, height = (int(side) for side in generator.integers(16, 90, 2))
        options = {
            "subsampling": i % 3,
            "progressive": i % 2 == 1,
            "quality": int(generator.integers(5, 100)),
        }
        image = Image.fromarray(photo(width, height, i))
        mode = {4: "L", 9: "CMYK"}.get(i % 10, "RGB")
        image.convert(mode).save(file, **options, keep_rgb=i % 12 == 6)
        data = bytearray(file.read_bytes())
        if i % 4 == 1:
            del data[int(generator.integers(2, len(data))) :]
        elif i % 4 == 2:
            data[int(generator.integers(2, len(data)))] ^= int(generator.integers(1, 256))
        elif i % 4 == 3:
            data += generator.bytes(20)
        file.write_bytes(data)
        theirs = by_pillow(file)
        try:
            ours = read_image(file).permute(1, 2, 0).numpy()
        except Exception as error:
            ours = f"{type(error).__name__}: {error}"
        assert type(ours) is type(theirs), i
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs, i
        outcomes.append(isinstance(ours, str))
    assert 0 < sum(outcomes) < len(outcomes)


LOSSLESS = bytes.fromhex(
    "ffd8ffee000e41646f626500640000000000ffc30011080008000803521100471100421100ffc4001600010101000000000000"
    "00000000000000000705ffda000c03520047004200010000a461cc4000000000000000000000000000000000000000000000"
    "01ffd9"
)
"""Eight rows of eight pixels of (200, 100, 50), by libjpeg-turbo 3."""


def test_a_jpeg_in_colour_takes_the_fast_way_and_the_others_pillows(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    image = Image.fromarray(photo(40, 30))
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "rgb.jpg", keep_rgb=True)
    image.convert("L").save(tmp_path / "grey.jpg")
    image.save(tmp_path / "x.png")
    (tmp_path / "lossless.jpg").write_bytes(LOSSLESS)
    for name, how, fast in (
        ("turned.jpg", Decoding(), True),
        ("turned.jpg", Decoding(exif_orientation="apply"), False),
        ("turned.jpg", Decoding(max_megapixels=1e-6 * 40 * 30), True),
        ("turned.jpg", Decoding(max_megapixels=1e-6 * (40 * 30 - 1)), False),
        ("rgb.jpg", Decoding(), True),
        ("grey.jpg", Decoding(), False),
        ("x.png", Decoding(), False),
        ("lossless.jpg", Decoding(), False),
    ):
        assert (decoding._fast_jpeg(tmp_path / name, how) is not None) == fast, (name, how)
    assert read_image(tmp_path / "turned.jpg", Decoding("apply")).shape == (3, 40, 30)


SUBSAMPLING = b"\x01\x22\x00"
"""Of the first component in a frame of Pillow's: its number, factors and table."""


@pytest.mark.parametrize(
    ("old", "new", "is_read"),
    [
        (SUBSAMPLING, b"\x01\x14\x00", True),  # 4:4:1, of which simplejpeg has no name
        (JPEG_START, JPEG_START + b"\xe0\x00\x08JFIF\x00\x01\xff", False),
        (JPEG_START, JPEG_START + b"\xee\x00\x08Adobe\x00\xff", False),
        (JPEG_START, JPEG_START + b"\xe2\x00\x0fICC_PROFILE\x00\x01\xff", False),
        (JPEG_START, JPEG_START + b"\xe0\x00\x09JFIF\x00\x01\x01\xff", True),
        (JPEG_START, JPEG_START + b"\xff", True),  # a byte that fills
    ],
)
def test_an_unusual_jpeg_is_read_or_refused_as_by_pillow(
    old: bytes, new: bytes, is_read: bool, tmp_path: Path
) -> None:
    file = saved(tmp_path / "x.jpg", photo(40, 30), subsampling=2)
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    theirs = by_pillow(file)
    assert isinstance(theirs, np.ndarray) == is_read
    if is_read:
        assert np.array_equal(read_image(file).permute(1, 2, 0).numpy(), theirs)
    else:
        with pytest.raises(UnidentifiedImageError):
            read_image(file)


def test_a_decoder_with_other_pixels_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "x.jpg", photo(40, 30))
    decode = decoding.simplejpeg.decode_jpeg
    off_by_one = lambda data, **options: decode(data, **options) ^ 1  # noqa: E731
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", off_by_one)
    decoding._fast_is_equal.cache_clear()
    try:
        assert not decoding._fast_is_equal()
        assert np.array_equal(read_image(file).permute(1, 2, 0), by_pillow(file))
    finally:
        decoding._fast_is_equal.cache_clear()


@pytest.mark.parametrize(("gap", "mean", "most"), [(1, 3, 24), (2, 1, 8)])
def test_scaled_decoding_keeps_the_result_of_a_resize_within_its_tolerance(
    tmp_path: Path, gap: float, mean: float, most: int, configure: Callable[..., Config]
) -> None:
    """In levels of 255, of all results and of the 99.9th percentile; as conf/README.md states."""
    apart: list[torch.Tensor] = []
    filters: list[Interpolation] = ["bilinear", "bicubic"]
    for seed, (side, interpolation) in enumerate(product((48, 64, 100, 128, 180), filters)):
        file = saved(tmp_path / "x.jpg", photo(501, 403, seed), quality=90)
        op = Resize(size=side, interpolation=interpolation)
        cfg = replace(configure("dataset=folder", "dataset.root=x", "dataset.train_transform=[]").dataset,
                      scaled_decoding=gap, eval_transform=[op])  # fmt: skip
        how = Decoding.of(cfg, [op])
        small, full = read_image(file, how), read_image(file)
        assert image_size(file, how) == small.shape[1:]
        assert min(small.shape[1:]) >= gap * side or small.shape == full.shape
        both = [transform(image[None], [op], NO_UNIFORMS).int() for image in (small, full)]
        width = min(image.shape[-1] for image in both)  # the longer side is rounded anew
        apart.append((both[0][..., :width] - both[1][..., :width]).abs().flatten().float())
        by_draft = Image.open(file)
        fraction = -(-full.shape[1] // small.shape[1])
        by_draft.draft(None, (501 // fraction, 403 // fraction))
        assert np.array_equal(small.permute(1, 2, 0), np.asarray(by_draft))
    levels = torch.cat(apart)
    assert levels.max() > 0
    assert levels.mean() <= mean
    assert levels.sort().values[-(len(levels) // 1000)] <= most


def test_scaled_decoding_is_off_unless_a_transform_begins_with_a_resize(
    configure: Callable[..., Config],
) -> None:
    fixed = ("dataset=folder", "dataset.root=x")
    assert Decoding.of(configure(*fixed).dataset, [Resize(size=8)]) == Decoding()
    cfg = configure(*fixed, "dataset.scaled_decoding=2").dataset  # its evaluation begins with a resize
    assert Decoding.of(cfg, cfg.train_transform) == Decoding()
    assert Decoding.of(cfg, cfg.eval_transform) == Decoding(least_side=512)
    for wrong in ("dataset.eval_transform=[]", "dataset.cache_side=256"):
        with pytest.raises(ConfigError, match=r"dataset\.scaled_decoding: 2"):
            configure(*fixed, "dataset.scaled_decoding=2", wrong)
    with pytest.raises(ConfigError, match=r"dataset\.scaled_decoding: 2, but masks"):
        configure(
            "dataset=shapes_masks", "dataset.scaled_decoding=2", "dataset.eval_transform=[{resize: 48}]"
        )
