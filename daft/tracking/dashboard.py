"""The project's page in W&B: a report with the panels of every table, built from its definition."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
from wandb_workspaces import expr

from daft.report.paper import CellKey, Columns, PaperTable
from daft.runs import frames
from daft.tracking.sync import SELECTED, Service, clear_errors

TITLE = "DAFT"
WIDTH, HEIGHT = 8, 6
"""Of a panel; a row is 24 wide."""


def build(definitions: Iterable[PaperTable], project: str, entity: str) -> wr.Report:
    """The report, not saved: per table and dataset accuracies, distortion, and learning rates."""
    blocks: list[Any] = [wr.TableOfContents()]
    for table in definitions:
        blocks.append(wr.H1(f"{table.name}: {table.title}"))
        if table.mean_of:
            blocks.append(wr.P(f"Averages of {table.mean_of}: make {table.name}."))
            continue
        for dataset, columns in table.datasets.items():
            blocks += _dataset(table, dataset, columns)
    return wr.Report(project=project, entity=entity, title=TITLE, blocks=blocks, width="fluid")


def _dataset(table: PaperTable, dataset: str, columns: Columns) -> list[Any]:
    """The runs that the table shows of a dataset, then what their rates were chosen from, per network.

    A table of what was measured afterwards, as corruption errors, has its numbers alone.
    """
    cells = [cell for cell in table.cells() if cell.dataset == dataset]
    numbers = {f"{split}/{table.metric}": f"{entry.title} %" for split, entry in columns.splits.items()}
    shown = _runs("shown in the table", table, cells, numbers, expr.Metric("JobType") == SELECTED)
    shown.groupby = ["Group"]
    panels: list[wr.BarPlot | wr.ScatterPlot] = [_bars(title, metric) for metric, title in numbers.items()]
    heading = wr.H2(columns.title)
    if f"/{table.metric}" not in frames.MEASURES:
        return [heading, wr.PanelGrid(runsets=[shown], panels=_laid_out(panels))]
    judged = {f"id/{table.metric}": "ID %"}
    if len(columns.splits) > 1:
        judged[f"ood/{table.metric}"] = "OOD mean %"
        x, y = judged
        panels.append(wr.ScatterPlot(title="OOD mean % over ID %", x=x, y=y))
    panels += [_bars("ID feature L2", "id/l2"), _bars("ID feature cosine", "id/cosine")]
    blocks: list[Any] = [heading, wr.PanelGrid(runsets=[shown], panels=_laid_out(panels))]
    for backbone, network in table.backbones.items():
        swept = [cell for cell in cells if cell.backbone == columns.backbones.get(backbone, backbone)]
        curves = [
            wr.ScatterPlot(title=f"{title} over {symbol}", x=wr.Config(key), y=metric, log_x=True)
            for symbol, key in (("η_θ", "method.lr_backbone"), ("η_w", "method.lr_head"))
            for metric, title in judged.items()
        ]
        grid = wr.PanelGrid(
            runsets=[_runs(cell.method, table, [cell], numbers) for cell in swept], panels=_laid_out(curves)
        )
        blocks.append(wr.H3(f"Learning rates, {network.title}", collapsed_blocks=[grid]))
    return blocks


def _runs(
    name: str, table: PaperTable, cells: Sequence[CellKey], pinned: Iterable[str], *more: expr.FilterExpr
) -> wr.Runset:
    """The runs of some cells that are tagged as the table's."""
    groups = ["-".join(cell) for cell in cells]
    filters = expr.And(expr.Tags().isin([table.name]), expr.Metric("Group").isin(groups), *more)
    columns = [f"summary:{metric}" for metric in pinned]
    return wr.Runset(name=name, filters=filters, pinned_columns=columns)


def _bars(title: str, metric: str) -> wr.BarPlot:
    """Mean over the seeds of a cell, and their standard deviation."""
    return wr.BarPlot(
        title=title, metrics=[metric], groupby="Group", groupby_aggfunc="mean", groupby_rangefunc="stddev"
    )


def _laid_out(panels: Sequence[wr.BarPlot | wr.ScatterPlot]) -> list[wr.PanelTypes]:
    """The panels in rows of three."""
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=WIDTH * (i % 3), y=HEIGHT * (i // 3), w=WIDTH, h=HEIGHT)
    return list(panels)


def specification(report: wr.Report) -> dict[str, Any]:
    """What is saved of a report, as plain data."""
    # Saving is the only public way to it.
    return json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def save(report: wr.Report, service: Service) -> str:
    """Save it online, in place of the one of that title if there is one; its address."""
    with clear_errors():
        report.id = service.report(f"{report.entity}/{report.project}", report.title) or ""
        return report.save().url
