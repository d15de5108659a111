"""fMoW as WILDS 1.1 publishes it: satellite images by period and region.

Splits and regions: p-lambda/wilds, wilds/datasets/fmow_dataset.py, `official` with the names of
use_ood_val=True. Regions go by name, so their numbers in WILDS, by first appearance, do not matter.
"""

from pathlib import Path

import pandas as pd

from daft.common.errors import UserError
from daft.config.schema import DatasetConfig, SplitConfig
from daft.data.labelled import ImageFile, Labelled
from daft.data.tables import read_table

FOLDER = "fmow_v1.1"

REGIONS = ("Africa", "Americas", "Asia", "Europe", "Oceania", "Other")

OOD_VAL_FROM, OOD_TEST_FROM = (pd.Timestamp(year, 1, 1, tz="UTC") for year in (2013, 2016))

SPLITS = {
    "train": ("train", None, OOD_VAL_FROM),
    "id_val": ("val", None, OOD_VAL_FROM),
    "id_test": ("test", None, OOD_VAL_FROM),
    "val": ("val", OOD_VAL_FROM, OOD_TEST_FROM),
    "test": ("test", OOD_TEST_FROM, None),
}
"""Split: its name in the metadata, and from when until before when its images were taken."""


def classes(cfg: DatasetConfig) -> list[str]:
    """As configured; raises UserError if they are not."""
    if cfg.classes is None:
        raise UserError("dataset.classes: null; name fMoW's categories in label order")
    return cfg.classes


def read_split(cfg: DatasetConfig, split: SplitConfig, name: str, classes: list[str]) -> Labelled:
    """path `<split>/<regions>`, several regions joined by +; raises UserError for another, and for metadata
    that is not as published. A split need not have every class.
    """
    part, _, regions = split.path.partition("/")
    if part not in SPLITS or not set(regions.split("+")) <= set(REGIONS):
        raise UserError(
            f"dataset.{name}.path: {split.path!r} is not <split>/<regions>; splits are {', '.join(SPLITS)}, "
            f"regions {', '.join(REGIONS)}, several joined by +"
        )
    folder = Path(cfg.root).expanduser() / FOLDER
    countries = _table(folder / "country_code_mapping.csv", ["alpha-3", "region"])
    region_of = dict(zip(countries["alpha-3"], countries["region"], strict=True))
    if absent := sorted({*regions.split("+")} - {*region_of.values(), "Other"}):
        raise UserError(f"{folder / 'country_code_mapping.csv'} has no country in {', '.join(absent)}")

    # The row number names the image, so rows are counted before any is left out.
    file = folder / "rgb_metadata.csv"
    table = _table(file, ["split", "category", "country_code", "timestamp"])
    region = table["country_code"].map(region_of).fillna("Other").replace("", "Other")
    published, start, end = SPLITS[part]
    table = table[(table["split"] == published) & region.isin(regions.split("+"))]
    taken = pd.to_datetime(table["timestamp"], utc=True, format="ISO8601", errors="coerce")
    if taken.isna().any():
        raise UserError(f"{file}: timestamp {table['timestamp'][taken.isna()].iloc[0]!r} is not ISO 8601")
    if start is not None:
        table, taken = table[taken >= start], taken[taken >= start]
    if end is not None:
        table = table[taken < end]
    if unknown := sorted(set(table["category"]) - set(classes)):
        raise UserError(f"{file}: category {unknown[0]!r} is none of dataset.classes")
    paths = [f"images/rgb_img_{row}.png" for row in table.index]
    listed = [
        ImageFile(path, folder / path, label) for path, label in zip(paths, table["category"], strict=True)
    ]
    return Labelled.of_files(listed, classes, split.path)


def _table(file: Path, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(read_table(file, columns).rows, columns=columns, dtype=object)
