"""Compared tables (daft.paper) as Markdown, HTML and LaTeX, laid out as the paper's."""

import html as escaping
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from daft.report.paper import KEYS, Table
from daft.report.tables import EDGES

LEGEND = (
    "Each cell: ours, mean ± sample standard deviation (ddof = 1) over seeds; then the paper's; then the "
    "difference in points (and in our standard deviations, s). Bold: {best} of its column within a network, "
    "as printed. Learning rates are chosen by ID accuracy on the lowest seed; * marks a rate at the edge "
    "of its grid, † a cell that lacks runs of its protocol."
)


class Number(NamedTuple):
    """One cell in words."""

    ours: str
    """mean ± std with marks, `missing` or `diverged`"""
    best: bool
    paper: str
    """empty if it prints none"""
    paper_best: bool
    difference: str
    """in points and stds; empty if there is nothing to compare"""


def lines(table: Table, compared: pd.DataFrame) -> Iterator[tuple[str, str, list[Number]]]:
    """Backbone, method and cells of each row."""
    rows = {tuple(row[key] for key in KEYS): row for row in compared.to_dict("records")}
    for backbone, network in table.backbones.items():
        for method, row in table.methods.items():
            keys = [(backbone, method, d, split) for d, c in table.datasets.items() for split in c.splits]
            yield network.title, row.title, [_number(rows[key], table.digits) for key in keys]


def _number(row: dict[Any, Any], digits: int) -> Number:
    if row["missing"]:
        ours = "diverged" if row["diverged"] else "missing"
    else:
        spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.{digits}f}"
        marks = ("*" if any(row[edge] for edge in EDGES) else "") + ("†" if row["lacking"] else "")
        ours = f"{row['mean']:.{digits}f}{spread}{marks}"
    difference = ""
    if pd.notna(row["difference"]):
        difference = _signed(row["difference"], digits)
        if pd.notna(row["difference_in_std"]):
            difference += f" ({_signed(row['difference_in_std'], 1)} s)"
    paper = "" if pd.isna(row["paper"]) else f"{row['paper']:.{digits}f}"
    return Number(ours, bool(row["best"]), paper, bool(row["paper_best"]), difference)


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def notes(table: Table, compared: pd.DataFrame) -> list[str]:
    """What a reader has to know beside the numbers: how many runs, of how many cells, edges, divergence."""
    cells = compared.drop_duplicates(["backbone", "method", "dataset"])
    found = [LEGEND.format(best=table.best), *table.notes]
    seeds = cells["n"][cells["n"] > 0]
    usual = int(seeds.mode().iloc[-1]) if len(seeds) else 0
    found.append(f"{len(seeds)} of {len(cells)} cells have runs" + (f"; n = {usual}" if usual else "") + ".")
    for label, select, value in (
        ("Other n", (cells["n"] > 0) & (cells["n"] != usual), "n = {n}"),
        ("Runs of the protocol that are not there", cells["lacking"] > 0, "{lacking}"),
        ("η_θ at the edge of its grid", cells["at_edge"].astype(bool), "{lr_backbone:g}"),
        ("η_w at the edge of its grid", cells["head_at_edge"].astype(bool), "{lr_head:g}"),
        ("Diverged runs", cells["diverged"] > 0, "{diverged}"),
    ):
        named = [f"{_name(table, row)} ({value.format_map(row)})" for row in cells[select].to_dict("records")]
        if named:
            found.append(f"{label}: {'; '.join(named)}.")
    return found + [f"Left out: {problem}." for problem in cells["problem"] if problem]


def _name(table: Table, row: dict[Any, Any]) -> str:
    network, dataset = table.backbones[row["backbone"]].title, table.datasets[row["dataset"]].title
    return f"{network} {_method(table, row['method'])} on {dataset}"


def _method(table: Table, name: str) -> str:
    """A method's title with the row that it adds to: `+ BN conversion` says nothing by itself."""
    titles = [entry.title for entry in table.methods.values()]
    position = list(table.methods).index(name)
    return f"{titles[position - 1]} {titles[position]}" if titles[position][0] == "+" else titles[position]


def markdown(table: Table, compared: pd.DataFrame) -> str:
    """One Markdown table, and notes."""

    def escaped(text: str) -> str:
        return re.sub(r"([\\`*|<])", r"\\\1", text)

    def bold(text: str, is_best: bool) -> str:
        return f"**{escaped(text)}**" if is_best else escaped(text)

    columns = [(c.title, split.title) for c in table.datasets.values() for split in c.splits.values()]
    heads = [dataset if split == dataset else f"{dataset} {split}" for dataset, split in columns]
    parts = [
        f"### {escaped(table.title)}\n",
        f"| model | method | {' | '.join(map(escaped, heads))} |",
        "| --- | --- |" + " --- |" * len(heads),
    ]
    before = None
    for network, method, numbers in lines(table, compared):
        cells = [
            " · ".join(filter(None, [bold(n.ours, n.best), bold(n.paper, n.paper_best), n.difference]))
            for n in numbers
        ]
        shown, before = ("" if network == before else escaped(network)), network
        parts.append(f"| {shown} | {escaped(method)} | {' | '.join(cells)} |")
    return "\n".join([*parts, "", *(f"- {escaped(note)}" for note in notes(table, compared))]) + "\n"


