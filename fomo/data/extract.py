"""CT volumes into axial slices on disk, for training on slices.

    <output>/slices/train_12_a_1/train_12_a_1_0131.npy   a slice: (X, Y), or (2n+1, X, Y) with n neighbours on each side
                                 slices.json             which slices, and of which file: the volume is done
             splits/{train,valid,all}_slices.csv         a line per slice; file_path is relative to this file's folder
             extract.json                                the settings

What a slice is, and which are taken: ct.py.
"""

import os
import shutil
from typing import NamedTuple

import numpy as np

from ..config import UserError, as_user_error
from ..runtime import files
from . import cache, cases, ct, jobs
from .slice_files import patient_of, read_labels, read_settings, stem
from .sources.volumes import scans_below

SPLITS = ("train", "valid")
# the labels' columns come after them
COLUMNS = ("slice_id", "volume_name", "slice_index", "relative_position", "file_path", "split", "patient")


class ExtractionFailed(RuntimeError):
    exit_code = 1


def extract(root, output, settings, log, *, labels=None, split="names", patients="names", workers=2):
    """Extract the slices of every volume below `root` (NIfTI, .mha, DICOM folders, 3D .npy).

    labels: a CSV with the column VolumeName. Its other columns are copied to the slices' lines, and so none of them may
        be called as one of COLUMNS, but for those that `split` and `patients` name.
    split: `names` (train_*, valid_*), `train` or `valid` for all, or a column of the labels.
    patients: `names` (train_12 of train_12_a_1.nii.gz), `volumes` (each its own) or a column of the labels.
    workers: processes; 0: this one.

    Volumes that are done are not done again. Raises ExtractionFailed at the end when a volume could not be used,
    UserError for what concerns all of them, and interrupt.Interrupted where a signal has stopped it.
    """
    if workers < 0:
        raise UserError(f"workers: got {workers}, wanted 0 (this process) or more")
    found = _find(root, log)
    rows = {} if labels is None else read_labels(labels)
    columns = list(next(iter(rows.values()), ()))
    _check_columns(labels, columns, {"split": split, "patient": patients})
    facts = {key: _facts(name, rows.get(key), split, patients, labels) for key, (name, _) in found.items()}
    _check_patients(facts)
    with as_user_error(f"cannot write to {output}"):
        _claim(output, settings)
    volumes = [(key, path, os.path.join(output, "slices", key), settings) for key, (_, path) in found.items()]
    todo = [volume for volume in volumes if not _is_done(volume)]
    log("extract", volumes=len(volumes), done=len(volumes) - len(todo), output=output)
    failed, unoriented = {}, []  # failed: {key: why}

    def report(done, left_s):
        log("extract", extracted=done, of=len(todo), failed=len(failed), eta_s=left_s)

    for done in jobs.run(_extract_one, todo, min(workers, len(todo)), report):
        if isinstance(done, jobs.Killed):
            key, _, folder, _ = done.job
            files.remove_left_by(done.pid, os.path.dirname(folder))
            done = _Outcome(key, f"{done}: lower --workers, and run again")
        if done.failure:
            failed[done.key] = done.failure
            log.warn(done.failure, volume=found[done.key][0])
        unoriented += done.unoriented
    if unoriented:
        log.warn(cases.NOT_ORIENTED, files=len(unoriented), example=unoriented[0])
    names = {key: name for key, (name, _) in found.items() if key not in failed}
    with as_user_error(f"cannot write to {output}"):
        records = {key: files.read_json(_record(output, key)) for key in names}
        _check_copies(records, {key: patient for key, (_, patient) in facts.items()}, found)
        _write_splits(output, names, records, facts, rows, columns, log)
    if failed:
        bad = ", ".join(found[key][0] for key in sorted(failed))
        said = f"{len(failed)} of {len(volumes)} volumes failed, the others are done: {bad}"
        raise ExtractionFailed(f"{said}: {failed[min(failed)]}")


