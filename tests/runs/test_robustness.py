"""Claims about the corruption errors of finished runs."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from daft import experiment
from daft.common.errors import BusyError, UserError
from daft.config.operations import CenterCrop, Grayscale, Resize
from daft.data import corruptions
from daft.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from daft.data.images import ImageStore
from daft.data.labelled import ImageFile, Labelled
from daft.data.loader import Loader
from daft.report import paper
from daft.runs import frames, records, results, robustness
from daft.runs.reopened import FinishedRun, open_run
from daft.training import evaluation
from tests.conftest import ROOT
from tests.helpers import fabricate

CPU = torch.device("cpu")
FEW = 10


@pytest.fixture(scope="module")
def finished(configure, tmp_path_factory) -> Path:
    """A linear probe on shapes of 32 pixels; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    splits = {"train": 20, "id": 40}
    config = configure(
        "method=lp",
        "wandb.mode=disabled",
        "dataset.image_size=32",
        *(f"dataset.{split}.images={n}" for split, n in splits.items()),
        *(f"~dataset.ood.{style}" for style in ("photo", "clipart", "painting", "neon")),
        *(f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")),
    )
    return experiment.run(config).directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> FinishedRun:
    """It, without results."""
    directory = tmp_path / "runs" / finished.name
    directory.mkdir(parents=True)
    for name in (records.RECORD, records.MODEL):
        (directory / name).write_bytes((finished / name).read_bytes())
    return open_run(directory)


def few(run: FinishedRun, batch_size: int = 4) -> robustness.Corrupted:
    return robustness.of_run(run, "generated", CPU, batch_size, FEW)


def result_files(run: FinishedRun) -> list[Path]:
    return sorted(run.directory.glob(results.FILE.format("*")))


@torch.no_grad()
def test_an_error_is_the_share_of_corrupted_images_that_the_network_misses(run):
    before = (run.directory / records.RECORD).read_bytes()
    result = robustness.evaluate(run, few(run), CPU)
    loader, model = run.images(CPU).evaluation["id"], run.network(CPU)
    ((images, labels),) = loader.epoch()
    kept = torch.cat([(labels == c).nonzero()[:1, 0] for c in range(10)]).sort().values  # one of 4 of each
    for name in CORRUPTIONS:
        for severity in (2, 5):
            wrong = 0
            for number, i in enumerate(kept.tolist()):
                image = corrupt(images[i : i + 1], name, severity, [number])
                wrong += int(model(image).argmax() != labels[i])
            assert result["errors"][name][str(severity)] == pytest.approx(100 * wrong / FEW)
    means = results.metrics(result)
    fog = np.mean([result["errors"]["fog"][str(s)] for s in SEVERITIES])
    assert means["fog/generated_error"] == pytest.approx(fog)
    all_of_them = [means[f"{name}/generated_error"] for name in CORRUPTIONS]
    assert means["mce/generated_error"] == pytest.approx(np.mean(all_of_them))
    assert len(means) == 16
    assert (run.directory / records.RECORD).read_bytes() == before


def test_what_is_measured_stays_and_what_was_cut_off_goes_on(run, monkeypatch):
    images, measure, calls = few(run, batch_size=FEW), evaluation.accuracy, []

    def counted(*arguments: Any) -> float:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(evaluation, "accuracy", counted)
    stop = 7
    with pytest.raises(KeyboardInterrupt):
        robustness.evaluate(run, images, CPU)
    (file,) = result_files(run)
    begun = json.loads(file.read_text())
    assert sum(len(found) for found in begun["errors"].values()) == 7
    assert results.metrics(begun) == {}
    stop = None
    whole = robustness.evaluate(run, images, CPU)
    assert len(calls) == 75
    assert whole["errors"]["gaussian_noise"] == begun["errors"]["gaussian_noise"]
    assert robustness.evaluate(run, images, CPU) == whole
    assert len(calls) == 75
    file.unlink()
    assert robustness.evaluate(run, images, CPU)["errors"] == whole["errors"]  # as if never cut off


def test_what_would_give_other_numbers_has_a_file_of_its_own(run, monkeypatch):
    monkeypatch.setattr(evaluation, "accuracy", lambda *_: 90.0)
    robustness.evaluate(run, few(run), CPU)
    robustness.evaluate(run, few(run, batch_size=7), CPU)  # the same numbers
    assert len(result_files(run)) == 1
    robustness.evaluate(run, robustness.of_run(run, "generated", CPU, 4, 20), CPU)
    assert len(result_files(run)) == 2
    monkeypatch.setattr(corruptions, "VERSION", corruptions.VERSION + 1)
    robustness.evaluate(run, few(run), CPU)
    assert len(result_files(run)) == 3
    identity = run.record["identity"] | {"training": {"precision": "bf16"}}
    robustness.evaluate(replace(run, record=run.record | {"identity": identity}), few(run), CPU)
    assert len(result_files(run)) == 4


def test_the_errors_of_whole_sets_are_among_the_metrics_of_a_record(run, monkeypatch):
    monkeypatch.setattr(evaluation, "accuracy", lambda *_: 90.0)
    robustness.evaluate(run, few(run), CPU)
    (record,) = results.load([run.directory])
    assert record == run.record
    (record,) = results.load([run.directory], images=FEW)
    assert record["metrics"]["mce/generated_error"] == pytest.approx(10)
    assert record["corrupted"] == {"generated": {"images": FEW, "whole": 40}}
    robustness.evaluate(run, robustness.of_run(run, "generated", CPU, 40), CPU)
    (record,) = results.load([run.directory])
    assert record["metrics"].items() >= run.record["metrics"].items()
    assert record["metrics"]["fog/generated_error"] == pytest.approx(10)
    monkeypatch.setattr(corruptions, "VERSION", corruptions.VERSION + 1)
    (record,) = results.load([run.directory])
    assert record == run.record


def test_a_result_that_is_none_is_named_and_left_out(run, capsys):
    (run.directory / results.FILE.format("0")).write_text("{")
    assert results.load([run.directory]) == [run.record]
    assert "robustness-0.json is no result" in capsys.readouterr().err


def test_a_run_that_another_process_is_at_is_left_alone(run):
    with records.lock_run(run.directory), pytest.raises(BusyError, match="another process"):
        robustness.evaluate(run, few(run), CPU)


def test_cifar_10_c_gives_the_errors_that_its_files_give_as_ood_sets(configure, tmp_path):
    root = tmp_path / "data" / "cifar10"
    fabricate.cifar10(root)
    fabricate.cifar10_c(root)
    config = configure(
        *("dataset=cifar10_c", "~dataset.ood.cifar10_1", "~dataset.ood.stl10", "method=lp"),
        *("dataset.train_transform=[]", "dataset.eval_transform=[{resize: 40}]", "wandb.mode=disabled"),
        *(f"paths.{name}={tmp_path / name}" for name in ("runs", "cache", "data", "weights")),
    )
    unknown = {
        "train": replace(config.dataset.train, known_images=None),
        "id": replace(config.dataset.id, known_images=None),
        "ood": {name: replace(split, known_images=None) for name, split in config.dataset.ood.items()},
    }
    done = experiment.run(replace(config, dataset=replace(config.dataset, **unknown)))
    run = open_run(done.directory)
    result = robustness.evaluate(run, robustness.of_run(run, "cifar10_c", CPU, 7), CPU)
    errors = results.metrics(result)
    for name in CORRUPTIONS:
        accuracy = done.record["metrics"][f"{name}/accuracy"]
        assert errors[f"{name}/cifar10_c_error"] == pytest.approx(100 - accuracy)
    assert errors["mce/cifar10_c_error"] == pytest.approx(100 - done.record["metrics"]["ood/accuracy"])
    assert (result["images"], result["whole"]) == (20, 20)
    # Every image of a thinned block is one of its block, with its own label.
    thinned = robustness.of_run(run, "cifar10_c", CPU, 7, images=10).block("fog", 3)
    images, labels = (torch.cat(parts) for parts in zip(*thinned.epoch(), strict=True))
    assert labels.unique().tolist() == list(range(10))
    whole = robustness.of_run(run, "cifar10_c", CPU, 20).block("fog", 3)
    ((all_images, all_labels),) = whole.epoch()
    places = [[torch.equal(image, other) for other in all_images].index(True) for image in images]
    assert all_labels[places].tolist() == labels.tolist()


def test_cifar_10_c_is_refused_for_other_classes_and_named_where_it_is_absent(run, configure, tmp_path):
    with pytest.raises(UserError, match="its classes are not CIFAR-10's"):
        robustness.of_run(run, "cifar10_c", CPU, 4)
    with pytest.raises(UserError, match=r"CIFAR-10-C/gaussian_noise\.npy does not exist; python"):
        robustness.published(tmp_path, [], CPU, 4)
    with pytest.raises(UserError, match="--images 41: there are only 40"):
        robustness.of_run(run, "generated", CPU, 4, images=41)


def loader(folder: Path, sizes: list[int], operations: list[Any], resident_gib: float) -> Loader:
    """Squares of noise with these sides, as a run reads them."""
    for i, side in enumerate(sizes):
        fabricate.picture(folder / f"{i}.png", i, side, side)
    files = [folder / f"{i}.png" for i in range(len(sizes))]
    labels = ["a", "b"] * (len(files) // 2)
    listed = [ImageFile(file.name, file, label) for file, label in zip(files, labels, strict=True)]
    split = Labelled.of_files(listed, ["a", "b"], "test")
    images, split = ImageStore(resident_gib, 1, folder, CPU).load(split, operations, "id")
    return Loader("id", images, split.labels, split.fingerprint, operations, 3, 0, False, CPU, 0)


@pytest.mark.parametrize("resident_gib", [0, 1])
def test_images_are_corrupted_at_their_own_size_unless_the_network_sees_a_smaller_one(tmp_path, resident_gib):
    def image(i: int) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(tmp_path / f"{i}.png"))).permute(2, 0, 1)[None]

    def seen(sizes: list[int], operations: list[Any]) -> torch.Tensor:
        block = robustness.generated(loader(tmp_path, sizes, operations, resident_gib), 3).block("fog", 5)
        return torch.cat([images for images, _ in block.epoch()])

    found = seen([32] * 4, [Resize(size=(48, 48))])
    for number, i in enumerate([0, 2, 1, 3]):  # by class; as CIFAR-10-C: corrupted, then enlarged
        small = corrupt(image(i), "fog", 5, [number]).float()
        large = F.interpolate(small, (48, 48), mode="bilinear")[0]
        assert (found[number] - large).abs().max() < 1.01  # uint8 weights, and rounding
    cropped = [([32] * 4, [Grayscale(), CenterCrop(size=24)]), ([32, 34, 36, 38], [CenterCrop(size=32)])]
    for sizes, smaller in cropped:  # as ImageNet-C: transformed, then corrupted
        found = seen(sizes, smaller)
        clean = torch.cat([images for images, _ in loader(tmp_path, sizes, smaller, resident_gib).epoch()])
        assert torch.equal(found, corrupt(clean, "fog", 5, range(4)))


