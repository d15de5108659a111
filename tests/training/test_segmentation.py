"""Claims about segmentation: network, loss, measure, and whole runs on drawn masks."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from daft import experiment
from daft.batchnorm import batchnorm_layers
from daft.common.errors import ConfigError
from daft.config.schema import SegmentationConfig
from daft.data.images import Resident
from daft.data.labelled import IGNORED
from daft.data.loader import Loader
from daft.methods import preparation
from daft.networks import backbones
from daft.networks.deeplab import Decoder, Encoder, Segmenter
from daft.report import page, tables
from daft.runs import frames, records
from daft.runs.identity import run_identity
from daft.runs.reopened import open_run
from daft.sweep import selection
from daft.training import tasks
from daft.training.segmentation import cross_entropy, ious
from tests.helpers import fabricate, fabricate_weights

CPU = torch.device("cpu")
TINY = [
    "dataset=shapes_masks",
    "dataset.image_size=32",
    "dataset.train.images=36",  # 16 + 16 + 4
    "dataset.id.images=20",
    "dataset.ood.painting.images=20",
    "dataset.train_transform=[{random_scale_crop: 32}, flip]",
    "segmentation.channels=8",
    "training.epochs=2",
    "training.steps=5",
    "wandb.mode=disabled",
    "compute.device=cpu",
]
SMALL = SegmentationConfig(
    output_stride=16,
    atrous_rates=(6, 12, 18),
    separable=False,
    dropout=0.1,
    channels=8,
    eval_batch_size=4,
    head_init="random",
    lr_head=0.1,
)


@pytest.fixture
def tiny(configure, folders):
    return lambda *overrides: configure(*TINY, *folders, *overrides)


def segmenter(configure, stride=16) -> Segmenter:
    """The embedded network with a decoder for 11 classes, in test mode."""
    cfg = configure("dataset=shapes_masks").backbone
    encoder = Encoder(backbones.load(cfg), cfg, stride)
    torch.manual_seed(0)
    return Segmenter(encoder, Decoder(encoder, 11, replace(SMALL, output_stride=stride))).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# The network


def test_moco_v2_becomes_torchvisions_dilated_network_key_by_key(configure, tmp_path):
    plain = fabricate_weights.resnet50()
    file = tmp_path / "moco.pth.tar"
    fabricate_weights.moco(file, plain.state_dict())
    cfg = configure("backbone=moco_v2", f"backbone.checkpoint={file}", "backbone.checksum=null").backbone
    encoder = Encoder(backbones.load(cfg), cfg, output_stride=16).eval()
    state = {key.removeprefix("model."): value for key, value in encoder.network.state_dict().items()}
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in state.items())

    dilated = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
    dilated.load_state_dict(plain.state_dict(), strict=False)  # all but the head
    dilated.eval()
    images = noise(1, 3, 64, 48)
    with torch.no_grad():
        maps = encoder(images)
        x = dilated.maxpool(dilated.relu(dilated.bn1(dilated.conv1(encoder.normalised(images)))))
        low = dilated.layer1(x)
        expected = dilated.layer4(dilated.layer3(dilated.layer2(low)))
    assert maps[-1].shape[-2:] == (4, 3)
    # the same products in the same order: bit for bit but for the kernels that torch picks
    assert torch.allclose(maps[2], low, rtol=1e-5, atol=1e-5 * float(low.abs().max()))
    assert torch.allclose(maps[-1], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_efficientnet_becomes_timms_dilated_network_without_what_is_behind_its_stages(configure):
    model = "tf_efficientnet_lite0"
    torch.manual_seed(0)
    plain = backbones.load(
        configure("backbone=timm", f"backbone.model={model}", "backbone.weights=random").backbone
    )
    encoder = Encoder(plain, configure("backbone=timm", f"backbone.model={model}").backbone, 16).eval()
    dilated = timm.create_model(model, num_classes=0, output_stride=16).eval()
    dilated.load_state_dict(plain.network.state_dict())
    images = noise(1, 3, 64, 48)
    with torch.no_grad():
        maps = encoder(images)
        behind = {"conv_head", "bn2", "global_pool", "classifier"}
        stages = [stage for name, stage in dilated.named_children() if name not in behind]
        expected = torch.nn.Sequential(*stages)(encoder.normalised(images))
    assert encoder.channels[-1] == expected.shape[1] == 320
    assert torch.equal(maps[-1], expected)
    assert {*plain.network.state_dict()} - {
        key.removeprefix("model.") for key in encoder.network.state_dict()
    } == {"conv_head.weight", *(key for key in plain.network.state_dict() if key.startswith("bn2."))}


def test_a_checkpoint_with_a_missing_key_is_refused(configure, tmp_path):
    state = fabricate_weights.resnet50().state_dict()
    del state["layer4.2.conv3.weight"]
    fabricate_weights.moco(tmp_path / "moco.pth.tar", state)
    config = configure(
        *("dataset=voc", "backbone=moco_v2", "method=ft", "backbone.checksum=null"),
        f"backbone.checkpoint={tmp_path}/moco.pth.tar",
    )
    with pytest.raises(backbones.UserError, match=r"(?s)missing \(1\): layer4\.2\.conv3\.weight"):
        tasks.of(config, ["a", "b"]).backbone()


@pytest.mark.parametrize("stride", [8, 16])
def test_sides_that_do_not_fit_are_padded_with_the_mean_and_cropped(configure, stride):
    model = segmenter(configure, stride)
    images = noise(2, 3, 33, 50)
    padded = torch.full((2, 3, 48, 64), 0.5)  # the mean of this network's normalisation
    padded[..., :33, :50] = images / 255
    if stride == 8:
        padded = padded[..., :40, :56]
    with torch.no_grad():
        logits, expected = model(images), model(padded)[..., :33, :50]
    assert logits.shape == (2, 11, 33, 50)
    # one rounding of the normalisation apart
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(64, 512), (512, 64)], ids=["right", "down"])
def test_an_image_moved_by_the_stride_has_its_logits_moved(configure, shape):
    """Exactly, where no border reaches: the network sees 138 pixels far with a pyramid dilated by 1."""
    cfg = configure("dataset=shapes_masks").backbone
    encoder = Encoder(backbones.load(cfg), cfg, 16)
    model = Segmenter(encoder, Decoder(encoder, 11, replace(SMALL, atrous_rates=(1, 1, 1)))).eval().double()
    axis = shape.index(512) - 2
    images = torch.full((2, 3, *shape), 0.5, dtype=torch.float64)
    for image, start in zip(images, (240, 256), strict=True):
        image.narrow(axis, start, 32).copy_(
            noise(3, *(min(side, 64) for side in shape)).narrow(axis, 0, 32) / 255
        )
    with torch.no_grad():
        logits = model(images)
    here, there = (logits[i].narrow(axis, start, 208) for i, start in ((0, 144), (1, 160)))
    spread = float(here.std())
    assert spread > 0.01
    # float64 rounding, 2e-16, through some thirty layers of up to a thousand products each
    assert torch.allclose(here, there, rtol=0, atol=1e-10 * spread)


@pytest.mark.parametrize("separable", [False, True])
def test_the_decoders_convolutions_are_vainfs(configure, separable):
    cfg = configure("dataset=shapes_masks").backbone
    encoder = Encoder(backbones.load(cfg), cfg, 16)
    decoder = Decoder(encoder, 11, replace(SMALL, separable=separable))
    found = [
        tuple(m.weight.shape)
        for m in decoder.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    coarse, fused = encoder.channels[-1], 48 + 8
    plain = [(8, coarse, 3, 3)] * 3 + [(8, fused, 3, 3)]
    assert found == ([(coarse, 1, 3, 3)] * 3 + [(fused, 1, 3, 3)] if separable else plain)


def test_conversion_fits_the_encoder_alone_and_leaves_the_networks_function(configure):
    model, images = segmenter(configure), noise(2, 8, 3, 48, 48)
    model.double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(images[0].double() / 255)
    method = configure(*TINY, "method=daft").method
    prepared = preparation.prepare(method, model, probed_head=None, batches=images.double() / 255)
    assert set(prepared.shift) == {f"backbone.{name}" for name in batchnorm_layers(model.backbone)}
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.startswith("backbone.") for key in moved)
    assert moved >= {f"{name}.running_var" for name in prepared.shift}
    model.eval()
    with torch.no_grad():
        converted = model(images[0].double() / 255)
    # float64 rounding, 2e-16, through thirteen layers that may each amplify it some hundred times
    assert torch.allclose(converted, logits, rtol=0, atol=1e-10 * float(logits.abs().max()))


def test_bn_mode_is_the_encoders_and_the_decoders_bn_trains(configure):
    model = segmenter(configure)
    for name in ("ft", "lp", "lp_ft", "daft"):
        method = configure(*TINY, f"method={name}").method
        preparation.set_train_mode(model, method)
        encoder = {layer.training for layer in batchnorm_layers(model.backbone).values()}
        assert encoder == {method.bn_mode == "train"}, name
        assert all(layer.training for layer in batchnorm_layers(model.head).values()), name


# Loss and measure


class Fixed(nn.Module):
    """A network that answers with what it was given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_the_loss_is_the_mean_over_pixels_that_have_a_class():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    masks = torch.randint(3, (2, 4, 5), generator=generator).byte()
    masks[0, 1:3] = IGNORED
    images = torch.zeros(2, 3, 4, 5)
    log_p = logits.double().log_softmax(1).numpy()
    pixels = [-log_p[b, masks[b, y, x], y, x] for b, y, x in np.ndindex(2, 4, 5) if masks[b, y, x] != IGNORED]
    assert float(cross_entropy(Fixed(logits), (images, masks))["loss"]) == pytest.approx(
        np.mean(pixels), rel=1e-6
    )
    nothing = torch.full_like(masks, IGNORED)
    assert float(cross_entropy(Fixed(logits), (images, nothing))["loss"]) == 0


