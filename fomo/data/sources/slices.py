"""The slices source: a table with a line per slice, as tools/extract_slices.py writes it, joined to labels per volume.

    slice_id              volume_name          file_path                                      split  patient
    train_12_a_1_0131     train_12_a_1.nii.gz  ../slices/train_12_a_1/train_12_a_1_0131.npy   train  train_12

Relative paths start from the table's folder. The labels are the columns `task.targets` of `data.labels_csv` (a line per
VolumeName, joined whatever the suffixes are), or of the table itself. The patient is the column `patient`, or the first
two parts of a name like train_12_a_1. `Case.fold` is the column `data.fold_column`; by default `fold`, or else `split`.
Labels, patient and fold are the volume's, and so its lines must agree. Slices are not cached: they are preprocessed.
"""

import os
import sys

from ...config import UserError
from .. import spreadsheet
from ..cases import ID_WANTED, Case, Volume, names_a_file
from ..slice_files import patient_of, prepare, read_labels, read_settings, stem
from .source import Source

_VALUES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


def list_slices(data, wanted, labels, log=None):
    """The cases of `data.csv`, one per slice. The target is a tuple of 0 and 1, or None where there are no labels."""
    targets = wanted.targets if labels else ()
    own = targets if data.labels_csv is None else ()
    rows, fold_column = _read(data, own)
    columns = rows[0].cells
    shared = [name for name in ("volume_name", "patient", fold_column, *own) if name in columns]
    volumes = _first_rows(data.csv, rows, shared)
    known = {}
    if own:
        known = {key: _target(data.csv, f"line {line}", cells, own) for key, (line, cells) in volumes.items()}
    elif targets:
        labels_of = read_labels(data.labels_csv, "data.labels_csv", {f"task.targets: {name}": name for name in targets})
        known = {key: _target(data.labels_csv, key, cells, targets) for key, cells in labels_of.items()}
    patients = {key: _patient(data.csv, key, row) for key, row in volumes.items()}
    folder, cases = os.path.dirname(os.path.abspath(data.csv)), []
    for line, cells in rows:
        if not names_a_file(cells["slice_id"]):
            raise UserError(f"{data.csv}: line {line}: got the slice_id {cells['slice_id'][:80]!r}, wanted {ID_WANTED}")
        place = Volume(os.path.normpath(os.path.join(folder, cells["file_path"])))
        key, scan = stem(cells["volume_name"]), sys.intern(cells["volume_name"])
        fold = fold_column and sys.intern(cells[fold_column])
        cases.append(Case(cells["slice_id"], patients[key], (place,), None, known.get(key), None, fold, scan))
    return cases if wanted.pretraining or not labels else _labelled(cases, data, log)


def _read(data, targets):
    """(rows of the table, its column of folds or None); targets: columns that it must have."""
    required = {f"data.csv, {name}": name for name in ("slice_id", "volume_name", "file_path")}
    required.update({f"task.targets: {name}; or data.labels_csv": name for name in targets})
    fold_column = data.fold_column
    if fold_column not in (None, "fold"):  # the default may be missing
        required["data.fold_column"] = fold_column
    rows = spreadsheet.read_rows(data.csv, required, "data.csv")
    if fold_column == "fold":
        fold_column = next((name for name in ("fold", "split") if name in rows[0].cells), None)
    return rows, fold_column


def _first_rows(path, rows, columns):
    """{volume name without suffix: its first Row}. UserError where rows of a volume differ in one of `columns`."""
    found = {}
    for row in rows:
        key = stem(row.cells["volume_name"])
        first = found.setdefault(key, row)
        for name in columns:
            if row.cells[name] != first.cells[name]:
                where = f"{path}: lines {first.line} and {row.line}: column '{name}'"
                got = f"'{first.cells[name][:80]}' and '{row.cells[name][:80]}' for slices of the volume {key}"
                raise UserError(f"{where}: got {got}, wanted the same for all of its slices")
    return found


def _patient(path, key, row):
    patient = row.cells["patient"] if "patient" in row.cells else patient_of(key)
    if not patient:
        got = f"{path}: line {row.line}: the patient of {row.cells['volume_name']} is not known"
        raise UserError(f"{got}: wanted a column 'patient', or names like train_12_a_1.nii.gz")
    return patient


def _labelled(cases, data, log):
    """The cases whose volumes have labels. The others are a UserError, or with data.missing_labels=drop a warning."""
    lacking = {case.scan: None for case in cases if case.target is None}
    if not lacking:
        return cases
    names = ", ".join(list(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
    where = data.labels_csv or data.csv
    if data.missing_labels == "error":
        wanted = "wanted a line for each, or data.missing_labels=drop"
        raise UserError(f"{where}: no labels for {len(lacking)} volumes ({names}), {wanted}")
    kept = [case for case in cases if case.target is not None]
    if not kept:
        raise UserError(f"{where}: no labels for any volume, as {next(iter(lacking))}, wanted a line for each")
    if log is not None:
        count = dict(volumes=len(lacking), slices=len(cases) - len(kept), of=len(cases))
        log.warn("volumes without labels are left out", **count, names=names)
    return kept


def _target(path, where, cells, targets):
    """A tuple of 0.0 and 1.0; None when every cell is blank."""
    texts = [cells[name] for name in targets]
    if not any(texts):
        return None
    for name, text in zip(targets, texts):
        if text not in _VALUES:
            raise UserError(f"{path}: {where}: column '{name}': got '{text}', wanted 0 or 1")
    return tuple(_VALUES[text] for text in texts)


def _check(config, refuse):
    data, count = config.data, len(config.data.channels)
    if data.normalize not in ("none", "imagenet"):
        refuse("data.normalize", data.normalize, "none or imagenet for data.source=slices, which are windowed already")
    if data.patch[2] != 1:
        refuse("data.patch", data.patch, "[x, y, 1], the pixels of a slice, for data.source=slices")
    if data.neighbours and count != 2 * data.neighbours + 1:
        wanted = f"{2 * data.neighbours + 1} names for data.neighbours={data.neighbours}, from below to above"
        refuse("data.channels", data.channels, wanted)
    if not data.neighbours and count not in (1, 3):
        refuse("data.channels", data.channels, "one name, or three (the slice three times), for data.neighbours=0")


def _record(data):
    """How the slices were extracted, so that those of other volumes can be; None where it is not known."""
    settings = read_settings(os.path.join(os.path.dirname(os.path.abspath(data.csv)), ".."))
    return {"extraction": settings and settings.to_dict()}


SLICES = Source(
    list=list_slices,
    gives=("flags", "nothing"),
    needs=(("data.csv",), "the table of the slices, for example data.csv=slices/splits/train_slices.csv"),
    geometry=False,
    keys=("data.fold_column", "eval.pool_slices", "eval.top_slices"),
    options=("data.labels_csv", "data.missing_labels", "data.neighbours"),
    reads_csv=True,
    reads_root=False,
    columns=lambda data: True,
    check=_check,
    meaning=lambda data: {"data.source": "slices", "data.patch": data.patch, "data.neighbours": data.neighbours},
    record=_record,
    besides=lambda data, asked, left_out: spreadsheet.other_columns(data.csv, "slice_id", asked, left_out),
    prepare=lambda cases, data, *_: prepare(cases, data),
)
