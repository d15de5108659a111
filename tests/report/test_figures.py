"""Claims about pictures: what they show is what the records, weights and images say."""

import copy
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Annotation
from PIL import Image
from safetensors.torch import load_file, save_file

from daft import experiment
from daft.common.errors import UserError
from daft.data import datasets
from daft.data.images import Resident
from daft.networks import backbones
from daft.report.figures import (
    accuracy,
    change,
    extremes,
    features,
    gallery,
    mosaic,
    sensitivity,
    sheets,
    style,
)
from daft.runs import frames, records, similarity
from daft.runs.reopened import open_run
from daft.training import distortion
from scripts import contact_sheet, figures
from tests.conftest import TINY
from tests.report.test_page import BASE
from tests.test_scripts import drawn

CPU = torch.device("cpu")


def run(
    name: str, method: str = "daft", seed: int = 0, accuracy: float | None = 80.0, **settings: Any
) -> dict[str, Any]:
    """A record; without an accuracy a diverged one."""
    rates = {"lr_backbone": settings.pop("lr_backbone", 0.1), "lr_head": settings.pop("lr_head", None)}
    dataset: dict[str, Any] = {"name": "pacs"}
    if "strength" in settings:
        dataset["shift_strength"] = settings.pop("strength")
    metrics = (
        {} if accuracy is None else {"id/accuracy": accuracy, "ood/accuracy": accuracy - 30, "id/l2": 1.0}
    )
    return copy.deepcopy(BASE) | {
        "run": name,
        "status": "diverged" if accuracy is None else "finished",
        "metrics": metrics,
        "history": [{"epoch": i + 1, "selection/accuracy": a} for i, a in enumerate((50.0, 76.0, 80.0))],
        "data": {"images": {"train": settings.pop("images", 1000)}, "classes": ["a", "b"]},
        "config": {
            "dataset": dataset,
            "backbone": {"name": "net"},
            "method": {"name": method, **rates},
            "training": {"selection": "paper"},
            "seed": seed,
        },
        **settings,
    }


@pytest.fixture
def call(monkeypatch):
    """A script's main with these arguments, in this process: a new one would import for seconds."""

    def called(script: Any, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [script.__name__, *map(str, arguments)])
        script.main()

    return called


def images(figure: Any) -> list[np.ndarray]:
    """Those of its first panel."""
    return [image.get_array() for image in figure.axes[0].images]


def texts(figure: Any) -> str:
    """All that a figure says."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_pooled_densities_keep_every_image_whatever_the_bins():
    """Of two runs with bins of their own: hand-computed on halves of bins."""
    found = [{"edges": [0.0, 1.0, 2.0], "counts": [1, 3]}, {"edges": [0.0, 4.0], "counts": [5]}]
    edges = np.array([0.0, 0.5, 2.0, 4.0])
    density = features.density(found, edges)
    shares = np.array([(1 / 8 + 1 / 8) / 2, (7 / 8 + 3 / 8) / 2, (0 + 4 / 8) / 2])
    np.testing.assert_allclose(density * np.diff(edges), shares)
    assert density @ np.diff(edges) == pytest.approx(1)


def test_cosines_near_one_fill_many_bins_and_records_with_coarser_bins_are_drawn_with_them():
    """All images within 0.94 ± 0.03; and the coarse record's 50 bins, of 0.04 each, pooled with it."""
    before = torch.tensor([[1.0, 0.0]]).repeat(601, 1)
    angles = torch.linspace(0.91, 0.97, 601).acos()
    found = distortion.feature_distortion(before, torch.stack([angles.cos(), angles.sin()], 1))["cosine"]
    edges = features._edges([found], "cosine")
    assert np.count_nonzero(features.density([found], edges)) >= 6
    coarse = {"edges": np.linspace(-1, 1, 51).tolist(), "counts": [0] * 45 + [10, 0, 0, 0, 30]}  # from 0.8
    edges = features._edges([coarse, found], "cosine")
    assert 0.75 < edges[0] < 0.805
    assert edges[-1] == 1
    np.testing.assert_allclose(np.diff(edges), 0.04)  # of both, or the finer one's peak would be higher
    for histograms in ([coarse], [found], [coarse, found]):
        assert features.density(histograms, edges) @ np.diff(edges) == pytest.approx(1)
    everywhere = found | {"counts": [1] * distortion.BINS}
    wide = features._edges([everywhere], "cosine")
    assert len(wide) <= features.BINS + 1
    assert (wide[0], wide[-1]) == (-1, 1)


