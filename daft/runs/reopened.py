"""Finished runs opened again, for what is measured after training: their network, their images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from daft.common.errors import UserError, join_first
from daft.common.files import checksum, is_damage, require_regular
from daft.config.schema import Config, PathsConfig
from daft.data import datasets
from daft.networks import checkpoints, soundness, weight_files
from daft.networks.classifier import Classifier
from daft.runs import layout, records
from daft.runs.identity import pretrained_key
from daft.training import evaluation, tasks
from daft.training.evaluation import KeptFeatures, PretrainedFeatures


class _Data(TypedDict):
    classes: list[layout.Text]


class _Paths(TypedDict):
    data: layout.Text
    weights: layout.Text
    runs: layout.Text
    cache: layout.Text


class _Configuration(TypedDict):
    paths: _Paths


class Reopened(TypedDict):
    """What a record must say of a run that is opened again, beside what every one does."""

    identity: layout.Identity
    data: _Data
    config: _Configuration


REOPENED = TypeAdapter(Reopened)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its directory, its record, and its configuration with paths of here."""

    directory: Path
    record: dict[str, Any]
    config: Config

    def __str__(self) -> str:
        return self.directory.name

    @property
    def classes(self) -> list[str]:
        """Names in label order; raises UserError if its record has none."""
        try:
            return self.record["data"]["classes"]
        except KeyError:
            raise UserError(f"{self}: its record does not name the classes") from None

    def network(self, device: torch.device) -> Classifier:
        """The network of the selected epoch, in test mode; needs no pretrained weights.

        Raises UserError if the run's weights were not kept, or are not of its network.
        """
        file = self.directory / records.MODEL
        if not file.exists():
            raise UserError(
                f"{file}: not there; a sweep keeps the weights of the chosen rates alone, and "
                "sweep.checkpoints=all those of its grids too"
            )
        task = tasks.of(self.config, self.classes)
        model = task.network(task.backbone(pretrained=False))
        try:
            require_regular(file)
            weights = safetensors.torch.load_file(file)
            soundness.require_own(model, weights, finite=self.record["status"] == "finished")
            model.load_state_dict(weights)
        except Exception as error:  # what a damaged file raises can be anything
            if not is_damage(error):
                raise
            raise UserError(f"{file}: not the weights of this run ({weight_files.reason(error)})") from error
        return model.to(device).to(memory_format=torch.channels_last).eval()

    def pretrained_features(self, device: torch.device) -> PretrainedFeatures:
        """The features before training, by split: those that the run itself has kept, else extracted anew.

        Raises UserError if the pretrained weights are not there, or are others.
        """
        identity, now = self.record["identity"], checkpoints.fingerprint(self.config.backbone)
        if identity["backbone"]["weights"] != now:
            raise UserError(f"{self}: {self.config.backbone.checkpoint} is not what it was made with")
        task = tasks.of(self.config, self.classes)
        backbone = task.backbone().to(device).to(memory_format=torch.channels_last)
        key = pretrained_key(identity, device)
        folder = Path(self.config.paths.cache) / "features"
        features, cast = task.features(backbone), self.autocast(device)
        return PretrainedFeatures(features, backbone.num_features, key, cast, folder)

    def trained_features(self, device: torch.device) -> KeptFeatures:
        """The features of the selected epoch, by split, extracted once; raises UserError as `network`."""
        backbone = self.network(device).backbone
        weights = checksum(self.directory / records.MODEL)
        key = [weights, *pretrained_key(self.record["identity"], device)]
        folder = Path(self.config.paths.cache) / "features"
        return KeptFeatures(backbone, backbone.num_features, key, self.autocast(device), folder)

    @property
    def precision(self) -> str:
        """What it was made in, `fp32` or `bf16`."""
        return self.record["identity"]["training"]["precision"]

    def autocast(self, device: torch.device) -> evaluation.Autocast:
        """Context of its forward passes."""
        return evaluation.autocast(device, self.precision)

    def listing(self) -> datasets.Listing:
        """The images of all its splits; raises UserError if they are not those it was made with."""
        listing = datasets.listing(self.config)
        known = self.record["identity"]["dataset"]["images"]
        if changed := sorted(n for n, f in listing.fingerprints().items() if known.get(n) != f):
            raise UserError(f"{self}: the images of {', '.join(changed)} are not those it was made with")
        return listing

    def images(self, device: torch.device) -> datasets.Data:
        """Loaders of all its splits; raises UserError if images are not those it was made with."""
        return datasets.load(self.config, self.listing(), device)


def open_run(directory: Path, paths: Mapping[str, str] | None = None) -> FinishedRun:
    """A finished run; raises UserError if there is none.

    paths: where data, weights, runs or cache are now, if not where the environment says (DAFT_DATA, …) or,
    without that, where they were; what lay below them is looked for there.
    """
    record = records.read(directory)
    if record is None:
        raise UserError(f"{directory}: no finished run is here{_found_instead(directory)}")
    if record["status"] != "finished":
        raise UserError(f"{directory}: the run is {record['status']}; it has no selected epoch")
    try:
        layout.require(REOPENED, record)
    except ValueError as error:
        raise UserError(f"{directory}: its record does not say what the run was made of ({error})") from error
    settings = record["config"]
    names = [field.name for field in fields(PathsConfig)]
    places = {name: os.environ.get(f"DAFT_{name.upper()}") for name in names} | dict(paths or {})
    for name, now in places.items():
        if now:
            settings = _moved(settings, settings["paths"][name], now)
    try:
        config = layout.validated(TypeAdapter(Config), settings)
    except ValueError as error:
        raise UserError(f"{directory}: its configuration is of another version: {error}") from error
    return FinishedRun(directory, record, config)


def _found_instead(directory: Path) -> str:
    """What is in the place of a run, for a message."""
    if not directory.exists():
        return "; there is nothing of that name"
    if runs := [path.name for path in records.find_runs(directory)]:
        return f"; name one of the runs in it: {join_first(runs, 3)}"
    return ""


def _moved(value: Any, before: str, now: str) -> Any:
    """Plain data with the paths at or below `before` at or below `now`."""
    if isinstance(value, dict):
        return {key: _moved(inner, before, now) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, before, now) for inner in value]
    if isinstance(value, str) and (value == before or value.startswith(f"{before}/")):
        return now + value.removeprefix(before)
    return value
