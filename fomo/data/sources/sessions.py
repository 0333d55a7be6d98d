"""The layouts of the FOMO challenge, both editions: a folder per subject and session. The paths: `sources/__init__.py`.

The root holds them, or the one folder in it that does, as the archives unpack to Task_1/Task_1. Where a root has both
the derived folder and the raw `preprocessed`, the derived one is taken, as the baseline does. It must have all sessions
of the raw one. Arrays are only counted, as their names need not be the sessions'.
"""

import collections
import functools
import os
import re
from dataclasses import replace

from ...config import UserError, listed
from ..cases import Case, Volume, foreground_mm3, stated_number
from ..npy import count_volumes
from .source import Source
from .subjects import warn_of_beginnings

_SESSION = re.compile(r"[_-](ses(sion)?|run)[_-]?[0-9a-z]+([_-].*)?$", re.ASCII | re.IGNORECASE)
_MASKS = ("labels_masked/{}/seg_masked.nii.gz", "labels/{}/seg.nii.gz")  # {}: SUB/SES
_RAW = ("preprocessed", "")  # a folder of scans, and what their names begin with
LABELS = ("label.txt", "labels.txt")  # of the first and the second edition
_FILES = 8  # that an error names
_TASK = re.compile(r"task[_-]?\d+", re.IGNORECASE)  # a folder as the archives of the challenge have it
_ELSEWHERE = "another data.source: this layout has none"


def _sessions(data, wanted, labels, log=None, *, folders, masks):
    """Cases of the layout FOLDER/SUB/SES/PREFIX + channel + .nii.gz, in the first (FOLDER, PREFIX) that exists."""
    found = [(os.path.join(data.root, name), prefix) for name, prefix in folders]
    (base, prefix), *others = [(folder, prefix) for folder, prefix in found if os.path.isdir(folder)]
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
            texts = [os.path.join(data.root, text) for text in _label_files(subject, session)]
            size = _size(wanted, name, mask)
            target = _target(wanted.kind, name, mask, size, paths, texts)
        cases.append(Case(name, subject, images, mask, target, foreground_mm3=size))
    return cases


def root_of(root, folders):
    """The folder that holds one of the `folders`, by name: `root`, or the only one in it that does.

    Raises UserError, which says what is there, where none does, or several: also Task_1 beside Task_1/Task_1, or where
    the root holds one beside a Task_1 that does.
    """
    if not os.path.isdir(root):
        got = "is a file" if os.path.exists(root) else "does not exist"
        raise UserError(f"data.root: {root} {got}, wanted the folder of the data set")

    def holds(place):
        return any(os.path.isdir(os.path.join(place, name)) for name in folders)

    inside = [os.path.join(root, name) for name in _folders(root)]
    own_name = os.path.basename(os.path.abspath(root))
    tops = {os.path.basename(place): place for place in inside}
    doubled = [place for name, place in tops.items() if name == own_name or _TASK.fullmatch(name)]
    found = [place for place in ((root, *doubled) if holds(root) else inside) if holds(place)]
    names = " or ".join(folders)
    if len(found) > 1:
        both = listed(found) if len(found) > 2 else " and in ".join(found)
        raise UserError(f"data.root: got a folder {names} in {both}, wanted one: name it, or move the others away")
    if not found:
        deeper = [os.path.join(place, name) for place in inside for name in _folders(place)]
        _refuse_root(root, names, [place for place in deeper if holds(place)])
    return found[0]


def _refuse_root(root, names, below):
    """Raise UserError for a root without one of the folders `names`; below: deeper places that have one."""
    there = listed(_folders(root)) or "no folders"
    hint = f"; there is one in {below[0]}: give that as data.root" if below else ""
    wanted = f"wanted a folder {names} in it, or in the one folder that it holds (layouts: configs/README.md)"
    raise UserError(f"{root}: no cases found, got {there}, {wanted}{hint}")


def _label_files(subject, session):
    """Where a stated label may be, below the root."""
    return [f"labels/{place}/{name}" for place in (f"{subject}/{session}", subject) for name in LABELS]


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
        size = _size(wanted, id, mask)
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
        missing = f"channel '{text}' is missing, wanted {' or '.join(names[::2])}"
        raise UserError(f"case {case}: {folder}: {missing}; {_what_is_there(folder, names)}")
    if len(there) > 1:
        raise UserError(f"case {case}: channel '{text}' is there twice, {' and '.join(there)}; wanted one of them")
    return Volume(there[0])


def _what_is_there(folder, names):
    """To end an error with: the files of a session's folder, and whether no other session has one of the `names`."""
    files = listed(sorted(entry.name for entry in os.scandir(folder) if entry.is_file()), _FILES) or "no files"
    base = os.path.dirname(os.path.dirname(folder))
    others = (os.path.join(base, *session, name) for session in _sessions_below(base) for name in names)
    hint = "" if any(map(os.path.exists, others)) else ", and no session has it: is it another task's folder?"
    return f"there: {files}{hint}"


