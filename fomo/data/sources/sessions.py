"""The layouts of the FOMO challenge: a folder per subject and session; see `list_cases` for the paths.

Where a root has both the derived folder and the raw `preprocessed`, the derived one is taken, as the baseline does; it
must have all sessions that the raw one has (an error; for arrays a warning, as their names need not be the sessions').
"""

import os
import re

from ...config import UserError
from .. import spreadsheet
from ..cases import Case, Volume, any_foreground
from ..npy import count_volumes
from .source import Source
from .subjects import warn_of_beginnings

_SESSION = re.compile(r"[_-](ses(sion)?|run)[_-]?[0-9a-z]+([_-].*)?$", re.ASCII | re.IGNORECASE)
_ELSEWHERE = "another data.source: this layout has none"


def fomo1(data, wanted, labels, log=None):
    folders = (("skull_stripped", "ss_"), ("preprocessed", ""))
    return _sessions(data, wanted, labels, folders, ("labels_masked/{}/seg_masked.nii.gz", "labels/{}/seg.nii.gz"))


def fomo2(data, wanted, labels, log=None):
    folder = os.path.join(data.root, "preprocessed_2")
    if os.path.isdir(folder):
        return _arrays(data, wanted, labels, folder)
    return _sessions(data, wanted, labels, (("preprocessed", ""),), ("labels/{}/seg.nii.gz",))


def fomo3(data, wanted, labels, log=None):
    return _sessions(data, wanted, labels, (("preprocessed_2", "ss_"), ("preprocessed", "")), ())


def _sessions(data, wanted, labels, folders, masks):
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
    cases, labels = [], labels and not wanted.pretraining
    for subject, session in chosen:
        name = f"{subject}_{session}"
        images = tuple(_channel(os.path.join(base, subject, session), prefix, text, name) for text in data.channels)
        mask, target = None, None
        if labels:
            paths = [os.path.join(data.root, pattern.format(f"{subject}/{session}")) for pattern in masks]
            mask = next((Volume(path) for path in paths if os.path.exists(path)), None)
            texts = [f"labels/{subject}/{session}/label.txt", f"labels/{subject}/label.txt"]
            texts = [os.path.join(data.root, text) for text in texts]
            target = _target(wanted.kind, name, mask, [text for text in texts if os.path.exists(text)], paths + texts)
        cases.append(Case(name, subject, images, mask, target, None))
    return cases


def _subjects_below(base):
    """[(subject, [sessions])], sorted; [] where there is no such folder."""
    return [(subject, _folders(os.path.join(base, subject))) for subject in _folders(base)]


def _sessions_below(base):
    """[(subject, session)], sorted."""
    return [(subject, session) for subject, sessions in _subjects_below(base) for session in sessions]


def _arrays(data, wanted, labels, folder):
    """Cases of a folder of .npy files, each with the channels and then the mask; subject: the name without session."""
    cases, labels = [], labels and not wanted.pretraining
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not name.endswith(".npy"):
            continue
        path = os.path.join(folder, name)
        id = name.removesuffix(".npy")
        count, all_of_them = count_volumes(path), len(data.channels) + 1
        if count != all_of_them and (labels or count != all_of_them - 1):
            raise UserError(
                f"case {id}: {path}: got {count} volumes, wanted {all_of_them} (data.channels, then the mask)"
            )
        mask = Volume(path, count - 1) if labels else None
        target = _target(wanted.kind, id, mask, [], [path]) if labels else None
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
    if kind == "mask":
        if mask is None:
            wanted = [place for place in places if not place.endswith(".txt")]
            raise UserError(f"case {case}: no mask, wanted {' or '.join(wanted) or _ELSEWHERE}")
        return float(any_foreground(mask, case))
    values = [(_number(path, case), path) for path in texts]
    if kind == "class":
        for value, path in values:
            if value not in (0, 1):
                raise UserError(f"case {case}: {path}: got the label {value:g}, wanted 0 or 1")
        if mask is not None:
            values.append((float(any_foreground(mask, case)), mask.path))
    if not values:
        wanted = [place for place in places if kind == "class" or place.endswith(".txt")]
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


def _warn(data, cases, log):
    _warn_of_the_rest(data.root, cases, log)


def _warn_fomo2(data, cases, log):
    _warn(data, cases, log)
    warn_of_beginnings(cases, log)


def _declared(name, function, warn=_warn):
    return Source(
        list=function,
        gives=("class", "number", "mask", "nothing"),
        needs=(("data.root",), f"the folder of the {name} data set, for example data.root=/data/{name}"),
        geometry=True,
        keys=(),
        warn=warn,
    )


FOMO1 = _declared("fomo1", fomo1)
FOMO2 = _declared("fomo2", fomo2, _warn_fomo2)
FOMO3 = _declared("fomo3", fomo3)
