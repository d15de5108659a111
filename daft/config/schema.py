"""The schema of a run's configuration: every key, its type, and which values make sense together.

Imports neither torch nor timm, so that a mistyped key fails in a fraction of a second.
"""

import re
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from daft.common.errors import ConfigError
from daft.config.operations import Operation, Resize
from daft.config.parts import ADAPTING, FOR_TRAINED_BACKBONES, TARGET_BN, PartsConfig, short_name
from daft.config.sources import SOURCES
from daft.config.types import (
    STRICT,
    AutoRate,
    BatchSize,
    ByteCount,
    Checksum,
    Cores,
    Entity,
    Epochs,
    Folder,
    Grid,
    Inside,
    LeastSide,
    Mean,
    Name,
    NonNegativeInt,
    Number,
    PlainDict,
    PositiveFloat,
    PositiveInt,
    Project,
    Rate,
    Seed,
    Side,
    Std,
    Text,
    Url,
    Width,
)

LONGEST_NAME = 255
"""Bytes of a file's name, on every file system in use."""


def _known_source(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(f"choose from {', '.join(SOURCES)}")
    return name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FileConfig:
    """One file that prepare.py fetches, and what it holds."""

    path: Inside
    """where it is kept, below the dataset's root"""
    at: Literal["root", "annotations"] = "root"
    """or below its folder of annotations"""
    only_for: str = ""
    """needed only if a split's path begins with this"""
    urls: list[Url] = Field(min_length=1)
    """tried in this order"""
    bytes: ByteCount | None = None
    checksum: Checksum | None = None
    unpack: Inside | None = None
    """folder below the root that the archive is unpacked into; null: no archive"""
    strip: NonNegativeInt = 0
    """leading folders of the archive's paths that are left out"""
    gives: list[Inside] = field(default_factory=list)
    """files and folders below the root that are there once it is unpacked"""
    unpacked_bytes: ByteCount | None = None
    """disk space of what is unpacked, roughly"""
    members: dict[Inside, Checksum] = field(default_factory=dict)
    """checksums of what it gives, by file below the root"""

    def __post_init__(self) -> None:
        if self.path in (".", "./"):
            raise ConfigError("path", f"{self.path!r} is the root itself; name a file below it")
        if (self.unpack is None) != (not self.gives):
            raise ConfigError("gives", f"{self.gives} with unpack={self.unpack}; an archive needs both")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitConfig:
    """One labelled set of images."""

    path: Text = "."
    """what to read, in the words of the dataset's source: a folder or CSV below the root, a style of
    `shapes` or one between two (`photo/sketch/0.25`), `living17/source/train`, `sketch/test`,
    `id_val/Europe+Africa`, …"""
    known_images: PositiveInt | None = None
    """how many there must be, before `images` thins them"""
    least_per_folder: PositiveInt | None = None
    """fewer images of a WordNet id are taken for a folder half unpacked (`imagenet` only)"""
    part: Literal["all", "train", "id"] = "all"
    """which side of the rule `eval_every` to take"""
    images: PositiveInt | None = None
    """keep this many, stratified by class, evenly spaced in path order; for `shapes`: generate them"""
    seed: Seed = 0
    """of the generator (`shapes` only)"""
    shift: list[Operation] = field(default_factory=list)
    """operations before the evaluation transform: a shift that the data can supply by itself"""

    def __post_init__(self) -> None:
        if any(op.random for op in self.shift):
            raise ConfigError("shift", "an evaluation set must not be random")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """A training set, its ID evaluation set and any number of OOD sets over the same classes."""

    name: Name
    source: Annotated[str, AfterValidator(_known_source)]
    """what lists its images, one of `daft.config.sources.SOURCES`"""
    train: SplitConfig
    id: SplitConfig
    ood: dict[Name, SplitConfig]
    train_transform: list[Operation]
    """of training images, and of unlabelled ones"""
    eval_transform: list[Operation]
    epochs: Epochs
    root: Text = "."
    classes: list[Text] | None = None
    """class names in label order; default: the training set's, sorted"""
    unlabelled: dict[Name, SplitConfig] | None = None
    """images of target domains that a method may see in training, whose labels are not read; none of them
    is evaluated"""
    ood_mean: list[str] | None = None
    """OOD sets that count in the OOD mean; default: all"""
    eval_every: Annotated[PositiveInt, Field(ge=2)] | None = None
    """every n-th image of a class, in path order, is for ID evaluation, the others for training"""
    image_size: LeastSide | None = None
    """side of generated images in pixels (`shapes` only)"""
    annotations: Text | None = None
    """file or folder of labels, where the source keeps them apart from the images"""
    ignored_values: list[Annotated[int, Field(ge=0, le=255, strict=True)]] = field(default_factory=list)
    """values in masks that are of no class, as 255 is (`masks` only)"""
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    """whether images are turned as their camera noted; torchvision and timm ignore it"""
    transparency: Literal["drop", "white", "black"] = "drop"
    """drop: the colours that a file has under its transparency, as torchvision and timm; or on this ground"""
    max_megapixels: PositiveFloat = 179.0
    """an image file with more is refused: a small one can unpack to any size; 179 is Pillow's limit"""
    cache_side: LeastSide | None = None
    """decode each file once, resize its shorter side to this many pixels (antialiased bilinear, before any
    resize of the transform, bicubic ones too), and keep the pixels; they are other pixels than without it, so
    it is part of a run's identity"""
    scaled_decoding: Annotated[Number, Field(ge=1, le=8)] | None = None
    """where a transform begins with a resize, decode a JPEG at 1/2, 1/4 or 1/8 of its size if this leaves so
    many times the side that the resize makes; they are other pixels, so it is part of a run's identity; null:
    in full"""
    files: list[FileConfig] = field(default_factory=list)
    """what prepare.py fetches"""
    kept_side: Side | None = None
    """shorter side in pixels at which prepare.py keeps the images that it fetches, if they are larger"""
    manual: str | None = None
    """what a person must do to get the images, where a licence forbids fetching them"""
    shift_strength: Number | None = None
    """how far its images are from those of pretraining, on a scale of yours, for figures alone"""

    def __post_init__(self) -> None:
        for name in self.ood:
            if name in ("train", "id", "ood", "holdout", "unlabelled") or "/" in name:
                problem = "this name is taken (train, id, ood, holdout, unlabelled) or has a '/'"
                raise ConfigError(f"ood.{name}", problem)
            if name.endswith(TARGET_BN):
                raise ConfigError(
                    f"ood.{name}", f"names that end in{TARGET_BN} are for evaluations of a part"
                )
        if self.scaled_decoding is not None:
            if self.cache_side is not None:
                problem = f"{self.scaled_decoding:g} with cache_side={self.cache_side}; use one of them"
                raise ConfigError("scaled_decoding", problem)
            firsts = [each[0] for each in (self.train_transform, self.eval_transform) if each]
            if not any(isinstance(op, Resize) and op.interpolation != "nearest" for op in firsts):
                problem = f"{self.scaled_decoding:g}, but no transform begins with a resize; use null"
                raise ConfigError("scaled_decoding", problem)
        drawn = SOURCES[self.source].drawn
        if drawn and (self.classes or self.eval_every):
            key = "classes" if self.classes else "eval_every"
            value = getattr(self, key)
            raise ConfigError(key, f"{value}, but {self.source} are drawn, with classes of their own")
        if drawn != (self.image_size is not None):
            raise ConfigError("image_size", f"{self.image_size}; the side of drawn images, null for files")
        for key, split in self.splits().items():
            if drawn and split.part != "all":
                raise ConfigError(f"{key}.part", f"{split.part}, but drawn images are not divided; use seed")
            if not drawn and split.seed:
                raise ConfigError(f"{key}.seed", f"{split.seed}, but files are not drawn; use 0")
        for name in self.ood_mean or []:
            if name not in self.ood:
                raise ConfigError("ood_mean", f"{name!r} is no OOD set; choose from {', '.join(self.ood)}")
        if self.eval_every and all(split.part == "all" for split in self.splits().values()):
            raise ConfigError("eval_every", f"{self.eval_every} divides nothing; set train.part and id.part")
        for key, split in self.splits().items():
            if split.part != "all" and self.eval_every is None:
                raise ConfigError(f"{key}.part", f"{split.part!r} needs eval_every to say how to divide")
            if split.shift and not key.startswith("ood."):
                raise ConfigError(
                    f"{key}.shift", "only OOD sets have a shift; give this one a name under ood"
                )
        if any(op.random for op in self.eval_transform):
            raise ConfigError("eval_transform", "an evaluation set must not be random")

    def splits(self) -> dict[str, SplitConfig]:
        """All splits, by key: train, id, ood.NAME, unlabelled.NAME."""
        several = {"ood": self.ood, "unlabelled": self.unlabelled or {}}
        named = {f"{group}.{name}": split for group, of in several.items() for name, split in of.items()}
        return {"train": self.train, "id": self.id, **named}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """A pretrained feature extractor with batch normalisation."""

    name: Name
    model: Text
    """timm model name, or `my_package.my_module.function`"""
    weights: Literal["file", "hub", "random", "own"]
    """`checkpoint`; timm's hub entry of that name; none at all; those that an imported network comes with"""
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    """normalisation of RGB in [0, 1]"""
    source: Literal["timm", "import"] = "timm"
    """what makes the network: timm, or a function that is imported and returns a torch.nn.Module"""
    model_args: PlainDict = field(default_factory=dict)
    checkpoint: Text | None = None
    """safetensors, a torch file or a TorchScript archive, by content; `package:import_name/path` is a file of
    an installed package"""
    checksum: Checksum | None = None
    urls: list[Url] = field(default_factory=list)
    """where prepare.py fetches the checkpoint, tried in this order"""
    bytes: ByteCount | None = None
    """of the checkpoint"""
    wrapper: Text | None = None
    """key under which a torch file keeps its state dict; a dotted path of keys"""
    prefix: str = ""
    """only keys that start with it are read; it is stripped"""
    drop: list[Text] = field(default_factory=list)
    """keys that start with one of these, after the prefix, are left out: the pretraining head"""
    rename: dict[str, str] = field(default_factory=dict)
    r"""names in the checkpoint to names in the model, after prefix and drop: regular expressions with
    \1, \2, … for their groups; of those that match a whole name the first counts"""
    replace: dict[str, str] = field(default_factory=dict)
    r"""parts of such names, before `rename`: every place where a regular expression matches, one after the
    other, all of them"""
    num_features: PositiveInt | None = None
    """width of the features; null: whatever the model gives"""
    input_size: Side | None = None
    """side in pixels of the only images it takes; null: any"""
    lr_head: AutoRate = "auto"
    """anchor of η_w; auto: the rate that fits the features of the training images"""

    def __post_init__(self) -> None:
        known = ("file", "random", "hub" if self.source == "timm" else "own")
        if self.weights not in known:
            raise ConfigError("weights", f"{self.weights}, but source={self.source} has {', '.join(known)}")
        if self.source == "import" and not re.fullmatch(r"\w+(\.\w+)+", self.model):
            raise ConfigError(
                "model", f"{self.model}; with source=import write my_package.my_module.function"
            )
        if self.weights == "file" and not self.checkpoint:
            raise ConfigError("checkpoint", "null, but weights=file; name a file, or weights=hub or random")
        if self.weights != "file" and self.checkpoint:
            raise ConfigError("weights", f"{self.weights} would ignore {self.checkpoint}; use weights=file")
        for key in ("checksum", "urls", "bytes", "wrapper", "prefix", "drop", "rename", "replace"):
            if self.weights != "file" and getattr(self, key):
                raise ConfigError(key, f"{getattr(self, key)}, but weights={self.weights} reads no file")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodConfig:
    """One row of Table 1 or Table 5."""

    name: Name
    head_init: Literal["random", "zero", "probe"]
    rates: Literal["tied", "separate", "frozen"]
    """of backbone (η_θ) and head (η_w): one, two, or a backbone that is not trained"""
    bn_mode: Literal["train", "test"]
    """of BN layers during training"""
    bn_conversion: bool
    """before training (Algorithm 1)"""
    conversion_batches: PositiveInt | None = None
    """mini-batches that BN conversion measures, from the first; null: the whole training set (paper)"""
    lr_backbone: Rate | None = None
    """η_θ; with tied rates the head's too"""
    lr_head: Rate | None = None
    """η_w; `auto` stands for 1 in units of that rate"""
    lr_head_unit: Literal["auto"] | None = None
    """auto: η_w is in multiples of the rate that fits the features of the training images"""
    head_hidden: list[Width] = field(default_factory=list)
    """widths of the head's hidden layers; none: a linear head"""
    lr_probe: Rate | None = None
    """η_w of the run with a frozen backbone that head_init=probe takes a segmentation's decoder from"""
    probe_solver: Literal["exact", "authors"] = "exact"
    """of head_init=probe: solved until it has converged, or by scikit-learn as the authors call it"""
    parts: PartsConfig | None = None
    """what is added to all this; null: nothing"""

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, given: Any) -> Any:
        """`lr_head: auto`, as the two settings that it stands for; parts that are all null, as none."""
        if isinstance(given, dict) and given.get("lr_head") == "auto":
            given = given | {"lr_head": 1.0, "lr_head_unit": "auto"}
        if isinstance(given, dict) and isinstance(parts := given.get("parts"), dict):
            given = given | {"parts": parts if any(each is not None for each in parts.values()) else None}
        return given

    def __post_init__(self) -> None:
        if self.lr_head_unit and (self.lr_head is None or self.rates != "separate"):
            problem = f"{self.lr_head_unit}, but rates={self.rates} with lr_head={self.lr_head}; use null"
            raise ConfigError("lr_head_unit", problem)
        if self.head_hidden and self.head_init != "random":
            raise ConfigError(
                "head_init",
                f"{self.head_init} needs a linear head, but head_hidden={self.head_hidden}; "
                "a head of several layers starts with head_init=random",
            )
        if self.probe_solver != "exact" and (self.head_init != "probe" or self.lr_probe is not None):
            raise ConfigError("probe_solver", f"{self.probe_solver}, but no logistic regression is solved")
        if self.conversion_batches and not self.bn_conversion:
            raise ConfigError("conversion_batches", f"{self.conversion_batches}, but bn_conversion=false")
        if self.rates == "frozen":
            if needless := [part for part in self.part_names if part in FOR_TRAINED_BACKBONES]:
                problem = "rates=frozen trains no backbone for it; use it with ft, lp_ft or daft"
                raise ConfigError(f"parts.{needless[0]}", problem)
            if self.bn_conversion:
                raise ConfigError("bn_conversion", "true has no effect on a frozen backbone; use false")
            if self.bn_mode == "train":
                raise ConfigError("bn_mode", "train would change a frozen backbone; use test")
            if self.lr_backbone is not None:
                raise ConfigError("lr_backbone", f"{self.lr_backbone:g} with a frozen backbone; use null")
            if self.lr_head is None and self.head_init != "probe":
                raise ConfigError("lr_head", "null trains nothing at all; set it, or use head_init=probe")
        elif self.lr_backbone is None:
            raise ConfigError("lr_backbone", f"null, but rates={self.rates} trains the backbone")
        if self.rates == "tied" and self.lr_head is not None:
            raise ConfigError("lr_head", f"{self.lr_head:g} with rates=tied; use null, or rates=separate")
        if self.rates == "separate" and self.lr_head is None:
            raise ConfigError("lr_head", "null with rates=separate; set it, or use rates=tied")

    @property
    def part_names(self) -> list[str]:
        """The parts that it has."""
        return self.parts.given if self.parts else []

    @property
    def short_name(self) -> str:
        """Its name with those of its parts."""
        return short_name(self.name, dict.fromkeys(self.part_names))

    @property
    def adapts(self) -> bool:
        """Whether it sees unlabelled images of a target domain in training."""
        return any(part in ADAPTING for part in self.part_names)

    @property
    def is_solved(self) -> bool:
        """Whether its head is that of logistic regression, and nothing is trained by gradients."""
        return self.rates == "frozen" and self.lr_head is None

    def linear_probe(self) -> "MethodConfig":
        """LP at η_w = `lr_probe`, whose run this one takes its decoder from."""
        return replace(
            self,
            name="lp",
            head_init="random",
            rates="frozen",
            bn_mode="test",
            bn_conversion=False,
            conversion_batches=None,
            lr_backbone=None,
            lr_head=self.lr_probe,
            lr_head_unit=None,
            lr_probe=None,
            parts=None,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """The optimiser's settings and the choice of epoch."""

    epochs: Epochs
    steps: PositiveInt | None = None
    """iterations of all epochs together, in equal shares; null: each epoch is a pass over the images"""
    poly_power: PositiveFloat | None = None
    """rates fall as (1 - step / steps) to this power, every step; null: as a half cosine, every epoch"""
    batch_size: Annotated[BatchSize, Field(ge=2)]
    momentum: Number = Field(ge=0, lt=1)
    weight_decay: Number = Field(ge=0, le=1000)
    selection: Literal["paper", "holdout", "last"]
    """by the ID evaluation set, or by a stratified tenth of the training set; or simply the last"""
    precision: Literal["auto", "fp32", "bf16"]
    """auto: bf16 on a GPU, fp32 elsewhere"""
    divergence: Literal["discard", "keep_best"] = "discard"
    """of a run that is not finite in some epoch: nothing counts, or its best epoch before (authors' code)"""
    class_weights: Literal["balanced"] | None = None
    """of the classes in the loss; balanced: N / (K n), so that all of K classes weigh the same"""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < self.epochs:
            raise ConfigError("steps", f"{self.steps} for {self.epochs} epochs; each needs one or more")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SegmentationConfig:
    """Pixels are classified, not images: DeepLabv3+ around the backbone (Chen et al. 2018)."""

    output_stride: Literal[8, 16]
    """pixels of the image per pixel of the backbone's last features"""
    atrous_rates: tuple[Side, Side, Side]
    """dilations of the pyramid"""
    separable: bool
    """whether the decoder's convolutions of 3 x 3 are depthwise separable"""
    dropout: Number = Field(ge=0, lt=1)
    """of the pyramid's output"""
    channels: Annotated[Width, Field(le=4096)]
    """of the decoder"""
    eval_batch_size: BatchSize
    """1 where images keep their own sizes; no part of a run's identity"""
    head_init: Literal["random"]
    """what LP and DAFT start the decoder from"""
    lr_head: Rate
    """anchor of η_w"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MamlConfig:
    """How MAML adapts the network to the support of an episode (Finn et al. 2017)."""

    lr: Rate
    """of the adaptation, by plain gradient descent: α there"""
    steps: Annotated[PositiveInt, Field(le=1000)]
    """of the adaptation, in training and in evaluation"""
    order: Literal["first", "second"]
    """of the meta-gradient: second goes through the adaptation, first takes its steps as they are"""
    statistics: Literal["support", "transductive"]
    """what BN layers that the method trains in train mode normalise by: the support of the episode; or each
    forward pass by its own images, so that the queries see each other"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FewshotConfig:
    """Episodes of a few classes and images are learnt, and classes that were not trained on are evaluated."""

    test_classes: Annotated[list[Text], Field(min_length=2)]
    """of ID and OOD evaluation; no image of them is trained on"""
    train_classes: Annotated[list[Text], Field(min_length=2)] | None = None
    """null: all others"""
    ways: Annotated[PositiveInt, Field(ge=2)]
    """classes of an episode"""
    shots: PositiveInt
    """labelled images of each"""
    queries: PositiveInt
    """other images of each, which are classified"""
    meta_batch: PositiveInt
    """episodes of a training step"""
    episodes: Annotated[PositiveInt, Field(ge=2, le=10**6)]
    """that a split is evaluated on"""
    seed: Seed
    """of those; the same for every run"""
    maml: MamlConfig | None = None
    """null: prototypes"""

    def __post_init__(self) -> None:
        for key in ("test_classes", "train_classes"):
            names = getattr(self, key) or []
            if len(set(names)) < len(names):
                raise ConfigError(key, f"{names} names a class twice")
        if shared := [name for name in self.train_classes or [] if name in self.test_classes]:
            raise ConfigError("train_classes", f"{shared[0]!r} is one of test_classes, too; they share none")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ComputeConfig:
    """Where and how fast a run computes; no part of its identity."""

    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    threads: Cores | None = Field(ge=1)
    workers: Cores | None = Field(ge=0)
    resident_gib: Number = Field(ge=0, le=1e6)
    unreadable: Literal["error", "skip"]
    compile: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WandbConfig:
    """Weights & Biases: a mirror of the record, never its source."""

    mode: Literal["online", "offline", "disabled"]
    project: Project
    entity: Entity | None
    group: Text | None
    """null: the run's cell"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PathsConfig:
    """Folders; no part of a run's identity."""

    data: Folder
    weights: Folder
    runs: Folder
    cache: Folder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SweepConfig:
    """A protocol of many runs: grids of learning rates in stages, then seeds; no part of a run."""

    stages: dict[str, list[Literal["lr_backbone", "lr_head", "lr_probe"]]]
    """by method: the rates that are swept, one after the other, the earlier ones at their best; `lr_probe` by
    the runs of LP that a segmentation's decoder may come from"""
    cell_grids: dict[str, dict[str, Grid]]
    """grids of η_θ by method, then by `backbone/dataset`, `backbone` or `default`: the first that fits"""
    grids: dict[str, Grid] = field(default_factory=dict)
    """yours, by method, in place of those"""
    head_factors: Grid
    """grid of η_w, of LP's too, in multiples of its anchor; the anchor itself is a candidate too"""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """of the chosen rates; the grids run on the lowest"""
    extend: bool = False
    """go on past the edge of a grid while its best value is there"""
    max_jobs: PositiveInt | None = None
    """launched at a time; null: all that can run"""
    checkpoints: Literal["selected", "all"] = "selected"
    """whose weights stay once a cell has chosen: those of the chosen rates, or of its whole grids"""
    plan: bool = False
    """say what would run, and run nothing"""

    def __post_init__(self) -> None:
        for method, rates in self.stages.items():
            if len(set(rates)) != len(rates):
                raise ConfigError(f"stages.{method}", f"{rates} names a rate twice")
            if "lr_probe" in rates[1:]:
                raise ConfigError(f"stages.{method}", f"{rates}, but LP comes before all else")
            known = "default" in self.cell_grids.get(method, {}) or method in self.grids
            if "lr_backbone" in rates and not known:
                raise ConfigError(f"grids.{method}", "missing; the stages sweep lr_backbone over it")
        for method in self.grids:
            if "lr_backbone" not in self.stages.get(method, []):
                known = [name for name, rates in self.stages.items() if "lr_backbone" in rates]
                raise ConfigError(f"grids.{method}", f"no such sweep; choose from {', '.join(known)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError("seeds", f"{self.seeds} names a seed twice")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """A whole run."""

    dataset: DatasetConfig
    backbone: BackboneConfig
    method: MethodConfig
    training: TrainingConfig
    compute: ComputeConfig
    wandb: WandbConfig
    paths: PathsConfig
    seed: Seed
    segmentation: SegmentationConfig | None = None
    """null: classification"""
    fewshot: FewshotConfig | None = None
    """null: no episodes"""
    sweep: SweepConfig | None = None
    """what a sweep was told; its runs themselves are told nothing of it"""

    def __post_init__(self) -> None:
        names = (self.dataset.name, self.backbone.name, self.method.short_name)
        if (size := len("-".join(names).encode())) > LONGEST_NAME - len(f"-s{self.seed}-0123456789ab"):
            raise ConfigError(
                "dataset.name", f"{size} bytes with the other names; too long for a folder's name"
            )
        adapting = [part for part in self.method.part_names if part in ADAPTING]
        if adapting and self.segmentation:
            raise ConfigError(f"method.parts.{adapting[0]}", "it compares features of images, not of pixels")
        if adapting and not self.dataset.unlabelled:
            problem = f"null, but method.parts.{adapting[0]} needs images of a target domain; name a split"
            raise ConfigError("dataset.unlabelled", f"{problem}, as in dataset=shapes_unlabelled")
        self._require_episodes()
        masks = SOURCES[self.dataset.source].masks
        if self.segmentation is None:
            if masks == "always":
                raise ConfigError("segmentation", f"null, but {self.dataset.name} has masks and no classes")
            if self.method.lr_probe is not None:
                raise ConfigError("method.lr_probe", f"{self.method.lr_probe:g}, but a linear head has none")
            if self.training.class_weights and self.method.is_solved:
                what = f"{self.training.class_weights}, but {self.method.name} trains nothing by gradients"
                raise ConfigError("training.class_weights", f"{what}; use null")
            return
        if self.training.class_weights:
            raise ConfigError("training.class_weights", f"{self.training.class_weights}, of pixels; use null")
        if self.backbone.source == "import":
            raise ConfigError(
                "backbone.source", "import, but only timm's networks segment: they can be dilated"
            )
        if masks == "never":
            raise ConfigError("segmentation", f"{self.dataset.name} has no masks; use null")
        if self.dataset.cache_side:
            raise ConfigError("dataset.cache_side", f"{self.dataset.cache_side}, but masks are not cached")
        if scaled := self.dataset.scaled_decoding:
            raise ConfigError("dataset.scaled_decoding", f"{scaled:g}, but masks are not scaled; use null")
        if "test_time" in self.method.part_names and self.segmentation.eval_batch_size == 1:
            problem = (
                "bn, but segmentation.eval_batch_size=1: a batch of one image has no statistics of a split"
            )
            raise ConfigError("method.parts.test_time", problem)
        if self.dataset.exif_orientation == "apply":
            raise ConfigError("dataset.exif_orientation", "apply, but masks have no orientation; use ignore")
        if self.method.head_hidden:
            raise ConfigError("method.head_hidden", f"{self.method.head_hidden}; the head is the decoder")
        if self.method.head_init == "zero":
            raise ConfigError("method.head_init", "zero, but a decoder has several layers; use random")
        if self.method.lr_head_unit:
            raise ConfigError("method.lr_head_unit", "auto is for a linear head; use a number in lr_head")
        start, rate = self.method.head_init, self.method.lr_probe
        if start == "probe" and rate is None:
            raise ConfigError("method.lr_probe", "null, but head_init=probe needs the η_w of an LP run")
        if start != "probe" and rate is not None:
            raise ConfigError("method.lr_probe", f"{rate:g}, but head_init={start} needs no LP run; use null")

    def _require_episodes(self) -> None:
        """Raise ConfigError for what does not go together with episodes."""
        if self.fewshot is None:
            return
        if self.segmentation is not None:
            raise ConfigError(
                "fewshot", "episodes are of images with one class each; leave segmentation null"
            )
        if self.method.parts is not None:
            raise ConfigError("method.parts", "they are for batches of images, not for episodes; use null")
        if self.training.class_weights:
            problem = f"{self.training.class_weights}, but episodes have equal classes; use null"
            raise ConfigError("training.class_weights", problem)
        if self.training.steps is None:
            raise ConfigError("training.steps", "null, but episodes are counted in steps; say how many")
        method, maml = self.method, self.fewshot.maml
        if method.head_init == "probe":
            raise ConfigError("method.head_init", "probe, but no head fits all episodes; use random or zero")
        if maml is None and method.rates == "frozen":
            raise ConfigError("method.rates", "frozen trains nothing: prototypes have no head")
        if maml is None and method.head_hidden:
            raise ConfigError("method.head_hidden", f"{method.head_hidden}, but prototypes have no head")
        if maml is not None and self.compute.compile:
            raise ConfigError("compute.compile", "true, but MAML's adapted weights are not compiled")


def metric_name(segmentation: object) -> str:
    """What runs are judged by, in percent, given this section of their configuration."""
    return "accuracy" if segmentation is None else "miou"


def selected_on(selection: str, segmentation: object) -> str:
    """The metric by which epochs and learning rates are selected."""
    return f"{'holdout' if selection == 'holdout' else 'id'}/{metric_name(segmentation)}"
