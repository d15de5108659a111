"""Claims about finished runs that are opened again."""

import json
import shutil
from pathlib import Path

import pytest
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
    (done.directory / records.MODEL).write_bytes(b"")
    with pytest.raises(UserError, match="not the weights of this run"):
        open_run(done.directory).network(CPU)
    (done.directory / records.MODEL).unlink()
    with pytest.raises(UserError, match=r"sweep\.checkpoints=all"):
        open_run(done.directory).network(CPU)
    file = done.directory / records.RECORD
    record = json.loads(file.read_text())
    record["identity"]["dataset"]["images"]["photo"] = "others"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="the images of photo are not those"):
        open_run(done.directory).images(CPU)
    file.write_text(json.dumps(record | {"status": "diverged"}))
    with pytest.raises(UserError, match="the run is diverged"):
        open_run(done.directory)
