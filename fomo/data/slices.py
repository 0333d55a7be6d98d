"""The slices source: a table with a line per slice, as tools/extract_slices.py writes it, joined to labels per volume.

    slice_id              volume_name          file_path                                      split  patient
    train_12_a_1_0131     train_12_a_1.nii.gz  ../slices/train_12_a_1/train_12_a_1_0131.npy   train  train_12

Relative paths start from the table's folder. The labels are the columns `task.targets` of `data.labels_csv` (a line per
VolumeName, joined whatever the suffixes are), or of the table itself. The patient is the column `patient`, or the first
two parts of a name like train_12_a_1. `Case.fold` is the column `data.fold_column`, or, where that is left at its default,
`fold` or else `split`. Labels, patient and fold are the volume's: its lines must agree.

Slices are preprocessed already: they are read from their files, not from a cache.
"""

import functools
import io
import os
import re
import sys
from dataclasses import dataclass

import numpy as np
import torch

from ..config import UserError
from . import table
from .cases import ID_WANTED, Case, Volume, names_a_file

# mean and standard deviation of ImageNet's red, green and blue, which pretrained 2D networks saw as 0 and 1
_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


def list_slices(data, task, labels=True):
    """The cases of `data.csv`, one per slice; the target is a tuple of 0 and 1, or None where the volume has no labels."""
    required = {f"data.csv, {name}": name for name in ("slice_id", "volume_name", "file_path")}
    targets = task.targets if labels else ()
    own = targets if data.labels_csv is None else ()
    required.update({f"task.targets: {name}; or data.labels_csv": name for name in own})
    fold_column = data.fold_column
    if fold_column not in (None, "fold"):  # the default may be missing
        required["data.fold_column"] = fold_column
    rows = table.read_rows(data.csv, required, "data.csv")
    columns = rows[0].cells
    if fold_column == "fold" and "fold" not in columns:
        fold_column = "split" if "split" in columns else None
    volumes = _first_rows(data.csv, rows, [name for name in ("volume_name", "patient", fold_column, *own) if name in columns])
    if own:
        known = {key: _target(data.csv, f"line {line}", cells, own) for key, (line, cells) in volumes.items()}
    else:
        known = _read_targets(data.labels_csv, targets) if targets else {}
    patients = {key: cells["patient"] if "patient" in columns else patient_of(key) for key, (_, cells) in volumes.items()}
    for key, patient in patients.items():
        if not patient:
            raise UserError(
                f"{data.csv}: line {volumes[key].line}: the patient of {volumes[key].cells['volume_name']} is not known: "
                "wanted a column 'patient', or names like train_12_a_1.nii.gz"
            )
    folder, cases = os.path.dirname(os.path.abspath(data.csv)), []
    for line, cells in rows:
        if not names_a_file(cells["slice_id"]):
            raise UserError(f"{data.csv}: line {line}: got the slice_id {cells['slice_id'][:80]!r}, wanted {ID_WANTED}")
        place = Volume(os.path.normpath(os.path.join(folder, cells["file_path"])))
        key, scan = stem(cells["volume_name"]), sys.intern(cells["volume_name"])
        fold = fold_column and sys.intern(cells[fold_column])
        cases.append(Case(cells["slice_id"], patients[key], (place,), None, known.get(key), None, fold, scan))
    return cases


def _first_rows(path, rows, columns):
    """{volume name without suffix: its first Row}. UserError where a volume's rows differ in one of `columns`: they are the
    volume's, not a slice's.
    """
    found = {}
    for row in rows:
        key = stem(row.cells["volume_name"])
        first = found.setdefault(key, row)
        for name in columns:
            if row.cells[name] != first.cells[name]:
                got = f"'{first.cells[name][:80]}' and '{row.cells[name][:80]}'"
                raise UserError(
                    f"{path}: lines {first.line} and {row.line}: column '{name}': got {got} for slices of the volume {key}, "
                    "wanted the same for all of its slices"
                )
    return found


