"""CT volumes into axial slices on disk, for training on slices.

    <output>/slices/train_12_a_1/train_12_a_1_0131.npy   one slice: (X, Y), or (2n+1, X, Y) with n neighbours on each side
                                 slices.json             which slices, and of which file: the volume is done
             splits/{train,valid,all}_slices.csv         a line per slice; file_path is relative to this file's folder
             extract.json                                the settings

What a slice is, and which are taken: ct.py.
"""

import os
import shutil
import tempfile
import time

import numpy as np

from ..config import UserError
from ..runtime import files
from . import cache, cases, ct
from .slice_files import patient_of, read_labels, stem
from .sources import volumes

SPLITS = ("train", "valid")
COLUMNS = (
    "slice_id",
    "volume_name",
    "slice_index",
    "relative_position",
    "file_path",
    "split",
    "patient",
)  # and the labels'


class ExtractionFailed(RuntimeError):
    exit_code = 1


def extract(root, output, settings, log, *, labels=None, split="names", patients="names", workers=2):
    """Extract the slices of every volume below `root` (NIfTI, DICOM folders, 3D .npy); see the top of the file.

    labels: a CSV with the column VolumeName; its other columns are copied to the slices' lines, so none of them may be
    called as one of COLUMNS, but for that of the split (`split`) and that of the patient (`patient`). split: `names`
    (train_*, valid_*), `train` or `valid` for all, or a column of the labels. patients: `names` (train_12 of
    train_12_a_1.nii.gz), `volumes` (each its own) or a column of the labels. Volumes that are done are not done again.
    Raises ExtractionFailed, after all others are done, when a volume could not be used, and UserError for what
    concerns all of them.
    """
    if workers < 0:
        raise UserError(f"workers: got {workers}, wanted 0 (this process) or more")
    found = _find(root)
    rows = {} if labels is None else read_labels(labels)
    columns = list(next(iter(rows.values()), ()))
    for name in columns:
        if name in COLUMNS and {"split": split, "patient": patients}.get(name) != name:
            hint = {"split": ", or --split split", "patient": ", or --patients patient"}.get(name, "")
            raise UserError(
                f"{labels}: got the column '{name}', which the slices' tables have of their own: rename it{hint}"
            )
    facts = {}
    for key, (name, _) in found.items():
        facts[key] = _facts(name, rows.get(key), split, patients, labels)
    _check_patients(facts)
    try:
        _claim(output, settings)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    jobs = [(path, os.path.join(output, "slices", key), key, settings) for key, (_, path) in found.items()]
    todo = [job for job in jobs if not _is_done(job)]
    log("extract", volumes=len(jobs), done=len(jobs) - len(todo), output=output)
    failures, begin = {}, time.monotonic()
    shown = begin
    for count, (key, failure) in enumerate(cache.run_jobs(_extract_one, todo, min(workers, len(todo))), start=1):
        if failure:
            failures[key] = failure
            log.warn(failure, volume=found[key][0])
        if count == len(todo) or time.monotonic() > shown + 10:
            shown = time.monotonic()
            log(
                "extract",
                extracted=count,
                of=len(todo),
                failed=len(failures),
                eta_s=(shown - begin) / count * (len(todo) - count),
            )
    try:
        _write_splits(output, [job for job in jobs if job[2] not in failures], found, facts, rows, columns, log)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    if failures:
        names = ", ".join(found[key][0] for key in sorted(failures))
        raise ExtractionFailed(f"{len(failures)} of {len(jobs)} volumes failed, the others are done: {names}")


