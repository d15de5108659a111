"""Claims about prepare.py: from what is published to a run, for every dataset and every network of the paper.

The originals are miniatures in the published formats, served by a web server on this machine. Addresses,
sizes and checksums are theirs; paths, archives and what they give are those of conf/.
"""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from daft import experiment
from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import checksum
from daft.config.operations import Operation, Resize
from daft.config.schema import BackboneConfig, Config, DatasetConfig, FileConfig
from daft.data.sources import imagenet
from daft.prepare import doctor
from tests.conftest import Done
from tests.helpers import fabricate, fabricate_weights
from tests.helpers.upstream import Server

Configure = Callable[..., Config]
Script = Callable[..., Done]

FMOW_ROWS = [
    (split, category, country, f"20{year}-05-01T10:00:00Z")
    for split in ("train", "val")
    for category in ("airport", "zoo")
    for country in ("USA", "BRA", "FRA", "KEN")
    for year in (11, 14)
]
SMALL = ["training.epochs=1", "training.batch_size=16", "wandb.mode=disabled", "compute.device=cpu"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        yield running


def redirected(file: FileConfig, server: Server) -> FileConfig:
    """The same file as the server has it."""
    name = Path(file.path).name
    served = server.folder / name
    return replace(
        file,
        urls=[server.url(name)],
        bytes=served.stat().st_size,
        checksum=checksum(served),
        unpacked_bytes=None,
        members={},
    )


def pack(folder: Path, archive: Path) -> None:
    """All that is in the folder, as a .zip or a .tar.gz."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as packed:
            for entry in sorted(folder.iterdir()):
                packed.add(entry, entry.name)


def publish_cifar10(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    fabricate.cifar10(scratch / "cifar", per_class=1)
    fabricate.stl10(scratch / "stl")
    fabricate.cifar10_c(scratch / "corrupted")
    for version in ("v4", "v6"):
        fabricate.cifar10_1(served, version)
    with tarfile.open(served / "CIFAR-10-C.tar", "w") as packed:
        packed.add(scratch / "corrupted" / "CIFAR-10-C", "CIFAR-10-C")
    pack(scratch / "cifar", served / "cifar-10-python.tar.gz")
    pack(scratch / "stl", served / "stl10_binary.tar.gz")


def publish_domainnet(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    assert cfg.classes
    fabricate.domainnet(scratch, cfg.classes)
    for domain in ("clipart", "painting", "real", "sketch"):
        (scratch / "zip" / domain).mkdir(parents=True)
        (scratch / domain).rename(scratch / "zip" / domain / domain)
        pack(scratch / "zip" / domain, served / f"{domain}.zip")
    for file in (scratch / "SENTRY_splits").iterdir():
        shutil.copy(file, served)


def publish_fmow(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    fabricate.fmow(scratch, FMOW_ROWS)
    pack(scratch / "fmow_v1.1", served / "fmow_v1.1.tar.gz")


def publish_tiny_imagenet(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    tiny_imagenet(scratch)
    pack(scratch, served / "tiny-imagenet-200.zip")


def tiny_imagenet(root: Path, train_images: int = 4) -> None:
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{i:08}" for i in (3, 1, 2)]
    lines = []
    for i, wnid in enumerate(wnids):
        for j in range(train_images):
            fabricate.picture(folder / f"train/{wnid}/images/{wnid}_{j}.JPEG", 100 * i + j, 64, 64)
        fabricate.picture(folder / f"val/images/val_{i}.JPEG", 1000 + i, 64, 64)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))


def publish_pacs(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    assert cfg.classes
    for d, domain in enumerate(("photo", "art_painting", "cartoon", "sketch")):
        for c, label in enumerate(cfg.classes):
            for n in range(5 if domain == "sketch" else 1):
                seed = 100 * d + 10 * c + n
                fabricate.picture(scratch / f"kfold/{domain}/{label}/pic_{n}.jpg", seed, 227, 227)
    pack(scratch, served / "PACS.zip")


def publish_voc(served: Path, scratch: Path, cfg: DatasetConfig) -> None:
    fabricate.voc(scratch / "voc", ["2007_1", "2007_2"], ["2008_1", "2008_2"], ["2009_1", "2009_2"])
    devkit = scratch / "voc/VOCdevkit/VOC2012"
    (scratch / "zip/__MACOSX/SegmentationClassAug").mkdir(parents=True)
    (scratch / "zip/__MACOSX/SegmentationClassAug/._2007_1.png").touch()
    (devkit / "SegmentationClassAug").rename(scratch / "zip/SegmentationClassAug")
    pack(scratch / "zip", served / "SegmentationClassAug.zip")
    (devkit / "ImageSets/Segmentation/trainaug.txt").rename(served / "trainaug.txt")
    (scratch / "voc/benchmark_RELEASE").rename(scratch / "benchmark_RELEASE")
    with tarfile.open(served / "VOCtrainval_11-May-2012.tar", "w") as packed:
        packed.add(scratch / "voc/VOCdevkit", "VOCdevkit")
    with tarfile.open(served / "benchmark.tgz", "w:gz") as packed:
        packed.add(scratch / "benchmark_RELEASE", "benchmark_RELEASE")


SMALL_MASKS = [
    *("training.steps=1", "segmentation.channels=8"),
    *(
        "dataset.train_transform=[{random_scale_crop: 32}, flip]",
        "dataset.eval_transform=[{center_crop: 32}]",
    ),
]


def dataset_of(configure: Configure, tmp_path: Path, name: str, *overrides: str) -> Config:
    """Its configuration, without the known numbers of images of the originals."""
    folders = [f"paths.{key}={tmp_path / key}" for key in ("runs", "cache", "data", "weights")]
    config = configure(f"dataset={name}", *SMALL, *folders, *overrides)
    unknown = {
        "train": replace(config.dataset.train, known_images=None, least_per_folder=None),
        "id": replace(config.dataset.id, known_images=None),
        "ood": {key: replace(split, known_images=None) for key, split in config.dataset.ood.items()},
    }
    return replace(config, dataset=replace(config.dataset, **unknown))


@pytest.mark.parametrize(
    ("name", "publish"),
    [
        ("cifar10", publish_cifar10),
        ("cifar10_c", publish_cifar10),
        ("domainnet", publish_domainnet),
        ("fmow", publish_fmow),
        ("tiny_imagenet", publish_tiny_imagenet),
        ("pacs", publish_pacs),
        ("voc", publish_voc),
    ],
)
def test_a_dataset_goes_from_its_publication_to_a_run(
    configure: Configure,
    tmp_path: Path,
    server: Server,
    name: str,
    publish: Callable[[Path, Path, DatasetConfig], None],
) -> None:
    config = dataset_of(configure, tmp_path, name, *(SMALL_MASKS if name == "voc" else []))
    assert all(finding.state == "absent" for finding in doctor.check_dataset(config.dataset))
    publish(server.folder, tmp_path / "scratch", config.dataset)
    files = [redirected(file, server) for file in config.dataset.files]
    config = replace(config, dataset=replace(config.dataset, files=files))

    doctor.prepare_dataset(config.dataset, tmp_path / "cache")

    findings = list(doctor.check_dataset(config.dataset))
    assert [f for f in findings if f.state != "present"] == []
    others = {"cifar10.1/v4", "sbd/"} | ({"cifar10-c/"} if name == "cifar10" else set())
    needed = [file for file in files if file.only_for not in others]  # but not what other splits would read
    assert len(findings) == len(needed) + 2 + len(config.dataset.ood)
    noted = json.loads((tmp_path / f"cache/prepared/{name}.json").read_text())
    assert {key: entry["checksum"] for key, entry in noted.items()} == {f.path: f.checksum for f in needed}

    before = len(server.requests)
    doctor.prepare_dataset(config.dataset, tmp_path / "cache")
    assert len(server.requests) == before  # nothing is fetched twice

    if name != "voc":  # at 224 pixels the many sets of CIFAR-10-C take a minute
        small: list[Operation] = [Resize(size=(32, 32))]
        config = replace(config, dataset=replace(config.dataset, train_transform=small, eval_transform=small))
    record = experiment.run(config).record
    assert record["status"] == "finished"
    measure = "miou" if name == "voc" else "accuracy"
    assert {f"{split}/{measure}" for split in ("id", *config.dataset.ood)} <= record["metrics"].keys()


def test_cityscapes_is_a_persons_to_fetch_and_used_in_place(configure: Configure, tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    config = dataset_of(configure, tmp_path, "cityscapes", f"dataset.root={root}", *SMALL_MASKS[:2],
                        "dataset.train_transform=[{random_crop: 32}, {color_jitter: 0.5}]")  # fmt: skip
    with pytest.raises(UserError, match=r"(?s)cannot be fetched by a program.*licence.*root="):
        doctor.prepare_dataset(config.dataset, tmp_path / "cache")
    fabricate.cityscapes(root)
    held = sorted(root.rglob("*"))
    doctor.prepare_dataset(config.dataset, tmp_path / "cache")
    assert [f.state for f in doctor.check_dataset(config.dataset)] == ["present"] * 2
    assert experiment.run(config).record["status"] == "finished"
    assert sorted(root.rglob("*")) == held
    mask = next(root.glob("gtFine/val/*/*_labelIds.png"))
    Image.fromarray(fabricate.noise(0, 32, 64)).save(mask)
    damaged = list(doctor.check_dataset(config.dataset))[1]
    assert damaged.state == "damaged"
    assert str(mask) in damaged.detail
    assert "which is no class" in damaged.detail


@pytest.mark.parametrize("name", ["living17", "entity30", "entity13", "nonliving26"])
def test_an_imagenet_folder_is_checked_and_used_in_place(
    configure: Configure, tmp_path: Path, name: str
) -> None:
    rows = imagenet.hierarchies()[name]
    source, target = ([row[side][0] for row in rows] for side in ("source", "target"))
    everything = [[wnid for row in rows for wnid in row[side]] for side in ("source", "target")]
    root = tmp_path / "imagenet"
    config = dataset_of(configure, tmp_path, name, f"dataset.root={root}")
    with pytest.raises(UserError, match=r"(?s)cannot be fetched by a program.*image-net\.org.*root="):
        doctor.prepare_dataset(config.dataset, tmp_path / "cache")
    fabricate.imagenet(root, *everything, layout="devkit")
    held = sorted(root.rglob("*"))
    doctor.prepare_dataset(config.dataset, tmp_path / "cache")
    assert [f.state for f in doctor.check_dataset(config.dataset)] == ["present"] * 3
    small: list[Operation] = [Resize(size=(32, 32))]
    few = {
        "train_transform": small,
        "eval_transform": small,
        "train": replace(config.dataset.train, images=len(source)),
        "id": replace(config.dataset.id, images=len(source)),
        "ood": {"target": replace(config.dataset.ood["target"], images=len(target))},
    }
    record = experiment.run(replace(config, dataset=replace(config.dataset, **few))).record
    assert record["status"] == "finished"
    assert sorted(root.rglob("*")) == held  # nothing is written beside a user's data


@pytest.mark.parametrize("name", ["moco_v2", "moco_tp", "swav", "clip_rn50"])
def test_a_network_goes_from_its_publication_to_a_run(
    configure: Configure, tmp_path: Path, server: Server, name: str
) -> None:
    side = 224 if name == "clip_rn50" else 64
    transform = f"[{{resize: {side}}}]"
    config = dataset_of(
        configure,
        tmp_path,
        "shapes",
        f"backbone={name}",
        f"dataset.train_transform={transform}",
        f"dataset.eval_transform={transform}",
        *(f"dataset.{split}.images=5" for split in ("train", "id")),
        *(f"~dataset.ood.{style}" for style in ("photo", "clipart", "painting", "neon")),
        "training.batch_size=5",
        *(["method=lp"] if name == "clip_rn50" else ["method.lr_backbone=1e-5"]),  # at 224 steps take seconds
    )
    cfg = config.backbone
    assert [f.state for f in doctor.check_backbone(cfg)] == ["absent"]
    publish_network(server.folder, cfg)
    file = redirected(FileConfig(path=Path(str(cfg.checkpoint)).name, urls=cfg.urls), server)
    cfg = replace(cfg, urls=file.urls, bytes=file.bytes, checksum=file.checksum)
    doctor.prepare_backbone(cfg, tmp_path / "cache")
    (finding,) = doctor.check_backbone(cfg)
    assert finding.state == "present"
    assert "tensors loaded" in finding.detail
    record = experiment.run(replace(config, backbone=cfg)).record
    assert record["status"] == "finished"


def publish_network(served: Path, cfg: BackboneConfig) -> None:
    """A network of random weights as the file of this one is published."""
    path = served / Path(str(cfg.checkpoint)).name
    if cfg.name == "clip_rn50":
        fabricate_weights.clip(path, fabricate_weights.clip_visual())
    elif cfg.name == "swav":
        fabricate_weights.swav(path, fabricate_weights.resnet50().state_dict())
    else:
        fabricate_weights.moco(path, fabricate_weights.resnet50().state_dict())


def test_the_doctor_says_what_is_absent_and_what_mends_it(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "console", Console(stderr=True, width=400))
    place = [f"paths.{key}={tmp_path / key}" for key in ("data", "weights", "cache")]
    done = script("prepare.py", "dataset=living17,cifar10", "--check", "backbone=swav", *place)
    assert done.code == 1
    for word in (
        "ILSVRC2012_img_train.tar",
        "python scripts/prepare.py dataset=cifar10",
        "python scripts/prepare.py backbone=swav",
        str(tmp_path / "weights/swav_800ep_pretrain.pth.tar"),
    ):
        assert word in done.errors
    assert not any((tmp_path / key).exists() for key in ("data", "weights", "cache"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=cifar11"], ["dataset=cifar11", "cifar10", "domainnet"]),
        (["cifar10"], ["cifar10", "dataset=NAME"]),
        (["dataset.root=/x"], ["name what to prepare"]),
        (["dataset=cifar10", "dataset.rot=/x"], ["dataset.rot: no such key", "'root'"]),
    ],
)
def test_a_wrong_word_is_one_line_without_a_traceback(
    script: Script, arguments: list[str], words: list[str]
) -> None:
    done = script("prepare.py", *arguments)
    assert done.code == 1
    assert len(done.errors.splitlines()) == 1
    assert all(word in done.errors for word in words)


def test_fetched_images_are_kept_smaller_and_a_users_own_are_never_changed(
    configure: Configure, tmp_path: Path, server: Server
) -> None:
    cfg = dataset_of(configure, tmp_path, "pacs").dataset
    publish_pacs(server.folder, tmp_path / "scratch", cfg)
    cfg = replace(cfg, files=[redirected(file, server) for file in cfg.files])
    root = tmp_path / "data/pacs"
    fabricate.picture(root / "holiday/family.png", 0, 800, 600)
    own = (root / "holiday/family.png").read_bytes()
    doctor.prepare_dataset(cfg, tmp_path / "cache")
    files = sorted(root.rglob("*.jpg"))
    sizes, times = zip(*((Image.open(file).size, file.stat().st_mtime_ns) for file in files), strict=True)
    assert set(sizes) == {(cfg.kept_side, cfg.kept_side)}
    assert (root / "holiday/family.png").read_bytes() == own
    assert not (root / "PACS.zip").exists()
    doctor.prepare_dataset(cfg, tmp_path / "cache")
    assert [file.stat().st_mtime_ns for file in files] == list(times)

    shutil.rmtree(root)
    shutil.copytree(tmp_path / "scratch/kfold", root)  # put there by a user, at the published size
    before = {file: file.read_bytes() for file in root.rglob("*.jpg")}
    shutil.rmtree(tmp_path / "cache")
    doctor.prepare_dataset(cfg, tmp_path / "cache")
    assert {file: file.read_bytes() for file in root.rglob("*.jpg")} == before
    states = {finding.what: finding.state for finding in doctor.check_dataset(cfg)}
    assert (states["PACS.zip"], states["train"]) == ("present", "damaged")  # of another size than the results


def test_the_doctor_names_what_is_damaged(configure: Configure, tmp_path: Path) -> None:
    config = dataset_of(configure, tmp_path, "domainnet")
    cfg, root = config.dataset, Path(config.dataset.root)
    assert cfg.classes
    fabricate.domainnet(root, cfg.classes)
    (root / "sketch/zebra.txt").touch()  # what is not listed is no matter
    files = [replace(f, bytes=None, checksum=None) for f in cfg.files]
    cfg = replace(cfg, files=files)
    assert {f.state for f in doctor.check_dataset(cfg)} == {"present"}

    next((root / "real/cat").iterdir()).write_bytes(b"no image")
    shutil.rmtree(root / "painting/dog")
    by_name = {finding.what: finding for finding in doctor.check_dataset(cfg)}
    assert "painting/dog" in by_name["ood.painting"].detail
    assert "real/cat" in by_name["ood.real"].detail
    damaged = {"ood.painting", "ood.real", "ood.pooled"}
    assert {what for what, finding in by_name.items() if finding.state == "damaged"} == damaged


def test_a_count_that_is_not_the_published_one_is_damage(configure: Configure, tmp_path: Path) -> None:
    config = dataset_of(configure, tmp_path, "cifar10")
    root = Path(config.dataset.root)
    fabricate.cifar10(root)
    fabricate.cifar10_1(root)
    fabricate.stl10(root)
    known = replace(config.dataset, files=[], id=replace(config.dataset.id, known_images=10_000))
    by_name = {finding.what: finding for finding in doctor.check_dataset(known)}
    assert by_name["id"].state == "damaged"
    assert "10 images, but there must be 10,000" in by_name["id"].detail
    with pytest.raises(UserError, match=r"dataset\.id: 10 images, but there must be 10,000"):
        experiment.run(replace(config, dataset=known))


def test_a_damaged_member_of_an_archive_is_named(configure: Configure, tmp_path: Path) -> None:
    config = dataset_of(configure, tmp_path, "cifar10", "~dataset.ood.stl10", "~dataset.ood.cifar10_1")
    root = Path(config.dataset.root)
    fabricate.cifar10(root)
    (archive,) = (file for file in config.dataset.files if not file.only_for)
    batch = "cifar-10-batches-py/data_batch_1"
    right = replace(archive, members={batch: checksum(root / batch)})
    cfg = replace(config.dataset, files=[right])
    assert {finding.state for finding in doctor.check_dataset(cfg)} == {"present"}
    (root / batch).write_bytes((root / "cifar-10-batches-py/data_batch_2").read_bytes())
    (finding,) = (f for f in doctor.check_dataset(cfg) if f.state != "present")
    assert (finding.what, finding.state) == (archive.path, "damaged")
    assert "data_batch_1 has sha256:" in finding.detail


def test_only_files_that_a_split_reads_are_needed(configure: Configure, tmp_path: Path) -> None:
    bare = dataset_of(configure, tmp_path, "cifar10", "~dataset.ood.stl10", "~dataset.ood.cifar10_1")
    what = [finding.what for finding in doctor.check_dataset(bare.dataset)]
    assert what == ["cifar-10-python.tar.gz", "train", "id"]


def test_lists_may_lie_apart_from_the_images(configure: Configure, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    config = dataset_of(configure, tmp_path, "domainnet", f"dataset.annotations={lists}")
    assert config.dataset.classes
    fabricate.domainnet(Path(config.dataset.root), config.dataset.classes)
    (Path(config.dataset.root) / "SENTRY_splits").rename(lists)
    files = [replace(file, bytes=None, checksum=None) for file in config.dataset.files]
    cfg = replace(config.dataset, files=files)
    assert {finding.state for finding in doctor.check_dataset(cfg)} == {"present"}


def test_a_file_in_place_of_a_folder_is_a_finding(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("cifar10", "tiny_imagenet", "living17"):
        cfg = dataset_of(configure, tmp_path, name, f"dataset.root={tmp_path / 'file'}").dataset
        assert {finding.state for finding in doctor.check_dataset(cfg)} == {"absent"}


def test_an_archive_that_a_kill_left_is_removed_and_one_of_the_users_is_kept(
    configure: Configure, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = dataset_of(configure, tmp_path, "pacs").dataset
    publish_pacs(server.folder, tmp_path / "scratch", cfg)
    cfg = replace(cfg, files=[redirected(file, server) for file in cfg.files])
    archive = tmp_path / "data/pacs/PACS.zip"
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "_shrink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            doctor.prepare_dataset(cfg, tmp_path / "cache")
    assert archive.exists()
    doctor.prepare_dataset(cfg, tmp_path / "cache")
    assert not archive.exists()
    assert {Image.open(file).size for file in archive.parent.rglob("*.jpg")} == {(128, 128)}
    shutil.rmtree(archive.parent)
    archive.parent.mkdir()
    shutil.copy(server.folder / "PACS.zip", archive)
    shutil.rmtree(tmp_path / "cache")
    doctor.prepare_dataset(cfg, tmp_path / "cache")
    assert archive.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff", b"{" * 1000, None])
def test_damaged_notes_of_what_was_fetched_are_said_and_taken_for_none(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = doctor._Manifest(tmp_path, "pets")
    manifest.file.parent.mkdir()
    manifest.file.mkdir() if content is None else manifest.file.write_bytes(content)
    assert [manifest.entry("a"), manifest.entry("b")] == [{}, {}]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{manifest.file}: damaged (")
    if content is not None:
        manifest.note("a", {"url": "u", "finished": True})
        assert doctor._Manifest(tmp_path, "pets").entry("a") == {"url": "u", "finished": True}


def test_findings_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    finding = doctor.Finding("[red]/[0].zip", "damaged", "no [/red] :smile: here")
    progress.terminal(width=200).print(doctor.table("dataset=[mine]", [finding]))
    output = capsys.readouterr().out
    for text in ("dataset=[mine]", "[red]/[0].zip", "damaged", "no [/red] :smile: here"):
        assert text in output


def test_a_network_of_another_architecture_is_damage(configure: Configure, tmp_path: Path) -> None:
    cfg = dataset_of(configure, tmp_path, "shapes", "backbone=swav").backbone
    assert cfg.checkpoint
    Path(cfg.checkpoint).parent.mkdir(parents=True)
    torch.save({"module.conv1.weight": torch.ones(3)}, cfg.checkpoint)
    (finding,) = doctor.check_backbone(cfg)
    assert finding.state == "damaged"
    assert "does not fit the network" in finding.detail


def test_the_small_runs_network_can_be_pretrained_anew(
    configure: Configure, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_imagenet(tmp_path, train_images=22)  # 66 images: one step
    out = tmp_path / "weights/net.safetensors"
    monkeypatch.chdir(tmp_path)
    known = [f"dataset.{split}.known_images=null" for split in ("train", "id")]
    place = [f"dataset.root={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    done = script("pretrain.py", "tiny_imagenet", "--out", out, "--epochs=1", "--device=cpu", *place, *known)
    assert done.code == 0, done.errors
    config = configure("backbone=resnet18_tin64", f"backbone.checkpoint={out}", "backbone.checksum=null")
    (finding,) = doctor.check_backbone(config.backbone)
    assert finding.detail == f"120 tensors loaded, 0 dropped, 0 outside the prefix; {checksum(out)}"
