"""Corruption errors as a table."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from daft.data.corruptions import CORRUPTIONS
from daft.report import tables
from daft.report.methods import in_order
from daft.runs import frames
from daft.runs.robustness import MEAN, Kind

IMAGES: dict[Kind, str] = {"cifar10_c": "images of CIFAR-10-C", "generated": "ID images, corrupted here,"}
"""What a block is of."""

MEANS = (
    "Each number is a mean over the 5 severities and n seeds; the mean is over the 15 corruptions, ± sample "
    "standard deviation (ddof = 1) over n seeds. Learning rates are those chosen by ID accuracy."
)
NOTES: dict[Kind, str] = {
    "cifar10_c": MEANS,
    "generated": f"{MEANS} Frost is a random texture in place of the published photographs: that column, and "
    "the mean with it, do not compare with published errors.",
}
"""Below a table: what its numbers are."""


def aggregate(loaded: Sequence[dict[str, Any]], kind: Kind) -> pd.DataFrame:
    """`tables.aggregate` of the errors of selected runs, with `images` in each block and their `whole`."""
    runs = frames.from_records(loaded)
    means = tables.aggregate(runs, runs)
    means = means[means["metric"].str.endswith(f"/{kind}_error")]
    blocks = {record["run"]: record.get("corrupted", {}).get(kind) for record in loaded}
    of_cells = [blocks[ids.split()[0]] for ids in means["runs"]]
    return means.assign(**{key: [block[key] for block in of_cells] for key in ("images", "whole")})


def markdown(means: pd.DataFrame, kind: Kind) -> str:
    """What `aggregate` has, a row per cell: means over seeds, and the spread of the mean error."""
    parts = []
    for names, setting in means.groupby(["dataset", "backbone"], sort=False):
        rows = []
        for method in in_order(setting["method"]):
            errors = setting[setting["method"] == method].set_index("metric")
            found = errors.loc[[f"{name}/{kind}_error" for name in CORRUPTIONS]]
            mean = tables.format_mean_std(errors.loc[f"{MEAN}/{kind}_error"])
            rows.append([method, str(found["n"].iloc[0]), *found["mean"].map("{:.1f}".format), mean])
        table = pd.DataFrame(rows, columns=["method", "n", *CORRUPTIONS, "mean"])
        sizes = setting[["images", "whole"]].drop_duplicates().itertuples(index=False)
        of = " or ".join(f"{images:,} of the {whole:,}" for images, whole in sizes)
        parts += [
            f"### {', '.join(map(str, names))}: corruption errors (%)",
            tables.pipe_table(table, texts=2),
            f"Of {of} {IMAGES[kind]} at each severity of each corruption.",
        ]
    return "\n\n".join([*parts, NOTES[kind]]) + "\n"