def test_the_measure_is_that_of_a_confusion_matrix_in_float64(configure):
    model = segmenter(configure)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.cat(
        [noise(10, 3, 40, 40), torch.randint(8, (10, 1, 40, 40), generator=generator).byte()], 1
    )
    pixels[:, 3, :7] = IGNORED
    loader = Loader("id", Resident(pixels), torch.zeros(10, dtype=torch.long), "x", [], 4, 0, False, CPU, 0)
    with torch.no_grad():
        [*model.head.parameters()][-1][10] = -1e9  # the bias of the last layer
    found = ious(model, loader, 11, nullcontext)

    counts = np.zeros((11, 11))
    with torch.no_grad():
        predicted = model(pixels[:, :3]).argmax(1)
    for truth, answer in zip(pixels[:, 3].flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if truth != IGNORED:
            counts[truth, answer] += 1
    assert counts.sum() == 10 * 33 * 40
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    expected = np.full(11, np.nan)
    np.divide(100 * np.diag(counts), union, out=expected, where=union > 0)
    assert np.isnan(expected[10])  # nowhere in the masks, and never predicted
    # the library divides whole numbers below 2^24 in float32: half an ulp, then 100 times that
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    with torch.no_grad():
        next(model.head.parameters()).fill_(torch.nan)
    assert ious(model, loader, 11, nullcontext).isnan().all()


# Whole runs


def test_every_method_runs_and_lp_ft_starts_from_lps_decoder(tiny, tmp_path):
    runs = {}
    for name in ("lp", "lp_ft", "ft", "daft"):
        rate = ["method.lr_backbone=1e-12"] if name == "lp_ft" else []
        runs[name] = experiment.run(tiny(f"method={name}", *rate))
    for name, (_, record, fresh) in runs.items():
        assert fresh, name
        assert record["status"] == "finished", name
        metrics = record["metrics"]
        each = [value for key, value in metrics.items() if key.startswith("id/iou_")]
        assert len(each) == 11
        assert metrics["id/miou"] == pytest.approx(np.nanmean(each)), name
        assert metrics["ood/miou"] == metrics["painting/miou"]
        assert sum(record["distortion"]["id"]["l2"]["counts"]) == 20
        assert [row["step"] for row in record["history"]] == [2, 5]
        assert record["best_epoch"] == 2
        assert record["history"][-1]["selection/miou"] == pytest.approx(metrics["id/miou"], abs=1e-9)
        assert len(record["bn_shift"]) == (13 if name == "daft" else 0)
    lp = load_file(runs["lp"].directory / "model.safetensors")
    pretrained = tasks.of(tiny(), ["a"] * 11).backbone().state_dict()
    for key, value in lp.items():
        if key.startswith("backbone."):
            assert torch.equal(value, pretrained[key.removeprefix("backbone.")]), key
    assert runs["lp"].record["metrics"]["id/l2"] == 0
    for name, parameter in open_run(runs["lp_ft"].directory).network(CPU).named_parameters():
        # five steps of 1e-12 with gradients far below 1e3
        assert torch.allclose(parameter, lp[name], rtol=0, atol=1e-8), name
    assert len(records.find_runs(tmp_path / "runs")) == 4  # LP-FT found LP's run
    assert runs["lp_ft"].record["probe"]["run"] == runs["lp"].record["run"]

    frame = frames.from_directories(run.directory for run in runs.values())
    table = tables.aggregate(selection.select(frame), frame)
    ((by_class, note),) = tables.classes(table)
    assert "mIoU is the mean of these" in note
    record = runs["lp"].record
    assert by_class["class"].tolist() == record["data"]["classes"]
    found = [float(value) for value in by_class["lp"] if value != "-"]
    # Each is rounded to 0.01.
    assert np.mean(found) == pytest.approx(record["metrics"]["id/miou"], abs=0.005)
    shown = tables.class_table(record)
    assert shown is not None
    assert [column.header for column in shown.columns] == ["class", "ID IoU %", "painting IoU %"]
    assert shown.row_count == len(by_class)
    assert note in page.render_page(records.load([runs["lp"].directory]), "t")
    assert "| method | η_θ | η_w | n | ID mIoU % | painting mIoU % | OOD mean mIoU %" in tables.markdown(
        table
    )


def test_a_run_opened_again_segments_as_it_was_recorded(tiny):
    done = experiment.run(tiny("method=ft"))
    run = open_run(done.directory)
    task, model = tasks.of(run.config, run.classes), run.network(CPU)
    for split, loader in run.images(CPU).evaluation.items():
        assert task.score(model, loader, nullcontext) == done.record["metrics"][f"{split}/miou"]


@pytest.mark.parametrize("method", ["ft", "daft"])
def test_images_of_their_own_sizes_are_evaluated_whole(configure, folders, tmp_path, method):
    fabricate.voc(tmp_path / "voc", train=["a", "b"], extra=["c", "d"], val=["e", "f", "g"])
    done = experiment.run(
        configure(
            *("dataset=voc", f"dataset.root={tmp_path}/voc", f"method={method}", *folders),
            *("dataset.train.known_images=null", "dataset.id.known_images=null", "training.batch_size=4"),
            *("dataset.train_transform=[{random_scale_crop: 32}, flip]", "dataset.eval_transform=[]"),
            *("segmentation.eval_batch_size=1", "segmentation.channels=8", "training.epochs=1"),
            *("training.steps=1", "wandb.mode=disabled", "compute.device=cpu"),
        )
    )
    loader = open_run(done.directory).images(CPU).evaluation["id"]
    assert [images.shape for images, _ in loader.epoch()] == [(1, 3, 36, 48), (1, 3, 48, 36), (1, 3, 36, 48)]
    assert 0 <= done.record["metrics"]["id/miou"] <= 100
    assert sum(done.record["distortion"]["id"]["l2"]["counts"]) == 3


def test_masks_learn_more_than_background(configure, folders):
    """End to end on a small set: shapes are found, where the network before training finds none."""
    config = configure(
        *(*TINY, *folders, "method=ft", "method.lr_backbone=0.1", "training.steps=60"),
        *("dataset.image_size=48", "dataset.train.images=320", "dataset.id.images=60", "training.epochs=1"),
        *("segmentation.channels=32", "dataset.train_transform=[flip]", "~dataset.ood.painting"),
    )
    record = experiment.run(config).record
    background = record["metrics"]["id/iou_background"]
    assert record["metrics"]["id/miou"] > background / 11 + 5  # answering `background` would give the first


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=voc", "~segmentation"], "segmentation: null, but voc has masks"),
        (["dataset=living17", "task=segmentation"], "segmentation: living17 has no masks"),
        (["dataset=voc", "method=daft", "method.head_init=zero"], "a decoder has several layers; use random"),
        (["dataset=voc", "method.head_hidden=[8]"], "the head is the decoder"),
        (
            ["dataset=voc", "method=lp_ft", "method.lr_probe=null"],
            "method.lr_probe: null, but head_init=probe",
        ),
        (["dataset=voc", "method=lp", "method.lr_probe=0.1"], "method.lr_probe: 0.1, but head_init=random"),
        (["dataset=voc", "dataset.cache_side=64"], "masks are not cached"),
        (["dataset=voc", "training.steps=3"], "training.steps: 3 for 30 epochs"),
        (["dataset=voc", "segmentation.output_stride=32"], "segmentation.output_stride"),
        (["dataset=voc", "segmentation.strid=8"], "no such key"),
        (["method.lr_probe=0.1"], "method.lr_probe: 0.1, but a linear head has none"),
    ],
)
def test_what_makes_no_sense_is_said(configure, overrides, words):
    with pytest.raises(ConfigError, match=words):
        configure(*overrides)


def test_identity_has_what_moves_a_segmentation_and_nothing_else(configure):
    def identity(*overrides):
        return run_identity(configure("dataset=voc", *overrides), "fp32", {"train": "i"}, "w")

    same = identity()
    assert identity("segmentation.eval_batch_size=1") == same
    assert identity("segmentation.lr_head=0.01") == same
    others = (
        "segmentation.output_stride=8",
        "training.steps=60",
        "training.poly_power=1",
        "method.lr_head=0.2",
    )
    assert all(identity(other) != same for other in others)
    lp_ft = ("method=lp_ft", "method.lr_probe=0.1"), ("method=lp_ft", "method.lr_probe=0.2")
    assert identity(*lp_ft[0]) != identity(*lp_ft[1])
    assert "segmentation" not in run_identity(configure(), "fp32", {"train": "i"}, "w")
