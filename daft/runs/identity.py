"""What makes two runs the same run: every setting and input that moves a number."""

from typing import Any

import torch

from daft.config.check import to_dict
from daft.config.schema import Config, DatasetConfig
from daft.runs.records import PROTOCOL

SEGMENTATION_PROTOCOL = 2
"""Raised when the same segmentation would give other numbers, but no other run."""

IDENTITY_KEYS = {
    "dataset": ("train_transform", "eval_transform", "ood_mean"),
    "backbone": ("model", "model_args", "mean", "std"),
    "method": ("head_init", "rates", "bn_mode", "bn_conversion", "lr_backbone", "lr_head", "head_hidden"),
    "training": ("epochs", "batch_size", "momentum", "weight_decay", "selection"),
    "segmentation": ("output_stride", "atrous_rates", "separable", "dropout", "channels"),
    "fewshot": ("ways", "shots", "queries", "meta_batch", "episodes", "seed"),
}
"""Settings that move a run's numbers, by section. Beside them count the seed, the precision as resolved, the
shift of each OOD set, and the fingerprints of images and weights."""

IDENTITY_KEYS_IF_SET = {
    "dataset": {
        "cache_side": None,
        "exif_orientation": "ignore",
        "transparency": "drop",
        "scaled_decoding": None,
    },
    "backbone": {"source": "timm"},
    "method": {
        "conversion_batches": None,
        "lr_probe": None,
        "lr_head_unit": None,
        "probe_solver": "exact",
        "parts": None,
    },
    "training": {"steps": None, "poly_power": None, "divergence": "discard", "class_weights": None},
    "fewshot": {"maml": None},
}
"""Settings that count unless they have this value: keys that are younger than the first runs."""

OTHER_KEYS = {
    "dataset": {
        *("name", "epochs", "manual", "kept_side", "shift_strength"),  # names, defaults, notes
        *("source", "root", "annotations", "files", "classes", "train", "id", "ood", "eval_every"),
        *("ignored_values", "unlabelled"),
        "image_size",  # as those before: the fingerprints hold what they lead to
        "max_megapixels",  # counts where larger images are left out, not refused: see below
    },
    "backbone": {
        *("name", "lr_head", "num_features", "input_size", "weights", "urls", "bytes"),
        # in the weights' fingerprint:
        *("checkpoint", "checksum", "wrapper", "prefix", "drop", "rename", "replace"),
    },
    "method": {"name"},
    "training": {"precision"},  # but as resolved
    "segmentation": {"eval_batch_size", "head_init", "lr_head"},  # the method holds what the last two lead to
    "fewshot": {"test_classes", "train_classes"},  # the fingerprints hold what they lead to
}
"""All other settings of these sections; no other section counts at all."""

HEAD_RATE_RULE = "2 (1 + momentum) / lambda"
"""What `lr_head_unit=auto` stands for: another rule makes another run."""

NOT_OF_A_PROBE = ("epochs", "momentum", "weight_decay")
"""Settings of training that do not count where nothing is trained by gradients."""

PLACES = ("dataset.root", "dataset.annotations", "dataset.files", "dataset.manual", "backbone.checkpoint")
"""Settings that say where inputs are; what these are is in a run's identity."""


def run_identity(config: Config, precision: str, images: dict[str, str], weights: str) -> dict[str, Any]:
    """The facts that make a run: settings that move its numbers, and what identifies its inputs.

    precision: as resolved. images: fingerprint per split. weights: fingerprint of the checkpoint. Two names
    for the same facts are one run.
    """
    settings = to_dict(config)

    def counted(section: str) -> dict[str, Any]:
        values = settings[section]
        unset = IDENTITY_KEYS_IF_SET.get(section, {})
        young = {key: values[key] for key, value in unset.items() if values[key] != value}
        return {key: values[key] for key in IDENTITY_KEYS[section]} | young

    training = counted("training") | {"precision": precision}
    if config.method.is_solved:
        training = {key: value for key, value in training.items() if key not in NOT_OF_A_PROBE}
    method = counted("method")
    if config.method.lr_head_unit == "auto":
        method["lr_head_unit"] = HEAD_RATE_RULE
    shifts = {name: split["shift"] for name, split in settings["dataset"]["ood"].items()}
    facts = {
        "protocol": PROTOCOL,
        "seed": config.seed,
        "method": method,
        "training": training,
        "dataset": counted("dataset") | _limit(config) | {"ood": shifts, "images": images},
        "backbone": counted("backbone") | {"weights": weights},
    }
    if config.segmentation is not None:
        facts["segmentation"] = counted("segmentation") | {"protocol": SEGMENTATION_PROTOCOL}
    if config.fewshot is not None:
        facts["fewshot"] = counted("fewshot")
    return facts


def _limit(config: Config) -> dict[str, float]:
    """The size above which images are left out, if they are, and if it is another than the usual one."""
    limit, usual = config.dataset.max_megapixels, DatasetConfig.max_megapixels
    return {"max_megapixels": limit} if config.compute.unreadable == "skip" and limit != usual else {}


def pretrained_key(identity: dict[str, Any], device: torch.device) -> list[Any]:
    """What tells features before training from others: the network, and the arithmetic they were computed in.

    They are the same to the last bit only with the same code on the same kind of device.
    """
    threads = device.type == "cpu" and torch.get_num_threads()
    around = [identity["segmentation"]] if "segmentation" in identity else []
    return [identity["backbone"], PROTOCOL, identity["training"]["precision"], device.type, threads, *around]
