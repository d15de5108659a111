"""How fast a network trains here, by timing a few steps: for plans, where no past run tells."""

import time

import torch
from torch import Tensor

from daft.common import progress
from daft.config.schema import Config
from daft.data.datasets import Listing
from daft.data.episodes import Protocol
from daft.data.images import Streamed
from daft.data.labelled import Labelled
from daft.data.loader import Batch
from daft.data.transforms import RGB, num_uniforms, transform
from daft.methods import preparation
from daft.runs import machine
from daft.training import evaluation, tasks

SECONDS = 2.0
"""How long steps are timed for, at least one."""

CPU_BATCH = 8
"""Images, at most: on a CPU the time per image hardly depends on it, and a large step takes a minute."""


def seconds_per_image(config: Config, listed: Listing) -> float:
    """Seconds of a training step per image, with random weights, on copies of the first training image.

    Reading images is not in it. Raises UserError if the device is not here.
    """
    device, precision = machine.device_and_precision(config)
    progress.note(f"timing {config.backbone.name} on {config.dataset.name} …")
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.num_threads(config))
    try:
        task = tasks.of(config, listed.classes)
        model = task.network(task.backbone(pretrained=False).to(device))
        model = model.to(memory_format=torch.channels_last)
        preparation.set_train_mode(model, config.method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.training.momentum)
        cast, batch = evaluation.autocast(device, precision), _batch(config, listed.train, device)

        def step() -> None:
            with cast():
                loss = task.compute_loss(model, batch)["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss.item()  # waits for the device

        step()  # a first one allocates, and chooses kernels
        steps, seconds, started = 0, 0.0, time.perf_counter()
        while seconds < SECONDS:
            step()
            steps, seconds = steps + 1, time.perf_counter() - started
        return seconds / (steps * len(batch[0]))
    finally:
        torch.set_num_threads(threads)


def _batch(config: Config, split: Labelled, device: torch.device) -> Batch:
    """A batch of copies of the first training image, all of class 0."""
    operations, count = config.dataset.train_transform, config.training.batch_size
    if device.type == "cpu":
        count = min(count, CPU_BATCH)
    if config.fewshot is not None:
        count = Protocol.of(config.fewshot).images
    first = split.images[:1] if isinstance(split.images, Tensor) else Streamed.of(split).read(0)[None]
    first = transform(first[:, :RGB], operations, torch.full((1, num_uniforms(operations)), 0.5)).to(device)
    images = first.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    if config.segmentation is None:
        return images, torch.zeros(count, dtype=torch.int64, device=device)
    return images, torch.zeros_like(images[:, 0])
