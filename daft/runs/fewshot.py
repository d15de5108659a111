"""Few-shot accuracy of a network's features, on ID and every OOD set, before and after a method."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from daft.common.errors import UserError
from daft.common.files import digest, write_atomically
from daft.config.schema import Config
from daft.data import datasets
from daft.data.episodes import Protocol
from daft.data.loader import Loader
from daft.networks import backbones, checkpoints
from daft.networks.backbones import FeatureExtractor
from daft.runs import machine, records, results
from daft.runs.identity import pretrained_key, run_identity
from daft.runs.reopened import FinishedRun
from daft.training import evaluation, fewshot
from daft.training.evaluation import KeptFeatures, PretrainedFeatures

FORMAT = 1
"""Raised when the layout of a result changes, or what is drawn from a seed."""

FILE = "fewshot-{}.json"
"""Beside the record, for each set of images and each kind of episodes."""

PRETRAINED, TRAINED, DIFFERENCE = "pretrained", "trained", "difference"
"""The keys of a `Comparison`; of a network that no method has trained there is the first alone."""


class Spread(TypedDict):
    """Over the episodes."""

    mean: Annotated[float, Field(ge=-100, le=100)]
    std: Annotated[float, Field(ge=0)]
    """of the sample (ddof = 1)"""


class Comparison(TypedDict):
    """Before a method, after it, and what that gains, episode by episode."""

    pretrained: Spread
    trained: Spread
    difference: Spread


class Result(TypedDict):
    """What is read of a result."""

    dataset: str
    images: dict[str, list[Any]]
    precision: str
    ways: Annotated[int, Field(ge=2)]
    queries: Annotated[int, Field(ge=1)]
    episodes: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0)]
    accuracy: dict[str, dict[Annotated[str, Field(pattern=r"^[1-9]\d*$")], Comparison]]
    """in percent, by split and number of shots"""


def _of_its_images(result: Result) -> Result:
    if unknown := [split for split in result["accuracy"] if split not in result["images"]]:
        raise ValueError(f"accuracy.{unknown[0]}: no split of its images")
    return result


RESULT = TypeAdapter(Annotated[Result, AfterValidator(_of_its_images)])


@dataclass(frozen=True)
class Images:
    """The evaluation sets that episodes are drawn from."""

    dataset: str
    splits: dict[str, Loader]
    """`id` and every OOD set"""

    @classmethod
    def of(
        cls, config: Config, listing: datasets.Listing, protocol: Protocol, device: torch.device
    ) -> "Images":
        """Raises UserError, before any image is decoded, if a split has too few for an episode."""
        if config.segmentation is not None:
            name = config.dataset.name
            raise UserError(
                f"dataset={name}: its images have masks; episodes are of images with one class each"
            )
        names = ["id", *config.dataset.ood]
        for name in names:
            protocol.require(listing.evaluation[name].labels, listing.classes, name)
        loaded = datasets.load(config, listing, device)
        splits = {name: loaded.evaluation[name] for name in names}
        for name, loader in splits.items():  # without what could not be read
            protocol.require(loader.labels, listing.classes, name)
        return cls(config.dataset.name, splits)

    def require_taken(self, features: KeptFeatures, name: str) -> None:
        """Raise UserError unless the backbone of this name takes all of them."""
        assert isinstance(features.backbone, FeatureExtractor)
        for loader in self.splits.values():
            evaluation.require_size(features.backbone, name, loader)


def of_run(run: FinishedRun, images: Images, protocol: Protocol, device: torch.device) -> dict[str, Any]:
    """The accuracies before and after the run's method, kept beside its record; what is there stays.

    In the run's own precision. Raises BusyError if another process is at the run, and UserError if its
    weights or the pretrained ones are not there, or do not take the images.
    """
    empty = _without_accuracies(images, protocol, run.precision)
    file = run.directory / FILE.format(digest(empty))
    with records.lock_run(run.directory):
        result = results.read_as(file, RESULT, FORMAT) or empty
        lacking = {split: _lacking(result, split, protocol) for split in images.splits}
        if not any(lacking.values()):
            return result
        features = {PRETRAINED: run.pretrained_features(device), TRAINED: run.trained_features(device)}
        images.require_taken(features[TRAINED], run.config.backbone.name)
        result["environment"] = machine.environment(device)
        for split, shots in lacking.items():
            if shots:
                found = compared(features, images.splits[split], replace(protocol, shots=shots))
                result["accuracy"][split] = result["accuracy"].get(split, {}) | found
                write_atomically(file, json.dumps(result, indent=1) + "\n")
    return result


def of_backbone(
    config: Config, listing: datasets.Listing, images: Images, protocol: Protocol, device: torch.device
) -> dict[str, Any]:
    """The accuracies of a pretrained network, whose features are kept where runs keep them, too.

    Raises UserError as `backbones.load`, and if it does not take the images.
    """
    _, precision = machine.device_and_precision(config)
    weights = checkpoints.fingerprint(config.backbone)
    identity = run_identity(config, precision, listing.fingerprints(), weights)
    features = PretrainedFeatures(
        backbone := backbones.load(config.backbone).to(device).to(memory_format=torch.channels_last),
        backbone.num_features,
        pretrained_key(identity, device),
        evaluation.autocast(device, precision),
        Path(config.paths.cache) / "features",
    )
    images.require_taken(features, config.backbone.name)
    result = _without_accuracies(images, protocol, precision)
    for split, loader in images.splits.items():
        result["accuracy"][split] = compared({PRETRAINED: features}, loader, protocol)
    return result


def compared(
    features: Mapping[str, KeptFeatures], loader: Loader, protocol: Protocol
) -> dict[str, dict[str, Spread]]:
    """`Result.accuracy` of one split; the difference is of pairs, as all have the same episodes.

    Raises UserError if a feature is not finite.
    """
    accuracies = {}
    for name, extract in features.items():
        extracted = extract(loader)
        if not extracted.isfinite().all():
            raise UserError(f"{loader.name}: the {name} features of some images are not finite")
        accuracies[name] = fewshot.accuracies(extracted, loader.labels, protocol, loader.name)
    found = {
        str(shots): {name: _spread(of_shots[shots]) for name, of_shots in accuracies.items()}
        for shots in protocol.shots
    }
    if {PRETRAINED, TRAINED} <= accuracies.keys():
        for shots in protocol.shots:
            gain = accuracies[TRAINED][shots] - accuracies[PRETRAINED][shots]
            found[str(shots)][DIFFERENCE] = _spread(gain)
    return found


def _spread(values: Tensor) -> Spread:
    return {"mean": float(values.mean()), "std": float(values.std())}


def _lacking(result: dict[str, Any], split: str, protocol: Protocol) -> tuple[int, ...]:
    """The numbers of shots that a result has not of a split."""
    there = result["accuracy"].get(split, {})
    return tuple(shots for shots in protocol.shots if str(shots) not in there)


def _without_accuracies(images: Images, protocol: Protocol, precision: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dataset": images.dataset,
        "images": {name: loader.identity for name, loader in images.splits.items()},
        "precision": precision,
        "ways": protocol.ways,
        "queries": protocol.queries,
        "episodes": protocol.episodes,
        "seed": protocol.seed,
        "accuracy": {},
    }
