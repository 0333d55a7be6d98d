"""CSVs and TSVs that users write: rows of text, each with its line. Mistakes are UserErrors that name the place."""

import contextlib
import csv
import difflib
import itertools
import math
import re
from typing import NamedTuple

from ..config import UserError
from ..runtime.files import NUMBER, plain_text

_SAVE = "save it as 'CSV UTF-8'"
MISSING = ("", "nan", "na", "n/a", "#n/a", "null", "none", "-", "?")  # in small letters: a cell that says nothing
_SITES = ("site", "center", "centre", "hospital", "institution", "scanner", "manufacturer", "vendor", "group")


@contextlib.contextmanager
def opened(path, said):
    """A text file of the user's, to read; UserError, beginning with `said`, where it is not there or no UTF-8."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        kind = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1 or another 8-bit code"
        raise UserError(f"{said}: it is no UTF-8 ({error.reason} at byte {error.start}; {kind}?): {_SAVE}") from error
    except OSError as error:
        raise UserError(f"{said}: {error}") from error


def lost_zeros(lacking, there):
    """To end an error with: which of the texts `lacking` are in `there` but for zeros in front, or a .0; else ""."""
    known = {without_zeros(text): text for text in there}
    found = [(text, known[without_zeros(text)]) for text in lacking if without_zeros(text) in known]
    if not found:
        return ""
    text, other = found[0]
    advice = "a spreadsheet has changed numbers in one of the files: format its column as text"
    return f"; there is {other!r} for {text!r}: {advice}"


def without_zeros(text):
    """A text without the zeros in front of its numbers, and without those that make 1 a 1.0."""
    return re.sub(r"(?<![\d.])0+(?=\d)|\.0+$", "", text, flags=re.ASCII)


class Row(NamedTuple):
    line: int
    cells: dict  # {column: text without blanks around it}


def read_rows(path, required, key):
    """The Rows of a CSV with a header, or of a TSV, see `each_row`; UserError where there are none."""
    rows = list(each_row(path, required, key))
    if not rows:
        raise UserError(f"{path}: got no lines below the header, wanted at least one")
    return rows


def other_columns(path, id_column, asked, left_out=()):
    """{column: {case id: text or None where it is missing}} of what the table of the cases says besides.

    asked: columns; empty: those that are there of _SITES, whatever their capitals, but for `left_out`.
    """
    required = {"data.id_column": id_column} | {f"audit.columns: {name}": name for name in asked}
    rows = read_rows(path, required, "data.csv")
    names = asked or [name for name in rows[0].cells if name.lower() in _SITES and name not in left_out]

    def text(cell):
        return None if cell.lower() in MISSING else cell

    return {name: {row.cells[id_column]: text(row.cells[name]) for row in rows} for name in names}


def each_row(path, required, key):
    """Yield the Rows of a CSV with a header; of a file that ends in .tsv, whose cells are separated by tabs.

    required: {key: column} of the columns that must be there, each with the config key that names it.
    key: the config key of `path`.

    UserError for an unreadable file, a column that is missing or named twice, and a line with more or fewer cells than
    the header. Columns without a name at the end, which spreadsheets append, are left out; if they are several, their
    cells must be blank.
    """
    separator = "\t" if str(path).lower().endswith(".tsv") else ","
    with opened(path, f"{key}: cannot read {path}") as file:
        first = next(file, "")
        _check_separator(path, first, separator)
        reader = csv.reader(itertools.chain([first], file), strict=True, delimiter=separator)
        try:
            header = [plain_text(name.strip()) for name in next(reader, ())]
            columns = header[: max((place for place, name in enumerate(header, start=1) if name), default=0)]
            check_columns(path, columns, required)
            for cells in reader:
                cells = [plain_text(cell.strip()) for cell in cells]
                if any(cells):
                    _check_cells(f"{path}: line {reader.line_num}", cells, header, cells[len(columns) :])
                    yield Row(reader.line_num, dict(zip(columns, cells)))
        except csv.Error as error:
            raise UserError(f"{key}: cannot read {path}: line {reader.line_num}: {error}") from error


def _check_separator(path, header, separator):
    """Refuse a header that is separated otherwise. With quotes the reader would only call it a broken CSV."""
    if "\0" in header:
        raise UserError(f"{path}: line 1: got zeros between the letters, which is UTF-16: {_SAVE}")
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in header and separator not in header:
            wanted = "wanted commas: save it as comma-separated CSV, or let its name end in .tsv if these are tabs"
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
