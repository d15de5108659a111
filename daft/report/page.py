"""Everything that a folder of runs holds, as one HTML page that needs neither server nor network."""

import base64
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from daft.common.errors import UserError
from daft.common.numbers import fixed
from daft.report import layouts, paper, tables
from daft.report.figures import gallery, style
from daft.report.figures.gallery import Picture
from daft.report.methods import describe
from daft.runs import frames
from daft.sweep import selection

STYLE = """
nav { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.figures { display: grid; gap: 1rem; margin-top: 1rem; }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); align-items: start; }
figure { margin: 0; } figure img { width: 100%; height: auto; max-width: 53rem; background: #fff; }
figure .close { display: none; }
figure:target { position: fixed; inset: 0; z-index: 1; overflow: auto; padding: 1rem; background: #fff; }
figure:target img { width: auto; min-width: min(53rem, 250%); max-width: none; }
figure:target .close { display: block; position: sticky; left: 0; width: max-content; }
figcaption { font-size: 0.85rem; color: #666; }
details { border-bottom: 1px solid #ddd; padding: 0.3rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.problem { border-left: 4px solid #d55e00; padding-left: 0.8rem; }
.facts td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
"""


def render_page(loaded: Sequence[dict[str, Any]], title: str, folder: Path | None = None) -> str:
    """The page: tables of the paper that have runs, then each dataset and backbone, then every run.

    folder: of the runs, for pictures of what `figures.py` has measured and kept beside them.
    """
    runs = frames.from_records(loaded)
    sections, links = [], []
    for table in map(paper.load, paper.names()):
        measured = [c for c in runs.columns if c.endswith(f"/{table.metric}") and runs[c].notna().any()]
        if measured and runs[frames.CELL].apply(tuple, axis=1).isin(table.cells()).any():
            links.append((table.name, table.name))
            sections.append(layouts.html(table, paper.compare(table, runs)))
    for names, group in runs.groupby([frames.DATASET, frames.BACKBONE], sort=True):
        heading = ", ".join(map(str, names))
        anchor = "-".join(map(str, names))
        links.append((anchor, heading))
        of_group = [record for record in loaded if record["run"] in set(group["run"])]
        kept, problems = gallery.usable(of_group)
        body = "".join(f'<p class="problem">{escape(str(problem))}</p>' for problem in problems)
        if kept:
            body += _cells(group[group["run"].isin([record["run"] for record in kept])], kept, folder, anchor)
        if problems:  # perhaps a study of a setting
            body += _over_a_setting(of_group, anchor)
        sections.append(f'<section id="{escape(anchor)}"><h2>{escape(heading)}</h2>{body}</section>\n')
    links.append(("runs", "runs"))
    sections.append(_runs(runs, loaded))
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    menu = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name in links)
    head = f"<h1>{escape(title)}</h1>\n<p>{len(runs)} run(s): {counts}.</p>\n<nav>{menu}</nav>\n"
    return layouts.html_document(title, head + "".join(sections), STYLE)


def _cells(runs: pd.DataFrame, loaded: Sequence[dict[str, Any]], folder: Path | None, anchor: str) -> str:
    """The table and figures of one dataset and backbone, whose section has this anchor."""
    metrics = [*frames.with_balanced(frames.accuracy_columns(runs), runs.columns), "id/l2"]
    long = tables.aggregate(selection.select(runs), runs)
    summary = tables.summary(long, metrics, _title)
    note = "Mean ± sample standard deviation (ddof = 1) over n seeds; * at the edge of the grid."
    pictures = gallery.of_runs(loaded) + gallery.of_grids(loaded, whole=True)
    if folder:
        chosen = gallery.selected(loaded)
        pictures += gallery.of_extremes(chosen, folder) + gallery.of_errors(chosen, folder)
    drawn = _figures(_picture(picture, anchor) for picture in pictures)
    titles = {method: _title(method) for method in long["method"]}
    by_class = "".join(
        f'<p class="notes">{escape(of)}</p>{_html_table(found.rename(columns=titles))}'
        for found, of in tables.classes(long)
    )
    notes = "".join(f'<p class="notes">{escape(text)}</p>' for text in [note, *tables.tie_notes(long)])
    return f"{_html_table(summary)}{notes}\n{by_class}{drawn}"


