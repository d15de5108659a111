"""Claims about scripts/predict.py: the numbers of the run's evaluation, and a bad image costs no other."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

import daft
from daft.experiment import RunResult
from daft.runs.reopened import open_run
from daft.use import predictions
from daft.use.loaded import LoadedRun
from daft.use.partial import Partial
from tests.test_scripts import drawn
from tests.use.conftest import CLASSES

CPU = torch.device("cpu")


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return [*csv.DictReader(opened)]


def test_the_id_set_predicted_is_the_id_set_evaluated(
    script, original: RunResult, copied: Path, images: Path, tmp_path: Path
):
    done = script(
        "predict.py", copied, images / "val", "--out", tmp_path / "p.csv", "--all", "--device", "cpu"
    )
    assert done.code == 0, done.errors
    recorded = original.record["metrics"]["id/accuracy"]
    assert f"33 images of 3 class(es): accuracy {recorded:.2f} %" in done.output
    found, run = rows(tmp_path / "p.csv"), open_run(original.directory)
    model, loader = run.network(CPU), run.images(CPU).evaluation["id"]
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in loader.epoch()])
    probabilities = [[float(row[f"p({name})"]) for name in CLASSES] for row in found]
    assert probabilities == logits.softmax(1).tolist()  # to the last bit
    assert [row["prediction"] for row in found] == [CLASSES[index] for index in logits.argmax(1)]
    assert [row["label"] for row in found] == [CLASSES[label] for label in loader.labels]
    truth, predicted = ([row[key] for row in found] for key in ("label", "prediction"))
    assert 100 * accuracy_score(truth, predicted) == pytest.approx(recorded, rel=1e-12)
    assert f"balanced accuracy {100 * balanced_accuracy_score(truth, predicted):.2f} %" in done.output
    table = [[int(row[name]) for name in CLASSES] for row in rows(tmp_path / "p-confusion.csv")]
    assert table == confusion_matrix(truth, predicted, labels=CLASSES).tolist()
    assert drawn(tmp_path / "p-confusion.png")


def test_images_that_cannot_be_read_are_listed_at_the_end_and_nothing_else_is_lost(
    script, copied: Path, images: Path, tmp_path: Path
):
    folder = tmp_path / "photos"
    shutil.copytree(images / "val" / "star", folder)
    (folder / "empty.png").touch()
    broken = folder / "cut off.png"
    broken.write_bytes(next(folder.glob("*.png")).read_bytes()[:200])
    good = len([*folder.iterdir()]) - 2
    table = tmp_path / "list.csv"
    names = [file.name for file in sorted(folder.iterdir())]
    table.write_text("path\n" + "".join(f"photos/{name}\n" for name in [*names, "gone.png"]))
    done = script("predict.py", copied, table, "--out", tmp_path / "p.csv", "--device", "cpu")
    assert done.code == 1
    assert f"{good} of {good + 3} image(s)" in done.output
    told = done.errors.splitlines()
    assert told[-4] == "3 image(s) cannot be used:"
    assert [line.partition(": ")[0].rpartition("/")[2] for line in told[-3:]] == [
        "cut off.png",
        "empty.png",
        "gone.png",
    ]
    assert "does not exist" in told[-1]
    found = rows(tmp_path / "p.csv")
    assert [Path(row["path"]).name for row in found] == [
        n for n in names if n not in ("empty.png", "cut off.png")
    ]
    assert [*found[0]] == ["path", "prediction", "probability"]
    assert not (tmp_path / "p-confusion.csv").exists()
    before = (tmp_path / "p.csv").read_bytes()
    done = script("predict.py", copied, broken, "--out", tmp_path / "p.csv", "--device", "cpu")
    assert (done.code, done.output) == (1, "")
    assert (tmp_path / "p.csv").read_bytes() == before


KINDS = {
    "CMYK.jpg": lambda image: image.convert("CMYK"),
    "I;16.png": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "L.png": lambda image: image.convert("L"),
    "P.gif": lambda image: image.convert("P"),
    "RGB.png": lambda image: image,
    "RGBA.png": lambda image: image.convert("RGBA"),
    "RGB.webp": lambda image: image,
    "dot.png": lambda image: image.resize((1, 1)),
}


def test_images_of_other_kinds_are_predicted_beside_files_that_are_none(
    script, copied: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "photos"
    (folder / "empty").mkdir(parents=True)
    with Image.open(next((images / "val" / "star").iterdir())) as opened:
        image = opened.convert("RGB")
    for name, convert in KINDS.items():
        more, animated = [image.rotate(90)], name.endswith((".gif", ".webp"))
        frames: dict[str, Any] = {"save_all": True, "append_images": more} if animated else {}
        convert(image).save(folder / name, **frames)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and not called one")
    for place in (folder, folder / "*.[!t]*", folder / "**"):  # a folder, and patterns that fit folders too
        done = script("predict.py", copied, place, "--out", tmp_path / "p.csv", "--device", "cpu")
        assert done.code == 1, done.errors
        found = [Path(row["path"]).name for row in rows(tmp_path / "p.csv")]
        assert sorted(found) == sorted(KINDS)
        told = done.errors.splitlines()
        told = told[next(n for n, line in enumerate(told) if line.endswith("cannot be used:")) + 1 :]
        told = sorted(line.partition(": ")[0].rpartition("/")[2] for line in told)
        assert told[-2:] == ["phone.heic", "text.png"]


def test_masks_are_those_that_the_run_was_judged_by(script, segmentation: RunResult, tmp_path: Path):
    loader = open_run(segmentation.directory).images(CPU).evaluation["id"]
    pixels = torch.cat([images for images, _ in loader.epoch()])
    (tmp_path / "in").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "in" / f"{number:02}.png")
    done = script(
        "predict.py", segmentation.directory, tmp_path / "in", "--out", tmp_path / "p.csv", "--device", "cpu"
    )
    assert done.code == 0, done.errors
    model = open_run(segmentation.directory).network(CPU)
    with torch.no_grad():
        expected = torch.cat([model(x).argmax(1) for x, _ in loader.epoch()])
    found = rows(tmp_path / "p.csv")
    masks = [np.array(Image.open(row["mask"])) for row in found]
    assert np.array_equal(np.stack(masks), expected.numpy())
    assert float(found[0]["share(background)"]) == (masks[0] == 0).mean()
    done = script("predict.py", segmentation.directory, tmp_path / "in", "--out", tmp_path / "p.csv", "--all")
    assert done.code == 1
    assert "--all: a run of segmentation has the share of every class anyway" in done.errors


def test_an_image_whose_logits_are_not_finite_is_listed(copied: Path, images: Path):
    run = daft.load_run(copied)
    files = [*(images / "val" / "star").iterdir()][:2]
    run.model.head.get_parameter("linear1.bias").data[0] = torch.nan
    found = predictions.predict(run, [predictions.Listed(file.name, file, None) for file in files])
    assert found.rows == []
    assert ["not finite" in reason for reason in found.failures.values()] == [True, True]


MISTAKES = [
    ("none images --out p.csv", "none: no finished run is here; there is nothing of that name"),
    ("runs images --out p.csv", "runs: no finished run is here; name one of the runs in it: "),
    ("{run} none --out p.csv", "none: no such file or folder"),
    ("{run} empty --out p.csv", "empty: no images below it"),
    ("{run} images list.csv --out ./list.csv", "--out list.csv: it is one of the inputs; name another file"),
    ("{run} images --out p.txt", "--out p.txt: name a file that ends in .csv"),
    ("{run} images --out p.csv --device cuda:99", "--device=cuda:99: "),
    ("{run} images --out p.csv --batch-size 0", "'0' is no whole number from 1 to 1048576"),
    ("{run} --out p.csv", "the following arguments are required: images"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(
    script, copied: Path, monkeypatch: pytest.MonkeyPatch, words: str, told: str
):
    folder = copied.parent.parent
    (folder / "runs").symlink_to(copied.parent)
    (folder / "empty").mkdir()
    (folder / "images").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "images" / "a.png")
    monkeypatch.chdir(folder)
    done = script("predict.py", *words.format(run=f"runs/{copied.name}").split())
    assert done.code == 1
    (line,) = done.errors.splitlines()
    assert told in line
    assert not (folder / "p.csv").exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Ctrl-C after so many batches, once."""
    add, calls = Partial.add, iter(range(batches))

    def interrupted(*arguments: Any) -> None:
        if next(calls, None) is None:
            monkeypatch.setattr(Partial, "add", add)
            raise KeyboardInterrupt
        add(*arguments)

    monkeypatch.setattr(Partial, "add", interrupted)


