"""Claims about runs that are trained already: an OOD set more is evaluated, and nothing is trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from daft import experiment
from daft.common.errors import UserError
from daft.report import files
from daft.runs import evaluations, frames, mistakes, records, reopened, results, trained
from daft.runs.identity import run_identity
from tests.conftest import TINY

ADDED = "dataset.ood={dim: {path: photo, images: 30, seed: 7}}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def small(configure, shared):
    """A run of one epoch; those of this file are in one folder."""
    places = [f"paths.{name}={shared / name}" for name in ("runs", "cache", "data", "weights")]
    return lambda *overrides: configure(*TINY, *places, "method=daft", "training.epochs=1", *overrides)


def files_of(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {".lock"}


def test_a_run_with_another_ood_set_takes_its_weights_from_the_one_that_is_trained(
    small, shared, monkeypatch, capfd
):
    first = experiment.run(small())
    whole = experiment.run(small(ADDED, f"paths.runs={shared / 'alone'}"))  # trained with the set

    def fit(*_: object, **__: object) -> None:
        raise AssertionError("it is trained")

    monkeypatch.setattr(experiment, "_fit", fit)
    run = experiment.run(small(ADDED))
    assert run.fresh
    assert f"the weights are those of {first.directory}" in capfd.readouterr().err
    assert run.directory != first.directory
    assert run.record["run"] == whole.record["run"]  # as if it had been trained with it
    assert run.record["metrics"] == whole.record["metrics"]
    assert [*run.record["metrics"]] == [*whole.record["metrics"]]
    for key in ("distortion", "per_class", "relative_change", "data", "identity"):
        assert run.record[key] == whole.record[key], key
    weights, others = (load_file(of.directory / records.MODEL) for of in (run, whole))
    assert all((weights[name] == others[name]).all() for name in others)
    assert run.record["weights_from"]["run"] == first.record["run"]
    assert run.record["weights_from"]["evaluated"] == ["dim"]
    assert mistakes.read(run.directory).keys() == {"id", "photo", "neon", "dim"}
    assert not experiment.run(small(ADDED)).fresh
    # The other way round, too: fewer sets are no other weights.
    fewer = experiment.run(small("~dataset.ood.neon"))
    assert fewer.record["weights_from"]["evaluated"] == []
    assert "neon/accuracy" not in fewer.record["metrics"]
    # In tables the run that has all stands for those that it has taken over.
    loaded = records.load(records.find_runs(shared / "runs"))
    assert {record["run"] for record in loaded} == {run.record["run"], fewer.record["run"]}


def test_what_moves_weights_is_trained_again(small, shared):
    def identity(*overrides: str) -> dict:
        config = small(*overrides)
        images = {"train": "t", "id": "i", **{name: name for name in config.dataset.ood}}
        return run_identity(config, "fp32", images, "w")

    same = trained.training_identity(identity())
    shifted = "dataset.ood={dark: {path: photo, seed: 9, shift: [grayscale]}}"
    for evaluated in (ADDED, "~dataset.ood.photo", shifted, "dataset.ood_mean=[neon]"):
        assert trained.training_identity(identity(evaluated)) == same, evaluated
        assert identity(evaluated) != identity(), evaluated
    for trains in ("seed=1", "training.epochs=2", "method.lr_head=0.2", "dataset.eval_transform=[grayscale]"):
        assert trained.training_identity(identity(trains)) != same, trains
    config = small(ADDED, "seed=3")
    facts = run_identity(config, "fp32", {"train": "t", "id": "i"}, "w")
    assert trained.find(config, facts) is None


def test_without_its_weights_a_run_is_no_start_for_another(small, shared, tmp_path):
    source = next(path for path in records.find_runs(shared / "runs"))
    shutil.copytree(source, tmp_path / source.name)
    record = json.loads((source / records.RECORD).read_text())
    config = replace(small(), paths=replace(small().paths, runs=str(tmp_path)))
    found = trained.find(config, record["identity"])
    assert found is not None
    assert found[0] == tmp_path / source.name
    (tmp_path / source.name / records.MODEL).unlink()
    assert trained.find(config, record["identity"]) is None


def test_a_finished_run_is_evaluated_on_a_set_beside_its_record(small, shared, script, tmp_path):
    run = experiment.run(small("seed=5"))
    before, there = (run.directory / records.RECORD).read_bytes(), files_of(run.directory)
    done = script("evaluate.py", run.directory, ADDED, "--device", "cpu")
    assert done.code == 0, done.errors
    whole = experiment.run(small("seed=5", ADDED, f"paths.runs={tmp_path}"))
    expected = {key: of for key, of in whole.record["metrics"].items() if key.startswith("dim/")}
    (result,) = (json.loads(path.read_text()) for path in run.directory.glob("evaluation-*.json"))
    assert result["metrics"] == expected
    assert done.output == f"{run.directory.name}: dim {expected['dim/accuracy']:.2f} % (30 images)\n"
    assert (run.directory / records.RECORD).read_bytes() == before
    assert len(files_of(run.directory) - there) == 2
    (loaded,) = results.load([run.directory])
    assert loaded["metrics"] == run.record["metrics"] | expected
    assert loaded["distortion"]["dim"] == whole.record["distortion"]["dim"]
    shutil.copytree(run.directory, tmp_path / "folder" / run.directory.name)
    assert "| dim % |" in files.write_folder(tmp_path / "folder", tmp_path / "tables")
    predicted, others = mistakes.read(run.directory)["dim"], mistakes.read(whole.directory)["dim"]
    assert all(
        (mine == theirs).all()
        for mine, theirs in zip(vars(predicted).values(), vars(others).values(), strict=True)
    )
    (file,) = run.directory.glob("evaluation-*.json")
    stamp = file.stat().st_mtime_ns
    assert script("evaluate.py", run.directory, ADDED, "--device", "cpu").output == done.output
    assert file.stat().st_mtime_ns == stamp  # what is there is not repeated


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset.ood={photo: {path: photo, images: 9}}"], "dataset.ood.photo: {run} has been evaluated on"),
        (["dataset.od={a: {path: photo}}"], "dataset.od: only OOD sets can be added"),
        (["method.lr_head=2"], "method.lr_head: only OOD sets can be added"),
        (["dataset.ood={}"], "name what to evaluate on"),
        (["dataset.ood={a: {pat: photo}}"], "dataset.ood.a.pat: no such key; did you mean 'path'?"),
        (
            ["dataset.ood={a: {path: sketch, seed: 0, images: 40}}"],
            "dataset.ood.a: the sketch images of seed 0",
        ),
        (["dataset.ood.a.path=photo,neon"], "dataset.ood.a.path: write it as in"),
    ],
)
def test_what_is_no_further_set_is_refused_in_one_line(small, shared, script, words, told):
    run = experiment.run(small("seed=5")).directory
    done = script("evaluate.py", run, *words)
    assert done.code == 1
    assert done.errors.splitlines()[-1].startswith(f"evaluate.py: {told.format(run=run.name)}")


def test_a_run_without_its_own_images_is_evaluated_and_this_is_said(small, tmp_path, monkeypatch, capfd):
    run = reopened.open_run(experiment.run(small("seed=5")).directory)
    config = evaluations.with_sets(run, ["dataset.ood={more: {path: neon, images: 20, seed: 3}}"])

    def absent(config: object) -> None:
        raise UserError("not here")

    monkeypatch.setattr("daft.data.datasets.listing", absent)
    ((name, result),) = evaluations.evaluate(run, config, torch.device("cpu"))
    assert (name, result["images"]) == ("more", 20)
    assert "its own images are not here, so no image is compared with them" in capfd.readouterr().err
    frame = frames.from_records(results.load([run.directory]))
    assert "more/accuracy" in frame