def _find(root, log):
    """{name without suffix: (volume name, path)} of the volumes below `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"got {root}, which is no folder, wanted the folder of the volumes")
    found = {}
    for name, path in scans_below(root, log):
        name = os.path.basename(name)
        key = stem(name)
        if not cases.names_a_file(key):
            raise UserError(f"{path!r}: got the name {key!r}, wanted {cases.ID_WANTED}; rename it")
        if key in found:
            raise UserError(f"{root}: two volumes are called {key}: {found[key][1]} and {path}; rename one")
        found[key] = (name, path)
    if not found:
        raise UserError(f"{root}: no volumes found, wanted .nii, .nii.gz, .mha, .npy or folders of DICOM files")
    return found


def _check_columns(path, columns, chosen):
    """Refuse columns of the labels that the slices' tables have of their own, but for the `chosen`, {own: label's}."""
    for name in columns:
        if name in COLUMNS and chosen.get(name) != name:
            hint = {"split": ", or --split split", "patient": ", or --patients patient"}.get(name, "")
            taken = "which the slices' tables have of their own"
            raise UserError(f"{path}: got the column '{name}', {taken}: rename it{hint}")


def _facts(name, row, split, patients, labels):
    """(split, patient) of a volume."""

    def cell(option, column):
        if labels is None:
            raise UserError(f"{option}: got {column}, which is no column without a table: wanted --labels as well")
        if row is None:
            raise UserError(f"{labels}: no line for {name}, wanted its {column} ({option})")
        if not row.get(column):
            said = f"no value of the column {column} ({option}), got the columns {', '.join(row)}"
            raise UserError(f"{labels}: {name}: {said}")
        return row[column]

    part = name.partition("_")[0] if split == "names" else split
    if split not in ("names", *SPLITS):
        part = cell("--split", split)
    if part not in SPLITS:
        unnamed = f"{name}: neither train nor valid by its name: give --split train, valid or a column of the labels"
        raise UserError(unnamed if split == "names" else f"{labels}: {name}: got {split}={part}, wanted train or valid")
    if patients == "volumes":
        return part, stem(name)
    patient = patient_of(name) if patients == "names" else cell("--patients", patients)
    if patient is None:
        wanted = "a name like train_12_a_1.nii.gz; give --patients volumes (each its own) or a column of the labels"
        raise UserError(f"{name}: its patient is not known by its name, wanted {wanted}")
    return part, patient


def _check_patients(facts):
    seen = {}
    for name, (part, patient) in facts.items():
        other_part, other = seen.setdefault(patient, (part, name))
        if other_part != part:
            both = f"{other} ({other_part}), {name} ({part})"
            raise UserError(f"patient {patient} is in both splits: {both}; wanted one")


def _claim(output, settings):
    """Make the output folder, or check that what it holds was made with the same settings."""
    there, wanted = read_settings(output), settings.to_dict()
    if there is None:
        for folder in ("slices", "splits"):
            os.makedirs(os.path.join(output, folder), exist_ok=True)
        files.write_json(os.path.join(output, "extract.json"), wanted)
        return
    for name, found in there.to_dict().items():
        if found != wanted[name]:
            both = f"{name}={found}, got {wanted[name]}"
            raise UserError(f"{output} holds slices with {both}: wanted the same, or another folder")


def _source(path):
    """What tells that a volume has changed."""
    return [os.path.abspath(path), *cache.stamp(path)]


def _is_done(volume):
    _, path, folder, _ = volume
    try:
        record = files.read_json(os.path.join(folder, "slices.json"))
        return record["source"] == _source(path) and len(record["slices"]) > 0
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        return False


def _record(output, key):
    return os.path.join(output, "slices", key, "slices.json")


def _check_copies(records, patients, found):
    """Refuse volumes of the same voxels under two patients; records: {key: content of slices.json}."""
    first = {}
    for key, record in records.items():
        other = first.setdefault(record.get("checksum", key), key)  # without: of an earlier version
        if patients[other] != patients[key]:
            got = " and ".join(f"{found[one][1]} of patient {patients[one]}" for one in (other, key))
            wanted = "wanted every scan once: remove a copy, or give both the same patient (--patients)"
            raise UserError(f"two volumes have the same voxels: got {got}, {wanted}")


class _Outcome(NamedTuple):
    """What came of a volume."""

    key: str
    failure: str | None = None
    unoriented: tuple[str, ...] = ()  # its path, if it does not say how its axes lie


def _extract_one(volume):
    """The _Outcome of a volume."""
    key, path, folder, settings = volume
    try:
        with files.new_folder(folder) as temporary:
            source = _source(path)  # before it is read
            array, affine = cases.read_volume(cases.Volume(path))
            taken = ct.take_slices(array, affine, settings)
            for index, _, pixels in taken:
                np.save(os.path.join(temporary, f"{key}_{index:04d}.npy"), pixels)
            rows = [[index, position] for index, position, _ in taken]
            record = {"source": source, "checksum": cache.checksum(array), "slices": rows}
            files.write_json(os.path.join(temporary, "slices.json"), record)
            shutil.rmtree(folder, ignore_errors=True)  # of a file that has changed since
    except (ValueError, OSError) as error:  # UserError is a ValueError; OSError: unreadable, or the disk is full
        text = str(error)
        return _Outcome(key, text if path in text else f"{path}: {text}")
    except MemoryError as error:
        return _Outcome(key, f"{path}: out of memory ({error}): lower --workers")
    return _Outcome(key, unoriented=cases.unoriented([cases.Volume(path)]))


def _write_splits(output, names, records, facts, rows, columns, log):
    """Write the tables of the slices of all volumes, {key: name}, that are done; records: of their slices.json."""
    lines = []
    for key, name in names.items():
        labels = rows.get(key, dict.fromkeys(columns, ""))
        for index, position in records[key]["slices"]:
            id = f"{key}_{index:04d}"
            own = (id, name, index, f"{position:.4f}", f"../slices/{key}/{id}.npy", *facts[key])
            lines.append({**dict(zip(COLUMNS, own)), **labels})
    for part in (*SPLITS, "all"):
        own = [line for line in lines if part in (line["split"], "all")]
        path = os.path.join(output, "splits", f"{part}_slices.csv")
        if own:
            files.write_csv(path, own)
        elif os.path.exists(path):  # of volumes that are gone
            os.remove(path)
    if unlabelled := len(names.keys() - rows.keys()) if columns else 0:
        log.warn("volumes without a line in the label table: their cells are blank", volumes=unlabelled, of=len(names))
    log("extract", slices=len(lines), volumes=len(names), output=output)
