"""The sources of images that a dataset can name, and what a configuration must know of each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What can be checked of a source without importing what reads it."""

    masks: Literal["never", "optional", "always"] = "never"
    """whether its labels are masks: optional for one that gives classes or, to a segmentation, masks"""
    own: bool = False
    """splits are the user's, not published ones"""
    drawn: bool = False
    """images are generated: they need a size, a number and a seed, and there are no files"""


SOURCES = {
    "folder": SourceInfo(own=True),
    "shapes": SourceInfo(masks="optional", own=True, drawn=True),
    "cifar": SourceInfo(),
    "imagenet": SourceInfo(),
    "domainnet": SourceInfo(),
    "fmow": SourceInfo(),
    "tiny_imagenet": SourceInfo(),
    "voc": SourceInfo(masks="always"),
    "cityscapes": SourceInfo(masks="always"),
    "masks": SourceInfo(masks="always", own=True),
}
"""By name, which is that of a module in daft/data/sources. To add a source, write that module with the two
functions of `daft.data.sources.Source`, and add its line here."""
