"""Lists and tables in text files, as scripts and spreadsheets write them."""

import codecs
import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from daft.common.errors import UserError, join_first

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of files that say their encoding."""

SEPARATORS = (",", ";", "\t")


def read_text(file: Path) -> str:
    """The text of a file: in the encoding that its first bytes say, else in UTF-8.

    Bytes that are no UTF-8 become what they are in names of files, so that a list may have any name. Raises
    UserError if there is no such file.
    """
    if not file.is_file():
        raise UserError(f"{file} is no file" if file.exists() else f"{file} does not exist")
    content = file.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} begins as {encoding.upper()}, but is damaged ({error.reason})") from None


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank; raises as `read_text`."""
    lines = enumerate(io.StringIO(read_text(file), newline=None), start=1)
    return [(number, line.rstrip("\n")) for number, line in lines if line.strip()]


class Table(NamedTuple):
    """Some columns of a table."""

    rows: list[list[str]]
    """without the blank ones"""
    lines: list[int]
    """the line of each row in the file, from 1"""
    surplus: list[str]
    """names of other columns"""


def read_table(file: Path, columns: Sequence[str]) -> Table:
    """These columns of a table whose first line names them, in any case and order.

    Fields are separated as in the first line: by commas, semicolons or tabs. Raises UserError for a file that
    is no such table, and for a row without one of the columns.
    """
    source = io.StringIO(read_text(file), newline="")
    before, header = 0, ""
    for line in source:
        if line.strip(" \t\r\n,;") and not line.lower().startswith("sep="):  # Excel's word on the separator
            header = line
            break
        before += 1
    wanted = [column.lower() for column in columns]
    try:
        for separator in SEPARATORS:
            reader = partial(
                csv.reader, delimiter=separator, skipinitialspace=f"{separator} " in header, strict=True
            )
            names = [name.strip() for name in next(reader([header]), [])]
            known = [name.lower() for name in names]
            if set(wanted) <= set(known):
                break
        else:
            if not header:
                raise UserError(f"{file} is empty; the first line must name {','.join(columns)}")
            raise UserError(
                f"{file} has columns {join_first(header.strip().split(','))}; the first line must name "
                f"{','.join(columns)}" + ("; save it as UTF-8" if "\0" in header else "")
            )
        if twice := next((name for name in wanted if known.count(name) > 1), ""):
            raise UserError(f"{file} has two columns {twice}; each must be there once")
        places = [known.index(name) for name in wanted]
        surplus = [name for name in names if name and name.lower() not in wanted]
        found, unnamed = Table([], [], surplus), 0
        rows = reader(source)
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            line = before + 1 + rows.line_num
            if lost := [name for place, name in zip(places, columns, strict=True) if place >= len(row)]:
                raise UserError(f"{file} line {line} has no {lost[0]}")
            unnamed += any(field.strip() for field in row[len(names) :])
            found.rows.append([row[place] for place in places])
            found.lines.append(line)
    except csv.Error as error:
        raise UserError(f"{file} is no CSV of {','.join(columns)} ({error})") from error
    if unnamed:
        surplus.append(f"one without a name in {unnamed:,} rows")
    return found
