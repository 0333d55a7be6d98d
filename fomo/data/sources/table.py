"""The table source: a CSV with a header and a line per case.

    id     subject   t1             mask            cohort    age    fold
    a_00   a         images/a.nii   masks/a.nii.gz  healthy   61.5   1

`data.id_column`, `subject_column`, `mask_column` and `fold_column` name the columns, `data.channels` those of the
images (NIfTI, a 3D .npy or a DICOM folder; 'a|b': the one that is filled) and `task.targets` what is learned. Of
several labels each that has masks has a column of them, as mask_cyst of the label cyst. Relative paths start from the
table's folder. Other columns, and cells that are not needed, are not looked at.

Classes are numbered in sorted order of their texts over the whole table, as numbers where all are (0, 1, 2, 10); the
texts 0 and 1 are classes 0 and 1 also where only one of them occurs. Only pretraining allows missing targets (MISSING,
in capitals, too).
"""

import os
import sys
from dataclasses import replace

from ...config import UserError
from ..cases import FINDINGS, ID_WANTED, Case, Volume, Wanted, foreground_mm3, looks_at_files, names_a_file
from ..spreadsheet import MISSING, NUMBER, check_columns, number, other_columns, read_rows
from .source import VOLUME_LABELS, Source
from .subjects import warn_of_beginnings

KEYS = ("data.id_column", "data.subject_column", "data.mask_column", "data.fold_column")  # of every table of cases
_SHOWN = 5  # classes that an error names


def list_table(data, wanted, labels, log=None):
    """The cases of `data.csv`; every mistake in it is a UserError that names file, line and column."""
    if not labels:
        data, wanted = replace(data, fold_column=None), Wanted("nothing")
    rows = _read(data, wanted, labels)
    columns = [_targets(data.csv, wanted, rows, name, place) for place, name in enumerate(wanted.targets)]
    if "class" in (wanted.kind, *wanted.kinds) and not wanted.pretraining:
        _check_classes(data.csv, wanted, rows, columns)
    look = looks_at_files(data, len(rows))
    lines, cases = {}, []
    for place, row in enumerate(rows):
        id = _filled(data.csv, row, data.id_column)
        if not names_a_file(id):
            _refuse(data.csv, row, data.id_column, repr(id[:80]), ID_WANTED)
        if lines.setdefault(id, row.line) != row.line:
            _refuse(data.csv, row, data.id_column, f"'{id}' as in line {lines[id]}", "each id once")
        images = tuple(_image(data, row, text, look) for text in data.channels)
        subject = _filled(data.csv, row, data.subject_column) if data.subject_column in row.cells else id
        folded, hint = data.fold_column in row.cells, "; data.fold_column=none: no such column"
        fold = sys.intern(_filled(data.csv, row, data.fold_column, hint)) if folded else None
        target, names = _together(wanted.kind, [column[place] for column in columns])
        mask, masks, size = None, (), None
        if wanted.finding:
            labels = target if wanted.kind == "flags" else (target,)
            places = zip(wanted.mask_columns(data.mask_column), labels)
            found = [_finding(data, row, id, *one, look) for one in places]
            (mask, *_), (size, *_) = zip(*found)
            masks = tuple(one for one, _ in found) if wanted.kind == "flags" else ()
        elif wanted.masked:
            mask, size = _mask(data, row, id, look, classes=wanted.classes)
        target = float(size > 0) if wanted.kind == "mask" else target
        cases.append(Case(id, subject, images, mask, target, None, fold, None, names, size, masks))
    return cases


def _mask(data, row, id, look, column=None, classes=None):
    """(the Volume, mm3 of its foreground); classes: as `foreground_mm3` has them."""
    mask = _volume(data.csv, row, column or data.mask_column, look)
    return mask, foreground_mm3(mask, id, classes)


def _finding(data, row, id, column, label, look):
    """`_mask` of a label, or (None, None) where there is none."""
    if not row.cells.get(column):
        return None, None
    mask, size = _mask(data, row, id, look, column)
    if label != (size > 0):
        got = f"{mask.path}, which {'has a' if size else 'has no'} voxel above 0"
        wanted = "one with such voxels for class 1 (of two classes: the second one), and for no other case"
        _refuse(data.csv, row, column, got, wanted)
    return mask, size


def _read(data, wanted, labels):
    required = {"data.id_column": data.id_column}
    if labels and data.subject_column is not None:
        required["data.subject_column, or none: each line is its own subject"] = data.subject_column
    needed = [text for text in data.channels if text not in data.optional_channels]
    required.update({f"data.channels: {text}": text for text in needed if "|" not in text})
    if wanted.masked and not wanted.finding:
        required["data.mask_column"] = data.mask_column
    required.update({f"task.targets: {name}": name for name in wanted.targets})
    rows = read_rows(data.csv, required, "data.csv")
    for column in wanted.mask_columns(data.mask_column)[FINDINGS:] if wanted.finding else ():
        if any(row.cells.get(column) for row in rows):
            wanted_columns = f"masks of the first {FINDINGS} of task.targets alone: name the labels with masks first"
            raise UserError(f"{data.csv}: column '{column}': got masks, wanted {wanted_columns}")
    for text in needed:
        names = text.split("|")
        if not any(name in rows[0].cells for name in names):
            check_columns(data.csv, list(rows[0].cells), {f"data.channels: {text}": names[0]})
    return rows


