"""The layouts of the FOMO challenge: a folder per subject and session. The paths stand in `sources/__init__.py`.

Where a root has both the derived folder and the raw `preprocessed`, the derived one is taken, as the baseline does. It
must have all sessions of the raw one. Arrays are only counted, as their names need not be the sessions'.
"""

import functools
import os
import re

from ...config import UserError
from ..cases import Case, Volume, foreground_mm3, stated_number
from ..npy import count_volumes
from .source import Source
from .subjects import warn_of_beginnings

_SESSION = re.compile(r"[_-](ses(sion)?|run)[_-]?[0-9a-z]+([_-].*)?$", re.ASCII | re.IGNORECASE)
_MASKS = ("labels_masked/{}/seg_masked.nii.gz", "labels/{}/seg.nii.gz")  # {}: SUB/SES
_ELSEWHERE = "another data.source: this layout has none"


def _sessions(data, wanted, labels, log=None, *, folders, masks):
    """Cases of the layout FOLDER/SUB/SES/PREFIX + channel + .nii.gz, in the first (FOLDER, PREFIX) that exists."""
    found = [(os.path.join(data.root, name), prefix) for name, prefix in folders]
    found = [(folder, prefix) for folder, prefix in found if os.path.isdir(folder)]
    if not found:
        names = " or ".join(name for name, _ in folders)
        raise UserError(f"{data.root}: no cases found, wanted a folder {names} in it (layouts: configs/README.md)")
    (base, prefix), *others = found
    chosen = _sessions_below(base)
    _check_complete(base, chosen, [folder for folder, _ in others])
    cases = []
    for subject, session in chosen:
        name = f"{subject}_{session}"
        folder, optional = os.path.join(base, subject, session), data.optional_channels
        images = tuple(_channel(folder, prefix, text, name, text in optional) for text in data.channels)
        mask, target, size = None, None, None
        if labels and not wanted.pretraining:
            paths = [os.path.join(data.root, pattern.format(f"{subject}/{session}")) for pattern in masks]
            mask = next((Volume(path) for path in paths if os.path.exists(path)), None)
            texts = [f"labels/{subject}/{session}/label.txt", f"labels/{subject}/label.txt"]
            size = _size(wanted.kind, name, mask)
            target = _target(wanted.kind, name, mask, size, paths, [os.path.join(data.root, text) for text in texts])
        cases.append(Case(name, subject, images, mask, target, foreground_mm3=size))
    return cases


def _check_complete(base, chosen, others):
    """Refuse subjects of the folder `base` without a session, and sessions of the `others` that are not `chosen`."""
    for subject in sorted(set(_folders(base)) - {subject for subject, _ in chosen}):
        raise UserError(f"{os.path.join(base, subject)}: no session folder, wanted for example {subject}/ses_1")
    for other in others:
        if lacking := sorted(set(_sessions_below(other)) - set(chosen)):
            got = f"{base}: lacks {len(lacking)} sessions that {other} has, as {'/'.join(lacking[0])}"
            raise UserError(f"{got}, wanted all: derive them too, or move one of the two folders away")


def _subjects_below(base):
    """[(subject, [sessions])], sorted; [] where there is no such folder."""
    return [(subject, _folders(os.path.join(base, subject))) for subject in _folders(base)]


def _sessions_below(base):
    """[(subject, session)], sorted."""
    return [(subject, session) for subject, sessions in _subjects_below(base) for session in sessions]


def _arrays(data, wanted, labels, folder):
    """Cases of a folder of .npy files, each with the channels and then the mask; subject: the name without session."""
    cases, labels, channels = [], labels and not wanted.pretraining, len(data.channels)
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not name.endswith(".npy"):
            continue
        path, id = os.path.join(folder, name), name.removesuffix(".npy")
        count = count_volumes(path)
        if count != channels + 1 and (labels or count != channels):
            wanted_count = f"{channels + 1} (data.channels, then the mask)"
            raise UserError(f"case {id}: {path}: got {count} volumes, wanted {wanted_count}")
        mask = Volume(path, channels) if labels else None
        size = _size(wanted.kind, id, mask)
        target = _target(wanted.kind, id, mask, size, [path], []) if labels else None
        images = tuple(Volume(path, index) for index in range(channels))
        cases.append(Case(id, _SESSION.sub("", id), images, mask, target, foreground_mm3=size))
    return cases