def _title(method: str) -> str:
    return describe(method).title


def _over_a_setting(loaded: Sequence[dict[str, Any]], anchor: str) -> str:
    """The figures of one dataset and backbone over the setting that its runs differ in."""
    drawn = []
    for picture in gallery.of_settings(loaded):
        with suppress(UserError):  # that is not the setting
            drawn.append(_picture(picture, anchor))
    return _figures(drawn)


def _figures(drawn: Iterable[str]) -> str:
    return f'<div class="figures">{"".join(drawn)}</div>\n'


def _picture(picture: Picture, of: str) -> str:
    """A figure that fits the page, and opens in full where it is tapped; of: what its anchor begins with."""
    kind, content = style.embedded(picture.draw())
    caption = escape(picture.caption)
    image = f'<img src="data:{kind};base64,{base64.b64encode(content).decode()}" alt="{caption}">'
    name = escape(f"{of}-{picture.name}")
    return (
        f'<div id="{name}"><figure id="{name}-full">'
        f'<a class="close" href="#{name}" title="back to the page">close</a>'
        f'<a href="#{name}-full" title="in full">{image}</a>'
        f"<figcaption>{caption}</figcaption></figure></div>\n"
    )


def _runs(runs: pd.DataFrame, loaded: Sequence[dict[str, Any]]) -> str:
    """A table of all runs, and the settings, metrics and epochs of each to unfold."""
    keys = ["run", *frames.CELL, *frames.RATES, frames.SEED, "status", "best_epoch", "id", "ood"]
    heads = ["run", "dataset", "backbone", "method", "η_θ", "η_w", "seed", "status", "epoch", "ID %"]
    judged = {
        split: frames.score(runs, split).map(fixed, na_action="ignore").astype(object)
        for split in ("id", "ood")
    }
    ordered = runs.assign(**judged)[keys].sort_values([*frames.CELL, *frames.RATES, frames.SEED])
    cells = ordered.map(lambda value: escape(_value(value))).set_axis([*heads, "OOD mean %"], axis=1)
    cells["run"] = cells["run"].map('<a href="#{0}">{0}</a>'.format)
    details = {record["run"]: _details(record) for record in loaded}
    unfolded = "".join(details[run] for run in ordered["run"])
    return f'<section id="runs"><h2>Runs</h2>\n{_html_table(cells, escape=False)}{unfolded}</section>\n'


def _details(record: dict[str, Any]) -> str:
    """One run to unfold."""
    config = record["config"]
    names = [str(config["dataset"]["name"]), str(config["backbone"]["name"]), frames.method_of(config)]
    settings = pd.json_normalize(config | {"environment": record["environment"]}, max_level=2).iloc[0]
    facts = pd.DataFrame({"key": settings.index, "value": settings.to_numpy()})
    metrics = pd.DataFrame((record["metrics"] | record["time"]).items(), columns=["metric", "value"])
    return (
        f"<details><summary>{escape(', '.join(names))}, "
        f"seed {config['seed']} (<code>{escape(record['run'])}</code>)</summary>\n"
        f'<h3 id="{escape(record["run"])}">Metrics</h3>'  # a link to what is inside unfolds it
        f"{_html_table(metrics)}<h3>Epochs</h3>{_html_table(pd.DataFrame(record['history']))}"
        f"<h3>Settings</h3>{_html_table(facts, classes='facts')}</details>\n"
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.6g}"
    return "-" if value is None else str(value)


def _html_table(rows: pd.DataFrame, **keywords: Any) -> str:
    with pd.option_context("display.max_colwidth", None):  # or long texts are cut
        return f'<div class="wide">{rows.map(_value).to_html(index=False, border=0, **keywords)}</div>\n'
