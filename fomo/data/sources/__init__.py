"""Sources: where cases come from, each a file with a declaration, and a line in SOURCES.

    fomo1    skull_stripped/SUB/SES/ss_NAME.nii.gz   labels_masked/SUB/SES/seg_masked.nii.gz and/or label.txt
    fomo2    preprocessed_2/*.npy (channels, then the mask)
    fomo3    preprocessed_2/SUB/SES/ss_NAME.nii.gz   label.txt
    fomo1-5  preprocessed/SUB/SES/NAME.nii.gz        labels/SUB/SES/{seg.nii.gz,label.txt} or labels/SUB/label.txt
                                                     (FOMO26: labels.txt); all may lie in one folder more, as Task_1
    table    a CSV with a line per case
    volumes  a folder tree or a list of scans without labels
    slices   a CSV with a line per CT slice, and labels per volume
    phantom  made on first use

A case is one session of one subject. Listing touches names, labels and masks only; images are read when a case is
prepared.
"""

import os
import unicodedata
from dataclasses import replace

import numpy as np

from ...config import UserError
from ..cases import ID_WANTED, Case, Volume, looks_at_files, names_a_file
from ..spreadsheet import lost_zeros, read_rows
from .phantom import PHANTOM
from .sessions import FOMO1, FOMO2, FOMO3, FOMO4, FOMO5
from .slices import SLICES
from .source import Source
from .subjects import check_spellings, warn_of_spellings
from .table import TABLE
from .volumes import VOLUMES

SOURCES = {
    "fomo1": FOMO1,
    "fomo2": FOMO2,
    "fomo3": FOMO3,
    "fomo4": FOMO4,
    "fomo5": FOMO5,
    "table": TABLE,
    "volumes": VOLUMES,
    "slices": SLICES,
    "phantom": PHANTOM,
}


def of(data):
    """The Source that the config's section `data` names."""
    return SOURCES[data.source]


def list_cases(data, wanted, labels=True, log=None):
    """The cases of the source that the config's section `data` names, sorted by id, with the labels that are wanted.

    wanted: cases.Wanted. labels: False for images only, for prediction. log: for warnings, or None.

    Raises UserError for an empty folder, a missing or ambiguous channel, a missing, malformed or contradictory label,
    for ids that are not unique or cannot name a file, and (with labels) for a file in cases of several subjects and for
    subjects that only a computer can tell apart.
    """
    source = of(data)
    cases = source.list(data, wanted, labels, log)
    if not cases:
        place = data.csv or data.root or f"data.source={data.source}"
        raise UserError(f"{place}: no cases found, wanted the {data.source} layout (layouts: configs/README.md)")
    _check_cases(data.source, cases)
    _check_ids(cases)
    if labels:
        check_spellings(cases)
        _check_files(data, cases, log)
    if data.groups is not None:
        groups = _read_groups(data.groups)
        for case in cases:
            if case.subject not in groups:
                hint = lost_zeros([case.subject], groups)
                got = f"{data.groups}: no line for subject '{case.subject}'"
                raise UserError(f"{got}, wanted every subject's group{hint}")
        cases = [replace(case, group=groups[case.subject]) for case in cases]
    if labels and data.shuffle_labels:
        cases = _dealt(cases, data.shuffle_labels)
    if log is not None:
        if data.root is not None and not source.reads_root:
            said = f"data.root is not used: with data.source={data.source} paths start from the table's folder"
            log.warn(said, root=data.root)
        source.warn(data, cases, log)
        warn_of_spellings(cases, log)
    return sorted(cases, key=lambda case: case.id)


def prepare(cases, data, wanted, log=None, workers=None):
    """The Prepared cases of `cases`, in their order; what has been prepared before is not done again.

    workers: processes (0: this one; None: data.prepare_workers). log: for progress and warnings.
    """
    return of(data).prepare(cases, data, wanted, log, workers)


