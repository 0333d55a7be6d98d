"""Sources: the layouts of data sets on disk, each a function from a folder or table to a list of cases.

A case is one session of one subject. Listing touches names, labels and masks only; images are read
(`cases.read_volume`) when the cache asks. A new data set is one more function in `_SOURCES`.

    fomo1    skull_stripped/SUB/SES/ss_NAME.nii.gz   labels_masked/SUB/SES/seg_masked.nii.gz and/or label.txt
    fomo2    preprocessed_2/*.npy (channels, then the mask)
    fomo3    preprocessed_2/SUB/SES/ss_NAME.nii.gz   label.txt
    fomo1-3  preprocessed/SUB/SES/NAME.nii.gz        labels/SUB/SES/{seg.nii.gz,label.txt} or labels/SUB/label.txt
    table    a CSV with a line per case: table.py
    volumes  a folder tree or a list of scans without labels: volumes.py
    slices   a CSV with a line per CT slice, and labels per volume: slices.py
    phantom  made on first use: phantom.py

Where a root has both the derived folder and the raw `preprocessed`, the derived one is taken, as the baseline does; it
must have all sessions that the raw one has (an error; for arrays a warning, as their names need not be the sessions').
"""

import csv
import functools
import os
import re
from dataclasses import replace

from ...config import UserError
from .. import spreadsheet
from ..cases import ID_WANTED, Case, Volume, any_foreground, looks_at_files, names_a_file
from ..npy import count_volumes
from ..phantoms import heads
from . import slices, table, volumes

_SESSION = re.compile(r"[_-](ses(sion)?|run)[_-]?[0-9a-z]+([_-].*)?$", re.ASCII | re.IGNORECASE)
_SUBJECT = re.compile(r".*?sub[_-][0-9a-z]+", re.ASCII | re.IGNORECASE)
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)|\.0+$", re.ASCII)  # in front of a number, and those that make 1 a 1.0
_SHOWN = 5  # pairs of subjects that a warning names
_ELSEWHERE = "another data.source: this layout has none"


def list_cases(data, task, labels=True, log=None):
    """The cases under `data.root`, sorted by id, with the label that `task.type` needs; data, task: config sections.

    labels=False: images only, for prediction. log: for warnings, needed with labels. Raises UserError for an empty
    folder, a missing or ambiguous channel, a missing, malformed or contradictory label, for ids that are not unique or
    cannot name a file, and (with labels) for an image file in cases of several subjects.
    """
    cases = _SOURCES[data.source](data, task, labels)
    if not cases:
        raise UserError(
            f"{data.csv or data.root}: no cases found, wanted the {data.source} layout (see README, data layouts)"
        )
    if data.source == "slices" and labels:
        cases = slices.labelled(cases, data, log)
    _check_ids(cases)
    if labels:
        _check_images(data, cases)
    if data.groups is not None:
        groups = _read_groups(data.groups)
        for case in cases:
            if case.subject not in groups:
                raise UserError(f"{data.groups}: no line for subject '{case.subject}', wanted every subject's group")
        cases = [replace(case, group=groups[case.subject]) for case in cases]
    if log is not None:
        _warn(data, cases, log)
    return sorted(cases, key=lambda case: case.id)


def _check_ids(cases):
    """Refuse ids that cannot name a file, are not unique, or differ only in capitals: some systems have one file for both."""
    seen = {}
    for case in cases:
        if not names_a_file(case.id):
            raise UserError(
                f"{case.images[0].path!r}: got the id {case.id!r}, wanted {ID_WANTED}; rename the file or folder"
            )
        first = seen.setdefault(case.id.lower(), case)
        if first is not case:
            same = first.id == case.id
            got = (
                f"two cases have the id '{case.id}'"
                if same
                else f"two cases have the ids '{first.id}' and '{case.id}', which differ only in capitals"
            )
            raise UserError(f"{got}: {first.images[0].path} and {case.images[0].path}; rename one")


