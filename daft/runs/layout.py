"""What is read of a record: which keys there must be, and of which kind; there may be others.

Keys that are not required are younger than the first records, or are looked for where they are read.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from daft.config.schema import metric_name, selected_on

T = TypeVar("T")

MEASURES = ("/accuracy", "/miou")
"""Ends of the names of metrics in percent."""


def validated(layout: TypeAdapter[T], value: Any, *, strict: bool = False) -> T:
    """A value as pydantic takes it; raises ValueError, which names the first key that is wrong."""
    try:
        return layout.validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"{part}." for part in first["loc"])[:-1]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message[0].lower()}{message[1:]}" if key else message) from None


def require(layout: TypeAdapter[Any], value: Any) -> None:
    """Raise ValueError, which names the first key that is wrong, for JSON that is not laid out so."""
    validated(layout, value, strict=True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("should be text")
    return value


def _metric(name: Any) -> str:
    if "/" not in _text(name):
        raise ValueError("should be the name of a split, / and that of a metric")
    return name


def _id(value: Any) -> str:
    if not _text(value).replace("-", "").replace("_", "").isalnum():  # it is a part of paths
        raise ValueError("should be letters and digits")
    return value


Text = Annotated[str, PlainValidator(_text)]
"""Of any kind: names of files need not be UTF-8."""

Name = Annotated[str, Field(min_length=1)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Metrics = dict[Annotated[str, PlainValidator(_metric)], float | None]


class _Section(TypedDict):
    name: Name


class _Dataset(_Section):
    cache_side: NotRequired[int | None]
    scaled_decoding: NotRequired[float | None]
    shift_strength: NotRequired[float | None]


class _Backbone(_Section):
    lr_head: NotRequired[Rate | Literal["auto"] | None]


class _Method(_Section):
    lr_backbone: Rate | None
    lr_head: Rate | None
    lr_head_unit: NotRequired[Literal["auto"] | None]
    lr_probe: NotRequired[Rate | None]
    conversion_batches: NotRequired[Count | None]
    parts: NotRequired[dict[Text, Any] | None]


class _Training(TypedDict):
    selection: str


class _Segmentation(TypedDict):
    lr_head: NotRequired[Rate]


class _Fewshot(TypedDict):
    ways: Count
    shots: Count
    maml: dict[str, Any] | None


class _Wandb(TypedDict):
    project: Name
    entity: str | None
    group: NotRequired[str | None]


class _Configuration(TypedDict):
    dataset: _Dataset
    backbone: _Backbone
    method: _Method
    training: _Training
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    segmentation: NotRequired[_Segmentation | None]
    fewshot: NotRequired[_Fewshot | None]
    wandb: NotRequired[_Wandb]


def _without_dots(config: Any) -> Any:
    """As they are: a key with a dot would be taken for one of a section below."""
    if isinstance(config, dict):
        sections = [config, *(section for section in config.values() if isinstance(section, dict))]
        if dotted := [key for section in sections for key in section if "." in key]:
            raise ValueError(f"{dotted[0]!r} is no key")
    return config


class _Histogram(TypedDict):
    mean: float | None
    edges: list[float]
    counts: list[Count]


def _drawable(histogram: _Histogram) -> _Histogram:
    counts, edges = histogram["counts"], histogram["edges"]
    rising = len(edges) == len(counts) + 1 and all(low < high for low, high in pairwise(edges))
    if counts and not (rising and sum(counts) and histogram["mean"] is not None):
        raise ValueError("should have a mean, counts, and rising edges, one more than counts")
    return histogram


class _Change(TypedDict):
    name: str
    kind: str
    value: float | None


class _Shift(TypedDict):
    batches: Count
    mean_shift: NotRequired[float | None]
    log2_std_ratio: NotRequired[float | None]


class _Data(TypedDict):
    images: NotRequired[dict[Text, Count]]
    classes: NotRequired[list[Text]]


class _Inputs(TypedDict):
    images: dict[Text, Text]


class _Weights(TypedDict):
    weights: Text


class _Precision(TypedDict):
    precision: Text


class Identity(TypedDict):
    """What is read of a run's identity."""

    dataset: _Inputs
    backbone: _Weights
    training: _Precision


class _Probe(TypedDict):
    run: NotRequired[str]
    metrics: NotRequired[Metrics]


class _Stage(TypedDict):
    stage: Count
    layers: Text
    lr: Rate | None


class _HeadRate(TypedDict):
    rate: Rate


class _Environment(TypedDict):
    threads: NotRequired[Annotated[int, Field(gt=0)]]


class PerClass(TypedDict):
    """Accuracy by class, in label order."""

    images: list[Count]
    accuracy: list[Annotated[float, Field(ge=0, le=100)] | None]


def _of_one_number(found: PerClass) -> PerClass:
    if len(found["images"]) != len(found["accuracy"]):
        raise ValueError("images and accuracies should be of the same classes")
    return found


ByClass = Annotated[PerClass, AfterValidator(_of_one_number)]
Distortion = dict[str, Annotated[_Histogram, AfterValidator(_drawable)]]


class _WeightsFrom(TypedDict):
    run: Text
    evaluated: list[Text]


class Record(TypedDict):
    """A record."""

    run: Annotated[str, PlainValidator(_id)]
    status: Literal["finished", "diverged"]
    best_epoch: int | None
    config: Annotated[_Configuration, BeforeValidator(_without_dots)]
    metrics: Metrics
    history: list[dict[str, float | None]]
    distortion: dict[Text, Distortion]
    environment: _Environment
    time: dict[str, float]
    identity: NotRequired[Identity]
    data: NotRequired[_Data]
    relative_change: NotRequired[list[_Change]]
    bn_shift: NotRequired[list[_Shift]]
    head_rate: NotRequired[_HeadRate | None]
    above_zero_head: NotRequired[list[float]]
    stages: NotRequired[list[_Stage]]
    parts: NotRequired[dict[Text, dict[str, Any]]]
    probe: NotRequired[_Probe | None]
    memory: NotRequired[dict[str, float]]
    weights_from: NotRequired[_WeightsFrom]
    per_class: NotRequired[dict[Text, ByClass]]


def _complete(record: Record) -> Record:
    """A finished run is judged by its metrics, and an epoch has a number."""
    if any(row.get("epoch") is None for row in record["history"]):
        raise ValueError("a row of history has no epoch")
    shares = {m: v for m, v in record["metrics"].items() if m.endswith(MEASURES) and v is not None}
    if wrong := [metric for metric, value in shares.items() if not 0 <= value <= 100]:
        raise ValueError(f"metrics.{wrong[0]}: should be from 0 to 100")
    if record["status"] == "finished":
        config = record["config"]
        segmentation = config.get("segmentation")
        judged = {
            selected_on(config["training"]["selection"], segmentation),
            f"id/{metric_name(segmentation)}",
        }
        if lacking := [metric for metric in sorted(judged) if record["metrics"].get(metric) is None]:
            raise ValueError(f"it is finished without {lacking[0]}")
    return record


RECORD = TypeAdapter(Annotated[Record, AfterValidator(_complete)])