def _dealt(cases, seed):
    """The cases with the labels of others: all of a subject have that of the first case of another one, drawn."""
    first = {}
    for case in sorted(cases, key=lambda case: case.id):
        first.setdefault(case.subject, case)
    givers = [first[subject] for subject in sorted(first)]
    drawn = dict(zip(sorted(first), np.random.default_rng(seed).permutation(len(givers)).tolist()))
    labels = {subject: givers[place] for subject, place in drawn.items()}
    return [
        replace(case, target=labels[case.subject].target, labels=labels[case.subject].labels, mask=None, masks=())
        for case in cases
    ]


def _check_cases(source, cases):
    for case in cases:
        fits = isinstance(case, Case) and all(isinstance(text, str) for text in (case.id, case.subject))
        fits = fits and isinstance(case.images, tuple) and all(isinstance(one, Volume | None) for one in case.images)
        if not fits or not case.files or not isinstance(case.target, float | int | tuple | None):
            raise TypeError(f"data.source={source}: listed {case!r}, wanted a Case as fomo/data/cases.py says")


def _check_ids(cases):
    """Refuse ids that cannot name a file, or that some systems make one file: equal but for capitals, or to the eye."""
    seen = {}
    for case in cases:
        if not names_a_file(case.id):
            wanted = f"wanted {ID_WANTED}; rename the file or folder"
            raise UserError(f"{case.files[0].path!r}: got the id {case.id!r}, {wanted}")
        first = seen.setdefault(unicodedata.normalize("NFC", case.id).lower(), case)
        if first is not case:
            ids = f"ids '{first.id}' and '{case.id}', which differ only in capitals or accents' codes"
            both = f"id '{case.id}'" if first.id == case.id else ids
            places = f"{first.files[0].path} and {case.files[0].path}"
            raise UserError(f"two cases have the {both}: {places}; rename one")


def _check_files(data, cases, log):
    """Refuse a file in cases of several subjects, of which folds would train and test on it, and one twice in a case.

    A mask without foreground says nothing of a subject, and may be shared. A scan that is twice one subject's is warned
    of: it would count twice.
    """
    look, first, doubled = looks_at_files(data, len(cases)), {}, []  # look: also where links lead
    for case in cases:
        own = {}
        for volume in (*case.files, *(masks := _shown(case))):
            kind = "mask" if volume in masks else "image"
            key = (_file(volume.path) if look else volume.path, volume.index)
            if (same := own.setdefault(key, volume)) is not volume:
                where = _where(same.path, volume.path)
                raise UserError(f"case {case.id}: got {where} twice, wanted a file for each channel and each mask")
            other, path, its_kind = first.setdefault(key, (case, volume.path, kind))
            if other.subject != case.subject:
                both = " and ".join(f"case {one.id} of subject '{one.subject}'" for one in (other, case))
                same = f"the same {kind}" if kind == its_kind else "the same file"
                wanted = "every file in one subject's cases: correct it, or give both the same subject"
                raise UserError(f"{both} have {same}: got {_where(path, volume.path)}, wanted {wanted}")
            if other is not case:
                doubled.append((other, case))
    if doubled and log:
        ids = [case.id for case in doubled[0]]
        log.warn("cases of one subject have the same file: it counts several times", cases=len(doubled), example=ids)


def _shown(case):
    """The masks of a case that have foreground."""
    labels = case.target if case.masks else (case.target,)
    return [mask for mask, label in zip(case.findings, labels) if mask is not None and label]


def _file(path):
    """What tells a file from others, wherever a link, also a hard one, stands for it; the path if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    # size and time: some network file systems give a number again
    return (
        (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if status.st_ino else os.path.realpath(path)
    )


def _where(path, other):
    return path if path == other else f"{path} and {other}, which are one file"


def _read_groups(path):
    """{subject: group} from a CSV with these two columns (and any others)."""
    groups = {}
    for line, cells in read_rows(path, {f"data.groups, {name}": name for name in ("subject", "group")}, "data.groups"):
        subject, group = cells["subject"], cells["group"]
        if not subject or not group:
            raise UserError(f"{path}: line {line}: got subject '{subject[:80]}', group '{group[:80]}', wanted both")
        if groups.setdefault(subject, group) != group:
            got = f"got groups '{groups[subject][:80]}' and '{group[:80]}' for subject '{subject[:80]}'"
            raise UserError(f"{path}: line {line}: {got}")
    return groups