def _check_images(data, cases):
    """Refuse an image in cases of several subjects: folds would train and test on it.

    Links are followed only where a start looks at the files, see data.rescan.
    """
    real_path = _real_path(functools.cache(os.path.realpath)) if looks_at_files(data, len(cases)) else lambda path: path
    first = {}
    for case in cases:
        for image in case.images:
            other, path = first.setdefault((real_path(image.path), image.index), (case, image.path))
            if other.subject != case.subject:
                where = image.path if path == image.path else f"{path} and {image.path}, which are one file"
                raise UserError(
                    f"case {other.id} of subject '{other.subject}' and case {case.id} of subject '{case.subject}' have the same image: "
                    f"got {where}, wanted every file in one subject's cases: correct it, or give both the same subject"
                )


def _real_path(real_folder):
    """os.path.realpath of a file with `real_folder` for its folder, which looks at each part of a path, and so only once."""

    def resolve(path):
        folder, name = os.path.split(os.path.abspath(path))
        place = os.path.join(real_folder(folder), name)
        return os.path.realpath(place) if os.path.islink(place) else place

    return resolve


def _warn(data, cases, log):
    """What may be wrong with the cases and is no error."""
    if data.root is not None and data.source in ("table", "slices"):
        log.warn(
            f"data.root is not used: with data.source={data.source} paths start from the table's folder", root=data.root
        )
    if data.source.startswith("fomo"):
        _warn_of_the_rest(data.root, cases, log)
    if data.source == "fomo2" or (data.source == "table" and data.subject_column is None):
        _warn_of_subjects(cases, log)
    _warn_of_spellings(cases, log)


def _warn_of_the_rest(root, cases, log):
    """Labels without images; arrays (fomo2) that are not as many as the sessions that they were made of."""
    ids, subjects = {case.id for case in cases}, {case.subject for case in cases}
    if cases[0].images[0].index is not None:
        raw = _sessions_below(os.path.join(root, "preprocessed"))
        if raw and len(raw) != len(cases):
            log.warn(
                "preprocessed_2 is taken, and preprocessed has another number of sessions",
                arrays=len(cases),
                sessions=len(raw),
            )
        return
    left = set()
    for folder in ("labels", "labels_masked"):
        for subject, sessions in _subjects_below(os.path.join(root, folder)):
            left.update(f"{subject}/{session}" for session in sessions if f"{subject}_{session}" not in ids)
            if not sessions and subject not in subjects:
                left.add(subject)
    if left:
        log.warn("labels without images are left out", labels=len(left), example=min(left), cases=len(cases))


def _warn_of_subjects(cases, log):
    """Subjects that are told by names were perhaps not, where the names of several begin alike."""
    alike = {}
    for case in cases:
        beginning = _SUBJECT.match(case.id)
        if beginning:
            alike.setdefault(beginning[0].lower(), {}).setdefault(case.subject, case.id)
    several = [list(ids.values()) for ids in alike.values() if len(ids) > 1]
    if several:
        log.warn(
            "cases count as different subjects, though their names begin alike: sessions of one subject are told by _ses_ in the name, "
            "or by data.subject_column",
            beginnings=len(several),
            example=several[0][:2],
        )


def _warn_of_spellings(cases, log):
    """Subjects that are perhaps one, written in several ways."""
    alike = {}
    for subject in sorted({case.subject for case in cases}):
        alike.setdefault(_ZEROS.sub("", subject.lower()), []).append(subject)
    several = ["/".join(subjects) for subjects in alike.values() if len(subjects) > 1]
    if several:
        log.warn(
            "subjects that differ only in capitals, leading zeros or .0 count as different ones: write those that are one in one way",
            count=len(several),
            subjects=several[:_SHOWN],
        )


# ------------------------------------------------------------------------------------------- layouts


def _fomo1(data, task, labels):
    folders = (("skull_stripped", "ss_"), ("preprocessed", ""))
    return _sessions(data, task, labels, folders, ("labels_masked/{}/seg_masked.nii.gz", "labels/{}/seg.nii.gz"))


