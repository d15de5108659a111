"""Claims about the report: one file that holds every run and asks for nothing else."""

import base64
import copy
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from daft.report import page
from daft.runs import identity, records

BASE = {
    "format": records.FORMAT,
    "protocol": identity.PROTOCOL,
    "best_epoch": 1,
    "distortion": {},
    "environment": {"code": "abc", "device": "cpu"},
    "time": {"train_s": 1.5},
}


def run(
    name: str, method: str, rate: float | None, seed: int = 0, accuracy: float | None = 90.0
) -> dict[str, Any]:
    """A record; without an accuracy a diverged one."""
    metrics = {} if accuracy is None else {"id/accuracy": accuracy, "id/l2": 1.0, "id/cosine": 0.5}
    if accuracy is not None:
        metrics |= {f"{split}/accuracy": accuracy - 10 for split in ("cifar10_1", "stl10", "ood")}
    return copy.deepcopy(BASE) | {
        "run": name,
        "status": "diverged" if accuracy is None else "finished",
        "metrics": metrics,
        "history": [{"epoch": 1, "train/loss": 0.5}],
        "config": {
            "dataset": {"name": "cifar10"},
            "backbone": {"name": "swav"},
            "method": {"name": method, "lr_backbone": rate, "lr_head": None},
            "training": {"selection": "paper"},
            "seed": seed,
        },
    }


LOADED = [
    run("a0", "lp", None, accuracy=80.0),
    run("b0", "ft", 0.1, accuracy=91.0),
    run("b1", "ft", 0.1, seed=1, accuracy=93.0),
    run("b2", "ft", 0.01),
    run("c0", "lp_ft", 0.1, accuracy=None),
]


class Page(HTMLParser):
    """Tags that are open in the end, and every attribute."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return page.render_page(LOADED, "Runs of <here>")


def test_the_page_is_whole_and_asks_for_nothing(text: str):
    page = Page(text)
    assert page.open == []
    assert {"link", "script", "iframe"}.isdisjoint(re.findall(r"<(\w+)", text))
    references = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value and value.startswith(("#", "data:")) for value in references)
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for value in references if value and value[0] == "#"} <= anchors
    assert "Runs of &lt;here&gt;" in text


def test_tables_with_runs_are_shown_and_others_are_not(text: str):
    assert "Effect of BN conversion on each fine-tuning method" in text
    assert "92.00 ± 1.41*" in text  # of 91 and 93; √2
    assert "97.55 · −5.55 (−3.9 s)" in text
    assert "on small images" not in text


def test_every_run_is_listed_and_unfolds_with_its_settings(text: str):
    for record in LOADED:
        assert f'href="#{record["run"]}"' in text
    assert text.count("<details>") == len(LOADED)
    assert re.search(r"<td>environment.device</td>\s*<td>cpu</td>", text)
    assert "5 run(s): 4 finished, 1 diverged." in text


def test_the_figures_are_drawings_of_the_cells(text: str):
    sources = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', text)
    titles = ["Accuracy and feature distortion", "OOD over ID accuracy", "Learning rates, FT"]
    assert [alt for _, alt in sources] == titles  # the others need what these records do not have
    for source, _ in sources:
        assert ElementTree.fromstring(base64.b64decode(source)).tag.endswith("svg")


def test_the_same_runs_give_the_same_page(text: str):
    assert page.render_page(LOADED, "Runs of <here>") == text


def test_runs_that_do_not_belong_together_are_named_and_the_rest_is_shown():
    other = run("d0", "ft", 0.1, seed=2)
    other["config"]["training"]["epochs"] = 7
    text = page.render_page([*LOADED, other], "t")
    assert "runs of cifar10 swav ft differ in training.epochs" in text
    assert text.count("<details>") == 6


def test_a_study_of_a_setting_is_drawn_over_it_and_a_whole_grid_of_rates_as_a_map():
    study = []
    for i, images in enumerate((100, 200, 400)):
        record = run(f"s{i}", "ft", 0.1)
        record["config"]["dataset"]["train"] = {"images": images}
        study.append(record | {"data": {"images": {"train": images}}})
    text = page.render_page(study, "t")
    assert "runs of cifar10 swav ft differ in dataset.train.images" in text
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == [
        "Accuracy over the size of the training set"
    ]

    grid = [run(f"g{i}", "daft", rate) for i, rate in enumerate((0.1, 0.1, 0.01, 0.01))]
    for record, head in zip(grid, (1.0, 0.3, 1.0, 0.3), strict=True):
        record["config"]["method"]["lr_head"] = head
    assert "Grid of learning rates, DAFT" in page.render_page(grid, "t")
    assert "Grid of learning rates, DAFT" not in page.render_page(grid[:3], "t")


def test_runs_that_all_diverged_have_a_page_too():
    text = page.render_page([run("c0", "lp_ft", 0.1, accuracy=None)], "t")
    assert "diverged" in text
    assert "<img" not in text


def test_a_figure_opens_in_full_by_a_link_of_its_own_and_closes_again(text: str):
    for name in ("overview", "id_ood"):
        opened, closed = f"cifar10-swav-{name}-full", f"cifar10-swav-{name}"
        assert f'<figure id="{opened}">' in text
        assert f'<div id="{closed}">' in text
        assert re.search(f'<a href="#{opened}" title="in full"><img ', text)
        assert f'<a class="close" href="#{closed}"' in text


def test_accuracies_of_runs_are_rounded_as_everywhere():
    text = page.render_page([run("e0", "ft", 0.1, accuracy=38.725)], "t")
    assert len(re.findall(r"<td>38\.72</td>", text)) == 2  # in the table of cells, and in that of runs
    assert "38.73" not in re.sub(r'src="[^"]*"', "", text)


def test_rates_that_are_no_better_than_others_are_said_to_be_so():
    text = page.render_page([*LOADED, run("b3", "ft", 0.03, accuracy=91.0)], "t")
    told = "cifar10, swav, ft: η_θ=0.1 is chosen; no better by ID accuracy than η_θ=0.03"
    assert f'<p class="notes">{told}, of equal ones the larger counts.</p>' in text
    assert "no better" not in page.render_page(LOADED, "t")