def test_layers_are_put_into_stages_in_network_order_and_the_head_is_left_out():
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer4.0.conv1.weight"]
    rows = [
        {"name": f"backbone.network.{n}", "kind": "weight", "value": 0.1 * i} for i, n in enumerate(names)
    ]
    rows += [{"name": "head.weight", "kind": "weight", "value": None}]
    rows += [{"name": "backbone.network.bn1.running_mean", "kind": "bn_mean", "value": 3.0}]
    found = change.changes([run("a", relative_change=rows)])
    weights = found[found["kind"] == "weight"]
    assert weights["stage"].tolist() == ["IS", "1", "1", "2"]
    assert weights["layer"].tolist() == [0, 1, 2, 3]
    assert weights["value"].isna().tolist() == [True, False, False, False]  # zero has no logarithm
    assert found[found["kind"] == "bn_mean"]["stage"].tolist() == ["IS"]  # statistics come after all weights


@pytest.mark.parametrize("model", ["resnet18", "resnet50_clip", "mobilenetv3_small_050"])
def test_networks_of_other_names_have_a_stem_and_stages(model, configure):
    config = configure("backbone=timm", f"backbone.model={model}", "backbone.weights=random")
    network = backbones.untrained(config.backbone)
    names = [n for n, p in network.named_parameters() if p.ndim == 4]
    rows = [{"name": f"backbone.{name}", "kind": "weight", "value": 1.0} for name in names]
    stages = list(dict.fromkeys(change.changes([run("a", relative_change=rows)])["stage"]))
    assert stages[:5] == ["IS", "1", "2", "3", "4"]


def test_names_of_narrow_stages_do_not_overlap_and_the_legend_knows_how_many_there_are():
    layers = [
        "stem",
        *[f"blocks.{i}.{j}" for i, n in enumerate((1, 9, 9, 9, 9, 9, 1)) for j in range(n)],
        "out",
    ]
    rows = [{"name": f"backbone.{name}", "kind": "weight", "value": 1.0} for name in layers]
    figure = change.relative_change([run("a", relative_change=rows)], ["daft"])
    axes, corner = figure.axes[0], figure.axes[-1]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert [name.strip() for name in names] == ["IS", *"1234567", "out"]
    assert any("1-7: stages" in text.get_text() for text in corner.texts)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    lines = [label.get_text().startswith("\n") for label in axes.get_xticklabels()]
    for one, other, first, second in zip(boxes, boxes[1:], lines, lines[1:], strict=False):
        assert first != second or one.x1 < other.x0


def test_extremes_are_those_of_a_sort_and_equal_ones_stand_in_order():
    cosine = torch.tensor([0.5, 0.9, 0.5, -0.2, 0.1, 0.5])
    labels = torch.tensor([0, 0, 0, 0, 1, 0])
    ranked = similarity.extremes(cosine, labels, 3)
    assert ranked[0].tolist() == [[1, 0, 2, 5, 3], [3, 0, 2, 5, 1]]
    assert ranked[1].tolist() == [[4, -1, -1, -1, -1]] * 2
    assert (ranked[2] == -1).all()


def kept(folder: Path, cosine: float) -> None:
    """Similarities of two images of two classes, beside a record."""
    ranked = torch.full((2, 2, similarity.KEPT), -1)
    ranked[0, :, 0], ranked[1, :, 0] = 0, 1
    tensors = {
        "cosine": torch.full((2,), cosine),
        "labels": torch.tensor([0, 1]),
        "ranked": ranked,
        "images": torch.zeros(2, 2, similarity.KEPT, 3, 4, 4, dtype=torch.uint8),
    }
    folder.mkdir()
    save_file({f"id/{key}": tensor for key, tensor in tensors.items()}, folder / similarity.FILE)


@pytest.mark.parametrize("change", ["cut", "a key less", "of fewer images", "a folder"])
def test_damaged_similarities_are_named_and_left_out_or_measured_anew(tmp_path, change, capsys):
    loaded = [run("ft1", "ft", 1, distortion={"id": {}})]
    kept(tmp_path / "ft1", 0.5)
    file = tmp_path / "ft1" / similarity.FILE
    tensors = load_file(file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "a folder":
        file.unlink()
        file.mkdir()
    elif change == "a key less":
        save_file({name: tensor for name, tensor in tensors.items() if name != "id/labels"}, file)
    else:
        save_file(tensors | {"id/cosine": torch.ones(1), "id/labels": torch.zeros(1)}, file)
    assert gallery.of_extremes(loaded, tmp_path) == []
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"left out: {file}: damaged (")
    measured: list[Path] = []
    gallery.of_extremes(loaded, tmp_path, measure=lambda directory: measured.append(directory) or {})
    assert measured == [tmp_path / "ft1"]
    assert capsys.readouterr().err == ""


