"""Claims about whole runs of methods with parts, on the embedded images and network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from daft import experiment
from daft.common.errors import UserError
from daft.common.files import digest
from daft.config.options import options
from daft.networks.stages import stages
from daft.report import tables
from daft.runs import frames, reopened
from daft.runs.identity import run_identity
from daft.training import loop

TIMES = ("seconds", "images/s")


def without_times(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


def run_id(config) -> str:
    return digest(run_identity(config, "fp32", {"train": "i"}, "w"))


def test_parts_count_in_the_identity_where_they_are_set_and_nowhere_else(configure):
    usual = run_id(configure("method=daft"))
    assert run_id(configure("method=daft", "method.parts=null")) == usual
    assert run_id(configure("method=daft", "part=null")) == usual
    assert run_id(configure("method=daft", "part=l2_sp", "method.parts.l2_sp=null")) == usual
    variants = [
        ["part=l2_sp"],
        ["part=l2_sp", "method.parts.l2_sp=0.5"],
        ["part=freeze"],
        ["part=[freeze,l2_sp]"],
        ["part=test_time"],
    ]
    ids = [usual, *(run_id(configure("method=daft", *overrides)) for overrides in variants)]
    assert len(set(ids)) == len(ids)
    assert run_id(configure("method=daft", "part=[l2_sp,freeze]")) == ids[4]  # in whatever order


def test_a_part_that_is_given_twice_is_refused(configure):
    for twice in (["part=l2_sp", "+part=freeze"], ["part=[l2_sp,l2_sp]"]):
        with pytest.raises(UserError, match=r"^part[=:][^\n]*twice[^\n]*$"):
            configure(*twice)


@pytest.mark.parametrize("part", sorted({*options("part")} - {"test_time"}))
def test_a_part_that_trains_the_backbone_is_refused_where_it_is_not_trained(configure, part):
    with pytest.raises(UserError, match=rf"^method\.parts\.{part}: rates=frozen[^\n]*$"):
        configure("method=lp", f"part={part}")


def test_frozen_stages_stay_to_the_bit_and_the_distortion_of_the_others_is_measured(tiny, capsys):
    directory, record, _ = experiment.run(tiny("method=daft", "part=[layer_decay,freeze]"))
    shown = [line.split("│")[2:6] for line in capsys.readouterr().err.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in shown] == [
        ["conv1 … bn1", "9536", "1", "-"],
        ["layer1.0", "12640", "3", "-"],
        ["layer2.0", "14528", "3", "0.00027"],
        ["layer3.0", "57728", "3", "0.0009"],
        ["layer4.0", "230144", "3", "0.003"],
        ["head", "1290", "0", "0.1"],
    ]
    weights, run = load_file(directory / "model.safetensors"), reopened.open_run(directory)
    before = stages(run.network(torch.device("cpu")).backbone.network)  # names alone
    assert len(before) == 5
    changes = {row["name"]: row["value"] for row in record["relative_change"]}
    frozen = ("backbone.network.conv1.", "backbone.network.bn1.", "backbone.network.layer1.")
    for name, value in changes.items():
        if not name.startswith("head."):
            assert (value == 0) == name.startswith(frozen), name
    pretrained = load_file(Path(tables.__file__).parents[1] / "networks/weights/shapes_resnet10.safetensors")
    for name, value in pretrained.items():
        if f"backbone.network.{name}".startswith(frozen) and "num_batches" not in name:
            assert torch.equal(weights[f"backbone.network.{name}"], value), name
    assert record["metrics"]["id/l2"] > 0
    assert [row["lr"] for row in record["stages"]] == pytest.approx(
        [None, None, 0.01 * 0.3**3, 0.01 * 0.3**2, 0.01 * 0.3, 0.1]
    )
    assert record["history"][0]["lr/backbone.5"] == pytest.approx(0.01 * 0.3)
    assert {row["name"].split(".")[2] for row in record["bn_shift"]} == {"layer2", "layer3", "layer4"}


def test_a_record_keeps_the_curve_and_the_network_of_the_chosen_share(tiny):
    interpolated = tiny("method=lp_ft", "method.parts.interpolate=[0,0.5,1]", "method.lr_backbone=0.01")
    directory, record, _ = experiment.run(interpolated)
    said = record["parts"]["interpolate"]
    chosen = max(said["curve"], key=lambda row: row["id/accuracy"])
    assert chosen["alpha"] == said["alpha"]
    for split in ("id", "photo", "neon", "ood"):
        assert record["metrics"][f"{split}/accuracy"] == chosen[f"{split}/accuracy"]
    plain = experiment.run(tiny("method=lp_ft", "method.lr_backbone=0.01"))
    assert said["curve"][2]["id/accuracy"] == plain.record["metrics"]["id/accuracy"]
    probe = experiment.run(tiny("method=lp"))
    assert said["curve"][0]["neon/accuracy"] == probe.record["metrics"]["neon/accuracy"]
    if said["alpha"] == 1:
        assert (directory / "model.safetensors").read_bytes() == (
            plain.directory / "model.safetensors"
        ).read_bytes()


def test_statistics_at_test_time_have_columns_of_their_own_and_select_nothing(tiny):
    plain = experiment.run(tiny("method=ft"))
    directory, record, _ = experiment.run(tiny("method=ft", "part=test_time"))
    own = {key: value for key, value in record["metrics"].items() if "(target BN)" in key}
    assert {key.partition(" ")[0] for key in own} == {"id", "photo", "neon", "ood"}
    assert {k: v for k, v in record["metrics"].items() if k not in own} == plain.record["metrics"]
    assert record["best_epoch"] == plain.record["best_epoch"]
    # The same in train mode, whose statistics are those of the batches.
    run = reopened.open_run(directory)
    model, images = run.network(torch.device("cpu")), run.images(torch.device("cpu"))
    images.evaluation["neon"].shuffle = True
    with torch.no_grad():
        right = sum(
            int((model.train()(batch).argmax(1) == labels).sum())
            for batch, labels in images.evaluation["neon"].epoch()
        )
    assert own["neon (target BN)/accuracy"] == pytest.approx(100 * right / 40)
    assert own["ood (target BN)/accuracy"] == pytest.approx(
        (own["neon (target BN)/accuracy"] + own["photo (target BN)/accuracy"]) / 2
    )
    runs = frames.from_records([record])
    assert tables.split_name("ood (target BN)/accuracy") == "OOD mean (target BN)"
    assert frames.accuracy_columns(runs)[-2:] == ["ood/accuracy", "ood (target BN)/accuracy"]


def test_methods_that_see_target_images_say_so_count_them_and_evaluate_others(tiny):
    target = [*TARGET, "method=ft"]
    runs = []
    for part in ([], ["part=[coral,dann]"]):
        config = tiny(*target, *part)
        before = experiment.directory_of(config)
        runs.append(experiment.run(config))
        assert runs[-1].directory == before
    plain, record = (run.record for run in runs)
    assert plain["run"] == experiment.run(tiny("method=ft")).record["run"]  # they are not there for it
    assert record["run"] != plain["run"]
    assert record["data"]["images"]["unlabelled"] == 45
    assert record["images_seen"] == {"labelled": 2 * 70, "unlabelled": 4 * 45}  # in four steps, of one batch
    assert plain["images_seen"] == {"labelled": 2 * 70, "unlabelled": 0}
    assert "unlabelled" not in plain["data"]["images"]
    assert record["identity"]["dataset"]["images"].keys() - plain["identity"]["dataset"]["images"].keys() == {
        "unlabelled"
    }
    found = frames.from_records([record, plain])
    assert [*found[frames.METHOD]] == ["ft+coral+dann", "ft"]
    told = tables.markdown(tables.aggregate(found, found))
    assert "| ft+coral+dann (target images) |" in told
    assert "| ft |" in told
    assert tables.run_label(record["config"]).startswith("ft+coral+dann (target images) η_θ=0.01")
    for row in record["history"]:
        assert 0 <= row["train/domain_accuracy"] <= 100
        assert row["train/coral"] > 0
        domain, coral = row["train/domain_loss"], row["train/coral"]
        assert row["train/loss"] == pytest.approx(row["train/task_loss"] + domain + coral, rel=1e-5)
    assert record["history"][0]["lr/domain"] == record["history"][0]["lr/head"]
    weights = experiment.directory_of(tiny(*target, "part=[coral,dann]")) / "model.safetensors"
    assert {name.partition(".")[0] for name in load_file(weights)} == {"backbone", "head"}


def test_methods_with_parts_are_rows_of_their_own(tiny):
    config = tiny("method=daft", "part=[l2_sp,freeze]")
    directory, record, _ = experiment.run(config)
    assert "-daft+freeze+l2_sp-s0-" in directory.name
    other = experiment.run(tiny("method=daft")).record
    runs = frames.from_records([record, other])
    assert [*runs[frames.METHOD]] == ["daft+freeze+l2_sp", "daft"]
    assert tables.run_label(record["config"]).startswith("daft+freeze+l2_sp η_θ=0.01")
    assert other["config"]["method"]["parts"] is None
    assert "stages" not in other


class CutError(Exception):
    """Ends a run within a step."""


def cut_in_step(monkeypatch, config, number: int) -> None:
    """Run until this step (from 1), where it is cut off; the state before it is saved, as at a signal."""
    counted = iter(range(1, 1000))
    usual = loop._Trainer._step

    def step(self, *arguments):
        if next(counted) == number:
            raise CutError
        return usual(self, *arguments)

    save = loop.SaveOnSignal.__exit__

    def leave(self, kind, *rest):
        if kind is CutError:
            self._save()
        save(self, kind, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "_step", step)
        patch.setattr(loop.SaveOnSignal, "__exit__", leave)
        with pytest.raises(CutError):
            experiment.run(config)


TARGET = ["dataset=shapes_unlabelled", "dataset.unlabelled.clipart.images=45"]
"""Batches of 16, 16 and 13: none of the same size as those of the 70 labelled images in the same step."""

STATEFUL = [
    ["part=[layer_decay,freeze,l2_sp]"],
    [*TARGET, "part=[coral,dann,interpolate]", "method.parts.coral.layers=[layer3,features]"],
    ["part=[unfreeze,freeze]", "method.parts.freeze=3", "training.epochs=3"],
]


@pytest.mark.parametrize("parts", STATEFUL, ids=" ".join)
def test_a_run_that_was_cut_off_within_an_epoch_ends_with_the_same_bits(tiny, monkeypatch, tmp_path, parts):
    several = ["method=daft", "training.epochs=2", *parts, "training.batch_size=16"]
    whole = experiment.run(tiny(*several, f"paths.runs={tmp_path}/whole"))
    for number in (3, 7):  # in the first epoch of five steps, and in the second
        folder = f"paths.runs={tmp_path}/{number}"
        cut_in_step(monkeypatch, tiny(*several, folder), number)
        (checkpoint,) = (tmp_path / str(number)).glob("*/checkpoints/last.pt")
        begun = torch.load(checkpoint, weights_only=True)["epoch_progress"]
        assert begun["steps"] == (number - 1) % 5
        resumed = experiment.run(tiny(*several, folder))
        for key in ("metrics", "relative_change", "best_epoch"):
            assert resumed.record[key] == whole.record[key], key
        assert without_times(resumed.record["history"]) == without_times(whole.record["history"])
        files = [run.directory / "model.safetensors" for run in (resumed, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()
