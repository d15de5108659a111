"""Compared tables (daft.report.paper) as Markdown, HTML and LaTeX, laid out as the paper's."""

import re
from collections.abc import Callable
from html import escape
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from daft.common.numbers import fixed
from daft.config.parts import target_mark
from daft.report.paper import KEYS, PaperTable
from daft.report.tables import EDGES, format_head_rate, in_markdown, pipe_table
from daft.runs.frames import is_target_bn

LEGEND = (
    "Each cell: ours, mean ± sample standard deviation (ddof = 1) over seeds{paper}. Bold: {best} of its "
    "column within a network, as printed. Learning rates are chosen by ID accuracy on the lowest seed; * "
    "marks a rate at the edge of its grid, † a cell that lacks runs of its protocol."
)

AND_THE_PAPERS = "; then the paper's; then the difference in points (and in our standard deviations, s)"

DIVERGED = "Diverged runs, of which no epoch counts (in the published code the best one before does)"


def _grid(
    table: PaperTable,
    compared: pd.DataFrame,
    escape: Callable[[str], str],
    bold: str,
    joined: Callable[[str, str, str], str],
) -> pd.DataFrame:
    """The cells in words, laid out as the paper's: rows by network and method, columns by dataset and split.

    joined: makes a cell of ours (mean ± std with marks, `missing` or `diverged`), the paper's number and the
    difference, which are empty where there are none.
    """

    def cell(row: "pd.Series[Any]") -> str:
        ours, paper, difference = map(escape, _in_words(row, table.digits))
        ours = bold.format(ours) if row["best"] else ours
        return joined(ours, bold.format(paper) if row["paper_best"] else paper, difference)

    texts = compared.apply(cell, axis=1).set_axis(pd.MultiIndex.from_frame(compared[KEYS]))
    rows = pd.MultiIndex.from_product([table.backbones, table.methods])
    columns = [(d, split) for d, of_dataset in table.datasets.items() for split in of_dataset.splits]
    grid = texts.unstack(["dataset", "split"]).reindex(index=rows, columns=columns)
    titles = [(table.backbones[b].title, table.methods[name].title + target_mark(name)) for b, name in rows]
    heads = [(table.datasets[d].title, table.datasets[d].splits[split].title) for d, split in columns]
    grid.index, grid.columns = (
        pd.MultiIndex.from_tuples([tuple(map(escape, pair)) for pair in found]) for found in (titles, heads)
    )
    return grid.rename_axis(index=["Model", "Method"])


def _in_words(row: "pd.Series[Any]", digits: int) -> tuple[str, str, str]:
    """Ours, the paper's and the difference, in points and in standard deviations."""
    if row["missing"]:
        ours = (
            "diverged"
            if row["diverged"]
            else "-"
            if not is_evaluated(row["method"], row["split"])
            else "missing"
        )
    else:
        spread = "" if pd.isna(row["std"]) else f" ± {fixed(row['std'], digits)}"
        marks = ("*" if any(row[edge] for edge in EDGES) else "") + ("†" if row["lacking"] else "")
        ours = f"{fixed(row['mean'], digits)}{spread}{marks}"
    difference = ""
    if pd.notna(row["difference"]):
        difference = _signed(row["difference"], digits)
        if pd.notna(row["difference_in_std"]):
            difference += f" ({_signed(row['difference_in_std'], 1)} s)"
    return ours, "" if pd.isna(row["paper"]) else fixed(row["paper"], digits), difference


def is_evaluated(method: str, split: str) -> bool:
    """Whether runs of a method are evaluated on a split: only some with the BN statistics of its batches."""
    return not is_target_bn(split) or "test_time" in method.split("+")


def _signed(value: float, digits: int) -> str:
    text = fixed(value, digits)
    if float(text) == 0:
        return fixed(0, digits)
    return f"+{text}" if value > 0 else text.replace("-", "−")


def notes(table: PaperTable, compared: pd.DataFrame) -> list[str]:
    """What a reader has to know beside the numbers: how many runs, of how many cells, edges, divergence."""
    cells = compared.drop_duplicates(["backbone", "method", "dataset"])
    paper = AND_THE_PAPERS if compared["paper"].notna().any() else ""
    found = [LEGEND.format(best=table.best, paper=paper), *table.notes]
    if "lr_head" in cells:
        units = cells.get("lr_head_unit", pd.Series("", cells.index))
        cells = cells.assign(head_rate=[*map(format_head_rate, cells["lr_head"], units)])
    seeds = cells["n"][cells["n"] > 0]
    usual = int(seeds.mode().iloc[-1]) if len(seeds) else 0
    found.append(f"{len(seeds)} of {len(cells)} cells have runs" + (f"; n = {usual}" if usual else "") + ".")
    for label, select, value in (
        ("Other n", (cells["n"] > 0) & (cells["n"] != usual), "n = {n}"),
        ("Runs of the protocol that are not there", cells["lacking"] > 0, "{lacking}"),
        ("η_θ at the edge of its grid", cells["at_edge"].astype(bool), "{lr_backbone:g}"),
        ("η_w at the edge of its grid", cells["head_at_edge"].astype(bool), "{head_rate}"),
        (DIVERGED, cells["diverged"] > 0, "{diverged}"),
    ):
        named = [f"{_name(table, row)} ({value.format_map(row)})" for row in cells[select].to_dict("records")]
        if named:
            found.append(f"{label}: {'; '.join(named)}.")
    return found + [f"Left out: {problem}." for problem in cells["problem"] if problem]