def test_extremes_are_of_the_lowest_seed_that_the_methods_share(tmp_path):
    loaded = []
    for method, seeds in (("ft", (0, 1, 2)), ("daft", (1, 2)), ("lp_ft", (3,))):
        for seed in seeds:
            loaded.append(run(f"{method}{seed}", method, seed, distortion={"id": {}}))
            kept(tmp_path / f"{method}{seed}", 0.1 * seed)
    (picture,) = gallery.of_extremes(loaded, tmp_path)
    shown_text = texts(picture.draw())
    assert "pacs, net, seed 1" in shown_text
    assert (shown_text.count("0.10"), shown_text.count("0.00")) == (
        8,
        0,
    )  # two methods, two ends, two classes
    assert gallery.of_extremes(loaded[:1] + loaded[-2:-1], tmp_path) == []  # of the paper's, without a word
    with pytest.raises(UserError, match="ft, lp_ft: the runs of these methods have no seed in common"):
        gallery.of_extremes(loaded, tmp_path, ["ft", "lp_ft"])
    with pytest.raises(UserError, match="--methods lp: none to draw here; choose from ft, daft, lp_ft"):
        gallery.of_extremes(loaded, tmp_path, ["lp"])
    masks = [record | {"config": record["config"] | {"segmentation": {"channels": 8}}} for record in loaded]
    assert gallery.of_extremes(masks, tmp_path, ["lp"]) == []  # no class of an image: nothing to draw


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    """FT and DAFT runs of seconds, by method, in one folder."""
    folder = tmp_path_factory.mktemp("figures")
    paths = [f"paths.{name}={folder / name}" for name in ("runs", "cache", "data", "weights")]
    build = request.getfixturevalue("configure")
    configurations = {m: build(*TINY, *paths, f"method={m}", "training.epochs=1") for m in ("ft", "daft")}
    return configurations, {m: experiment.run(config) for m, config in configurations.items()}


def test_similarities_are_the_records_image_by_image_and_are_measured_once(made, monkeypatch):
    configurations, runs = made
    done = runs["daft"]
    opened = open_run(done.directory)
    found = similarity.similarities(opened, CPU)
    for split, of_split in found.items():
        assert float(of_split.cosine.double().mean()) == done.record["metrics"][f"{split}/cosine"]
        counts, _ = torch.histogram(of_split.cosine.double(), distortion.BINS, range=(-1.0, 1.0))
        assert counts.tolist() == done.record["distortion"][split]["cosine"]["counts"]
    # One image through both networks alone, on the pixels that are kept.
    loaders = datasets.load(configurations["daft"], datasets.listing(configurations["daft"]), CPU)
    photo, place = found["photo"], int(found["photo"].ranked[3, 1, 0])
    pixels = photo.images[3, 1, 0]
    held = loaders.evaluation["photo"].images
    assert isinstance(held, Resident)
    torch.testing.assert_close(pixels, held.pixels[place])
    with torch.no_grad():
        before = backbones.load(configurations["daft"].backbone).eval()(pixels[None])
        after = opened.network(CPU).backbone(pixels[None])
    torch.testing.assert_close(F.cosine_similarity(before, after)[0], photo.cosine[place], atol=1e-4, rtol=0)
    assert photo.cosine[place] == photo.cosine[photo.labels == 3].min()

    monkeypatch.setattr(type(opened), "images", None)  # the second time needs no image
    again = similarity.similarities(opened, CPU)
    for split, kept in again.items():
        for key, tensor in vars(kept).items():
            assert torch.equal(tensor, getattr(found[split], key))
    assert similarity.read(done.directory.parent) == {}


def test_a_folder_has_the_papers_pictures(made):
    folder = next(iter(made[1].values())).directory.parent
    loaded = records.load(records.find_runs(folder))
    pictures = {picture.name: picture for picture in gallery.of_runs(loaded)}
    assert [*pictures] == ["overview", "id_ood", "features", "cosine", "l2", "change"]
    assert style.pixels(pictures["change"].draw()).width > 1000