def test_images_that_are_too_small_are_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.id: images of 20 pixels are too small to corrupt"):
        robustness.generated(loader(tmp_path, [20] * 4, [], 1), 3)


def test_table_4_shows_the_errors_of_the_runs_that_were_chosen_by_id_accuracy():
    rows = [(0.1, 0, 96.0, 20.0), (0.1, 1, 95.0, 22.0), (0.01, 0, 90.0, 5.0)]
    errors = {f"{name}/cifar10_c_error": 0.0 for name in CORRUPTIONS}
    runs = pd.DataFrame(
        [
            {
                **dict(zip(frames.CELL, ("cifar10", "swav", "daft"), strict=True)),
                **dict(zip(frames.RATES, (rate, 1.0), strict=True)),
                frames.SEED: seed,
                "config.training.selection": "paper",
                "run": f"r{i}",
                "status": "finished",
                "id/accuracy": accuracy,
                **errors,
                "mce/cifar10_c_error": error,
            }
            for i, (rate, seed, accuracy, error) in enumerate(rows)
        ]
    )
    compared = paper.compare(paper.load("table4"), runs)
    mean = compared[compared["mean"] == 21.0].iloc[0]
    assert [mean[key] for key in paper.KEYS] == ["swav", "daft", "cifar10", "mce"]
    assert (mean["n"], mean["runs"]) == (2, "r0 r1")
    assert mean["difference"] == pytest.approx(21.0 - 19.0)
    assert compared["missing"].sum() == 11 * 16


