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
    runs = frames.rows(loaded)
    means = tables.aggregate(runs, runs)
    means = means[means["metric"].str.endswith(f"/{kind}_error")]
    blocks = {record["run"]: record.get("corrupted", {}).get(kind) for record in loaded}
    of_cells = [blocks[ids.split()[0]] for ids in means["runs"]]
    return means.assign(**{key: [block[key] for block in of_cells] for key in ("images", "whole")})


def markdown(means: pd.DataFrame, kind: Kind) -> str:
    """What `aggregate` has, a row per cell: mean over seeds, and of the mean error the spread."""
    parts = []
    for names, setting in means.groupby(["dataset", "backbone"], sort=False):
        lines = [
            f"### {', '.join(map(str, names))}: corruption errors (%)\n",
            f"| method | n | {' | '.join(CORRUPTIONS)} | mean |",
            f"| --- | --- |{' ---: |' * (len(CORRUPTIONS) + 1)}",
        ]
        for method in in_order(setting["method"]):
            rows = setting[setting["method"] == method].set_index("metric")
            found = [rows.loc[f"{name}/{kind}_error"] for name in CORRUPTIONS]
            cells = [f"{row['mean']:.1f}" for row in found]
            cells.append(tables.mean_std(rows.loc[f"{MEAN}/{kind}_error"]))
            lines.append(f"| {' | '.join([str(method), str(found[0]['n']), *cells])} |")
        sizes = setting[["images", "whole"]].drop_duplicates().itertuples(index=False)
        of = " or ".join(f"{images:,} of the {whole:,}" for images, whole in sizes)
        parts += ["\n".join(lines), f"Of {of} {IMAGES[kind]} at each severity of each corruption."]
    return "\n\n".join([*parts, NOTES[kind]]) + "\n"
