"""From an image file, or one of Pillow's, to what a run's network takes, as in the run's own evaluation."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from daft.common.errors import UserError
from daft.config.operations import Operation
from daft.config.schema import Config
from daft.data.cache import shrink
from daft.data.decoding import Decoding, as_pixels, read_image
from daft.data.transforms import NO_UNIFORMS, transform


@dataclass(frozen=True)
class InputTransform:
    """The evaluation transform of a run: from an image of Pillow's to uint8 [3, H, W] in RGB."""

    operations: Sequence[Operation]
    decoding: Decoding
    cache_side: int | None
    """the shorter side to which images are brought down first, in pixels"""
    input_size: int | None
    """the side in pixels of the only images that the network takes"""

    @classmethod
    def of(cls, config: Config) -> "InputTransform":
        """Of a run's configuration."""
        dataset = config.dataset
        operations = tuple(dataset.eval_transform)
        return cls(
            operations, Decoding.of(dataset, operations), dataset.cache_side, config.backbone.input_size
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Raises UserError for an image that cannot go through it, or that the network does not take."""
        return self.transformed(self.pixels(image))

    def pixels(self, image: Image.Image | Path) -> Tensor:
        """uint8 [3, H, W] of an image or a file before the operations; raises as `decoding.read_image`."""
        found = (
            as_pixels(image, self.decoding)
            if isinstance(image, Image.Image)
            else read_image(image, self.decoding)
        )
        return found if self.cache_side is None else shrink(found, self.cache_side)

    def transformed(self, pixels: Tensor) -> Tensor:
        """uint8 [3, H, W], or a batch of them, after the operations; raises UserError as calling it does."""
        batch = pixels if pixels.ndim == 4 else pixels[None]
        try:
            done = transform(batch, self.operations, NO_UNIFORMS)
        except ValueError as error:  # a crop that does not fit
            raise UserError(str(error)) from error
        height, width = done.shape[-2:]
        if self.input_size is not None and (height, width) != (self.input_size, self.input_size):
            raise UserError(
                f"{height} x {width} pixels after the transform; the network takes "
                f"{self.input_size} x {self.input_size} alone"
            )
        return done if pixels.ndim == 4 else done[0]

    @functools.cache  # noqa: B019 (a handful of shapes)
    def enlarges(self, shape: tuple[int, ...]) -> bool:
        """Whether images [3, H, W] of this shape have no fewer pixels after the operations than before."""
        return self.transformed(torch.zeros(shape, dtype=torch.uint8)).numel() >= torch.Size(shape).numel()