def html(table: Table, compared: pd.DataFrame) -> str:
    """A section of an HTML page; `page` makes a page of it."""
    escape = escaping.escape
    groups = "".join(
        f'<th colspan="{len(c.splits)}" class="first">{escape(c.title)}</th>' for c in table.datasets.values()
    )
    splits = "".join(
        f"<th{_first(i)}>{escape(split.title)}</th>"
        for columns in table.datasets.values()
        for i, split in enumerate(columns.splits.values())
    )
    starts = [i == 0 for columns in table.datasets.values() for i in range(len(columns.splits))]
    body, before = [], None
    for network, method, numbers in lines(table, compared):
        cells = "".join(_html_cell(n, first) for n, first in zip(numbers, starts, strict=True))
        span = len(table.methods)
        head = "" if network == before else f'<th rowspan="{span}" class="model">{escape(network)}</th>'
        body.append(
            f"<tr{' class=block' if head else ''}>{head}<th class='method'>{escape(method)}</th>{cells}</tr>"
        )
        before = network
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(table, compared))
    return (
        f'<section id="{escape(table.name)}"><h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n'
        f'<thead><tr><th rowspan="2">Model</th><th rowspan="2">Method</th>{groups}</tr>\n'
        f"<tr>{splits}</tr></thead>\n"
        f"<tbody>{chr(10).join(body)}</tbody>\n</table></div>\n<ul class='notes'>{remarks}</ul></section>\n"
    )


def _first(position: int) -> str:
    return ' class="first"' if position == 0 else ""


def _html_cell(number: Number, first: bool) -> str:
    ours = f"<b>{number.ours}</b>" if number.best else number.ours
    if number.ours in ("missing", "diverged"):
        ours = f'<span class="absent">{ours}</span>'
    paper = f"<b>{number.paper}</b>" if number.paper_best else number.paper
    small = " · ".join(filter(None, [paper, number.difference]))
    return f"<td{_first(not first)}>{ours}{f'<small>{small}</small>' if small else ''}</td>"


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1500px; margin: auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
thead tr:first-child th { border-top: 2px solid #1b1b1b; }
tbody { border-top: 1px solid #1b1b1b; border-bottom: 2px solid #1b1b1b; }
tr.block { border-top: 1px solid #999; }
th { font-weight: 600; text-align: left; vertical-align: top; white-space: nowrap; }
th.method { font-weight: 400; }
th, td { padding: 0.25rem 0.6rem; }
th.first, td.first { border-left: 1px solid #ddd; }
td { white-space: nowrap; }
td small { display: block; color: #666; }
.absent, .notes { color: #777; }
.notes { font-size: 0.85rem; padding-left: 1.2rem; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page that asks for nothing else."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n{body}</body></html>\n"
    )


LATEX = {
    "η_θ": r"$\eta_\theta$",
    "η_w": r"$\eta_w$",
    "√": "$\\surd$",
    "Σ": r"$\Sigma$",
    "σ": r"$\sigma$",
    "²": "$^2$",
    "·": "--",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "−": "$-$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(table: Table, compared: pd.DataFrame) -> str:
    """A table* for a document that loads booktabs and graphicx; ours over the paper's and the difference."""

    def escaped(text: str) -> str:
        return re.sub("|".join(map(re.escape, LATEX)), lambda match: LATEX[match[0]], text)

    def bold(text: str, is_best: bool) -> str:
        return rf"\textbf{{{escaped(text)}}}" if is_best else escaped(text)

    def cell(number: Number) -> str:
        second = [bold(number.paper, number.paper_best), escaped(number.difference)]
        ours, below = bold(number.ours, number.best), " ".join(filter(None, second))
        return rf"\shortstack{{{ours}\\{{\tiny {below}}}}}" if below else ours

    groups, rules, column = [], [], 3
    for columns in table.datasets.values():
        last = column + len(columns.splits) - 1
        groups.append(rf"\multicolumn{{{len(columns.splits)}}}{{c}}{{{escaped(columns.title)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{last}}}")
        column = last + 1
    splits = [escaped(split.title) for c in table.datasets.values() for split in c.splits.values()]
    parts = [
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escaped(' '.join([f'{table.title}.', *notes(table, compared)]))}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",  # a wide one is made to fit
        rf"\begin{{tabular}}{{ll{'c' * len(splits)}}}",
        r"\toprule",
        rf"Model & Method & {' & '.join(groups)} \\",
        " ".join(rules),
        rf" & & {' & '.join(splits)} \\",
    ]
    before = None
    for network, method, numbers in lines(table, compared):
        if network != before:
            parts.append(r"\midrule")
        shown, before = ("" if network == before else escaped(network)), network
        parts.append(rf"{shown} & {escaped(method)} & {' & '.join(map(cell, numbers))} \\[2pt]")
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]) + "\n"


RENDERERS = {"md": markdown, "html": lambda t, c: page(t.title, html(t, c)), "tex": latex}
"""By suffix of the file."""
