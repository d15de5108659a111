"""How far the weights and BN statistics of each layer moved (Eq. 6, Figure 2)."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from daft.report.figures import style
from daft.report.methods import in_order
from daft.runs import frames

PANELS = {
    "weight": "(a) weights",
    "bn_scale": "(b) BN scale γ",
    "bn_shift": "(c) BN shift β",
    "bn_mean": "(d) BN mean M, log scale",
    "bn_var": "(e) BN variance Σ, log scale",
}
STATISTICS = ("bn_mean", "bn_var")

STAGE = re.compile(r"(?:layer|stages\.|blocks\.|denseblock)(\d+)\b")
"""What timm's networks call their stages."""

NARROW = 0.07
"""Share of the layers between the middles of two stages below which their names would overlap on one line."""


def relative_change(loaded: Sequence[dict[str, Any]], methods: Iterable[str]) -> Figure:
    """Figure 2: relative change of every layer, from the input stem (IS) on, by method.

    loaded: records of one dataset and backbone. A converted network's is the one since conversion.
    """
    rows = changes(loaded)
    methods = [m for m in methods if m in set(rows["method"])]
    figure, panels = style.canvas(2, 3, 5.2)
    for axes, (kind, title) in zip(panels.flat, PANELS.items(), strict=False):
        of_kind = rows[rows["kind"] == kind]
        for method in methods:
            values = of_kind[of_kind["method"] == method].groupby("layer")["value"]
            axes.plot(
                values.mean(), markersize=3.5, linewidth=1, label=style.label(method), **style.mark(method)
            )
            if values.size().max() > 1:
                axes.fill_between(
                    values.mean().index,
                    values.min(),
                    values.max(),
                    color=style.colour(method),
                    alpha=0.2,
                )
        if kind in STATISTICS and (of_kind["value"] > 0).any():  # BN in test mode has moved none
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        _stages(axes, of_kind.drop_duplicates("layer").sort_values("layer")["stage"])
        axes.set_title(title)
        axes.set_xlabel("layer, by stage")
        axes.grid(axis="y")
    for row in panels:
        row[0].set_ylabel("relative change (ratio)")
    corner = panels[-1, -1]
    corner.axis("off")
    corner.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper left", fontsize=10)
    config, n = loaded[0]["config"], rows.groupby("method")["seed"].nunique().loc[methods]
    names = f"{config['dataset']['name']}, {config['backbone']['name']}"
    lines = [
        names.replace("$", r"\$"),
        f"{style.count(n)}{': mean, and range as a band' if n.max() > 1 else ''}",
        r"ratio: $\|\widetilde{W} - W\|_2\,/\,\|W\|_2$ of a layer,",
        r"$W$ before training, for DAFT",
        r"after BN conversion; $\widetilde{W}$ after training",
        f"IS: input stem; 1-{max(map(int, filter(str.isdigit, rows['stage'])), default=0)}: stages",
        *_unmoved(rows[rows["method"].isin(methods)]),
    ]
    corner.text(0.02, 0.66, "\n".join(lines), va="top", transform=corner.transAxes, linespacing=1.5)
    return figure


def _unmoved(rows: pd.DataFrame) -> list[str]:
    """Which points the log axes cannot show, a line per method: BN in test mode moves no statistics."""
    shown = rows[rows["kind"].isin(STATISTICS)]
    lines = []
    for method in in_order(shown["method"]):
        unmoved = shown.loc[shown["method"] == method, "unmoved"]
        if count := int(unmoved.sum()):
            of = "" if count == len(unmoved) else f", {count} of {len(unmoved)}"
            lines.append(f"0, so not in (d), (e): {style.label(method)}{of}")
    return lines


def changes(loaded: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per record and layer of the backbone: method, seed, kind, layer (its place), stage, value.

    And `unmoved`: whether that is 0; the value is then NaN, as it has no place on a log scale.
    """
    rows = []
    for record in loaded:
        config, places = record["config"], dict.fromkeys(PANELS, 0)
        # Stages are numbered as they come, because some networks count from 0.
        seen: dict[str, dict[str, int]] = {kind: {} for kind in PANELS}
        for row in record.get("relative_change", []):
            kind, name = row["kind"], row["name"]
            if kind not in PANELS or not name.startswith("backbone."):
                continue
            order, stage = seen[kind], STAGE.search(name)
            number = order.setdefault(stage[1], len(order) + 1) if stage else 0
            where = str(number) if number else "out" if order else "IS"
            rows.append((frames.method_of(config), config["seed"], kind, places[kind], where, row["value"]))
            places[kind] += 1
    frame = pd.DataFrame(rows, columns=["method", "seed", "kind", "layer", "stage", "value"])
    frame["value"] = frame["value"].astype(float)
    frame["unmoved"] = frame["value"] == 0
    return frame.replace({"value": 0.0}, np.nan)


def methods_of(loaded: Iterable[dict[str, Any]]) -> list[str]:
    """The methods whose records have changes of layers."""
    rows = changes(loaded)
    return in_order(rows.dropna()["method"])


def _stages(axes: Any, stages: "pd.Series[str]") -> None:
    """Every other stage on grey, and their names below."""
    names = list(dict.fromkeys(stages))
    if not names:
        return
    middles, labels = [], []
    for i, name in enumerate(names):
        at = np.flatnonzero(stages.to_numpy() == name)
        middle = (at[0] + at[-1]) / 2
        crowded = labels and middle - middles[-1] < NARROW * len(stages) and not labels[-1].startswith("\n")
        labels.append(f"\n{name}" if crowded else name)
        middles.append(middle)
        if i % 2:
            axes.axvspan(at[0] - 0.5, at[-1] + 0.5, color="#000000", alpha=0.06, linewidth=0)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_xticks(middles, labels)
    axes.tick_params(axis="x", length=0)