def _folders(path):
    if not os.path.isdir(path):
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _channel(folder, prefix, text, case, optional):
    """The Volume of channel `text`, of whose alternatives 'a|b' exactly one must exist, or none if it is optional."""
    names = [f"{prefix}{name}{suffix}" for name in text.split("|") for suffix in (".nii.gz", ".nii")]
    there = [path for path in (os.path.join(folder, name) for name in names) if os.path.exists(path)]
    if not there and optional:
        _refuse_lookalikes(folder, {f"{prefix}{name}." for name in text.split("|")}, case)
        return None
    if not there:
        raise UserError(f"case {case}: {folder}: channel '{text}' is missing, wanted {' or '.join(names[::2])}")
    if len(there) > 1:
        raise UserError(f"case {case}: channel '{text}' is there twice, {' and '.join(there)}; wanted one of them")
    return Volume(there[0])


def _refuse_lookalikes(folder, beginnings, case):
    """Raise UserError for a file that differs from a channel's in capitals or format alone: it is not missing."""
    for entry in sorted(os.listdir(folder)):
        if entry.lower().startswith(tuple(beginning.lower() for beginning in beginnings)):
            wanted = " or ".join(f"{beginning}nii.gz" for beginning in sorted(beginnings))
            raise UserError(f"case {case}: got {os.path.join(folder, entry)}, wanted {wanted}, or no such file")


fomo1 = functools.partial(_sessions, folders=(("skull_stripped", "ss_"), ("preprocessed", "")), masks=_MASKS)
fomo3 = functools.partial(_sessions, folders=(("preprocessed_2", "ss_"), ("preprocessed", "")), masks=())


def fomo2(data, wanted, labels, log=None):
    folder = os.path.join(data.root, "preprocessed_2")
    if os.path.isdir(folder):
        return _arrays(data, wanted, labels, folder)
    return _sessions(data, wanted, labels, folders=(("preprocessed", ""),), masks=_MASKS[1:])


def _size(kind, case, mask):
    """The foreground of a case's mask, if there is one and the kind of label depends on it."""
    return foreground_mm3(mask, case) if mask is not None and kind in ("class", "mask") else None


def _target(kind, case, mask, size, masks, texts):
    """The label of a case from its `mask` with `size` mm3 of foreground and the files `texts`, which must agree.

    masks: the paths where it may lie, for errors.
    """
    if kind == "mask":
        if mask is None:
            raise UserError(f"case {case}: no mask, wanted {' or '.join(masks) or _ELSEWHERE}")
        return float(size > 0)
    values = [(stated_number(path, case), path) for path in texts if os.path.exists(path)]
    if kind == "class":
        for value, path in values:
            if value not in (0, 1):
                raise UserError(f"case {case}: {path}: got the label {value:g}, wanted 0 or 1")
        if mask is not None:
            values.append((float(size > 0), mask.path))
    if not values:
        wanted = masks * (kind == "class") + texts
        raise UserError(f"case {case}: no label, wanted {' or '.join(wanted) or _ELSEWHERE}")
    (first, place), *others = values
    for value, path in others:
        if value != first:
            raise UserError(f"case {case}: {place} says {first:g} and {path} says {value:g}; correct one")
    return first


def _warn(data, cases, log):
    """Warn of labels without images."""
    ids, subjects, left = {case.id for case in cases}, {case.subject for case in cases}, set()
    for folder in ("labels", "labels_masked"):
        for subject, sessions in _subjects_below(os.path.join(data.root, folder)):
            left.update(f"{subject}/{session}" for session in sessions if f"{subject}_{session}" not in ids)
            if not sessions and subject not in subjects:
                left.add(subject)
    if left:
        log.warn("labels without images are left out", labels=len(left), example=min(left), cases=len(cases))


def _warn_fomo2(data, cases, log):
    """Warn of arrays that are not as many as the raw sessions; else as of the other layouts."""
    raw = _sessions_below(os.path.join(data.root, "preprocessed"))
    if cases[0].files[0].index is None:
        _warn(data, cases, log)
    elif raw and len(raw) != len(cases):
        said = "preprocessed_2 is taken, and preprocessed has another number of sessions"
        log.warn(said, arrays=len(cases), sessions=len(raw))
    warn_of_beginnings(cases, log)


def _declared(name, function, warn=_warn, **more):
    gives = ("class", "number", "mask", "nothing")
    needs = ("data.root",), f"the folder of the {name} data set, for example data.root=/data/{name}"
    return Source(list=function, gives=gives, needs=needs, geometry=True, warn=warn, **more)


FOMO1 = _declared("fomo1", fomo1)
FOMO2 = _declared("fomo2", fomo2, _warn_fomo2)
FOMO3 = _declared("fomo3", fomo3, number=("age", "years"))
