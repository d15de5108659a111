"""Claims about exported networks: they give the run's logits, say what they are, or are refused."""

import errno
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn

import daft
from daft import experiment
from daft.batchnorm import batchnorm_layers
from daft.common import files
from daft.common.errors import UserError
from daft.experiment import RunResult
from daft.networks import backbones
from daft.networks.classifier import Classifier, make_head
from daft.use import card, export
from daft.use.loaded import LoadedRun
from tests.use.conftest import CLASSES


def pixels(run: LoadedRun, folder: Path) -> Tensor:
    """All images of a split as the run's network takes them."""
    return torch.stack([run.transform(Image.open(file)) for file in sorted(folder.rglob("*.*"))])


def refuses(run: LoadedRun, kind: export.Format, out: Path, fold_bn: bool = False) -> str:
    """The words with which an export ends that writes nothing."""
    with pytest.raises(UserError) as told:
        export.export(run, kind, out, fold_bn=fold_bn)
    assert not out.exists()
    return str(told.value)


def test_onnx_takes_bytes_and_any_batch_and_names_the_classes(script, copied: Path, images: Path):
    done = script("export.py", copied, "--to", "onnx")
    assert done.code == 0, done.errors
    assert f"wrote {copied / 'onnx' / 'model.onnx'} and README.md: images of 32 x 32 pixels" in done.output
    session = onnxruntime.InferenceSession(copied / "onnx" / "model.onnx")
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES
    run = daft.load_run(copied)
    assert json.loads(about["transform"])[1] == {"center_crop": {"size": 32}}
    x = pixels(run, images / "val")
    with torch.no_grad():
        expected = run.model(x)
    _, tolerance = export._reference(run.model, x)
    for count in (1, 2, 33):
        (logits,) = session.run(None, {"images": x[:count].numpy()})
        assert np.abs(logits - expected[:count].numpy()).max() <= 2 * tolerance  # each is off the exact one


def test_onnx_of_a_segmentation_takes_any_size(segmentation: RunResult, tmp_path: Path):
    run = daft.load_run(segmentation.directory)
    done = export.export(run, "onnx", tmp_path, fold_bn=True, input_type="float32")
    assert (done.height, done.folded) == (None, len(batchnorm_layers(run.model)))
    session = onnxruntime.InferenceSession(done.file)
    assert session.get_inputs()[0].type == "tensor(float)"
    assert session.get_outputs()[0].shape == ["batch", 11, "height", "width"]
    for shape in ((1, 3, 32, 32), (3, 3, 50, 33)):
        x = export.sample(shape[0], *shape[2:]) / 255
        exact, tolerance = export._reference(run.model, x)
        logits = np.asarray(session.run(None, {"images": x.numpy()})[0])
        assert logits.shape == exact.shape == (shape[0], 11, *shape[2:])
        assert np.abs(logits - exact.numpy()).max() <= tolerance


def test_timms_network_gives_equal_logits_for_normalised_images(
    script, copied: Path, images: Path, tmp_path: Path
):
    done = script("export.py", copied, "--to", "timm", "--out", tmp_path / "out")
    assert done.code == 0, done.errors
    run = daft.load_run(copied)
    arguments: Any = run.run.config.backbone.model_args
    network = timm.create_model(
        "resnet18", num_classes=3, checkpoint_path=str(tmp_path / "out" / "model.safetensors"), **arguments
    )
    local: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    x = pixels(run, images / "val")
    with torch.no_grad():
        expected = run.model(x)
        for found in (network, local):
            found = found.to(memory_format=torch.channels_last).eval()
            assert torch.equal(found(run.model.backbone.normalised(x)), expected)
    assert local.pretrained_cfg["label_names"] == CLASSES
    assert (local.pretrained_cfg["mean"], local.pretrained_cfg["crop_pct"]) == ([0.5, 0.5, 0.5], 0.8)


def test_a_classifier_that_is_a_convolution_is_filled_too(copied: Path, tmp_path: Path):
    run = daft.load_run(copied)
    arguments: Any = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    cfg = replace(run.run.config.backbone, model="resnetv2_50", model_args=arguments)
    backbone = backbones.untrained(cfg)
    model = Classifier(backbone, make_head(backbone.num_features, [], 3)).eval()
    other = replace(run, model=model, run=replace(run.run, config=replace(run.run.config, backbone=cfg)))
    done = export.export(other, "timm", tmp_path)
    network: Any = timm.create_model(
        "resnetv2_50", num_classes=3, checkpoint_path=str(done.file), **arguments
    )
    assert isinstance(network.head.fc, nn.Conv2d)
    assert torch.equal(network.head.fc.weight.flatten(1), model.head.state_dict()["linear1.weight"])


