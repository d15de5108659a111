"""Finished runs evaluated on further OOD sets: nothing is trained, results are files beside the record."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from daft.common import progress
from daft.common.errors import UserError
from daft.common.files import digest, write_atomically
from daft.common.numbers import fixed
from daft.config.check import to_dict, validate
from daft.config.compose import hydra_errors
from daft.config.overrides import rewrite_overrides
from daft.config.schema import Config
from daft.data import datasets, overlap
from daft.data.balance import is_unequal
from daft.data.labelled import Labelled
from daft.runs import machine, measured, mistakes, records, results
from daft.runs.reopened import FinishedRun
from daft.training import tasks
from daft.training.evaluation import PretrainedFeatures

KEY = "dataset.ood"
EXAMPLE = f"'{KEY}={{art: {{path: art}}}}'"


def with_sets(run: FinishedRun, overrides: Sequence[str]) -> Config:
    """The run's configuration with the OOD sets that overrides of `dataset.ood` add.

    Raises UserError for another key, and for the name of a set that the run has.
    """
    config = OmegaConf.create(to_dict(run.config))
    with hydra_errors(overrides):
        for override in OverridesParser.create().parse_overrides(rewrite_overrides(overrides)):
            key = override.key_or_group
            if key != KEY and not key.startswith(f"{KEY}."):
                raise UserError(f"{key}: only OOD sets can be added, as in {EXAMPLE}")
            if override.is_delete() or override.is_sweep_override():
                raise UserError(f"{key}: write it as in {EXAMPLE}")
            if override.value() is None:  # `dataset.ood={}`
                raise UserError(f"name what to evaluate on, as in {EXAMPLE}")
            OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    wider = validate(config)
    for name, split in run.config.dataset.ood.items():
        if wider.dataset.ood[name] != split:
            raise UserError(f"{KEY}.{name}: {run} has been evaluated on a set of that name; take another")
    if wider.dataset.ood.keys() == run.config.dataset.ood.keys():
        raise UserError(f"name what to evaluate on, as in {EXAMPLE}")
    return wider


def evaluate(run: FinishedRun, config: Config, device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    """By name the result of each OOD set that `config` has and the run has not; what is there stays.

    In the run's own precision. Raises BusyError if another process is at the run, UserError if its weights
    were not kept, or if a set is not what it should be.
    """
    dataset = config.dataset
    new = [name for name in dataset.ood if name not in run.config.dataset.ood]
    listed = {name: datasets.list_split(dataset, f"ood.{name}", run.classes) for name in new}
    _require_others(run, config, listed)
    with records.lock_run(run.directory):
        for name, split in listed.items():
            yield name, _of_set(run, config, name, split, device)


def _require_others(run: FinishedRun, config: Config, listed: Mapping[str, Labelled]) -> None:
    """Raise UserError if a set has images that the run was trained on, or that are in its ID set."""
    try:
        known = datasets.listing(run.config)
    except UserError:
        progress.say_once(f"{run}: its own images are not here, so no image is compared with them")
        return
    splits = {"train": known.train, "id": known.evaluation["id"], **listed}
    overlap.require_other_files(config.dataset, splits)
    workers = machine.num_threads(config)
    overlap.require_other_images(config.dataset, splits, Path(config.paths.cache), workers)


def in_words(name: str, result: Mapping[str, Any]) -> str:
    """A result in a line."""
    unequal = is_unequal((result["per_class"] or {"images": []})["images"])
    words = {"accuracy": "", "miou": "mIoU "} | ({"balanced_accuracy": "balanced "} if unequal else {})
    found = {word: result["metrics"].get(f"{name}/{key}", "") for key, word in words.items()}
    numbers = [
        f"{word}{'not finite' if value is None else f'{fixed(value)} %'}"
        for word, value in found.items()
        if value != ""
    ]
    return f"{name} {', '.join(numbers)} ({result['images']:,} images)"


def _of_set(
    run: FinishedRun, config: Config, name: str, listed: Labelled, device: torch.device
) -> dict[str, Any]:
    dataset = config.dataset
    facts = {
        "format": results.FORMAT,
        "split": name,
        "identity": [
            listed.fingerprint,
            [repr(operation) for operation in [*dataset.ood[name].shift, *dataset.eval_transform]],
            [dataset.cache_side, dataset.exif_orientation, dataset.transparency]
            + ([] if dataset.scaled_decoding is None else [dataset.scaled_decoding]),  # younger
        ],
        "precision": run.precision,
    }
    file = run.directory / results.EVALUATION.format(digest(facts))
    if (known := results.read_evaluation(file)) is not None:
        return known
    started = time.perf_counter()
    decoded = datasets.decode(config, {name: listed}, run.classes, device)
    task, model = tasks.of(config, run.classes), run.network(device)
    found = measured.measure(
        task, model, decoded.loaders, _before(run, device), run.autocast(device), trains_backbone=True
    )
    mistakes.write(run.directory, found.predictions, digest(facts))
    result = facts | {
        "config": to_dict(config)["dataset"]["ood"][name],
        "images": len(decoded.loaders[name]),
        "metrics": found.metrics,
        "per_class": found.per_class.get(name),
        "distortion": found.distortion.get(name),
        "environment": machine.environment(device),
        "seconds": time.perf_counter() - started,
    }
    result = records.without_nan(result)
    write_atomically(file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _before(run: FinishedRun, device: torch.device) -> PretrainedFeatures | None:
    """The features before training, or None, with a word, where the pretrained weights are not here."""
    try:
        return run.pretrained_features(device)
    except UserError as error:
        progress.say_once(f"no distortion is measured: {error}")
        return None