def _name(table: PaperTable, row: dict[Any, Any]) -> str:
    network, dataset = table.backbones[row["backbone"]].title, table.datasets[row["dataset"]].title
    return f"{network} {_method(table, row['method'])} on {dataset}"


def _method(table: PaperTable, name: str) -> str:
    """A method's title with the row that it adds to: `+ BN conversion` says nothing by itself."""
    titles = [entry.title for entry in table.methods.values()]
    position = list(table.methods).index(name)
    return f"{titles[position - 1]} {titles[position]}" if titles[position][0] == "+" else titles[position]


def markdown(table: PaperTable, compared: pd.DataFrame) -> str:
    """One Markdown table, and notes."""
    rows = _grid(table, compared, in_markdown, "**{}**", lambda *texts: " · ".join(filter(None, texts)))
    rows.columns = [dataset if split == dataset else f"{dataset} {split}" for dataset, split in rows.columns]
    rows = rows.reset_index(names=["model", "method"])
    rows["model"] = rows["model"].mask(rows["model"].duplicated(), "")
    remarks = "\n".join(f"- {in_markdown(note)}" for note in notes(table, compared))
    return f"### {in_markdown(table.title)}\n\n{pipe_table(rows, texts=rows.shape[1])}\n\n{remarks}\n"


def html(table: PaperTable, compared: pd.DataFrame) -> str:
    """A section of an HTML page; `html_document` makes a page of it."""

    def joined(ours: str, *others: str) -> str:
        small = " · ".join(filter(None, others))
        ours = f'<span class="absent">{ours}</span>' if ours in ("missing", "diverged") else ours
        return f"{ours}<small>{small}</small>" if small else ours

    splits = [len(columns.splits) for columns in table.datasets.values()]
    firsts = ", ".join(f".col{sum(splits[:i])}" for i in range(len(splits)))
    styler = Styler(_grid(table, compared, escape, "<b>{}</b>", joined), uuid=table.name, cell_ids=False)
    styler.set_table_styles([{"selector": firsts, "props": "border-left: 1px solid #ddd"}])
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes(table, compared))
    return (
        f'<section id="{escape(table.name)}"><h2>{escape(table.title)}</h2>\n'
        f'<div class="wide">{styler.to_html()}</div>\n<ul class="notes">{remarks}</ul></section>\n'
    )


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1500px; margin: auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; background: linear-gradient(90deg, #fff 30%, #fff0) local,
  linear-gradient(270deg, #fff 30%, #fff0) right local, linear-gradient(90deg, #0004, #0000) scroll,
  linear-gradient(270deg, #0004, #0000) right scroll, #fff; background-repeat: no-repeat;
  background-size: 40px 100%, 40px 100%, 12px 100%, 12px 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
thead tr:first-child th { border-top: 2px solid #1b1b1b; }
tbody { border-top: 1px solid #1b1b1b; border-bottom: 2px solid #1b1b1b; }
tbody tr:not(:first-child) .row_heading.level0, .row_heading.level0 ~ * { border-top: 1px solid #999; }
th { font-weight: 600; text-align: left; vertical-align: top; white-space: nowrap; }
.row_heading.level1 { font-weight: 400; }
th, td { padding: 0.25rem 0.6rem; }
td { white-space: nowrap; }
td small { display: block; color: #666; }
.absent, .notes { color: #777; }
.notes { font-size: 0.85rem; padding-left: 1.2rem; }
"""


def html_document(title: str, body: str, style: str = "") -> str:
    """A whole HTML page that asks for nothing else."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n{body}</body></html>\n"
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


def latex(table: PaperTable, compared: pd.DataFrame) -> str:
    """A table* for a document that loads booktabs and graphicx; ours over the paper's and the difference."""

    def escaped(text: str) -> str:
        return re.sub("|".join(map(re.escape, LATEX)), lambda match: LATEX[match[0]], text)

    def joined(ours: str, *others: str) -> str:
        below = " ".join(filter(None, others))
        return rf"\shortstack{{{ours}\\{{\tiny {below}}}}}" if below else ours

    grid = _grid(table, compared, escaped, r"\textbf{{{}}}", joined)
    width = grid.shape[1]
    body = grid.style.to_latex(
        column_format="ll" + "c" * width,
        hrules=True,
        clines="skip-last;data",
        multicol_align="c",
        multirow_align="naive",
    )
    line, rules, column = rf"\cline{{1-{width + 2}}}", "", 3
    for columns in table.datasets.values():
        rules += rf"\cmidrule(lr){{{column}-{column + len(columns.splits) - 1}}} "
        column += len(columns.splits)
    body = body.replace(f"{line}\n\\bottomrule", r"\bottomrule").replace(line, r"\midrule")
    head, *rows = body.strip().split("\\\\\n")
    parts = [
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escaped(' '.join([f'{table.title}.', *notes(table, compared)]))}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",  # a wide one is made to fit
        rf"{head}\\ {rules}",
        "\\\\[2pt]\n".join(rows) + "}",
        r"\end{table*}",
    ]
    return "\n".join(parts) + "\n"


RENDERERS = {"md": markdown, "html": lambda t, c: html_document(t.title, html(t, c)), "tex": latex}
"""By suffix of the file."""