def labelled(cases, data, log):
    """The cases whose volumes have labels. The others are a UserError, or with data.missing_labels=drop a warning."""
    lacking = {case.scan: None for case in cases if case.target is None}
    if not lacking:
        return cases
    names = ", ".join(list(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
    where = data.labels_csv or data.csv
    if data.missing_labels == "error":
        raise UserError(
            f"{where}: no labels for {len(lacking)} volumes ({names}), wanted a line for each, or data.missing_labels=drop"
        )
    kept = [case for case in cases if case.target is not None]
    if not kept:
        raise UserError(f"{where}: no labels for any volume, as {next(iter(lacking))}, wanted a line for each")
    if log is not None:
        log.warn("volumes without labels are left out", volumes=len(lacking), slices=len(cases) - len(kept), of=len(cases), names=names)
    return kept


def _read_targets(path, targets):
    """{volume name without suffix: target} of the label table."""
    found = read_labels(path, "data.labels_csv", {f"task.targets: {name}": name for name in targets})
    return {name: _target(path, name, cells, targets) for name, cells in found.items()}


def _target(path, where, cells, targets):
    """A tuple of 0.0 and 1.0; None when every cell is blank."""
    texts = [cells[name] for name in targets]
    if not any(texts):
        return None
    for name, text in zip(targets, texts):
        if text not in _VALUES:
            raise UserError(f"{path}: {where}: column '{name}': got '{text}', wanted 0 or 1")
    return tuple(_VALUES[text] for text in texts)


_VALUES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


# ------------------------------------------------------------------------------------- names and tables


def stem(name):
    """`name` of a volume without the suffix of its file: the key by which tables are joined."""
    return re.sub(r"\.(nii|nii\.gz|npy|npz)$", "", name.strip(), flags=re.IGNORECASE)


def patient_of(name):
    """`valid_12` of `valid_12_a_1.nii.gz`; None for a name of another form."""
    match = re.match(r"((?:train|valid)_[0-9A-Za-z]+)_[0-9A-Za-z]+_", stem(name) + "_")
    return match and match[1]


def read_labels(path, key="--labels", required=()):
    """{volume name without suffix: {column: text}} of a CSV with the column VolumeName, which is left out.

    key: the option or config key that names the file; required: columns that must be there, {key: column}.
    """
    found = {}
    for row in table.read_rows(path, {key: "VolumeName", **dict(required)}, key):
        name = row.cells.pop("VolumeName")
        if found.setdefault(stem(name), row.cells) is not row.cells:
            raise UserError(f"{path}: line {row.line}: got {name} a second time, wanted a line for each volume")
    return found


# -------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Reading:
    """How the files of a config become images; the same for all slices."""

    size: tuple[int, int]  # (X, Y)
    channels: int
    neighbours: int
    normalize: str

    @property
    def repeats(self):
        """Whether the channels are one slice."""
        return self.channels > 1 and not self.neighbours


@dataclass(frozen=True)
class SliceCase:
    """A slice, with the interface of cache.CachedCase."""

    case: Case
    reading: Reading
    geometry = None

    @property
    def shape(self):
        return (*self.reading.size, 1)

    @property
    def background(self):
        """Per channel: air."""
        return tuple((0.0 - mean) / deviation for mean, deviation in scaling_of(self.reading))

    def image(self):
        """(C, X, Y, 1) float32: 0 to 1, or as ImageNet is normalised. One channel, the same one several times, or the
        slice between its neighbours. UserError, with the path, for a file of another shape or type.
        """
        return read_slice(self.case.images[0].path, self.reading, scaling_of(self.reading))

    def distinct(self):
        """What of image() is augmented: a slice that is three channels is read, turned and mixed once, then repeated."""
        if not self.reading.repeats:
            return self.image()
        return read_slice(self.case.images[0].path, Reading(self.reading.size, 1, 0, "none"), None)


def scaling_of(reading):
    """(mean, deviation) of each channel."""
    if reading.normalize == "none":
        return ((0.0, 1.0),) * reading.channels
    if reading.repeats:
        return _IMAGENET
    return (tuple(np.mean(_IMAGENET, axis=0).tolist()),) * reading.channels


def reading_of(data):
    return Reading(tuple(data.patch[:2]), len(data.channels), data.neighbours, data.normalize)


def prepare(cases, data):
    """The SliceCases of `cases`. Only the first file is read, so that a wrong folder or size is found at once."""
    reading = reading_of(data)
    prepared = [SliceCase(case, reading) for case in cases]
    prepared[0].image()
    return prepared


def read_slice(path, reading, scaling):
    """(C, X, Y, 1) float32 of a slice's file: (X, Y), or (2m+1, X, Y) with m neighbours on each side, 0 to 1 or uint8.

    scaling: (mean, deviation) of each channel, taken off and divided by.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = bytearray(file.read())
        shape, kind, start = _header(bytes(content[: 10 + int.from_bytes(content[8:10], "little")]))
        pixels = torch.frombuffer(content, dtype=_TYPES[kind], offset=start).reshape(shape)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot read it as a .npy slice: {' '.join(str(error).split())}") from error
    return as_image(pixels, path, reading, scaling)


def as_image(pixels, place, reading, scaling):
    """(C, X, Y, 1) float32 of a slice's pixels, a tensor (2m+1, X, Y), 0 to 1 or uint8; place: where it is from, for errors."""
    around, size = (len(pixels) - 1) // 2, tuple(pixels.shape[1:])
    if len(pixels) % 2 == 0 or size != reading.size or around < reading.neighbours:
        raise UserError(
            f"{place}: got {around} neighbours and {'x'.join(map(str, size))} pixels, "
            f"wanted {reading.neighbours} (data.neighbours) and {'x'.join(map(str, reading.size))} (data.patch)"
        )
    scale = 1 / 255 if pixels.dtype == torch.uint8 else None
    pixels = pixels[around - reading.neighbours : around + reading.neighbours + 1].float()
    if scale is not None:
        pixels.mul_(scale)
    if reading.normalize != "none":
        means, deviations = torch.tensor(scaling).T[..., None, None]
        pixels = (pixels - means) / deviations
    return pixels.expand(reading.channels, *reading.size)[..., None].numpy()


_TYPES = {"|u1": torch.uint8, "<f2": torch.float16, "<f4": torch.float32}


@functools.lru_cache(maxsize=64)  # files of one size and type have the same header
def _header(content):
    """((2m+1, X, Y), type, start of the values) from the first bytes of a .npy file."""
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it does not begin like one")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(content[8:]))
    if len(shape) not in (2, 3) or fortran or dtype.str not in _TYPES:
        raise ValueError(f"got {dtype} of shape {shape}, wanted uint8, float16 or float32 of shape (X, Y) or (2n+1, X, Y)")
    return (shape if len(shape) == 3 else (1, *shape)), dtype.str, len(content)
