"""What makes two runs the same run: every setting and input that moves a number."""

from typing import Any

import torch

from daft.config.check import plain
from daft.config.schema import Config

PROTOCOL = 1
"""Raised when the same configuration would give other numbers."""

SEGMENTATION_PROTOCOL = 2
"""Raised when the same segmentation would, but no other run."""

PLACES = ("dataset.root", "dataset.annotations", "dataset.files", "dataset.manual", "backbone.checkpoint")
"""Settings that say where inputs are; what these are is in a run's identity."""


def run_identity(config: Config, precision: str, images: dict[str, str], weights: str) -> dict[str, Any]:
    """The facts that make a run: settings that move its numbers, and what identifies its inputs.

    precision: as resolved. images: fingerprint per split. weights: fingerprint of the checkpoint. Names,
    paths, device, workers and logging are left out, so two names for the same run are one run.
    """
    settings = plain(config)
    dataset, backbone, method = (settings[key] for key in ("dataset", "backbone", "method"))
    for key in dataset.keys() - {"ood", "train_transform", "eval_transform", "ood_mean", "cache_side"}:
        del dataset[key]  # the fingerprints hold what these lead to
    if not dataset["cache_side"]:
        del dataset["cache_side"]
    dataset["ood"] = {name: split["shift"] for name, split in dataset["ood"].items()}
    source = {"source"} if config.backbone.source != "timm" else set()  # timm's are older than the key
    for key in backbone.keys() - {"model", "model_args", "mean", "std"} - source:
        del backbone[key]
    del method["name"]
    training = settings["training"] | {"precision": precision}
    for section, keys in ((method, ("conversion_batches", "lr_probe")), (training, ("steps", "poly_power"))):
        for key in keys:
            if section[key] is None:  # as if it had never been thought of
                del section[key]
    if config.method.rates == "frozen" and config.method.lr_head is None:
        for key in ("epochs", "momentum", "weight_decay"):
            del training[key]  # nothing is trained
    facts = {
        "protocol": PROTOCOL,
        "seed": config.seed,
        "method": method,
        "training": training,
        "dataset": dataset | {"images": images},
        "backbone": backbone | {"weights": weights},
    }
    if task := settings["segmentation"]:
        for key in ("eval_batch_size", "head_init", "lr_head"):  # the method holds what the last two lead to
            del task[key]
        facts["segmentation"] = task | {"protocol": SEGMENTATION_PROTOCOL}
    return facts


def pretrained_network(identity: dict[str, Any], device: torch.device) -> list[Any]:
    """What tells apart features before training: the network, and the arithmetic they were computed in.

    They are the same to the last bit only with the same code on the same kind of device.
    """
    threads = device.type == "cpu" and torch.get_num_threads()
    around = [identity["segmentation"]] if "segmentation" in identity else []
    return [identity["backbone"], PROTOCOL, identity["training"]["precision"], device.type, threads, *around]
