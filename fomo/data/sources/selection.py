"""data.where: which scans of a tree are taken, by the tables that lie beside it, as those of FOMO-60K and FOMO300K do.

    modality=t1w|t2w, age!=n/a

A condition is COLUMN=VALUE|VALUE or COLUMN!=VALUE|VALUE; all must hold. Capitals do not matter in values. Columns are
those of `mri_info.tsv` (a line per scan: dataset, participant_id, session_id, filename ...) and of `participants.tsv`
(a line per subject or session), or `.csv`, in the root. `modality` is what the scan's file is called by, where no table
has that column: t1w of sub-01_ses-01_run-2_T1w.nii.gz and of t1w.nii.gz.

A line of mri_info belongs to the scan DATASET/FILENAME, FILENAME or DATASET/PARTICIPANT/SESSION/FILENAME, whatever its
suffix, and one of participants to all scans of the subject (and session) in DATASET. A scan without a line in a table
that a condition asks is left out, and counted.
"""

import os
import re
from typing import NamedTuple

from ...config import UserError
from .. import spreadsheet

TABLES = ("mri_info", "participants")
GRAMMAR = "COLUMN=VALUE|VALUE or COLUMN!=VALUE, several separated by commas, for example modality=t1w|t2w"
_CONDITION = re.compile(r"\s*([^=!|,]+?)\s*(!?=)\s*([^=!,]+?)\s*")
_RUN = re.compile(r"_(run|echo|acq)?-?\d+\Z", re.IGNORECASE)  # what tells scans of one sequence apart
_SUFFIX = re.compile(r"\.(nii|nii\.gz|mha|npy|pt)\Z", re.IGNORECASE)


class Condition(NamedTuple):
    column: str
    equal: bool
    values: frozenset

    def holds(self, text):
        return (text.casefold() in self.values) == self.equal


def parse(text):
    """The Conditions of a data.where; ValueError unless it is as GRAMMAR says."""
    found = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        values = match and [value.strip().casefold() for value in match[3].split("|")]
        if not values or not all(values):
            raise ValueError(f"got {text!r}, wanted {GRAMMAR}")
        found.append(Condition(match[1], match[2] == "=", frozenset(values)))
    return found


def chosen(where, root, names, log=None):
    """[whether a scan is taken] for the paths `names` below the root. log: for a warning of scans without a line."""
    conditions, taken = parse(where), [True] * len(names)
    asked = {}  # {table or None: its conditions}
    columns = {path: _columns(path) for path in filter(None, (_table(root, name) for name in TABLES))}
    for condition in conditions:
        paths = [path for path, found in columns.items() if condition.column in found]
        if not paths and condition.column != "modality":
            there = "; ".join(f"{path} has {', '.join(found)[:300]}" for path, found in columns.items())
            tables = " or ".join(f"{name}.tsv" for name in TABLES)
            wanted = f"wanted a column of {tables} in {root}, or modality"
            raise UserError(f"data.where: got the column {condition.column!r}, {wanted}; {there or 'neither is there'}")
        asked.setdefault(paths[0] if paths else None, []).append(condition)
    for path, some in asked.items():
        known = _of_names(names, some) if path is None else _of_table(path, columns[path], some, names)
        without = sum(value is None for value in known)
        if without and log is not None:
            example = names[known.index(None)]
            log.warn("scans without a line in the table are left out", table=path, scans=without, example=example)
        taken = [bool(now and value) for now, value in zip(taken, known)]
    return taken


def modality(name):
    """What a scan's file is called by, in small letters: t1w of sub-01/ses-01/sub-01_ses-01_run-2_T1w.nii.gz."""
    stem = _RUN.sub("", _SUFFIX.sub("", os.path.basename(name)))
    return stem.rpartition("_")[2].casefold()


def _table(root, name):
    """The path of a table in the root, or None; UserError for both of .tsv and .csv."""
    there = [
        path for path in (os.path.join(root, f"{name}.{ending}") for ending in ("tsv", "csv")) if os.path.exists(path)
    ]
    if len(there) > 1:
        raise UserError(f"data.where: got {there[0]} and {there[1]}, wanted one of them")
    return there[0] if there else None


def _columns(path):
    return next((list(row.cells) for row in spreadsheet.each_row(path, {}, "data.where")), [])


def _of_names(names, conditions):
    return [all(condition.holds(modality(name)) for condition in conditions) for name in names]


def _of_table(path, columns, conditions, names):
    """[whether the scan's line fits, or None without one]; only that much is kept of a table, which may be long."""
    fits = {}
    for row in spreadsheet.each_row(path, {}, "data.where"):
        fit = all(condition.holds(row.cells[condition.column]) for condition in conditions)
        for key in _keys(row.cells):
            if fits.setdefault(key, fit) != fit and "filename" not in columns:
                fits[key] = None  # sessions of one subject differ
    of_scans = "filename" in columns
    return [
        next((fits[key] for key in _keys_of_scan(name, of_scans) if fits.get(key) is not None), None) for name in names
    ]


def _keys(cells):
    """What a line of a table is found by."""
    dataset, subject, session = (cells.get(name, "") for name in ("dataset", "participant_id", "session_id"))
    if "filename" not in cells:
        return {"/".join(filter(None, parts)) for parts in ((dataset, subject, session), (dataset, subject))}
    path = _SUFFIX.sub("", cells["filename"])
    together = "/".join(filter(None, (dataset, subject, session, path.rpartition("/")[2])))
    return {path, f"{dataset}/{path}", together}


def _keys_of_scan(name, of_scans):
    """What a scan looks for, the most exact first."""
    path = _SUFFIX.sub("", name.replace(os.sep, "/"))
    if of_scans:
        return (path,)
    parts = path.split("/")
    place = next(
        (place for place, part in enumerate(parts) if part.lower().startswith(("sub-", "sub_"))), len(parts) - 1
    )
    subject = "/".join(parts[: place + 1])
    return (f"{subject}/{parts[place + 1]}", subject) if place + 1 < len(parts) else (subject,)
