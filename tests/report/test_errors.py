"""Claims about the pictures of what a network gets wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm

from daft import experiment
from daft.common.errors import UserError
from daft.data import datasets
from daft.report import page
from daft.report.figures import errors, gallery, mistaken, style
from daft.report.figures import files as pictures
from daft.runs import mistakes, records
from daft.training.predictions import Predictions
from tests.conftest import TINY
from tests.report.test_figures import images, texts
from tests.training.test_segmentation import TINY as MASKS

CLASSES = ["cat", "dog", "newt"]


def found(classes: int = 3) -> Predictions:
    """30 images a class: the first is right, of the others every third is taken for the class before."""
    labels = torch.arange(classes).repeat_interleave(30)
    predicted = torch.where((labels > 0) & (torch.arange(len(labels)) % 3 == 0), labels - 1, labels)
    return Predictions(labels, predicted, torch.linspace(0.4, 1, len(labels)), torch.ones(len(labels)))


def test_the_matrix_has_percents_of_each_class_and_titles_have_the_measures():
    figure: Any = errors.matrices({"id": found(), "night": found()}, CLASSES, "FT")
    (matrix,) = images(figure)
    third = 100 / 3
    assert matrix.tolist() == [
        pytest.approx(row) for row in ([100, 0, 0], [third, 2 * third, 0], [0, third, 2 * third])
    ]
    said = texts(figure)
    for title in ("ID: 77.78 % of 90", "night: 77.78 % of 90", "ID: balanced 77.78 %", "dog (30)"):
        assert title in said.splitlines()
    assert f"ID: ECE {found().measures(3)['ece']:.2f} %, NLL 1.000" in said
    assert "95 % intervals (Wilson)" in said


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (50, 100), (7, 7)])
def test_intervals_are_wilsons(right: int, count: int):
    z, share = norm.ppf(0.975), right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert errors.interval(right, count) == pytest.approx(
        (100 * (middle - half), 100 * (middle + half)), abs=1e-9
    )


def test_of_many_classes_the_lowest_are_shown_and_none_is_named_in_the_matrix():
    names = [f"class {i}" for i in range(40)]
    said = texts(errors.matrices({"id": found(40)}, names, "FT")).splitlines()
    assert "accuracy (%) by class (images), the lowest of 40 classes" in said
    assert "class 0 (30)" not in said  # the only one that is always right
    assert len({line for line in said if line.endswith("(30)")}) == errors.LOWEST
    assert "is, of 40 classes in label order" in said


def test_the_surest_mistakes_come_first_and_equal_ones_in_order():
    of = Predictions(
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([0, 1, 0, 0, 0]),
        torch.tensor([0.99, 0.6, 0.8, 0.9, 0.8]),
        torch.ones(5),
    )
    assert mistakes.most_confident(of, 3) == [3, 2, 4]
    assert mistakes.most_confident(of, 9) == [3, 2, 4, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory, configure) -> experiment.RunResult:
    folder = tmp_path_factory.mktemp("errors")
    places = [f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")]
    return experiment.run(configure(*TINY, *places, "method=ft"))


def test_mistakes_are_the_images_themselves_read_from_where_they_are(run, configure):
    kept = mistakes.read(run.directory)
    shown = mistaken.pictures(run.directory, kept, run.record["data"]["classes"], {})
    assert shown.keys() == {"id", "photo", "neon"}
    listed = datasets.listing(configure(*TINY)).evaluation["neon"]
    places = mistakes.most_confident(kept["neon"], errors.MISTAKES)
    first = listed.images[places[0]]
    assert isinstance(first, torch.Tensor)
    enlarged = torch.nn.functional.interpolate(
        first[None].float(), size=mistaken.SIDE, mode="bilinear", antialias=True
    )
    # The network's own resize rounds to whole levels.
    assert torch.allclose(shown["neon"].images[0].float(), enlarged[0], atol=1)
    label, said, sure = shown["neon"].texts[0].split("\n")
    classes = run.record["data"]["classes"]
    assert label == classes[kept["neon"].labels[places[0]]]
    assert said == f"as {classes[kept['neon'].predicted[places[0]]]}"
    assert sure == f"{100 * float(kept['neon'].confidence[places[0]]):.0f} %"
    assert style.pixels(errors.pictured(shown, "FT")).width > 500


def test_files_and_page_show_them_and_an_older_run_is_measured_once(run, tmp_path: Path):
    folder = run.directory.parent
    names = {f"shapes-shapes_resnet10-errors_ft{suffix}" for suffix in ("", "_images")}
    assert pictures.pictures(str(folder), folder, kinds=["errors"]).keys() == names
    loaded = records.load([run.directory])
    html = page.render_page(loaded, "t", folder)
    assert "What FT gets wrong" in html
    assert "Most confident mistakes, FT" in html
    file = run.directory / mistakes.FILE.format("")
    before = mistakes.read(run.directory)
    file.unlink()  # as of a run that is older
    assert gallery.of_errors(loaded, folder) == []
    assert pictures.pictures(str(folder), folder, kinds=["errors"]).keys() == names
    after = mistakes.read(run.directory)
    for split, of in before.items():
        for mine, theirs in zip(vars(of).values(), vars(after[split]).values(), strict=True):
            assert torch.equal(mine, theirs)


def test_the_whole_name_of_a_picture_is_a_kind_of_its_own(run, tmp_path: Path, monkeypatch):
    folder = str(run.directory.parent)
    for name in ("errors_ft", "errors_ft_images"):
        found = pictures.pictures(folder, Path(folder), kinds=[name])
        assert [picture.name for picture in found.values()] == [name]
    names = {kind: gallery.kind_of(kind) for kind in ("rate_grid_ft", "rates_ft", "l2", "error", "errors_")}
    assert names == {
        "rate_grid_ft": "rate_grid",
        "rates_ft": "rates",
        "l2": "l2",
        "error": None,
        "errors_": "errors",
    }


def test_of_masks_there_is_iou_by_class_and_it_is_the_records(configure, folders, tmp_path: Path):
    done = experiment.run(configure(*MASKS, *folders, "method=ft"))
    folder = done.directory.parent
    found = pictures.pictures(str(folder), folder, dataset="shapes_masks", kinds=["errors"])
    (picture,) = found.values()
    assert (picture.name, picture.caption) == ("errors_ft", "IoU by class, FT")
    figure: Any = picture.draw()
    metrics, classes = done.record["metrics"], done.record["data"]["classes"]
    assert [axes.get_title() for axes in figure.axes] == [
        f"{title}: mIoU {metrics[f'{split}/miou']:.2f} %"
        for title, split in (("ID", "id"), ("painting", "painting"))
    ]
    for axes, split in zip(figure.axes, ("id", "painting"), strict=True):
        values = [metrics[f"{split}/iou_{name}"] for name in classes]
        there = [value for value in values if value is not None]
        assert [bar.get_width() for bar in axes.patches] == there
        absent = len(values) - len(there)
        assert axes.get_xlabel() == "IoU (%) by class" + (f", {absent} not there" if absent else "")
    assert "IoU by class, FT" in page.render_page([done.record], "t", folder)


def test_of_many_classes_of_masks_the_lowest_are_shown_and_those_that_are_nowhere_counted():
    by_class = {f"class {i}": float(i) for i in range(40)} | {"nowhere": None}
    figure: Any = errors.ious({"id": by_class}, "FT")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [*range(errors.LOWEST)]
    assert axes.get_xlabel() == "IoU (%) by class, the lowest of 40 classes, 1 not there"
    assert axes.get_title() == "ID: mIoU 19.50 %"


def test_without_its_images_a_run_shows_its_numbers_alone(run, monkeypatch):
    def absent(config: object) -> None:
        raise UserError("not here")

    monkeypatch.setattr("daft.data.datasets.listing", absent)
    found = gallery.of_errors(records.load([run.directory]), run.directory.parent)
    assert [picture.name for picture in found] == ["errors_ft"]


def test_a_damaged_file_of_predictions_is_named_and_left_out(run, tmp_path: Path, capfd):
    directory = tmp_path / run.directory.name
    records.write(directory, json.loads((run.directory / records.RECORD).read_text()))
    (directory / mistakes.FILE.format("")).write_bytes(b"\0" * 20)
    assert gallery.of_errors(records.load([directory]), tmp_path) == []
    assert "predictions.safetensors: damaged" in capfd.readouterr().err
