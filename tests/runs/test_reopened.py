"""Claims about finished runs that are opened again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from daft import experiment
from daft.common.errors import UserError
from daft.runs import records
from daft.runs.reopened import open_run
from daft.training import evaluation
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["lp", "daft"])
def test_a_run_opened_again_classifies_as_it_was_recorded(tiny, method):
    config = tiny(f"method={method}")
    done = experiment.run(config)
    run = open_run(done.directory)
    assert run.config == config
    model, images = run.network(CPU), run.images(CPU)
    cast = evaluation.autocast(CPU, "fp32")
    for split, loader in images.evaluation.items():
        accuracy = evaluation.accuracy(model.backbone, model.head, loader, cast)
        assert accuracy == done.record["metrics"][f"{split}/accuracy"]


def test_it_opens_where_the_files_are_now(tiny, tmp_path, monkeypatch):
    checkpoint = tmp_path / "weights" / "net.safetensors"
    checkpoint.parent.mkdir()
    shutil.copy(ROOT / "daft" / "networks" / "weights" / "shapes_resnet10.safetensors", checkpoint)
    config = tiny("method=lp", f"backbone.checkpoint={checkpoint}", "backbone.checksum=null")
    done = experiment.run(config)
    moved = shutil.move(done.directory, tmp_path / "elsewhere")
    run = open_run(Path(moved), {"weights": "/new"})
    assert run.config.backbone.checkpoint == "/new/net.safetensors"
    assert run.config.paths.weights == "/new"
    monkeypatch.setenv("DAFT_WEIGHTS", "/environment")
    assert open_run(Path(moved)).config.backbone.checkpoint == "/environment/net.safetensors"
    run.network(CPU)  # has its own weights: the pretrained ones may be gone


def test_what_cannot_be_opened_is_said(tiny, tmp_path):
    with pytest.raises(UserError, match="no finished run is here"):
        open_run(tmp_path)
    done = experiment.run(tiny("method=lp"))
    weights = done.directory / records.MODEL
    state = safetensors.torch.load(weights.read_bytes())
    spoiled = state | {"backbone.network.bn1.running_var": -state["backbone.network.bn1.running_var"]}
    for content, reason in (
        (b"", "it is cut short"),
        (weights.read_bytes()[:-1], "it is cut short"),
        (safetensors.torch.save({"head": torch.zeros(1)}), "of another network"),
        (safetensors.torch.save(spoiled), r"bn1\.running_var \(64 of 64 negative\)"),
    ):
        weights.write_bytes(content)
        with pytest.raises(
            UserError, match=rf"(?s)model\.safetensors: not the weights of this run.*{reason}"
        ):
            open_run(done.directory).network(CPU)
    diverged = replace(open_run(done.directory), record=done.record | {"status": "diverged"})
    diverged.network(CPU)  # whose weights may be anything
    weights.unlink()
    weights.mkdir()
    with pytest.raises(UserError, match=r"not the weights of this run \(a folder\)"):
        open_run(done.directory).network(CPU)
    weights.rmdir()
    with pytest.raises(UserError, match=r"sweep\.checkpoints=all"):
        open_run(done.directory).network(CPU)
    file = done.directory / records.RECORD
    record = json.loads(file.read_text())
    for lacking in ("identity", "data"):
        file.write_text(json.dumps({key: value for key, value in record.items() if key != lacking}))
        with pytest.raises(UserError, match=rf"does not say what the run was made of \({lacking}: field req"):
            open_run(done.directory)
    file.write_text(json.dumps(record | {"config": record["config"] | {"compute": {"device": "abacus"}}}))
    with pytest.raises(UserError, match=r"configuration is of another version: compute\.\w+: "):
        open_run(done.directory)
    record["identity"]["dataset"]["images"]["photo"] = "others"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="the images of photo are not those"):
        open_run(done.directory).images(CPU)
    file.write_text(json.dumps(record | {"status": "diverged"}))
    with pytest.raises(UserError, match="the run is diverged"):
        open_run(done.directory)