def _whose_labels(texts):
    """To end an error with: whose labels there are, where a subject has none; texts: where its label may lie."""
    if not texts:
        return ""
    own = os.path.dirname(texts[-1])  # of the subject
    labels = os.path.dirname(own)
    there = [] if os.path.isdir(own) else _folders(labels)
    return f"; {labels} has the subjects {listed(there)}" if there else ""


def _refuse_lookalikes(folder, beginnings, case):
    """Raise UserError for a file that differs from a channel's in capitals or format alone: it is not missing."""
    for entry in sorted(os.listdir(folder)):
        if entry.lower().startswith(tuple(beginning.lower() for beginning in beginnings)):
            wanted = " or ".join(f"{beginning}nii.gz" for beginning in sorted(beginnings))
            raise UserError(f"case {case}: got {os.path.join(folder, entry)}, wanted {wanted}, or no such file")


def _arrays_or_sessions(data, wanted, labels, log=None, *, folders, masks):
    """As `_sessions`, whose first folder may hold arrays of all channels and the mask instead."""
    (arrays, _), *others = folders
    folder = os.path.join(data.root, arrays)
    if os.path.isdir(folder):
        return _arrays(data, wanted, labels, folder)
    return _sessions(data, wanted, labels, folders=others, masks=masks)


def _size(wanted, case, mask):
    """The foreground of a case's mask, if there is one and the kind of label depends on it."""
    if mask is None or wanted.kind not in ("class", "mask"):
        return None
    return foreground_mm3(mask, case, wanted.classes if wanted.kind == "mask" else None)


def _target(kind, case, mask, size, masks, texts):
    """The label of a case from its `mask` with `size` mm3 of foreground and the files `texts`, which must agree.

    masks: the paths where it may lie, for errors.
    """
    if kind == "mask":
        if mask is None:
            wanted = " or ".join(masks) or _ELSEWHERE
            raise UserError(f"case {case}: no mask, wanted {wanted}{_whose_labels(texts) if masks else ''}")
        return float(size > 0)
    there = [path for path in texts if os.path.exists(path)]
    for path, other in zip(there, there[1:]):
        if os.path.dirname(path) == os.path.dirname(other):
            raise UserError(f"case {case}: got both {path} and {other}, wanted one of them")
    values = [(stated_number(path, case), path) for path in there]
    if kind == "class":
        for value, path in values:
            if value not in (0, 1):
                raise UserError(f"case {case}: {path}: got the label {value:g}, wanted 0 or 1")
        if mask is not None:
            values.append((float(size > 0), mask.path))
    if not values:
        wanted = masks * (kind == "class") + texts
        raise UserError(f"case {case}: no label, wanted {' or '.join(wanted) or _ELSEWHERE}{_whose_labels(texts)}")
    (first, place), *others = values
    for value, path in others:
        if value != first:
            raise UserError(f"case {case}: {place} says {first:g} and {path} says {value:g}; correct one")
    return first


def _found(data, cases):
    """{key: value} for the log: how many files there are of each name, of scans and of labels."""
    images = collections.Counter(
        os.path.basename(image.path).removesuffix(".gz").removesuffix(".nii")
        for case in cases
        for image in case.files
        if image.index is None
    )
    places = [os.path.join("labels", *case.files[0].path.split(os.sep)[-3:-1]) for case in cases]
    places = dict.fromkeys(place for found in places for place in (found, os.path.dirname(found)))
    paths = [(name, os.path.join(data.root, place, name)) for place in places for name in LABELS]
    labels = collections.Counter(name for name, path in paths if os.path.exists(path))
    masks = collections.Counter(os.path.basename(case.mask.path) for case in cases if case.mask is not None)
    counted = {"files": images, "labels": labels + masks}
    return {key: [f"{name}:{count}" for name, count in found.items()] for key, found in counted.items() if found}


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


def _declared(name, folders, masks, function=_sessions, warn=_warn, **more):
    """The Source of a layout. `function` lists it, `warn` and `_found` look at it, from the folder that holds it on."""
    listed, names = functools.partial(function, folders=folders, masks=masks), [folder for folder, _ in folders]

    def below(data):
        return replace(data, root=root_of(data.root, names))

    return Source(
        list=lambda data, *arguments: listed(below(data), *arguments),
        gives=("class", "number", "mask", "nothing"),
        needs=(("data.root",), f"the folder of the {name} data set, for example data.root=/data/{name}"),
        geometry=True,
        warn=lambda data, *arguments: warn(below(data), *arguments),
        found=lambda data, cases: _found(below(data), cases),
        **more,
    )


FOMO1 = _declared("fomo1", (("skull_stripped", "ss_"), _RAW), _MASKS)
FOMO2 = _declared("fomo2", (("preprocessed_2", ""), _RAW), _MASKS[1:], _arrays_or_sessions, _warn_fomo2)
FOMO3 = _declared("fomo3", (("preprocessed_2", "ss_"), _RAW), (), number=("age", "years"))
FOMO4 = _declared("fomo4", (_RAW,), _MASKS[1:])
FOMO5 = _declared("fomo5", (_RAW,), _MASKS[1:])
