"""Claims about tables with rows of methods with parts."""

import pandas as pd
import pytest
from pydantic import TypeAdapter

from daft.config.compose import composed, configuration
from daft.report import layouts, paper
from daft.runs import frames

TABLE = {
    "name": "strategies",
    "title": "Strategies",
    "backbones": {"shapes_resnet10": "ResNet-10"},
    "methods": {
        "ft": "FT",
        "daft": "DAFT",
        "ft+l2_sp": "FT, L2-SP",
        "daft+l2_sp": "DAFT, L2-SP",
        "ft+coral+dann": "Both",
    },
    "datasets": {"shapes_unlabelled": {"title": "Shapes", "splits": {"id": "ID", "clipart": "clip art"}}},
}


@pytest.fixture
def table() -> paper.PaperTable:
    return TypeAdapter(paper.PaperTable).validate_python(TABLE)


def test_its_sweeps_have_a_line_for_each_set_of_parts_whose_cells_have_the_names_of_the_rows(table):
    sweeps = [" ".join(sweep).partition("backbone=shapes_resnet10 ")[2] for sweep in table.sweeps()]
    assert sweeps == ["method=ft,daft", "method=ft,daft part=[l2_sp]", "method=ft part=[coral,dann]"]
    names = []
    for sweep in table.sweeps():
        (methods,) = (word for word in sweep if word.startswith("method="))
        for method in methods.removeprefix("method=").split(","):
            rest = [word for word in sweep if word != methods and not word.startswith("sweep=")]
            names.append(configuration(f"method={method}", *rest).method.short_name)
    assert names == list(TABLE["methods"])


def test_a_row_has_the_protocol_of_its_method_and_the_runs_of_its_name(table):
    key = paper.CellKey("shapes_unlabelled", "shapes_resnet10", "ft+coral+dann")
    assert key in table.cells()
    assert paper._protocol("paper", key) == paper._protocol("paper", key._replace(method="ft"))
    assert "part" not in composed("sweep=paper", "method=ft")
    runs = pd.DataFrame([key, key._replace(method="ft+coral")], columns=[*frames.CELL])
    assert [*table.members(runs)] == [True, False]


def test_a_row_has_settings_of_its_own_which_its_sweep_asks_for_and_its_runs_have():
    own = {"settings": {"daft+l2_sp": ["method.parts.l2_sp=0.5", "compute.threads=1"]}}
    table = TypeAdapter(paper.PaperTable).validate_python(TABLE | own)
    sweeps = [" ".join(sweep).partition("backbone=shapes_resnet10 ")[2] for sweep in table.sweeps()]
    assert "method=ft part=[l2_sp]" in sweeps
    assert "method=daft part=[l2_sp] method.parts.l2_sp=0.5 compute.threads=1" in sweeps
    key = paper.CellKey("shapes_unlabelled", "shapes_resnet10", "daft+l2_sp")
    rows = [(*key, 0.5), (*key, 0.1), (*key._replace(method="ft+l2_sp"), 0.1)]
    runs = pd.DataFrame(rows, columns=[*frames.CELL, "config.method.parts.l2_sp"])
    assert [*table.members(runs)] == [True, False, True]


def test_rows_that_saw_target_images_are_marked(table):
    text = layouts.markdown(table, paper.compare(table, pd.DataFrame()))
    assert "| Both (target images) |" in text
    assert "| FT, L2-SP |" in text


def test_bn_at_test_time_is_missing_only_where_it_was_asked_for():
    splits = {"id": "ID", "ood (target BN)": "target BN"}
    asked = TABLE | {
        "methods": {"ft": "FT", "ft+test_time": "Both ways"},
        "datasets": {"shapes_unlabelled": {"title": "Shapes", "splits": splits}},
    }
    table = TypeAdapter(paper.PaperTable).validate_python(asked)
    text = layouts.markdown(table, paper.compare(table, pd.DataFrame()))
    assert "| FT | missing | - |" in text
    assert "| Both ways | missing | missing |" in text