def _fomo2(data, task, labels):
    folder = os.path.join(data.root, "preprocessed_2")
    if os.path.isdir(folder):
        return _arrays(data, task, labels, folder)
    return _sessions(data, task, labels, (("preprocessed", ""),), ("labels/{}/seg.nii.gz",))


def _fomo3(data, task, labels):
    return _sessions(data, task, labels, (("preprocessed_2", "ss_"), ("preprocessed", "")), ())


def _phantom(data, task, labels):
    root = data.root or (data.cache and os.path.join(data.cache, "phantom"))
    if root is None:
        raise UserError("data.root: got none, wanted the folder in which the phantom data set is generated")
    kind, pretrains = heads.TASKS[task.type], task.pretrains
    name = f"task{kind}"
    if data.phantom_layout == "table":
        kind, name = "table", "heads"
    seed = int(pretrains)  # pretraining has heads of its own, not those that are tested afterwards
    folder = f"{name}{'_pretraining' if pretrains else ''}_{data.phantom_cases}x{data.phantom_size}_v{heads.VERSION}"
    folder = os.path.join(root, folder)
    if not os.path.isdir(folder):
        try:
            heads.make(folder, kind, data.phantom_cases, data.phantom_size, seed)
        except OSError as error:
            raise UserError(f"data.root: cannot make {folder}: {error}") from error
    if kind == "table":
        columns = dict(id_column="id", subject_column="PatientID", mask_column="mask", fold_column="fold")
        return table.list_table(replace(data, csv=os.path.join(folder, "table.csv"), **columns), task, labels)
    source = (_fomo1, _fomo2, _fomo3)[kind - 1]
    return source(replace(data, root=folder), task, labels)


_SOURCES = {
    "fomo1": _fomo1,
    "fomo2": _fomo2,
    "fomo3": _fomo3,
    "table": table.list_table,
    "volumes": volumes.list_volumes,
    "slices": slices.list_slices,
    "phantom": _phantom,
}


def _sessions(data, task, labels, folders, masks):
    """Cases of the layout FOLDER/SUB/SES/PREFIX + channel + .nii.gz.

    folders: (name, prefix) pairs, the first that exists is taken; those after it must have no session that it lacks.
    masks: patterns of the mask's path, {} for SUB/SES.
    """
    found = [(os.path.join(data.root, name), prefix) for name, prefix in folders]
    found = [(folder, prefix) for folder, prefix in found if os.path.isdir(folder)]
    if not found:
        names = " or ".join(name for name, _ in folders)
        raise UserError(f"{data.root}: no cases found, wanted a folder {names} in it (see README, data layouts)")
    (base, prefix), *others = found
    chosen = _sessions_below(base)
    for subject in sorted(set(_folders(base)) - {subject for subject, _ in chosen}):
        raise UserError(f"{os.path.join(base, subject)}: no session folder, wanted for example {subject}/ses_1")
    for other, _ in others:
        lacking = sorted(set(_sessions_below(other)) - set(chosen))
        if lacking:
            raise UserError(
                f"{base}: lacks {len(lacking)} sessions that {other} has, as {'/'.join(lacking[0])}, wanted all: "
                "derive them too, or move one of the two folders away"
            )
    cases, labels = [], labels and not task.pretrains
    for subject, session in chosen:
        name = f"{subject}_{session}"
        images = tuple(_channel(os.path.join(base, subject, session), prefix, text, name) for text in data.channels)
        mask, target = None, None
        if labels:
            paths = [os.path.join(data.root, pattern.format(f"{subject}/{session}")) for pattern in masks]
            mask = next((Volume(path) for path in paths if os.path.exists(path)), None)
            texts = [f"labels/{subject}/{session}/label.txt", f"labels/{subject}/label.txt"]
            texts = [os.path.join(data.root, text) for text in texts]
            target = _target(task.type, name, mask, [text for text in texts if os.path.exists(text)], paths + texts)
        cases.append(Case(name, subject, images, mask, target, None))
    return cases


