"""Claims about the report in W&B: its panels, from its specification, and that it is saved once."""

import json
import math
from typing import Any

import pytest

from daft.report import paper
from daft.tracking import dashboard, sync
from tests.helpers.fake_wandb import ENTITY, Service

SPECIFICATIONS = {
    name: dashboard.specification(dashboard.build([paper.load(name)], "p", "")) for name in paper.names()
}
SHOWN = [name for name in paper.names() if not paper.load(name).mean_of]
JUDGED = [name for name in SHOWN if name != "table4"]  # which is measured afterwards


def grids(specification: Any) -> list[dict[str, Any]]:
    """The panel grids of a specification, in order, those below folded headings too."""
    found = []
    for block in specification if isinstance(specification, list) else specification["blocks"]:
        if block["type"] == "panel-grid":
            found.append(block["metadata"])
        found += grids(block.get("collapsedChildren", []))
    return found


def conditions(runset: dict[str, Any]) -> dict[str, Any]:
    """What the runs of a runset must be, by key."""
    filters = runset["filters"]["filters"]
    assert all(f.get("connector", "AND") == "AND" and not f["disabled"] for f in filters)
    return {f["key"]["name"]: f["value"] for f in filters}


def panels(grid: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [p["config"] for p in grid["panelBankSectionConfig"]["panels"] if p["viewType"] == kind]


@pytest.mark.parametrize("name", SHOWN)
def test_a_table_has_bars_of_each_split_of_its_selected_runs_grouped_by_cell(name: str):
    table = paper.load(name)
    shown = [grid for grid in grids(SPECIFICATIONS[name]) if panels(grid, "Bar Chart")]
    assert len(shown) == len(table.datasets)
    for grid, (dataset, columns) in zip(shown, table.datasets.items(), strict=True):
        cells = ["-".join(cell) for cell in table.cells() if cell.dataset == dataset]
        (runset,) = grid["runSets"]
        assert conditions(runset) == {"tags": [name], "group": cells, "jobType": "selected"}
        assert runset["grouping"] == [{"section": "run", "name": "group"}]
        bars = panels(grid, "Bar Chart")
        metrics = [f"{split}/{table.metric}" for split in columns.splits]
        moved = ["id/l2", "id/cosine"] if name in JUDGED else []
        assert [metric for bar in bars for metric in bar["metrics"]] == [*metrics, *moved]
        assert {(b["groupBy"], b["groupAgg"], b["groupArea"]) for b in bars} == {("group", "mean", "stddev")}
        scatter = [(p["xAxis"], p["yAxis"]) for p in panels(grid, "Scatter Plot")]
        over_id = [("summary:id/accuracy", "summary:ood/accuracy")]
        assert scatter == (over_id if name in JUDGED and len(columns.splits) > 1 else [])
        pinned = runset["runFeed"]["columnPinned"]
        assert list(pinned) == [f"summary:{metric}" for metric in metrics]


@pytest.mark.parametrize("name", JUDGED)
def test_a_network_has_accuracies_over_its_rates_with_a_set_of_runs_for_each_cell(name: str):
    table = paper.load(name)
    swept = [grid for grid in grids(SPECIFICATIONS[name]) if not panels(grid, "Bar Chart")]
    assert len(swept) == len(table.datasets) * len(table.backbones)
    found = [conditions(runset) for grid in swept for runset in grid["runSets"]]
    assert sorted(cell for f in found for cell in f["group"]) == sorted(map("-".join, table.cells()))
    assert all(f.keys() == {"tags", "group"} for f in found)  # of every stage
    for grid in swept:
        axes = [(p["xAxis"], p["yAxis"], p["xAxisLogScale"]) for p in panels(grid, "Scatter Plot")]
        assert axes == [
            (f"config:method.value.{rate}", f"summary:{split}/{table.metric}", True)
            for rate in ("lr_backbone", "lr_head")
            for split in (["id"] if name == "table3" else ["id", "ood"])
        ]


def test_panels_are_side_by_side_and_do_not_overlap():
    for grid in grids(SPECIFICATIONS["table2"]):
        places = [p["layout"] for p in grid["panelBankSectionConfig"]["panels"]]
        assert len({(p["x"], p["y"]) for p in places}) == len(places)
        assert max(p["y"] for p in places) == 6 * (math.ceil(len(places) / 3) - 1)
        assert all(p["x"] + p["w"] <= 24 for p in places)


def test_the_table_of_averages_says_of_what():
    assert not grids(SPECIFICATIONS["table6"])
    assert "Averages of table2" in json.dumps(SPECIFICATIONS["table6"])


def test_it_is_saved_once_and_then_in_place_of_itself(online: Service):
    addresses = []
    for names in (["small"], ["small", "table5"]):
        service = sync.Service()
        report = dashboard.build(map(paper.load, names), "daft", service.account)
        addresses.append(dashboard.save(report, service))
    assert addresses[0] == addresses[1]
    assert f"{ENTITY}/daft/reports/DAFT" in addresses[0]
    (saved,) = online.reports.values()
    headings = [block for block in json.loads(saved["spec"])["blocks"] if block.get("level") == 1]
    assert [heading["children"][0]["text"].split(":")[0] for heading in headings] == ["small", "table5"]