def _find(root):
    """{name without suffix: (volume name, path)} of the volumes below `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"got {root}, which is no folder, wanted the folder of the volumes")
    found = {}
    for name, path in volumes.scans_below(root):
        name = os.path.basename(name)
        key = stem(name)
        if key in found:
            raise UserError(f"{root}: two volumes are called {key}: {found[key][1]} and {path}; rename one")
        found[key] = (name, path)
    if not found:
        raise UserError(f"{root}: no volumes found, wanted .nii, .nii.gz, .npy or folders of DICOM files")
    return found


def _facts(name, row, split, patients, labels):
    """(split, patient) of a volume."""

    def cell(option, column):
        if labels is None:
            raise UserError(f"{option}: got {column}, which is no column without a table: wanted --labels as well")
        if row is None:
            raise UserError(f"{labels}: no line for {name}, wanted its {column} ({option})")
        if not row.get(column):
            raise UserError(
                f"{labels}: {name}: no value of the column {column} ({option}), got the columns {', '.join(row)}"
            )
        return row[column]

    if split == "names":
        part = name.partition("_")[0]
        if part not in SPLITS:
            raise UserError(
                f"{name}: neither train nor valid by its name: give --split train, valid or a column of the labels"
            )
    else:
        part = split if split in SPLITS else cell("--split", split)
        if part not in SPLITS:
            raise UserError(f"{labels}: {name}: got {split}={part}, wanted train or valid")
    if patients == "names":
        patient = patient_of(name)
        if patient is None:
            raise UserError(
                f"{name}: its patient is not known by its name, wanted a name like train_12_a_1.nii.gz; "
                "give --patients volumes (each its own) or a column of the labels"
            )
    else:
        patient = stem(name) if patients == "volumes" else cell("--patients", patients)
    return part, patient


def _check_patients(facts):
    seen = {}
    for name, (part, patient) in facts.items():
        other = seen.setdefault(patient, (part, name))
        if other[0] != part:
            raise UserError(
                f"patient {patient} is in both splits: {other[1]} ({other[0]}), {name} ({part}); wanted one"
            )


# ------------------------------------------------------------------------------------------ the folder


def _claim(output, settings):
    """Make the output folder, or check that what it holds was made with the same settings."""
    path = os.path.join(output, "extract.json")
    wanted = settings.to_dict()
    if os.path.exists(path):
        there = _settings_in(path, output).to_dict()
        for name, value in wanted.items():
            if there[name] != value:
                raise UserError(
                    f"{output} holds slices with {name}={there[name]}, got {value}: wanted the same, or another folder"
                )
        return
    for folder in ("slices", "splits"):
        os.makedirs(os.path.join(output, folder), exist_ok=True)
    files.write_json(path, wanted)


def has_settings(csv):
    """Whether the slices of a table were extracted by this file, so that `read_settings` knows how."""
    return os.path.exists(_settings_of(csv))


def _settings_of(csv):
    return os.path.join(os.path.dirname(os.path.abspath(csv)), "..", "extract.json")


def read_settings(csv):
    """The Settings with which the slices of a table `splits/*_slices.csv` were extracted."""
    return _settings_in(_settings_of(csv), csv)


def _settings_in(path, whose):
    try:
        return ct.Settings.from_dict(files.read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {os.path.normpath(path)}, the settings of {whose} ({error}): extract into a new folder"
        ) from error


def _source(path):
    """What tells that a volume has changed."""
    return [os.path.abspath(path), *cache.stamp(path)]


def _is_done(job):
    path, folder, _, _ = job
    try:
        record = files.read_json(os.path.join(folder, "slices.json"))
        return record["source"] == _source(path) and len(record["slices"]) > 0
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        return False


def _extract_one(job):
    """(key, failure or None); runs in a worker process."""
    path, folder, key, settings = job
    try:
        # what is in it when it is renamed stays
        with tempfile.TemporaryDirectory(
            prefix=f".{key}-", dir=os.path.dirname(folder), ignore_cleanup_errors=True
        ) as temporary:
            os.chmod(temporary, 0o755)
            source = _source(path)  # before it is read
            array, affine = cases.read_volume(cases.Volume(path))
            rows = []
            for index, position, pixels in ct.take_slices(array, affine, settings):
                np.save(os.path.join(temporary, f"{key}_{index:04d}.npy"), pixels)
                rows.append([index, position])
            files.write_json(os.path.join(temporary, "slices.json"), {"source": source, "slices": rows})
            shutil.rmtree(folder, ignore_errors=True)  # of a file that has changed since
            os.rename(temporary, folder)
    except (ValueError, OSError) as error:  # UserError is a ValueError; OSError: unreadable, or the disk is full
        text = str(error)
        return key, text if path in text else f"{path}: {text}"
    return key, None


def _write_splits(output, jobs, found, facts, rows, columns, log):
    lines = []
    unlabelled = 0
    for _, folder, key, _ in jobs:
        part, patient = facts[key]
        labels = rows.get(key, dict.fromkeys(columns, ""))
        unlabelled += bool(columns) and key not in rows
        for index, position in files.read_json(os.path.join(folder, "slices.json"))["slices"]:
            id = f"{key}_{index:04d}"
            own = (id, found[key][0], index, f"{position:.4f}", f"../slices/{key}/{id}.npy", part, patient)
            lines.append({**dict(zip(COLUMNS, own)), **labels})
    for part in (*SPLITS, "all"):
        own = [line for line in lines if part in (line["split"], "all")]
        path = os.path.join(output, "splits", f"{part}_slices.csv")
        if own:
            files.write_csv(path, own)
        elif os.path.exists(path):  # of volumes that are gone
            os.remove(path)
    if unlabelled:
        log.warn("volumes without a line in the label table: their cells are blank", volumes=unlabelled, of=len(jobs))
    log("extract", slices=len(lines), volumes=len(jobs), output=output)
