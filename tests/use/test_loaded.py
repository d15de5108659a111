"""Claims about runs as objects: they need their folder alone, and say what the run's evaluation said."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import daft
from daft import experiment
from daft.common.errors import UserError
from daft.data import datasets
from daft.data.loader import batch_boundaries
from daft.experiment import RunResult
from daft.runs import records
from daft.runs.reopened import open_run
from daft.training import evaluation
from daft.use.inputs import InputTransform
from daft.use.loaded import LoadedRun, PredictedMasks, Predictions, batched
from tests.conftest import FAST, ROOT
from tests.helpers.waiting import HANG_SECONDS
from tests.use.conftest import CLASSES, draw

CPU = torch.device("cpu")

ALONE = """
import socket, sys
for name in ("hydra", "omegaconf", "wandb", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
def refused(*_): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refused
import daft
from PIL import Image
run = daft.load_run(sys.argv[1])
print(run.predict([sys.argv[2], Image.open(sys.argv[2])]).logits.tolist())
"""


def files_of(split: Path) -> list[Path]:
    """The images of a split in the run's order: by class, then path."""
    return [file for name in CLASSES for file in sorted((split / name).iterdir())]


def test_a_copied_folder_predicts_elsewhere_without_data_weights_hydra_or_network(
    original: RunResult, copied: Path, images: Path, tmp_path: Path
):
    file = next((images / "val" / "star").iterdir())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image = shutil.copy(file, elsewhere)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DAFT_", "HF_"))}
    record = json.loads((copied / records.RECORD).read_text())
    for section, key in (("dataset", "root"), ("backbone", "checkpoint")):
        record["config"][section][key] = "/nowhere"
    (copied / records.RECORD).write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(copied), image],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        cwd=elsewhere,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = daft.load_run(original.directory).predict([file, file])
    assert isinstance(here, Predictions)
    assert json.loads(done.stdout) == here.logits.tolist()
    assert sorted(path.name for path in elsewhere.iterdir()) == [file.name]


def test_it_gives_the_logits_of_the_runs_own_evaluation_bit_for_bit(
    original: RunResult, copied: Path, images: Path
):
    run, opened = daft.load_run(copied), open_run(original.directory)
    for split, folder in (("id", "val"), ("art", "art")):
        loader = opened.images(CPU).evaluation[split]
        own = opened.network(CPU)
        with torch.no_grad():
            batches = [
                evaluation.logits(own.backbone, own.head, x, opened.autocast(CPU)) for x, _ in loader.epoch()
            ]
        found = run.predict(files_of(images / folder))
        assert isinstance(found, Predictions)
        assert torch.equal(found.logits, torch.cat(batches))
        correct = (found.indices == loader.labels).sum().item()
        assert 100 * correct / len(found) == run.record["metrics"][f"{split}/accuracy"]
        assert found.labels == [CLASSES[index] for index in found.logits.argmax(1)]
        assert torch.allclose(found.probabilities.sum(1), torch.ones(len(found)))


def test_its_transform_gives_the_pixels_of_the_runs_own_evaluation(
    original: RunResult, copied: Path, images: Path
):
    transform = daft.load_run(copied).transform
    loader = open_run(original.directory).images(CPU).evaluation["id"]
    own = torch.cat([pixels for pixels, _ in loader.epoch()])
    files = files_of(images / "val")
    assert {Image.open(file).mode for file in files} == {"RGB", "L", "RGBA", "P"}
    assert torch.equal(torch.stack([transform(Image.open(file)) for file in files]), own)


def test_its_model_takes_bytes_and_floats_and_normalises_itself(copied: Path, images: Path):
    run = daft.load_run(copied)
    pixels = torch.stack([run.transform(Image.open(file)) for file in files_of(images / "val")[:4]])
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (4, 3, 32, 32))
    assert not run.model.training
    assert run.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(run.model(pixels), run.model(pixels / 255))
        mean, std = (torch.tensor(run.record["config"]["backbone"][k]).view(3, 1, 1) for k in ("mean", "std"))
        normalised = (pixels / 255 - mean) / std
        assert torch.equal(run.model(pixels), run.model.head(run.model.backbone.network(normalised)))


@pytest.mark.parametrize("cache_side", [None, 36])
@pytest.mark.parametrize("gib", [0, 1], ids=["streamed", "resident"])
def test_pixels_are_those_of_the_loader_whatever_holds_them(
    original: RunResult, images: Path, tmp_path: Path, cache_side: int | None, gib: int
):
    config = open_run(original.directory, {"cache": str(tmp_path)}).config
    dataset = replace(config.dataset, cache_side=cache_side)
    config = replace(config, dataset=dataset, compute=replace(config.compute, resident_gib=gib, workers=0))
    loader = datasets.load(config, datasets.listing(config), CPU).evaluation["id"]
    own = torch.cat([pixels for pixels, _ in loader.epoch()])
    transform = InputTransform.of(config)
    assert torch.equal(torch.stack([transform(Image.open(file)) for file in files_of(images / "val")]), own)