def _refuse(path, row, column, got, wanted):
    raise UserError(f"{path}: line {row.line}: column '{column}': got {got}, wanted {wanted}")


def _filled(path, row, column, hint=""):
    text = row.cells[column]
    if not text:
        _refuse(path, row, column, "a blank cell", f"a value{hint}")
    return text


def _image(data, row, text, look):
    """The Volume of channel `text`, of whose alternatives 'a|b' one must be filled, or none if it is optional."""
    path = data.csv
    filled = [name for name in text.split("|") if row.cells.get(name)]
    if len(filled) > 1:
        _refuse(path, row, text, f"paths in {' and '.join(filled)}", "one of them")
    if not filled and text in data.optional_channels:
        return None
    if not filled and "|" in text:
        _refuse(path, row, text, "blank cells", "one path")
    return _volume(path, row, filled[0] if filled else text, look)


def _volume(path, row, column, look):
    text = row.cells[column]
    if not text or not text.isprintable():
        _refuse(path, row, column, repr(text[:80]) if text else "a blank cell", "a path")
    place = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), text))
    if look and not os.path.exists(place):
        _refuse(path, row, column, f"{place}, which does not exist", "a NIfTI file, a .npy array or a DICOM folder")
    return Volume(place)


def _targets(path, wanted, rows, name, place):
    """[(value, text of the class or None), or None where it is missing] of a target's column; place: its number."""
    kind = wanted.of_column(place)
    numeric = kind in ("number", "flags")
    texts = []
    for row in rows:
        text = sys.intern(row.cells[name])
        missing = text.lower() in MISSING
        if missing and not wanted.pretraining:  # which only shows its targets, where there are any
            got = f"'{text}', which is a missing value" if text else "a blank cell"
            _refuse(path, row, name, got, f"a {'number' if numeric else 'class'}, or no such line")
        if numeric and number(text) is None:
            _refuse(path, row, name, f"'{text}'", "a number")
        if kind == "flags" and float(text) not in (0, 1):
            _refuse(path, row, name, f"'{text}'", "0 or 1")
        texts.append(None if missing else text)
    if numeric:
        return [(float(text), None) for text in texts]
    index = class_index({text for text in texts if text is not None}, f"{path}: column '{name}'")
    return [None if text is None else (float(index[text]), text) for text in texts]


def _check_classes(path, wanted, rows, columns):
    """Refuse more classes of one target than task.classes, and classes that would share a column of the results."""
    named = {}
    for place, (target, column) in enumerate(zip(wanted.targets, columns)):
        if wanted.of_column(place) != "class":
            continue
        lines = {}
        for row, (_, text) in zip(rows, column):
            lines.setdefault(text, []).append(row.line)
        if len(columns) == 1 and not wanted.kinds and len(lines) > wanted.classes:
            rarest = sorted(lines.items(), key=lambda item: len(item[1]))[:_SHOWN]
            got = ", ".join(f"'{text[:80]}' ({len(where)}, first in line {where[0]})" for text, where in rarest)
            got = f"{len(lines)} classes, the rarest first: {got}{', ...' if len(lines) > _SHOWN else ''}"
            advice = f"wanted task.classes={wanted.classes}: set it to their number, or correct the lines"
            raise UserError(f"{path}: column '{target}': got {got}; {advice}")
        for text, where in lines.items():
            name, this = f"{target}_{text}".replace(" ", "_"), f"'{text[:80]}' in column '{target}' (line {where[0]})"
            if named.setdefault(name, this) != this:
                both = f"got the classes {named[name]} and {this}"
                raise UserError(f"{path}: {both}, which results would both call {name[:160]}: rename one")


def class_index(texts, where):
    """{text: class} of the texts of a column, which errors call `where`."""
    numeric = all(NUMBER.fullmatch(text) for text in texts)
    order = sorted(texts, key=float if numeric else None)
    for one, other in zip(order, order[1:]):
        if numeric and float(one) == float(other):
            raise UserError(f"{where}: got '{one}' and '{other}', wanted one way to write a class")
    binary = set(order) <= {"0", "1"}
    return {text: int(text) if binary else place for place, text in enumerate(order)}


def _together(kind, values):
    """(target, labels) of a case from what `_targets` has for each of its targets."""
    if not values or None in values:
        return None, ()
    numbers, texts = zip(*values)
    if kind == "several":
        return numbers, tuple(text or "" for text in texts)
    return (numbers[0] if len(numbers) == 1 and kind != "flags" else numbers), () if None in texts else texts


def _warn(data, cases, log):
    if data.subject_column is None:
        warn_of_beginnings(cases, log)


TABLE = Source(
    list=list_table,
    gives=VOLUME_LABELS,
    needs=(("data.csv",), "the table of the cases, for example data.csv=/data/table.csv"),
    geometry=True,
    keys=(*KEYS, "audit.columns"),
    reads_csv=True,
    reads_root=False,
    columns=lambda data: True,
    warn=_warn,
    besides=lambda data, asked, left_out: other_columns(data.csv, data.id_column, asked, left_out),
)
