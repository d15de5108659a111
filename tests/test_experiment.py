"""Claims about whole runs, on the embedded images and network."""

import itertools
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from daft import experiment
from daft.common.errors import ConfigError, UserError
from daft.common.numbers import fixed
from daft.data import datasets
from daft.networks import backbones
from daft.report import tables
from daft.runs import frames, mistakes, records
from daft.runs.identity import run_identity
from daft.sweep import selection
from daft.tracking.mirror import Tracker
from daft.training import tasks
from tests.conftest import FAST, TINY
from tests.helpers.forked import Forked
from tests.helpers.pausing import pause_in_step
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
TIMES = ("seconds", "images/s")


def without_times(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_records_what_it_should(tiny, method):
    config = tiny(f"method={method}")
    directory, record, fresh = experiment.run(config)
    assert fresh
    assert record["status"] == "finished"
    for split in ("id", "photo", "neon"):
        assert 0 <= record["metrics"][f"{split}/accuracy"] <= 100
        for measure in ("cosine", "l2"):
            histogram = record["distortion"][split][measure]
            assert sum(histogram["counts"]) == 40
            assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    mean = (record["metrics"]["photo/accuracy"] + record["metrics"]["neon/accuracy"]) / 2
    assert record["metrics"]["ood/accuracy"] == pytest.approx(mean, abs=1e-9)
    changes = {row["name"]: row["value"] for row in record["relative_change"]}
    assert (changes["head.linear1.weight"] is None) == (config.method.head_init == "zero")
    moved = [name for name, value in changes.items() if value]
    statistics = [name for name in moved if "running" in name]
    assert bool(statistics) == (config.method.bn_mode == "train")
    if method == "lp":
        assert not moved
        assert not record["history"]
        assert record["metrics"]["id/cosine"] == pytest.approx(1)
        assert record["metrics"]["id/l2"] == 0
    else:
        best = record["history"][record["best_epoch"] - 1]
        assert best["selection/accuracy"] == record["metrics"]["id/accuracy"]
    assert len(record["bn_shift"]) == (13 if config.method.bn_conversion else 0)
    assert (record["probe"] is not None) == (config.method.head_init == "probe")
    for key in ("code", "libraries", "device", "threads"):
        assert record["environment"][key]
    files = [".lock", "model.safetensors", "predictions.safetensors", "record.json"]
    assert sorted(p.name for p in directory.iterdir()) == files
    for split, found in mistakes.read(directory).items():
        assert 100 * found.correct.float().mean() == pytest.approx(record["metrics"][f"{split}/accuracy"])
        assert found.measures(10)["nll"] == record["metrics"][f"{split}/nll"]
        assert record["per_class"][split] == found.per_class(10)


def test_a_finished_run_is_not_repeated(tiny):
    first = experiment.run(tiny("method=lp"))
    before = (first.directory / "record.json").stat().st_mtime_ns
    again = experiment.run(tiny("method=lp", "compute.workers=1", "wandb.project=other"))
    assert not again.fresh
    assert again.directory == first.directory
    assert (first.directory / "record.json").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny, tmp_path):
    runs = [
        experiment.run(tiny("method=ft", f"seed={seed}", f"paths.runs={tmp_path}/{i}"))
        for i, seed in enumerate((0, 0, 1))
    ]
    weights = [load_file(run.directory / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert without_times(runs[0].record["history"]) == without_times(runs[1].record["history"])
    assert not torch.equal(weights[0]["head.linear1.weight"], weights[2]["head.linear1.weight"])


def test_identity_is_what_moves_the_numbers_and_nothing_else(configure):
    def identity(*overrides, images="i", precision="fp32"):
        return run_identity(configure(*overrides), precision, {"train": images}, "w")

    same = identity()
    for neutral in ("compute.workers=3", "paths.runs=/x", "wandb.mode=online", "method.name=my_daft"):
        assert identity(neutral) == same, neutral
    variants = [
        same,
        identity("seed=1"),
        identity("method=ft"),
        identity("method.lr_head=0.2"),
        identity("training.epochs=3"),
        identity("training.selection=holdout"),
        identity("training.weight_decay=0.1"),
        identity("backbone.mean=[0,0,0]"),
        identity("dataset.train_transform=[{center_crop: 32}]"),
        identity("dataset.train_transform=[{random_crop: 32}]"),
        identity("dataset.eval_transform=[{resize: 32}]"),
        identity("dataset.ood.neon.shift=[grayscale]"),
        identity(images="others"),
        identity(precision="bf16"),
    ]
    for a, b in itertools.combinations(variants, 2):
        assert a != b


def test_conversion_measures_as_many_batches_as_it_is_told_and_that_is_another_run(tiny):
    whole, part = tiny("method=daft"), tiny("method=daft", "method.conversion_batches=1")
    assert experiment.directory_of(whole) != experiment.directory_of(part)
    runs = [experiment.run(config).record for config in (whole, part)]
    assert [{layer["batches"] for layer in record["bn_shift"]} for record in runs] == [{2}, {1}]
    with pytest.raises(UserError, match=r"conversion_batches=3: the training set has 2"):
        experiment.run(tiny("method=daft", "method.conversion_batches=3"))
    with pytest.raises(ConfigError, match="bn_conversion=false"):
        tiny("method=ft", "method.conversion_batches=1")


def test_a_head_rate_can_be_a_multiple_of_the_one_that_fits_the_features_of_every_seed(tiny):
    method, automatic = "method=daft", "backbone.lr_head=auto"
    absolute, fitting, triple = tiny(method), tiny(method, automatic), tiny(method, "method.lr_head=3")
    triple = replace(triple, method=replace(triple.method, lr_head_unit="auto"))
    runs = [experiment.run(config).record for config in (absolute, fitting, triple)]
    ran = [record["history"][0]["lr/head"] for record in runs]
    found = runs[0]["head_rate"]
    assert [record["head_rate"] for record in runs] == [found] * 3  # said where it is not used, too
    assert ran == [0.1, found["rate"], pytest.approx(3 * found["rate"])]
    assert experiment.run(tiny(method, automatic, "seed=5")).record["head_rate"] == found
    # The features themselves, of the same images and crops: the cache that the rate is from is not asked.
    loaded = datasets.load(fitting, datasets.listing(fitting), torch.device("cpu"))
    with torch.no_grad():
        images = torch.cat([images for images, _ in loaded.train.epoch()])
        x = backbones.load(fitting.backbone)(images).double()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    assert found["images"] == len(x) == 70
    # Float32 features, and batches of another size: relative errors far below this.
    assert found["lambda"] == pytest.approx(float(torch.linalg.matrix_norm(x, 2) ** 2 / len(x)), rel=1e-5)


def test_an_epoch_that_is_worse_than_a_head_of_zeros_is_recorded_and_said(tiny):
    rates = ["method.lr_backbone=1e-9", "method.lr_head=30"]
    bad, good = (experiment.run(tiny("method=integrated_lp_ft", *given)).record for given in (rates, []))
    assert (bad["above_zero_head"], good["above_zero_head"]) == ([1, 2], [])
    assert "in epoch 1, 2 the loss was above" in tables.format_run(bad, fresh=True)
    assert tables.rate_warning(good) == ""


def test_runs_of_before_keep_their_identity(tiny):
    """The id of a classification run, as published results have it."""
    assert experiment.directory_of(tiny("method=daft")).name == "shapes-shapes_resnet10-daft-s0-a2c4e3b5b795"


def test_integrated_lp_ft_with_conversion_is_daft(configure):
    """Table 5's last row is Table 2's DAFT: the same run, whatever it is called."""
    by_name = ["method=integrated_lp_ft", "method.bn_mode=train", "method.bn_conversion=true"]
    images = {"train": "i"}
    daft, other = configure("method=daft"), configure(*by_name)
    assert run_identity(daft, "fp32", images, "w") == run_identity(other, "fp32", images, "w")


def test_lp_and_lp_ft_share_one_probe_and_start_from_it(tiny, tmp_path):
    lp = experiment.run(tiny("method=lp"))
    lp_ft = experiment.run(tiny("method=lp_ft", "method.lr_backbone=1e-12", "training.epochs=1"))
    assert len(list((tmp_path / "cache" / "probes").glob("*.safetensors"))) == 1
    weights = [load_file(run.directory / "model.safetensors") for run in (lp, lp_ft)]
    # two steps of 1e-12 on weights of order 1: below half an ulp of float32 almost everywhere
    difference = weights[0]["head.linear1.weight"] - weights[1]["head.linear1.weight"]
    assert float(difference.abs().max()) < 1e-6
    assert lp.record["metrics"]["id/accuracy"] == pytest.approx(lp.record["probe"]["accuracy"], abs=1e-9)


def test_a_diverged_run_is_recorded_as_diverged_and_never_selected(tiny):
    fixed = ["method=ft", "method.bn_mode=test"]
    diverged = experiment.run(tiny(*fixed, "method.lr_backbone=1e3"))
    assert diverged.record["status"] == "diverged"
    assert diverged.record["metrics"] == {}
    finished = experiment.run(tiny(*fixed, "method.lr_backbone=1e-4"))
    runs = frames.from_directories([diverged.directory, finished.directory])
    assert selection.select(runs)["run"].tolist() == [finished.record["run"]]
    assert "diverged" in tables.format_run(diverged.record, fresh=True)


def test_of_a_run_that_diverges_late_the_best_epoch_before_counts_on_request(tiny, monkeypatch):
    score, scores = tasks.Classification.score, []

    def finite_twice(*arguments):
        scores.append(score(*arguments))
        return scores[-1] if len(scores) % 3 else math.nan

    monkeypatch.setattr(tasks.Classification, "score", finite_twice)
    fixed = ["method=ft", "method.lr_backbone=1e-3", "training.epochs=5"]
    discarded = experiment.run(tiny(*fixed)).record
    run = experiment.run(tiny(*fixed, "training.divergence=keep_best"))
    kept = records.read(run.directory)
    assert kept is not None
    assert (discarded["status"], kept["status"]) == ("diverged", "finished")
    assert discarded["run"] != kept["run"]
    assert kept["best_epoch"] == 1 + (scores[1] > scores[0])
    assert kept["metrics"]["id/accuracy"] == max(scores[:2])
    assert [row["selection/accuracy"] for row in kept["history"]] == [*scores[:2], None]


def test_holdout_selection_never_looks_at_the_id_evaluation_set(tiny, capfd):
    holdout = ["method=ft", "training.selection=holdout"]
    record = experiment.run(tiny(*holdout, "dataset.train.images=200")).record
    told = capfd.readouterr().err
    assert f"holdout {fixed(record['history'][0]['selection/accuracy'])} %, rate" in told
    assert record["config"]["training"]["selection"] == "holdout"
    images = record["data"]["images"]
    assert (images["train"], images["holdout"]) == (180, 20)  # every tenth of 20 images in 10 classes
    best = record["history"][record["best_epoch"] - 1]
    assert best["selection/accuracy"] == record["metrics"]["holdout/accuracy"]
    with pytest.raises(UserError, match="holdout"):  # 7 images a class
        experiment.run(tiny(*holdout))


def test_unreadable_images_are_all_named_before_any_work_or_skipped_and_counted(
    configure, folders, tmp_path, capfd
):
    splits = enumerate(("train", "val", "dark"))
    for (tint, split), (name, shade) in itertools.product(splits, (("a", 30), ("b", 200))):
        folder = tmp_path / "mine" / split / name
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (shade + i, shade, shade + tint)).save(folder / f"{i}.png")
    broken = [tmp_path / "mine" / "train" / "a" / "9.jpg", tmp_path / "mine" / "dark" / "b" / "9.jpg"]
    for file in broken:
        file.write_bytes(b"not an image")
    mine = [
        "dataset=folder",
        f"dataset.root={tmp_path}/mine",
        "dataset.ood={dark: {path: dark}}",
        "dataset.train_transform=[flip]",
        "dataset.eval_transform=[]",
    ]
    with pytest.raises(UserError) as caught:
        experiment.run(configure(*mine, *FAST, *folders))
    assert all(str(file) in str(caught.value) for file in broken)
    assert not list((tmp_path / "runs").glob("*/record.json"))
    record = experiment.run(configure(*mine, *FAST, *folders, "compute.unreadable=skip")).record
    assert record["data"]["unreadable"] == {"train": 1, "dark": 1}
    assert record["data"]["images"] == {"train": 12, "id": 12, "dark": 12}
    assert "dataset.ood.dark: 1 of 13 images cannot be read, and are left out" in capfd.readouterr().err
    for file in (tmp_path / "mine" / "train" / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"dataset\.train: 7 of 13 images .* leaves none of 'a'; mend them"):
        experiment.run(configure(*mine, *FAST, *folders, "compute.unreadable=skip"))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_no_record_and_its_successor_the_same_as_if_it_had_lived(
    tiny, folders, tmp_path, sent
):
    long = ["method=daft", "training.epochs=6", "compute.threads=1"]  # of two steps
    paused = tmp_path / "paused"
    process = Forked(tmp_path / "printed", *TINY, *folders, *long, *pause_in_step(2 * 3 + 1, paused))
    wait_until(paused.exists, process.check_running)
    os.kill(process.pid, sent)
    code, _, errors = process.end()
    assert code == (-9 if sent == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("runs/*/record.json"))
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.pt")
    assert len(torch.load(checkpoint, weights_only=True)["fit"]["history"]) == 3

    resumed = experiment.run(tiny(*long))
    whole = experiment.run(tiny(*long, f"paths.runs={tmp_path}/whole"))
    for key in ("metrics", "distortion", "relative_change", "best_epoch"):
        assert resumed.record[key] == whole.record[key], key
    assert without_times(resumed.record["history"]) == without_times(whole.record["history"])
    files = [run.directory / "model.safetensors" for run in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sweep_ends_with_one_table_of_all_its_runs(folders, tmp_path):
    few = ["training.epochs=1", "compute.threads=1"]
    told = ["-m", *TINY, "method=lp,daft", "seed=0,1", *few, *folders]
    code, output, errors = Forked(tmp_path / "printed", *told).end()
    assert code == 0, errors
    assert not errors  # but for the notes
    said = (tmp_path / "printed" / "errors.txt").read_text().splitlines()
    assert sum(line.startswith("shapes: 10 classes") for line in said) == 1  # of four runs
    assert sum(line.startswith("  on cpu") for line in said) == 1
    summary = output[output.index("Sweep") :]
    rows = [line.split("│")[1].strip() for line in summary.splitlines() if line.startswith("│")]
    assert rows == ["lp", "lp", "daft", "daft"]


def test_wandb_offline_mirrors_the_run_and_its_failure_does_not_matter(tiny, monkeypatch, tmp_path):
    offline = ["method=ft", "wandb.mode=offline", "training.epochs=1"]
    run = experiment.run(tiny(*offline), Tracker)
    (mirror,) = (run.directory / "wandb").glob("offline-run-*")
    assert mirror.name.endswith(run.record["run"])
    import wandb

    def failing(*_, **__):
        raise ConnectionError("no")

    for i, method in enumerate(("init", "log", "finish")):
        with monkeypatch.context() as patch:
            patch.setattr(wandb if method == "init" else wandb.Run, method, failing)
            unlucky = experiment.run(tiny(*offline, f"paths.runs={tmp_path}/unlucky{i}"), Tracker)
        assert unlucky.record["metrics"] == run.record["metrics"]
        # What failed in one run of a sweep must not catch the next one's metrics.
        lucky = experiment.run(tiny(*offline, f"seed={i + 1}"), Tracker)
        (mirror,) = (lucky.directory / "wandb").glob("offline-run-*")
        assert mirror.name.endswith(lucky.record["run"])


def test_a_run_that_another_process_computes_is_left_alone(tiny):
    config = tiny("method=lp")
    first = experiment.run(config)
    (first.directory / "record.json").unlink()
    with records.lock_run(first.directory), pytest.raises(UserError, match="another process"):
        experiment.run(config)
    assert experiment.run(config).fresh


def test_training_images_are_not_evaluated_on(tiny):
    with pytest.raises(UserError, match=r"dataset\.id: .*in dataset\.train too"):
        experiment.run(tiny("dataset.id.seed=0"))


def test_a_damaged_record_is_named_and_not_overwritten(tiny):
    run = experiment.run(tiny("method=lp"))
    file = run.directory / "record.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match=str(file)):
        experiment.run(tiny("method=lp"))
    file.write_text(json.dumps(run.record | {"format": 99}))
    with pytest.raises(UserError, match="99"):
        experiment.run(tiny("method=lp"))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_method_runs_on_a_gpu_in_bf16_with_float32_weights_and_statistics(tiny, method, compiled):
    config = tiny(f"method={method}", "compute.device=cuda", f"compute.compile={str(compiled).lower()}")
    run = experiment.run(config)
    assert run.record["status"] == "finished"
    assert run.record["identity"]["training"]["precision"] == "bf16"
    state = load_file(run.directory / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.gpu
def test_a_linear_probe_on_a_gpu_in_fp32_agrees_with_the_cpu(tiny, tmp_path):
    runs = [
        experiment.run(
            tiny(
                "method=lp",
                "training.precision=fp32",
                f"compute.device={device}",
                *(f"paths.{name}={tmp_path}/{device}/{name}" for name in ("runs", "cache")),
            )
        )
        for device in ("cpu", "cuda")
    ]
    # one image of 40 is 2.5 points: rounding may turn one
    for split in ("id", "photo", "neon"):
        on_cpu, on_gpu = (run.record["metrics"][f"{split}/accuracy"] for run in runs)
        assert on_gpu == pytest.approx(on_cpu, abs=2.5)


def test_what_the_probe_refuses_is_said_in_one_line_with_the_method(tiny, monkeypatch):
    def refusing(*_, **__):
        raise ValueError("training features are constant: their standard deviation is 0")

    monkeypatch.setattr(experiment.probe, "fit_probe", refusing)
    with pytest.raises(UserError, match="method=lp: training features are constant"):
        experiment.run(tiny("method=lp"))


def test_a_head_that_has_no_room_is_refused_before_it_is_made(tiny):
    config = tiny("method=ft")
    config = replace(config, method=replace(config.method, head_hidden=[16384] * 2000))
    words = r"^method\.head_hidden=\[16384, .*, …\]: 536,\d+,\d+,\d+ weights, .*: 5,9.* GiB of memory"
    with pytest.raises(UserError, match=words):
        experiment.run(config)