def test_images_that_are_resized_on_the_device_give_the_same_logits(
    copied: Path, images: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a run on a GPU does with small ones that it holds there; on the CPU the pixels are the same."""
    run = daft.load_run(copied)
    files = files_of(images / "val")
    expected = run.predict(files)
    assert run.transform.enlarges((3, 24, 30))  # to 32 x 32
    assert not run.transform.enlarges((3, 40, 48))
    monkeypatch.setattr(LoadedRun, "_resizes_on_device", lambda *_: True)
    found = run.predict(files)
    assert isinstance(expected, Predictions)
    assert isinstance(found, Predictions)
    # images of several sizes are no longer in one batch
    assert torch.allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-6)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("side", [24, 64], ids=["shrunk", "enlarged, on the device"])
def test_images_of_one_size_give_the_logits_of_the_runs_own_evaluation(
    configure, folders: list[str], tmp_path: Path, device: str, side: int
):
    root = tmp_path / "images"
    for seed, split in enumerate(("train", "val")):
        draw(root / split, "sketch", 110, seed)
        for file in [*(root / split).rglob("*.*")]:
            image = Image.open(file).convert("RGB").resize((40, 40))
            file.unlink()
            image.save(file.with_suffix(".png"))
    done = experiment.run(
        configure(
            *("dataset=folder", f"dataset.root={root}", *FAST, f"compute.device={device}", *folders),
            *("training.epochs=1", f"dataset.train_transform=[{{resize: {side}}}, flip]"),
            *(
                f"dataset.eval_transform=[{{resize: {side}}}]",
                "dataset.train.seed=0",
                "training.batch_size=16",
            ),
        )
    )
    run, opened = daft.load_run(done.directory, device), open_run(done.directory)
    loader, own = opened.images(run.device).evaluation["id"], opened.network(run.device)
    cast = opened.autocast(run.device)
    with torch.no_grad():
        expected = torch.cat([evaluation.logits(own.backbone, own.head, x, cast) for x, _ in loader.epoch()])
    found = run.predict(files_of(root / "val"))
    assert isinstance(found, Predictions)
    assert torch.equal(found.logits, expected.cpu())


def test_one_image_may_be_given_several_times(copied: Path, images: Path):
    run, image = daft.load_run(copied), Image.open(files_of(images / "val")[0])
    found = run.predict([image] * 20)
    assert isinstance(found, Predictions)
    assert torch.equal(found.indices, found.indices[:1].expand(20))


def test_a_segmentation_gives_the_masks_that_it_was_judged_by(segmentation: RunResult, tmp_path: Path):
    run, loader = (
        daft.load_run(segmentation.directory),
        open_run(segmentation.directory).images(CPU).evaluation["id"],
    )
    batches = [*loader.epoch()]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for x, _ in batches for image in x]
    found = run.predict(pictures)
    assert isinstance(found, PredictedMasks)
    truth = torch.cat([masks for _, masks in batches]).long()
    confusion = np.zeros((len(run.classes),) * 2)
    known = truth != 255
    np.add.at(confusion, (truth[known].numpy(), torch.stack(found.masks)[known].numpy()), 1)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    ious = confusion.diagonal()[union > 0] / union[union > 0]
    # torchmetrics divides in float32
    assert 100 * ious.mean() == pytest.approx(run.record["metrics"]["id/miou"], rel=1e-6)


def test_masks_have_the_sizes_of_their_images(segmentation: RunResult):
    sizes = [(32, 32), (50, 33), (50, 33), (17, 64), (32, 32)]
    found = daft.load_run(segmentation.directory).predict([Image.new("RGB", size) for size in sizes])
    assert isinstance(found, PredictedMasks)
    assert [tuple(mask.shape) for mask in found.masks] == [(height, width) for width, height in sizes]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("images", range(1, 14))
def test_batches_are_those_of_the_loader(size: int, images: int):
    ends = batch_boundaries(images, size)
    expected = [[*range(start, end)] for start, end in zip([0, *ends], ends, strict=False)]
    assert [*batched(iter(range(images)), size)] == expected


def test_images_that_cannot_be_used_are_named(copied: Path, images: Path, tmp_path: Path):
    run = daft.load_run(copied)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    good = files_of(images / "val")[0]
    given: list[Any] = [good, tmp_path / "empty.png", str(tmp_path / "text.jpg"), tmp_path / "none.png", 3]
    with pytest.raises(UserError) as told:
        run.predict(given)
    for part in (
        "4 of 5 image(s) cannot be used",
        "empty.png: empty (0 bytes)",
        "text.jpg: a web page",
        "none.png: does not exist",
        "image 4: of type int; give paths, or images of Pillow's",
    ):
        assert part in str(told.value)
    with pytest.raises(UserError, match="image 0: floating-point pixels of an image in memory"):
        run.predict(Image.new("F", (40, 40)))
    assert len(run.predict([])) == 0
    assert len(run.predict(good)) == len(run.predict(str(good))) == 1
    small = replace(run.transform, operations=run.transform.operations[1:])
    with pytest.raises(UserError, match="crop of 32 pixels does not fit"):
        small(Image.new("RGB", (20, 20)))
    with pytest.raises(
        UserError, match="32 x 32 pixels after the transform; the network takes 64 x 64 alone"
    ):
        replace(run.transform, input_size=64)(Image.new("RGB", (40, 40)))


def test_runs_that_cannot_be_loaded_are_named(copied: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no finished run is here; there is nothing of that name"):
        daft.load_run(tmp_path / "none")
    with pytest.raises(UserError, match=f"name one of the runs in it: {copied.name}"):
        daft.load_run(copied.parent)
    with pytest.raises(UserError, match=r"device=cuda:99: \d+ CUDA"):
        daft.load_run(copied, "cuda:99")
    (copied / records.MODEL).unlink()
    with pytest.raises(UserError, match=r"sweep\.checkpoints=all"):
        daft.load_run(copied)
    record = json.loads((copied / records.RECORD).read_text())
    (copied / records.RECORD).write_text(json.dumps(record | {"status": "diverged", "metrics": {}}))
    with pytest.raises(UserError, match="the run is diverged"):
        daft.load_run(copied)


@pytest.fixture
def runs(original: RunResult, tmp_path: Path) -> Path:
    """A grid of two rates on seed 0, seed 1 of the better, and another method; all of the same weights."""
    folder = tmp_path / "grid"
    for name, method, rate, seed, id_accuracy, art in (
        ("a-000000000001", "daft", 0.1, 0, 60.0, 90.0),
        ("a-000000000002", "daft", 0.01, 0, 70.0, 20.0),
        ("a-000000000003", "daft", 0.01, 1, 75.0, 30.0),
        ("a-000000000004", "ft", 0.1, 0, 72.0, 99.0),
        ("a-000000000005", "daft", 0.1, 1, 99.0, 99.0),  # of a rate that lost on the grid's seed
    ):
        shutil.copytree(original.directory, folder / name)
        record = json.loads((folder / name / records.RECORD).read_text())
        record["run"] = name[2:]
        record["config"]["method"] |= {"name": method, "lr_backbone": rate}
        record["config"]["seed"] = seed
        record["metrics"] |= {"id/accuracy": id_accuracy, "art/accuracy": art}
        records.write(folder / name, record)
    return folder


def test_the_best_run_is_that_of_the_selection_rule(runs: Path):
    (runs / "a-000000000005").rename(
        runs.parent / "a-000000000005"
    )  # else two seeds are as many: the lowest counts
    assert daft.best_run(runs).directory.name == "a-000000000003"
    assert daft.best_run(str(runs), dataset="drawn", method="ft").directory.name == "a-000000000004"
    (runs.parent / "a-000000000005").rename(runs / "a-000000000005")
    assert daft.best_run(runs, method="daft").directory.name == "a-000000000003"


def test_a_best_run_that_is_not_clear_is_refused(runs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no records below this folder"):
        daft.best_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"method=lp: no run in .* has it; choose from daft, ft"):
        daft.best_run(runs, method="lp")
    file = runs / "a-000000000004" / records.RECORD
    record = json.loads(file.read_text())
    for section, told in (
        ("dataset", "several datasets; name one: dataset=drawn or other"),
        ("backbone", "backbone=other or"),
    ):
        changed = {
            **record,
            "config": record["config"] | {section: record["config"][section] | {"name": "other"}},
        }
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=told):
            daft.best_run(runs)
    file.write_text(json.dumps(record | {"status": "diverged"}))
    with pytest.raises(UserError, match=r"all 1 run\(s\) that fit have diverged"):
        daft.best_run(runs, method="ft")
    record["config"]["training"]["selection"] = "holdout"
    record["metrics"]["holdout/accuracy"] = 50.0
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="selected on holdout/accuracy and id/accuracy; name a method"):
        daft.best_run(runs)


def test_the_lines_of_the_readme_run_one_after_the_other(
    copied: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the cells of a notebook, in a folder with the run and two images."""
    text = (ROOT / "README.md").read_text().partition("## Use the network")[2]
    lines = text.partition("```python\n")[2].partition("```")[0].splitlines()
    assert len(lines) <= 10
    place = tmp_path / "notebook" / "runs" / "demo" / copied.name
    shutil.copytree(copied, place)
    monkeypatch.chdir(tmp_path / "notebook")
    for name in ("a.png", "b.png"):
        Image.open(files_of(images / "val")[0]).convert("RGB").save(name)
    names: dict[str, Any] = {}
    for line in lines:
        exec(line, names)
    found = names["found"]
    assert set(found.labels) <= set(CLASSES)
    assert torch.equal(names["logits"].argmax(1), found.indices[:1])
    assert found.probabilities.shape == (2, 3)
