"""The target of each case, one number or class: from a table, or from a folder's files of labels and masks."""

import os
import re

from ..config import UserError
from ..data import spreadsheet
from ..data.cases import Volume, foreground_mm3, stated_number
from ..data.sources.sessions import LABELS
from . import places

_SEGMENTATIONS = ("seg.nii.gz", "seg_masked.nii.gz")  # of the layouts: what may stand for a label


def targets_of(ids, request, classes):
    """({case id: number}, {case id: subject or None}) of the references; ids: of the predictions.

    classes: whether they are classes, which a table may call by their names, and which masks may stand for.
    """
    path, columns = request.references, request.columns
    if os.path.isdir(path):
        stated = _stated(path, ids, masks=classes)
        if stated:
            subjects = {id: file.subject for id, (_, file) in stated.items()}
            return {id: value for id, (value, _) in stated.items()}, subjects
        path = os.path.join(path, "targets.csv")
    table = places.Table(path, (columns.id or "id",), flag="--id-column")
    column = _target_column(table, columns.target, request.known.targets, request.log)
    names, targets = request.known.class_names, {}
    for id, cells in table.cells.items():
        targets[id] = _class_number(cells[column], names, path, id) if classes else table.number(id, column)
    return targets, table.subjects(columns.subject)


def _target_column(table, asked, learned, log):
    """The column of the targets: the one `asked` for, or which the networks `learned`, or `target`, or a guess."""
    # age: of networks that learned from files of labels, whose targets have no name
    usual = ("target", "label") if learned else ("target", "label", "age")
    named, usual = (learned, usual) if asked is None else ((asked,), ())
    found = [name for name in named if name in table.columns] or [name for name in usual if name in table.columns]
    if len(found) > 1:
        advice = f"name it, as --column {found[0]}"
        raise UserError(f"{table.place}: got the columns {' and '.join(found)}, wanted one of them: {advice}")
    if not found:
        other = f"{' or '.join((*learned, 'target'))}, or the name of the targets' as --column NAME"
        table.refuse(f"wanted {f'{asked} (--column)' if asked else other}")
    if found[0] in (asked, "target", *learned):
        log("evaluate", references=table.place, column=found[0])
    else:
        said = "the targets' column was guessed by its name: give it as --column"
        log.warn(said, references=table.place, column=found[0])
    return found[0]


def _class_number(text, names, path, id):
    """The number of a class that a table gives by its name, one of `names` in the network's order, or as 0 or 1."""
    called = text.replace(" ", "_")  # as in checkpoints
    if called in names:
        return float(names.index(called))
    number = spreadsheet.number(text)
    if number is not None and all(name in ("0", "1") or spreadsheet.number(name) is None for name in names):
        return number  # it is no name, as 1 may be that of class 0
    unnamed = "a number: names of classes are known where settings.json of tools/predict.py lies beside the predictions"
    wanted = f"one of the classes {', '.join(names)}" if names else unnamed
    raise UserError(f"{path}: case {id}: got {text[:80]!r}, wanted {wanted}")


def _stated(place, ids, masks):
    """{case id: (number, File)} of the files of labels and masks below `place`, which must agree; ids: as above."""
    tops = places.folders_in(place, ("labels", "labels_masked", "preprocessed", "preprocessed_2", "skull_stripped"))
    subjects = {name for top in tops for name in os.listdir(top) if os.path.isdir(os.path.join(top, name))}
    found = {}

    def state(id, value, file):
        first = found.setdefault(id, (value, file))
        if first[0] != value:
            raise UserError(f"case {id}: {first[1].path} says {first[0]:g} and {file.path} says {value:g}; correct one")

    for name, file in places.files_in(place, LABELS.__contains__).items():
        value = stated_number(file.path, name)
        sessions = [id for id in ids if id == name or (name == file.subject and _subject_of(id, subjects) == name)]
        for id in sessions or [name]:
            state(id, value, file)
    for id, file in places.files_in(place, _SEGMENTATIONS.__contains__).items() if masks else ():
        state(id, float(foreground_mm3(Volume(file.path), id) > 0), file)
    return found


def _subject_of(id, subjects):
    """Whose session the case SUB_SES is: the longest of the `subjects` that it begins with, or None."""
    found = max((subject for subject in subjects if id.startswith(f"{subject}_")), key=len, default=None)
    other = r"_(?!ses).+[_-]ses(sion)?[_-]?[0-9a-z]+"  # the rest of sub_1_2_ses_1, which is not of sub_1
    is_other = found is not None and re.match(other, id[len(found) :], re.ASCII | re.IGNORECASE)
    return None if is_other else found
