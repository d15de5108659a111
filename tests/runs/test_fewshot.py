"""Claims about the few-shot accuracy of features before and after a method."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch

from daft import experiment
from daft.common.errors import BusyError, UserError
from daft.data import datasets
from daft.data.episodes import Protocol
from daft.report import fewshot as report
from daft.runs import fewshot, records
from daft.runs.fewshot import Images
from daft.runs.reopened import FinishedRun, open_run
from daft.training import evaluation
from daft.training import fewshot as episodes
from tests.conftest import TINY

CPU = torch.device("cpu")
PROTOCOL = Protocol(ways=3, shots=(1, 2), queries=2, episodes=10, seed=0)


@pytest.fixture(scope="module")
def finished(configure, tmp_path_factory) -> Path:
    """A folder with runs of LP and of FT on 40 images a split; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    places = [f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")]
    for method in ("lp", "ft"):
        experiment.run(configure(*TINY, *places, f"method={method}", "training.epochs=1"))
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FinishedRun]:
    """They, by method, without results."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for name in ("runs", "cache"):
        monkeypatch.setenv(f"DAFT_{name.upper()}", str(tmp_path / name))
    found = [open_run(directory) for directory in records.find_runs(tmp_path / "runs")]
    return {run.config.method.name: run for run in found}


def images(run: FinishedRun, protocol: Protocol = PROTOCOL) -> Images:
    return Images.of(run.config, run.listing(), protocol, CPU)


def measured(run: FinishedRun, protocol: Protocol = PROTOCOL) -> dict[str, Any]:
    return fewshot.of_run(run, images(run), protocol, CPU)


def files(run: FinishedRun) -> list[Path]:
    return sorted(run.directory.glob(fewshot.FILE.format("*")))


def test_accuracies_are_those_of_the_features_before_and_after(runs):
    run = runs["ft"]
    before = (run.directory / records.RECORD).read_bytes()
    result = measured(run)
    assert [*result["accuracy"]] == ["id", "photo", "neon"]
    backbone, cast = run.network(CPU).backbone, evaluation.autocast(CPU, "fp32")
    for split, loader in run.images(CPU).evaluation.items():
        x = [run.pretrained_features(CPU)(loader), evaluation.features(backbone, loader, cast)]
        old, new = (episodes.accuracies(features, loader.labels, PROTOCOL, split) for features in x)
        for shots in PROTOCOL.shots:
            found = result["accuracy"][split][str(shots)]
            for key, values in (
                ("pretrained", old[shots]),
                ("trained", new[shots]),
                ("difference", new[shots] - old[shots]),
            ):
                assert found[key]["mean"] == pytest.approx(float(values.mean()))
                assert found[key]["std"] == pytest.approx(float(values.std(correction=1)))
    assert result["accuracy"]["id"]["2"]["difference"]["mean"] != 0
    assert (run.directory / records.RECORD).read_bytes() == before


def test_a_method_that_leaves_the_features_alone_gains_exactly_nothing(runs):
    for of_split in measured(runs["lp"])["accuracy"].values():
        for found in of_split.values():
            assert found["difference"] == {"mean": 0, "std": 0}
            assert found["trained"] == found["pretrained"]


def test_what_is_measured_stays_and_what_was_cut_off_goes_on(runs, monkeypatch):
    run, compare, calls = runs["lp"], fewshot.compared, []

    def counted(*arguments: Any) -> Any:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(arguments[2].shots)
        return compare(*arguments)

    monkeypatch.setattr(fewshot, "compared", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        measured(run, replace(PROTOCOL, shots=(1,)))
    (file,) = files(run)
    begun = json.loads(file.read_text())
    assert [*begun["accuracy"]] == ["id", "photo"]
    stop = None
    whole = measured(run)
    assert calls == [(1,), (1,), (2,), (2,), (1, 2)]
    assert measured(run) == whole == json.loads(file.read_text())
    assert len(calls) == 5
    file.unlink()
    assert measured(run)["accuracy"] == whole["accuracy"]  # as if never cut off


def test_features_are_extracted_once(runs, monkeypatch):
    extract, calls = evaluation.features, []
    monkeypatch.setattr(evaluation, "features", lambda *given: calls.append(given) or extract(*given))
    measured(runs["ft"])
    assert len(calls) == 3  # after the method; those before are the run's own
    measured(runs["ft"], replace(PROTOCOL, seed=1, ways=2))
    assert len(calls) == 3
    weights = runs["ft"].directory / records.MODEL
    state = safetensors.torch.load_file(weights)
    state["backbone.network.bn1.weight"] *= 2
    safetensors.torch.save_file(state, weights)
    measured(runs["ft"], replace(PROTOCOL, seed=2))
    assert len(calls) == 6


def test_what_would_give_other_numbers_has_a_file_of_its_own(runs, monkeypatch):
    run, found = (
        runs["lp"],
        {"1": {k: {"mean": 50.0, "std": 1.0} for k in fewshot.Comparison.__annotations__}},
    )
    monkeypatch.setattr(fewshot, "compared", lambda *_: found)
    one = replace(PROTOCOL, shots=(1,))
    measured(run, one)
    measured(run, PROTOCOL)  # in the same file
    assert len(files(run)) == 1
    changes: list[dict[str, Any]] = [{"ways": 2}, {"queries": 1}, {"episodes": 9}, {"seed": 1}]
    for number, change in enumerate(changes, 2):
        measured(run, replace(one, **change))
        assert len(files(run)) == number
    gray = replace(run.config.dataset, ood={"photo": run.config.dataset.ood["photo"]})
    elsewhere = replace(run.config, dataset=gray)
    shown = Images.of(elsewhere, datasets.listing(elsewhere), one, CPU)
    assert [*fewshot.of_run(run, shown, one, CPU)["images"]] == ["id", "photo"]
    assert len(files(run)) == 6


def test_a_network_has_the_accuracies_that_its_runs_have_before_their_method(runs):
    run = runs["ft"]
    one = report.of_backbone(run.config, PROTOCOL, CPU)
    for split, of_split in measured(run)["accuracy"].items():
        for shots, found in of_split.items():
            assert one.result["accuracy"][split][shots] == {"pretrained": found["pretrained"]}


def test_what_cannot_be_measured_is_said(runs, configure, tmp_path, monkeypatch):
    run = runs["lp"]
    for protocol, words in (
        (replace(PROTOCOL, ways=11), r"--ways 11: dataset\.id has 10 classes"),
        (
            replace(PROTOCOL, queries=3),
            r"--shots 2 --queries 3: 5 images of a class, but dataset\.id has 4 of",
        ),
    ):
        with pytest.raises(UserError, match=words):
            images(run, protocol)
    masks = configure("dataset=shapes_masks", "dataset.train.images=4", "dataset.id.images=2")
    with pytest.raises(UserError, match="dataset=shapes_masks: its images have masks"):
        Images.of(masks, datasets.listing(masks), PROTOCOL, CPU)
    with records.lock_run(run.directory), pytest.raises(BusyError, match="another process"):
        measured(run)
    result = measured(run)
    (file,) = files(run)
    for content in (
        "{",
        json.dumps(result | {"ways": 1}),
        json.dumps(result | {"accuracy": {"id": {"1": {}}}}),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"fewshot-\w+\.json is no result"):
            measured(run)
    file.unlink()
    monkeypatch.setattr(evaluation.KeptFeatures, "__call__", lambda *_: torch.full((40, 128), torch.nan))
    with pytest.raises(UserError, match="id: the pretrained features of some images are not finite"):
        measured(run)


EPISODES = [
    "--ways",
    3,
    "--shots",
    "1,2",
    "--queries",
    2,
    "--episodes",
    10,
    "--device",
    "cpu",
    "--threads",
    1,
]


def test_the_script_measures_the_runs_of_a_folder_once_and_writes_their_table(runs, tmp_path, script):
    done = script("fewshot.py", tmp_path / "runs", *EPISODES, "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    for run in runs.values():
        (file,) = files(run)
        found = json.loads(file.read_text())["accuracy"]["id"]["1"]
        before, after = (found[key]["mean"] for key in ("pretrained", "trained"))
        assert f"{run}: ID 3-way 1-shot {before:.2f} → {after:.2f} %, 2-shot" in done.output
    said = (tmp_path / "out" / "fewshot.md").read_text()
    assert said in done.output
    assert said.count("| pretrained |") == 2  # once for each number of shots
    assert "| lp seed=0 − pretrained | +0.00 ± 0.00 |" in said
    assert "t = 2.262 (Student's, 9 degrees of freedom)" in said
    rows = pd.read_csv(tmp_path / "out" / "fewshot.csv")
    assert len(rows) == 2 * 3 * (1 + 2 * 2)  # shots, splits; before, and after and gain of two runs
    ft = rows[(rows["run"] == runs["ft"].record["run"]) & (rows["features"] == "trained")].iloc[0]
    assert ft["half_width"] == pytest.approx(2.262157 * ft["std"] / 10**0.5)
    assert f"| ft η_θ=0.01 seed=0 | {ft['mean']:.2f} ± {ft['half_width']:.2f} |" in said
    written = files(runs["ft"])[0].stat().st_mtime_ns
    for run in runs.values():
        (run.directory / records.MODEL).unlink()  # is not needed any more
    again = script("fewshot.py", tmp_path / "runs", *EPISODES)
    assert again.code == 0
    assert again.output == done.output
    assert files(runs["ft"])[0].stat().st_mtime_ns == written
    lost = script("fewshot.py", tmp_path / "runs", *EPISODES, "--seed", 1)
    assert lost.code == 1
    assert lost.errors.count("left out: ") == 2
    assert lost.output == ""


def test_the_script_takes_one_run_to_other_images(runs, tmp_path, script):
    other = ["dataset=shapes", "dataset.image_size=32", "dataset.train.images=10", "dataset.id.images=40"]
    other += ["dataset.name=others", "dataset.id.seed=5", *(f"~dataset.ood.{n}" for n in ("photo", "neon"))]
    other += [f"dataset.ood.{name}.images=40" for name in ("clipart", "painting")]
    done = script("fewshot.py", runs["ft"].directory, *other, *EPISODES, f"paths.cache={tmp_path / 'here'}")
    assert done.code == 0, done.errors
    assert "### others, shapes_resnet10: 3-way 1-shot accuracy" in done.output
    assert "| features | ID % | clipart % | painting % |" in done.output
    assert "| ft η_θ=0.01 seed=0 on shapes − pretrained |" in done.output
    assert [*(tmp_path / "here" / "features").glob("clipart-*")]
    network = script("fewshot.py", "backbone=shapes_resnet10", *other, *EPISODES)
    assert network.code == 0, network.errors
    of_run, of_network = (
        [line for line in output.splitlines() if line.startswith("| pretrained")]
        for output in (done.output, network.output)
    )
    assert of_network == of_run