def test_an_interrupted_command_goes_on_and_ends_with_the_same_bytes(
    script, copied: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "val"
    shutil.copytree(images / "val", folder)
    for name in (f"{CLASSES[0]}/0.png", f"{CLASSES[-1]}/zz.png"):  # in what is done, and behind it
        (folder / name).write_bytes(b"no image")
    words = ["predict.py", copied, folder, "--batch-size", "8", "--all", "--device", "cpu", "--out"]
    whole = script(*words, tmp_path / "whole.csv")
    interrupt(monkeypatch, batches=2)
    cut = script(*words, tmp_path / "cut.csv")
    assert "interrupted; 17 of 35 image(s) are done, and the same command goes on" in cut.errors
    assert not (tmp_path / "cut.csv").exists()
    partial = tmp_path / "cut.csv.partial"
    text = partial.read_text()
    partial.write_text(text + text.splitlines()[2][:40])  # a line that was cut off
    again = script(*words, tmp_path / "cut.csv")
    assert "17 of 35 image(s) are there" in again.errors
    assert again.errors.splitlines()[-3:] == whole.errors.splitlines()[-3:]  # both unreadable images
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert again.output.replace("cut", "whole") == whole.output
    assert not partial.exists()


def test_another_run_option_or_image_begins_anew(copied: Path, images: Path, tmp_path: Path, monkeypatch):
    run, file = daft.load_run(copied), tmp_path / "star.png"
    shutil.copy(next((images / "val" / "star").iterdir()), file)
    listed = [predictions.Listed("star.png", file, None)] * 4
    interrupt(monkeypatch, batches=1)
    with pytest.raises(KeyboardInterrupt):
        predictions.predict(run, listed, Partial(tmp_path / "p.csv"), batch_size=2)
    kept = (tmp_path / "p.csv.partial").read_text()

    def there(batch_size: int = 2, **options: Any) -> int:
        (tmp_path / "p.csv.partial").write_text(kept)
        partial, found = Partial(tmp_path / "p.csv"), []
        monkeypatch.setattr(LoadedRun, "batches", lambda *given: found.append(given[-1]) or [])
        predictions.predict(run, listed, partial, batch_size=batch_size, **options)
        return found[0]

    assert there() == 2
    assert there(every_class=True) == there(batch_size=3) == 0
    kept = kept.replace('"rows"', '"rose"')
    assert there() == 0
    kept = kept.replace('"rose"', '"rows"')
    file.write_bytes(file.read_bytes() + b"\0")
    assert there() == 0


def test_the_score_of_classes_that_are_there():
    assert predictions.score(torch.zeros(0, 0)) is None
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    assert predictions.score(confusion) == predictions.Score(8, 62.5, 62.5, 2)
    assert predictions.score(torch.tensor([[9, 0], [1, 0]])) == predictions.Score(10, 90.0, 50.0, 2)
