"""CSVs that users write: rows of text, each with its line. Every mistake is a UserError with file, line and column."""

import csv
import difflib
import itertools
import math
from typing import NamedTuple

from ..config import UserError, as_user_error
from ..runtime.files import NUMBER, plain_text


class Row(NamedTuple):
    line: int
    cells: dict  # {column: text without blanks around it}


def read_rows(path, required, key):
    """The Rows of a CSV with a header.

    required: {key: column} of the columns that must be there, each with the config key that names it.
    key: the config key of `path`.

    UserError for an unreadable file, a column that is missing or named twice, and a line with more or fewer cells than
    the header. Columns without a name at the end, which spreadsheets append, are left out; if they are several, their
    cells must be blank.
    """
    rows = []
    with as_user_error(f"{key}: cannot read {path}"), open(path, newline="", encoding="utf-8-sig") as file:
        first = next(file, "")
        _check_separator(path, first)
        reader = csv.reader(itertools.chain([first], file), strict=True)
        try:
            header = [plain_text(name.strip()) for name in next(reader, ())]
            columns = header[: max((place for place, name in enumerate(header, start=1) if name), default=0)]
            check_columns(path, columns, required)
            for cells in reader:
                cells = [plain_text(cell.strip()) for cell in cells]
                if any(cells):
                    _check_cells(f"{path}: line {reader.line_num}", cells, header, cells[len(columns) :])
                    rows.append(Row(reader.line_num, dict(zip(columns, cells))))
        except csv.Error as error:
            raise UserError(f"{key}: cannot read {path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise UserError(f"{path}: got no lines below the header, wanted at least one")
    return rows


def _check_separator(path, header):
    """Refuse a header that is separated otherwise. With quotes the reader would only call it a broken CSV."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in header and "," not in header:
            wanted = "wanted commas: save it as comma-separated CSV"
            raise UserError(f"{path}: line 1: got columns that are separated by {name}, {wanted}")


def _check_cells(where, cells, header, nameless):
    if len(cells) != len(header):
        raise UserError(f"{where}: got {len(cells)} cells, wanted {len(header)} as in the header")
    if header.count("") > 1 and any(nameless):
        got = f"'{''.join(nameless)[:80]}' below a column without a name"
        raise UserError(f"{where}: got {got}, wanted a name in line 1")


def check_columns(path, columns, required):
    """Raise UserError unless `columns` are different ones and have all that are `required`, see read_rows."""
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{path}: line 1: got the column '{twice[0][:80]}' twice, wanted each name once")
    for key, name in required.items():
        if name not in columns:
            near = difflib.get_close_matches(name.lower(), [column.lower() for column in columns], n=1, cutoff=0.5)
            close = [column for column in columns if column.lower() in near]
            hint = f"; did you mean '{close[0]}'?" if close else ""
            got = ", ".join(columns)[:500] or "an empty file"
            raise UserError(f"{path}: line 1: no column '{name}' ({key}), got {got}{hint}")


def number(text):
    """The finite number that a text of plain digits is, or None; Python reads more, as 1_0, inf and other scripts."""
    return float(text) if NUMBER.fullmatch(text) and math.isfinite(float(text)) else None