def _subjects_below(base):
    """[(subject, [sessions])], sorted; [] where there is no such folder."""
    return [(subject, _folders(os.path.join(base, subject))) for subject in _folders(base)]


def _sessions_below(base):
    """[(subject, session)], sorted."""
    return [(subject, session) for subject, sessions in _subjects_below(base) for session in sessions]


def _arrays(data, task, labels, folder):
    """Cases of a folder of .npy files, each with the channels and then the mask; subject: the name without session."""
    cases, labels = [], labels and not task.pretrains
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not name.endswith(".npy"):
            continue
        path = os.path.join(folder, name)
        id = name.removesuffix(".npy")
        count, wanted = count_volumes(path), len(data.channels) + 1
        if count != wanted and (labels or count != wanted - 1):
            raise UserError(f"case {id}: {path}: got {count} volumes, wanted {wanted} (data.channels, then the mask)")
        mask = Volume(path, count - 1) if labels else None
        target = _target(task.type, id, mask, [], [path]) if labels else None
        images = tuple(Volume(path, index) for index in range(len(data.channels)))
        cases.append(Case(id, _SESSION.sub("", id), images, mask, target, None))
    return cases


def _folders(path):
    if not os.path.isdir(path):
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _channel(folder, prefix, text, case):
    """The Volume of channel `text`; of the alternatives 'a|b' exactly one must exist."""
    names = [f"{prefix}{name}{suffix}" for name in text.split("|") for suffix in (".nii.gz", ".nii")]
    there = [os.path.join(folder, name) for name in names if os.path.exists(os.path.join(folder, name))]
    if not there:
        raise UserError(f"case {case}: {folder}: channel '{text}' is missing, wanted {' or '.join(names[::2])}")
    if len(there) > 1:
        raise UserError(f"case {case}: channel '{text}' is there twice, {' and '.join(there)}; wanted one of them")
    return Volume(there[0])


# -------------------------------------------------------------------------------------------- labels


def _target(kind, case, mask, texts, places):
    """The label of a case from all files that state it, which must agree; `places`: where it may be, for the error."""
    if kind == "segmentation":
        if mask is None:
            wanted = [place for place in places if not place.endswith(".txt")]
            raise UserError(f"case {case}: no mask, wanted {' or '.join(wanted) or _ELSEWHERE}")
        return float(any_foreground(mask, case))
    values = [(_number(path, case), path) for path in texts]
    if kind == "classification":
        for value, path in values:
            if value not in (0, 1):
                raise UserError(f"case {case}: {path}: got the label {value:g}, wanted 0 or 1")
        if mask is not None:
            values.append((float(any_foreground(mask, case)), mask.path))
    if not values:
        wanted = [place for place in places if kind == "classification" or place.endswith(".txt")]
        raise UserError(f"case {case}: no label, wanted {' or '.join(wanted) or _ELSEWHERE}")
    for value, path in values[1:]:
        if value != values[0][0]:
            raise UserError(f"case {case}: {values[0][1]} says {values[0][0]:g} and {path} says {value:g}; correct one")
    return values[0][0]


def _number(path, case):
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"case {case}: cannot read the label {path}: {error}") from error
    value = spreadsheet.number(text)
    if value is None:
        raise UserError(f"case {case}: {path}: got the label {text[:40]!r}, wanted a number")
    return value


def _read_groups(path):
    """{subject: group} from a CSV with these two columns (and any others)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"subject", "group"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"{path}: got the columns {', '.join(reader.fieldnames or ())[:500]}, wanted subject,group"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.groups: cannot read {path}: {error}") from error
    groups = {}
    for line, row in enumerate(rows, start=2):
        subject, group = (row["subject"] or "").strip(), (row["group"] or "").strip()
        if not subject or not group:
            raise UserError(f"{path}: line {line}: got subject '{subject[:80]}', group '{group[:80]}', wanted both")
        if groups.setdefault(subject, group) != group:
            raise UserError(
                f"{path}: line {line}: got groups '{groups[subject][:80]}' and '{group[:80]}' for subject '{subject[:80]}'"
            )
    return groups