def test_pictures_are_written_as_png_and_pdf_and_are_the_same_again(made, tmp_path, call):
    folder = next(iter(made[1].values())).directory.parent
    call(figures, folder, "--kind", "change,extremes,samples", "--methods", "daft", "--out", tmp_path)
    names = ["change", "samples", *(f"extremes_{split}" for split in ("id", "photo", "neon"))]
    expected = {f"shapes-shapes_resnet10-{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {file.name for file in tmp_path.iterdir()} == expected
    assert all(file.stat().st_size < style.LARGEST for file in tmp_path.glob("*.png"))
    assert all(drawn(file) for file in tmp_path.glob("*.png"))
    loaded = records.load(records.find_runs(folder))
    for picture, kind in [
        (gallery.of_runs(loaded, ["daft"])[-1], "pdf"),
        (gallery.of_extremes(loaded, folder, ["daft"])[0], "png"),
    ]:
        file = tmp_path / f"shapes-shapes_resnet10-{picture.name}.{kind}"
        assert style.rendered(picture.draw(), kind) == file.read_bytes(), file.name


def test_a_wrong_request_is_named(made, tmp_path, call):
    runs = next(iter(made[1].values())).directory.parent
    for arguments, message in [
        (["--kind", "feature", "--out", tmp_path], "feature: no such picture; choose from overview, id_ood"),
        (["--kind", "cosine,l2", "--out", tmp_path / "a.png"], "choose one of --kind cosine, l2; or name a"),
        (
            ["--kind", "errors", "--out", tmp_path / "a.png"],
            "4 pictures; choose one of --kind errors_ft,",
        ),
        (
            ["--kind", "errors_lp", "--out", tmp_path / "a.png"],
            "none of errors_lp; there are errors_ft,",
        ),
        (["--kind", "training_size", "--out", tmp_path], "runs have 1 different training set sizes"),
        (["--kind", "rate_grid", "--out", tmp_path], "have none of rate_grid"),
        (["--dataset", "pacs", "--out", tmp_path], "no records of pacs here"),
        (
            ["--methods", "dfat,ft", "--out", tmp_path],
            "--methods dfat: none to draw here; choose from ft, daft",
        ),
        (["--kind", "extremes", "--methods", "lp", "--out", tmp_path], "--methods lp: none to draw here"),
    ]:
        with pytest.raises(UserError, match=message):
            call(figures, runs, *arguments)


def test_many_classes_are_thinned_and_the_picture_says_so():
    ranked = torch.zeros(50, 2, similarity.KEPT, dtype=torch.long)
    pixels = torch.zeros(50, 2, similarity.KEPT, 3, 4, 4, dtype=torch.uint8)
    moved = similarity.Similarity(torch.tensor([0.25]), torch.tensor([0]), ranked, pixels)
    figure = extremes.picture("id", {"ft": moved}, [f"c{i}" for i in range(50)], "t")
    shown_text = texts(figure)
    assert "20 of 50 classes, evenly spaced" in shown_text
    assert shown_text.count("0.25") == 20 * 2 * extremes.SHOWN
    assert "FT: highest (Figure 6)" in shown_text


def test_features_of_a_method_that_trains_no_backbone_are_not_said_to_move():
    runs = [run("a", method="ft"), run("b", method="mine"), run("c", method="lp")]
    for record, rates in zip(runs, ("one", "frozen", "frozen"), strict=True):
        record["config"]["method"]["rates"] = rates
        record["distortion"] = {"id": {key: {"counts": [1]} for key in features.MEASURES}}
    assert set(features.methods_of(runs)) == {"ft", "mine", "lp"}
    assert features.trained_methods(runs) == ["ft"]


def test_a_sheet_shows_evenly_spaced_images_with_their_shift(tiny):
    config = tiny("dataset.ood.photo.shift=[grayscale]")
    listed = datasets.listing(config)
    figure = sheets.classification(config, listed, classes=["ring", "star"])
    shown = images(figure)
    assert len(shown) == 2 * 3  # classes by splits
    grey = [bool(np.all(image[..., 0] == image[..., 1])) for image in shown]
    assert [grey[1], grey[4]] == [True, True]
    assert not grey[2]
    assert "2 of its 10 classes" in texts(figure)
    with pytest.raises(UserError, match="rng: no such class; choose from circle, ring"):
        sheets.classification(config, listed, classes=["rng"])


def test_masks_are_painted_in_vocs_colours(configure):
    """The first colours of the benchmark's own map, and white for what does not count."""
    assert sheets.palette(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert sheets.palette(21)[20].tolist() == [0, 64, 128]
    config = configure("dataset=shapes_masks", "dataset.id.images=4", "dataset.ood.painting.images=3")
    listed = datasets.listing(config)
    figure = sheets.segmentation(config, listed, count=4)
    shown = images(figure)
    assert len(shown) == 2 * 2 * 4
    held = listed.evaluation["id"].images
    assert isinstance(held, torch.Tensor)
    for n, place in enumerate(range(4)):
        found = {tuple(pixel) for pixel in shown[4 * n + 1].reshape(-1, 3).tolist()}
        labels = held[place, 3].unique().tolist()
        assert found == {tuple(sheets.palette(11)[i].tolist()) if i < 255 else (255,) * 3 for i in labels}
    assert listed.classes[int(held[0, 3][held[0, 3] < 255].max())] in texts(figure)


def test_the_contact_sheet_of_a_dataset_is_drawn(tmp_path: Path, call):
    file = tmp_path / "sheet.png"
    call(contact_sheet, *TINY[:5], "--classes", "ring,star", "--out", file)
    assert drawn(file)
    with pytest.raises(UserError, match=r"sheet\.jpg: name a file that ends in \.png or \.pdf or \.svg"):
        call(contact_sheet, *TINY[:5], "--out", tmp_path / "sheet.jpg")


def test_photographs_are_reduced_until_they_fit_and_white_stays_white():
    noise = np.random.default_rng(0).integers(256, size=(300, 600, 3), dtype=np.uint8)
    noise[:20] = 255
    content = BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    assert len(content.getvalue()) > style.LARGEST
    small = style._small(content.getvalue())
    assert len(small) <= style.LARGEST
    assert (np.asarray(Image.open(BytesIO(small)).convert("RGB"))[:20] == 255).all()


def test_long_names_break_where_they_can():
    assert mosaic.wrapped("single_unit_residential", 13) == "single unit\nresidential"
    assert mosaic.wrapped("ring", 3) == "ring"


def test_epochs_count_up_to_95_percent_of_the_last():
    assert sensitivity.epochs_to_enough(run("a")) == 2  # 76 of 80
    assert np.isnan(sensitivity.epochs_to_enough(run("a", accuracy=None)))
    masks = run("a", history=[{"epoch": i + 1, "selection/miou": m} for i, m in enumerate((39.0, 40.0))])
    masks["config"]["segmentation"] = {"channels": 8}
    assert sensitivity.epochs_to_enough(masks) == 1


def test_the_lines_of_learning_rates_differ_in_more_than_colour():
    runs = [
        run(f"{a}{b}", accuracy=80 + 10 * b, lr_backbone=a, lr_head=b)
        for a in (0.1, 0.01)
        for b in (0.1, 0.3, 1.0)
    ]
    figure: Any = accuracy.learning_rates(frames.from_records(runs), 0.1)
    lines = [
        line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() != "None"
    ]
    assert len(lines) == 6
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 6
    shown_text = texts(figure)
    assert "DAFT, pacs, net" in shown_text
    assert "seed 0, by which rates are chosen: n = 1 run each" in shown_text


def test_every_panel_of_the_relative_changes_says_what_its_axes_are():
    rows = [{"name": "backbone.network.conv1.weight", "kind": kind, "value": 0.1} for kind in change.PANELS]
    figure: Any = change.relative_change([run("a", relative_change=rows)], ["daft"])
    assert [axes.get_xlabel() for axes in figure.axes[:5]] == ["layer, by stage"] * 5
    assert r"$\widetilde{W}$ after training" in texts(figure)


def test_statistics_that_have_not_moved_are_drawn_too():
    """Of BN in test mode, over several seeds: there is nothing to take a logarithm of."""
    names = ["conv1", "layer1.0.conv1"]
    rows = [
        {"name": f"backbone.network.{name}.weight", "kind": kind, "value": 0.1 if kind == "weight" else None}
        for kind in change.PANELS
        for name in names
    ]
    runs = [run(f"a{seed}", "lp_ft", seed, relative_change=rows) for seed in (0, 1)]
    assert style.pixels(change.relative_change(runs, ["lp_ft"])).width > 1000


def test_what_a_log_axis_cannot_show_is_said():
    def moved(value: float) -> list[dict[str, Any]]:
        layers = [("conv1", value), ("layer1.0.conv1", 0.5 if value else 0.0)]
        return [
            {"name": f"backbone.network.{name}.weight", "kind": kind, "value": of}
            for kind in change.PANELS
            for name, of in layers
        ]

    runs = [run("a", "lp_ft", 0, relative_change=moved(0.0)), run("b", "ft", 0, relative_change=moved(0.1))]
    said = texts(change.relative_change(runs, ["ft", "lp_ft"]))
    assert "0, so not in (d), (e): LP-FT" in said.splitlines()
    assert said.count("not in (d)") == 1


def test_a_log_axis_of_less_than_a_decade_has_its_numbers_and_a_users_dollars_stay() -> None:
    figure, ((axes,),) = style.canvas(1, 1, 3)
    axes.plot([0.2, 0.5, 0.9])
    axes.set_yscale("log")
    axes.set_title("a$b$c")
    svg = re.sub("<!--.*?-->", "", style.rendered(figure, "svg").decode(), flags=re.DOTALL)
    assert "mathdefault" not in svg
    assert "a$b$c" in svg


def test_training_sets_of_several_sizes_are_no_study_of_conversion_batches():
    layers = {n: [{"name": "bn", "batches": n, "mean_shift": 0.1, "log2_std_ratio": 0.1}] for n in (1, 2)}
    frame = sensitivity.frame([run(f"a{n}", bn_shift=layers[n], images=20 * n) for n in (1, 2)])
    frame[sensitivity.SETTING] = None
    with pytest.raises(UserError, match=r"1 value of method\.conversion_batches"):
        sensitivity.conversion_batches(frame)


def test_a_training_size_has_the_rates_that_it_selects_itself():
    runs = [
        run(f"{n}{m}{r}", m, accuracy=a, images=n, lr_backbone=r)
        for n, accuracies in ((10, {0.1: 40.0, 0.01: 50.0}), (1000, {0.1: 90.0, 0.01: 80.0}))
        for m in ("ft", "daft")
        for r, a in accuracies.items()
    ]
    figure: Any = sensitivity.training_size(sensitivity.frame(runs))
    lines = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [50.0, 90.0] in lines
    assert "1 %\n10" in texts(figure)
    with pytest.raises(UserError, match="1 different training set sizes"):
        sensitivity.training_size(sensitivity.frame(runs[:4]))


def test_the_estimate_is_compared_with_that_of_all_batches_of_the_same_seed():
    def layers(batches: int, *means: float) -> list[dict[str, Any]]:
        return [
            {"name": f"bn{i}", "batches": batches, "mean_shift": mean, "log2_std_ratio": 2 * mean}
            for i, mean in enumerate(means)
        ]

    runs = [run("a", bn_shift=layers(1, 1.0, 5.0)), run("b", bn_shift=layers(50, 4.0, 1.0))]
    runs += [run("c", seed=1, bn_shift=layers(1, 2.0, 1.0)), run("d", seed=1, bn_shift=layers(50, 2.0, 1.0))]
    frame = sensitivity.frame(runs)
    errors = sensitivity.estimate_errors(frame)
    assert errors["mean_shift"].tolist() == pytest.approx([np.sqrt((3**2 + 4**2) / 2), 0])
    assert errors["log2_std_ratio"].tolist() == pytest.approx([2 * np.sqrt(12.5), 0])
    assert "all" in texts(sensitivity.conversion_batches(frame))


def test_a_grid_shows_each_mean_and_marks_divergence():
    rates = [
        (0.1, 1.0, None, 0),
        (0.1, 0.1, 84.0, 0),
        (0.01, 1.0, 70.0, 0),
        (0.01, 0.1, 60.0, 0),
        (0.01, 0.1, 62.0, 1),
    ]
    runs = [run(f"{a}{b}{s}", seed=s, accuracy=acc, lr_backbone=a, lr_head=b) for a, b, acc, s in rates]
    figure: Any = sensitivity.rate_grid(sensitivity.frame(runs))
    shown = [t.get_text() for t in figure.axes[0].texts]
    assert sorted(shown) == ["61.0", "70.0", "84.0"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines] == [(1, 1)]
    assert figure.axes[0].patches[0].get_xy() == (0.5, -0.5)  # frame around 0.1, 0.1
    assert "n = 1 to 2 seeds" in texts(figure)
    with pytest.raises(UserError, match=r"1 value\(s\) of method.lr_head"):
        sensitivity.rate_grid(sensitivity.frame(runs[1:2] + runs[3:4]))


def test_gains_pair_seeds_and_end_where_they_fall_to_zero():
    runs = []
    for strength, gain in ((0.0, 3.0), (1.0, 1.0), (2.0, -3.0)):
        for seed in (0, 1):
            runs.append(run(f"f{strength}{seed}", "ft", seed, 70.0 + seed, strength=strength))
            runs.append(run(f"c{strength}{seed}", "ft_bnc", seed, 70.0 + seed + gain, strength=strength))
    frame = sensitivity.frame([*runs, run("lone", "ft", 2, 10.0, strength=0.0)])
    found = sensitivity.gains(frame)
    assert found.groupby(sensitivity.STRENGTH)["id/accuracy"].agg(
        ["mean", "std", "size"]
    ).to_numpy().tolist() == [[3.0, 0.0, 2.0], [1.0, 0.0, 2.0], [-3.0, 0.0, 2.0]]
    assert sensitivity.crossing(found.groupby(sensitivity.STRENGTH)["id/accuracy"].mean()) == pytest.approx(
        1.25
    )
    assert "FT + conversion − FT" in texts(sensitivity.shift_family(frame))
    only = sensitivity.frame([r for r in runs if r["config"]["method"]["name"] == "ft"])
    with pytest.raises(UserError, match="no method is there with and without BN conversion"):
        sensitivity.shift_family(only)


def test_dollars_in_names_are_no_formulas_and_formulas_stay_formulas():
    loaded = []
    for number, (method, rate, head) in enumerate(
        [("$ft$^", 0.1, 1.0), ("$ft$^", 0.01, 0.1), ("daft", 0.1, 1.0), ("daft", 0.01, 0.1)]
    ):
        record = run(f"a{number}", method, accuracy=80.0 - number, lr_backbone=rate, lr_head=head)
        record["config"]["dataset"]["name"], record["config"]["backbone"]["name"] = "$pets_", "net$^_"
        record["metrics"] |= {"$night$^/accuracy": 50.0, "id/cosine": 0.5}
        histogram = {"mean": 0.5, "edges": [0.0, 0.5, 1.0], "counts": [1, 3]}
        record["distortion"] = {key: {"cosine": histogram, "l2": histogram} for key in ("id", "$night$^")}
        record["relative_change"] = [
            {"name": f"backbone.layer{stage}.conv.weight", "kind": "weight", "value": 0.1} for stage in (1, 2)
        ]
        loaded.append(record)
    pictures = [*gallery.of_runs(loaded), *gallery.of_grids(loaded)]
    assert {picture.name for picture in pictures} >= {"overview", "id_ood", "features", "cosine", "change"}
    shown = ""
    for picture in pictures:
        shown += re.sub(r"<!--.*?-->", "", style.rendered(picture.draw(), "svg").decode())
    for name in ("$pets_, net$^_", "$ft$^", "$night$^"):
        assert f">{name}" in shown
    assert r"\eta" not in shown
    assert r"\widetilde" not in shown


def test_arrows_go_to_the_same_strategy_with_conversion_and_take_bn_at_test_time_where_asked_for():
    loaded = []
    for number, (method, parts) in enumerate(
        [("lp", {}), ("ft", {}), ("ft_bnc", {}), ("ft", {"test_time": "bn"}), ("ft_bnc", {"test_time": "bn"})]
    ):
        record = run(f"a{number}", method, accuracy=80.0 + number)
        record["config"]["method"]["parts"] = parts
        if parts:
            record["metrics"] |= {"ood (target BN)/accuracy": 10.0 + number}
        loaded.append(record)
    (picture,) = gallery.named("conversion", gallery.of_runs(loaded))
    (axes,) = picture.draw().axes
    arrows = {(tuple(a.xyann), tuple(a.xy)) for a in axes.texts if isinstance(a, Annotation)}
    assert arrows == {((81.0, 51.0), (82.0, 52.0)), ((83.0, 13.0), (84.0, 14.0))}
    assert (legend := axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["FT", "test_time", "LP"]


def test_without_parts_there_are_no_arrows():
    loaded = [run("a0", "ft"), run("a1", "ft_bnc")]
    assert not gallery.named("conversion", gallery.of_runs(loaded))