@pytest.mark.parametrize("fold_bn", [False, True])
def test_torchscript_gives_the_logits_with_or_without_bn(
    copied: Path, images: Path, tmp_path: Path, fold_bn: bool
):
    run = daft.load_run(copied)
    done = export.export(run, "torchscript", tmp_path, fold_bn=fold_bn)
    assert done.folded == (len(batchnorm_layers(run.model)) if fold_bn else 0)
    extra = {"classes": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = torch.jit.load(str(done.file), _extra_files=extra)
    assert json.loads(extra["classes"]) == CLASSES
    x = pixels(run, images / "val")
    exact, tolerance = export._reference(run.model, x)
    with torch.no_grad():
        assert float((model(x) - exact).abs().max()) <= tolerance
    assert ("batch_norm" in str(model.inlined_graph)) != fold_bn


def test_a_network_that_computes_something_else_is_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def spoil(model: Any, images: Tensor) -> list[str]:
        model.backbone.network.layer3[0].bn2.eps = 1.1e-5
        return ["layer3.0.bn2"]

    monkeypatch.setattr(export, "fold_batchnorm", spoil)
    told = refuses(daft.load_run(copied), "torchscript", tmp_path / "out", fold_bn=True)
    assert "from the run's own, where rounding explains" in told


class Bessel(nn.Module):
    """Something that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named(
    copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = daft.load_run(copied)
    run.model.backbone.network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Bessel())
    run.model.head = nn.Linear(3, 3)
    told = refuses(run, "onnx", tmp_path / "out")
    assert told.endswith(
        "--to onnx: ONNX has no operator for prims.bessel_j0, which --to torchscript may take; "
        "nothing is written"
    )
    assert capfd.readouterr() == ("", "")


class Function(nn.Module):
    """Of the mean colours."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.mean((2, 3)))


def determinant(x: Tensor) -> Tensor:
    """In double precision, which onnxruntime has no determinant for."""
    return x + torch.linalg.det(x.double()[:, :, None] * torch.eye(3).double()).float()[:, None]


def of_small_batches(x: Tensor) -> Tensor:
    """What no trace is compared with, for it fails while it is made."""
    if len(x) == 2:
        raise KeyError("two images")
    return x * 1


FAILURES = [
    ("onnx", determinant, "onnxruntime, which compares it, does not compute Det"),
    ("onnx", lambda x: x if x.sum() > 0 else -x, "depends on the values of its images"),
    ("torchscript", of_small_batches, "'two images'"),
]


@pytest.mark.parametrize(("kind", "function", "told"), FAILURES, ids=[told for *_, told in FAILURES])
def test_an_export_that_fails_is_one_line_whatever_library_it_fails_in(
    copied: Path, tmp_path: Path, kind: export.Format, function: Any, told: str
):
    run = daft.load_run(copied)
    run.model.backbone.network, run.model.head = Function(function), nn.Linear(3, 3)
    (line,) = refuses(run, kind, tmp_path / "out").splitlines()
    assert told in line
    assert line.endswith("; nothing is written")


def test_a_disk_that_is_full_leaves_what_was_there(
    script, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = files.write_atomically

    def full(path: Path, content: files.Content) -> None:
        if path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    done = script("export.py", copied, "--to", "timm", "--out", tmp_path / "out")
    assert done.code == 1
    (line,) = done.errors.splitlines()
    assert f"No space left on device: '{tmp_path / 'out' / 'model.safetensors'}'" in line
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("before")
    assert script("export.py", copied, "--to", "timm", "--out", tmp_path / "out").code == 1
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [
        ("config.json", "before")
    ]


def test_what_timms_layout_cannot_hold_is_said(copied: Path, segmentation: RunResult, tmp_path: Path):
    def changed(section: str, **values: Any) -> LoadedRun:
        run = daft.load_run(copied)
        config = run.run.config
        sections: dict[str, Any] = {section: replace(getattr(config, section), **values)}
        config = replace(config, **sections)
        return replace(run, run=replace(run.run, config=config))

    out = tmp_path / "out"
    hidden = changed("method", head_init="random", head_hidden=[4])
    assert "its head has hidden layers ([4])" in refuses(hidden, "timm", out)
    own: dict[str, Any] = {
        "source": "import",
        "model": "a.b",
        "weights": "own",
        "checkpoint": None,
        "checksum": None,
    }
    assert "a.b is no network of timm" in refuses(changed("backbone", **own), "timm", out)
    run = daft.load_run(segmentation.directory)
    assert "timm's networks classify images; --to onnx or torchscript takes it" in refuses(run, "timm", out)
    assert "leave --fold-bn out" in refuses(daft.load_run(copied), "timm", out, fold_bn=True)


def test_packages_that_are_not_installed_are_named(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "NEEDED", ("onnx", "onnxscript_of_tomorrow"))
    told = refuses(daft.load_run(copied), "onnx", tmp_path / "out")
    assert told == "--to onnx needs onnxscript_of_tomorrow; pip install onnx onnxscript_of_tomorrow"


def test_the_card_says_how_it_was_made_on_what_and_how_good_it_is(script, copied: Path, tmp_path: Path):
    assert script("export.py", copied, "--to", "torchscript", "--out", tmp_path / "out").code == 0
    record = daft.load_run(copied).record
    loaded = ModelCard.load(tmp_path / "out" / "README.md")
    about: Any = loaded.data
    assert (about.library_name, about.pipeline_tag) == ("pytorch", "image-classification")
    found = {result.dataset_split: result.metric_value for result in about.eval_results}
    assert found == {split: round(record["metrics"][f"{split}/accuracy"], 2) for split in ("id", "art")}
    images = record["identity"]["dataset"]["images"]
    for part in (
        "circle, square, star",
        f"| art | out of distribution | `{images['art'][:12]}` | 12 | {found['art']:.2f} |",
        "| train | training | ",
        "(η_θ) 0.01, head (η_w) 0.1; SGD",
        f"epoch {record['best_epoch']}, the best by id/accuracy; OOD images select none",
        f"torch {record['environment']['libraries']['torch']}",
        "its number is optimistic",
        "n = 1 run (seed 0)",
    ):
        assert part in loaded.text, part


def test_a_card_has_balanced_accuracy_where_classes_are_unequal(copied: Path, tmp_path: Path):
    run = daft.load_run(copied)
    done = export.export(run, "timm", tmp_path)
    run.record["per_class"] = {"id": {"images": [3, 3, 3], "accuracy": [100, 0, 0]}}
    run.record["metrics"]["id/balanced_accuracy"] = 33.333
    assert "balanced" not in card.card(run, done)
    run.record["per_class"]["id"]["images"] = [9, 1, 1]
    text = card.card(run, done)
    assert "| accuracy % | balanced % |" in text
    assert re.search(r"\| id \| in distribution .* \| 33\.33 \|\n", text)


def test_cards_of_other_runs_say_how_they_were_made(tiny, tmp_path: Path):
    done = export.Exported("onnx", tmp_path / "model.onnx", None, None, "uint8", 0, 0.0, 1e-6)
    probed = daft.load_run(experiment.run(tiny("method=lp")).directory)
    c = probed.record["probe"]["C"]
    assert f"logistic regression, C = {c:.3g} by id/accuracy; the backbone is as" in card.card(probed, done)
    fitted = daft.load_run(experiment.run(tiny("method=daft", "method.lr_head=auto")).directory)
    rate = fitted.record["head_rate"]["rate"]
    assert f"head (η_w) {rate:.3g} (1 times what fits the features); SGD" in card.card(fitted, done)
    tied = daft.load_run(
        experiment.run(tiny("method=ft", "training.selection=holdout", "dataset.train.images=100")).directory
    )
    text = card.card(tied, done)
    assert "head (η_w) the same; SGD" in text
    assert "the best by holdout/accuracy" in text
    assert "| holdout | held out of training | " in text
    assert "images held out of training, so no evaluation set had a part" in text


def test_the_card_of_a_segmentation_has_its_measure(segmentation: RunResult, tmp_path: Path):
    done = export.Exported("onnx", tmp_path / "model.onnx", None, None, "uint8", 0, 0.0, 1e-6)
    text = card.card(daft.load_run(segmentation.directory), done)
    miou = segmentation.record["metrics"]["id/miou"]
    drawn = segmentation.record["identity"]["dataset"]["images"]["id"]
    assert f"| in distribution | `{drawn}` | 18 | {miou:.2f} |" in text
    assert "type: mean_iou" in text
    assert "[B, 11, H, W], in the order" in text
    assert "the last epoch; OOD images select none" in text


def test_the_code_of_a_card_runs(script, copied: Path, monkeypatch: pytest.MonkeyPatch):
    run = daft.load_run(copied)
    x = export.sample(2, 32, 32)
    with torch.no_grad():
        exact, tolerance = export._reference(run.model, x)
    for kind, given in (("torchscript", x), ("timm", run.model.backbone.normalised(x))):
        assert script("export.py", copied, "--to", kind).code == 0
        monkeypatch.chdir(copied / kind)
        code = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
        names: dict[str, Any] = {"images": given}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            exec(code, names)
        assert float((names["logits"] - exact).abs().max()) <= tolerance


MISTAKES = [
    ("none --to timm", "none: no finished run is here; there is nothing of that name"),
    ("{run} --to coreml", "argument --to: invalid choice: 'coreml'"),
    ("{run} --to timm --input uint8", "--input uint8: timm's networks take normalised floats"),
    ("{run} --to timm --out file", "--out file: file is no folder"),
    ("{run} --to timm --out mine", "--out mine: has a README.md that is not of an export"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(
    script, copied: Path, monkeypatch: pytest.MonkeyPatch, words: str, told: str
):
    folder = copied.parent
    (folder / "file").touch()
    (folder / "mine").mkdir()
    (folder / "mine" / "README.md").write_text("mine")
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    done = script("export.py", *words.format(run=copied.name).split())
    assert done.code == 1
    (line,) = done.errors.splitlines()
    assert told in line
    assert sorted(folder.rglob("*")) == before