@pytest.fixture
def script(monkeypatch, capsys):
    """scripts/robustness.py in this process: exit code, output, complaint."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustness.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "robustness.py"), run_name="__main__")
        said, code = capsys.readouterr(), ended.value.code
        return (1, said.out, code) if isinstance(code, str) else (int(code or 0), said.out, said.err)

    return called


def test_the_script_evaluates_the_runs_of_a_folder_once_and_writes_their_table(run, tmp_path, script):
    folder = run.directory.parent
    arguments = [folder, "--images", FEW, "--device", "cpu", "--threads", 1]
    code, output, _ = script(*arguments, "--out", tmp_path / "out")
    assert code == 0
    (file,) = result_files(run)
    result, written = json.loads(file.read_text()), file.stat().st_mtime_ns
    mean = results.metrics(result)["mce/generated_error"]
    assert f"{run}: mean error {mean:.2f} % (10 images x 75" in output
    table = pd.read_csv(tmp_path / "out" / "robustness.csv").set_index("metric")
    assert table.loc["mce/generated_error", "mean"] == pytest.approx(mean)
    assert f"| lp | 1 | {table.loc['gaussian_noise/generated_error', 'mean']:.1f} |" in output
    assert set(table["images"]) == {FEW}
    assert set(table["whole"]) == {40}
    said = (tmp_path / "out" / "robustness.md").read_text()
    assert said in output
    assert "Of 10 of the 40 ID images, corrupted here, at each severity of each corruption." in said
    assert "± sample standard deviation (ddof = 1) over n seeds" in said
    assert "Frost is a random texture" in said
    (run.directory / records.MODEL).unlink()  # is not needed any more
    assert script(*arguments)[0] == 0
    assert file.stat().st_mtime_ns == written
    code, _, complaint = script(folder, "--images", 20, "--device", "cpu")
    assert code == 1
    assert "sweep.checkpoints=all" in complaint


def test_a_cell_that_is_no_sample_is_named_and_the_others_are_evaluated(run, script):
    folder = run.directory.parent
    for name, changes in (("ft", {}), ("ft", {"momentum": 0.5})):
        config = json.loads(json.dumps(run.record["config"]))
        config["method"]["name"] = name
        config["training"] |= changes
        twin = run.record | {"run": f"{name}{len(changes)}", "config": config}
        records.write(folder / twin["run"], twin)
    code, output, complaint = script(folder, "--images", FEW, "--device", "cpu", "--threads", 1)
    assert code == 1
    assert "left out: runs of shapes shapes_resnet10 ft differ in training.momentum" in complaint
    assert f"{run}: mean error" in output


def test_a_run_that_segments_is_named_and_the_others_are_evaluated(run, configure, tmp_path, script):
    masks = experiment.run(
        configure(
            *("dataset=shapes_masks", "dataset.image_size=32", "dataset.train_transform=[flip]", "method=lp"),
            *("dataset.train.images=4", "dataset.id.images=2", "~dataset.ood.painting", "training.steps=1"),
            *("training.epochs=1", "segmentation.channels=4", "wandb.mode=disabled", "compute.device=cpu"),
            *(f"paths.{name}={tmp_path / name}" for name in ("runs", "cache", "data", "weights")),
        )
    )
    arguments = ["--images", FEW, "--device", "cpu", "--threads", 1, "--out", tmp_path / "out"]
    code, output, complaint = script(run.directory.parent, *arguments)
    assert code == 1
    assert f"left out: {masks.directory.name}: it segments" in complaint
    assert f"{run}: mean error" in output
    assert "shapes_masks" not in (tmp_path / "out" / "robustness.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no finished runs below this folder"),
        (["table4", "--runs", "nowhere"], "nowhere: no finished runs of the table below this folder"),
        (["small", "--runs", "nowhere"], "nowhere: no finished runs of the table below this folder"),
        (["nowhere", "--images", "0"], "'0' is no whole number from 1"),
    ],
)
def test_what_makes_no_sense_is_said(arguments, words, script):
    code, _, complaint = script(*arguments)
    assert code != 0
    assert words in complaint
