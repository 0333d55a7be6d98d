"""The files that an evaluation scores: what the places of the predictions and of the references hold, and whose it is."""

import os
import re
from typing import NamedTuple

import numpy as np

from .. import config, tasks
from ..config import UserError
from ..data import spreadsheet
from ..data.cases import Volume, any_foreground, rounded
from ..runtime import files
from ..space import volume

_SUFFIXES = (".nii.gz", ".nii")
_TABLES = ("predictions_volumes.csv", "predictions.csv")  # of tools/predict.py and of runs, the first that is there
_SEGMENTATIONS = ("seg.nii.gz", "seg_masked.nii.gz")  # of the layouts: what may stand for a label


class Columns(NamedTuple):
    """How the table of references calls its columns; None: as it is usual, see `evaluate`."""

    target: str | None = None
    id: str | None = None
    subject: str | None = None


class Learned(NamedTuple):
    """What is known of the networks that made the predictions."""

    targets: tuple[str, ...] = ()  # columns of their training table
    classes: int | None = None  # how many their masks tell apart
    class_names: tuple = ()  # of class 0 and class 1, or of each of several targets
    untested: frozenset = frozenset()  # cases of a run that are in the test part of none of its folds


def learned_by(place):
    """The Learned of a folder of tools/predict.py, or of one of its tables, or of a run folder; of others nothing is known."""
    folder = os.path.dirname(os.path.abspath(place)) if os.path.basename(place) in _TABLES else place
    if _is_run(folder):
        loaded = config.load(os.path.join(folder, "config.yaml"))
        splits, two = (
            files.read_json(os.path.join(folder, "splits.json"), "cases", "folds"),
            tasks.kind(loaded) is tasks.Classification,
        )
        classes = loaded.task.classes if loaded.task.type == "segmentation" else None
        names = tuple(tasks.coverage.class_names(splits["cases"])) if two else ()
        untested = frozenset(splits["cases"]).difference(*(fold["test"] for fold in splits["folds"]))
        return Learned(loaded.task.targets, classes, names, untested)
    path = os.path.join(folder, "settings.json")
    try:
        said = files.read_json(path) if os.path.exists(path) else {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return Learned(tuple(said.get("targets", ())), said.get("classes"), tuple(said.get("class_names", ())))


def _is_run(place):
    return all(os.path.exists(os.path.join(place, name)) for name in ("config.yaml", "splits.json"))


def check_same_cases(found, wanted, found_place, wanted_place, learned):
    """UserError unless the references `wanted` have all cases `found`, and no more than a run has not tested on."""
    missing, extra = sorted(set(wanted) - set(found) - learned.untested), sorted(set(found) - set(wanted))
    if missing:
        raise UserError(f"{found_place}: {len(missing)} cases of {wanted_place} are missing: {', '.join(missing[:5])}")
    if extra:
        raise UserError(f"{found_place}: {len(extra)} cases are not in {wanted_place}: {', '.join(extra[:5])}")


# --------------------------------------------------------------------------------------------- masks


class _File(NamedTuple):
    path: str
    subject: str | None  # the folder SUB, where there is one


def predicted_masks(place):
    """masks_in(place), or of a run folder those of all its folds."""
    if not _is_run(place):
        return masks_in(place)
    found = {}
    for name in sorted(name for name in os.listdir(place) if re.fullmatch(r"fold_\d+", name)):
        of_fold = masks_in(os.path.join(place, name, "masks"))
        twice = sorted(found.keys() & of_fold)
        if twice:
            raise UserError(
                f"{place}: two masks of the case {twice[0]}: {found[twice[0]].path} and {of_fold[twice[0]].path}"
            )
        found.update(of_fold)
    return found


def masks_in(place):
    return _files(place, lambda name: name.endswith(_SUFFIXES))


def _files(place, wanted):
    """{case id: _File} of place/ID.nii.gz, or place/SUB/SES/NAME, where wanted(NAME).

    Of predictions those in `masks`; of a data set those in `labels`, and instead of them in `labels_masked`, as in training.
    """
    inside = [os.path.join(place, name) for name in ("labels", "labels_masked", "masks")]
    inside, found = [folder for folder in inside if os.path.isdir(folder)], {}
    for top in inside or [place]:
        below = {}
        for folder, names in _walk(top):
            parts = [] if folder == top else os.path.relpath(folder, top).split(os.sep)
            for name in filter(wanted, names):
                id = "_".join(parts) if parts else name.removesuffix(".gz").removesuffix(".nii")
                if id in below:
                    raise UserError(
                        f"{top}: two files for the case {id}: {below[id].path} and {os.path.join(folder, name)}"
                    )
                below[id] = _File(os.path.join(folder, name), parts[0] if parts else None)
        found.update(below)
    return found


def _walk(folder, above=()):
    """Yield (folder, sorted names of its files) of a tree. Hidden entries are left out, links followed, as in training.

    above: real paths of the folders that `folder` lies in; a link back to one of them is not followed.
    """
    real = os.path.realpath(folder)
    if not os.path.isdir(folder) or real in above:
        return
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    yield folder, [name for name in names if name not in folders]
    for name in folders:
        yield from _walk(os.path.join(folder, name), (*above, real))


def subjects_of_files(files):
    return {id: file.subject for id, file in files.items()}


def read_pair(id, prediction_path, reference_path):
    """(prediction, reference, spacing_mm) as uint8 label maps on one grid."""
    arrays = []
    for path in (prediction_path, reference_path):
        try:
            array, affine = volume.read_nifti(path)
        except ValueError as error:
            raise UserError(f"case {id}: {error}") from error
        array = rounded(array)  # as in training
        if array.min() < 0 or array.max() > 255 or not np.array_equal(array, np.round(array)):
            raise UserError(f"case {id}: {path}: got values that are no classes, wanted whole numbers from 0 to 255")
        arrays.append((array.astype(np.uint8), affine))
    (prediction, affine), (reference, wanted) = arrays
    reference, wanted = volume.to_axes_of(affine, reference, wanted)  # as it may be stored flipped
    if prediction.shape != reference.shape:
        raise UserError(
            f"case {id}: {prediction_path} has shape {prediction.shape} and {reference_path} {reference.shape}, wanted equal ones"
        )
    distance = volume.grid_distance(reference.shape, affine, wanted)
    if distance > 0.1 * min(volume.spacing(wanted)):
        raise UserError(
            f"case {id}: {prediction_path} lies up to {distance:.3g} mm off {reference_path}, wanted the same affine"
        )
    return prediction, reference, volume.spacing(wanted)


# -------------------------------------------------------------------------------------------- tables


def table_of(place):
    """The CSV `place`, or place/predictions_volumes.csv or else place/predictions.csv, see read_table; None without one."""
    paths = [os.path.join(place, name) for name in _TABLES] if os.path.isdir(place) else [place]
    path = next(filter(os.path.isfile, paths), None)
    return path and read_table(path, ("id",))


def read_table(path, keys, name=str, flag=None):
    """{name(id): {column: text}} of a CSV, with the ids in the first of the columns `keys` that is there; each once.

    flag: the option that names another column of ids.
    """
    rows, found, lines = spreadsheet.read_rows(path, {}, "table"), {}, {}
    key = next((key for key in keys if key in rows[0].cells), None)
    if key is None:
        wanted = " or ".join(keys) + (f" ({flag})" if flag else "")
        raise UserError(
            f"{path}: got the columns {', '.join(rows[0].cells)[:500]}, wanted {wanted} and a line per case"
        )
    for line, cells in rows:
        id = name(cells[key])
        if lines.setdefault(id, line) != line:
            raise UserError(f"{path}: line {line}: got the case {id} as in line {lines[id]}, wanted each once")
        found[id] = cells
    return found


def columns_of(table):
    return list(next(iter(table.values())))


def subjects_of(table, path=None, column=None):
    """{case id: subject or None} by the column `subject`, or by the `column` that the table at `path` must have."""
    if column is not None and column not in columns_of(table):
        raise UserError(
            f"{path}: got the columns {', '.join(columns_of(table))[:500]}, wanted {column} (--subject-column)"
        )
    return {id: cells.get(column or "subject") for id, cells in table.items()}


def number(text, path, id, undefined=False):
    """undefined: NaN, or a blank, is a value."""
    if undefined and text.lower() in ("", "nan"):
        return float("nan")
    value = spreadsheet.number(text)
    if value is None:
        raise UserError(f"{path}: case {id}: got {text[:80]!r}, wanted a number")
    return value


def zero_or_one(text, path, id):
    value = number(text, path, id)
    if value not in (0, 1):
        raise UserError(f"{path}: case {id}: got {value:g}, wanted 0 or 1")
    return int(value)


# ------------------------------------------------------------------------------------------- targets


def targets_of(place, ids, columns, learned, classes, log):
    """({case id: number}, {case id: subject}) of a CSV, or of a folder's label.txt files and, of `classes`, masks."""
    if os.path.isdir(place):
        stated = _stated(place, ids, masks=classes)
        if stated:
            return {id: value for id, (value, _) in stated.items()}, {
                id: file.subject for id, (_, file) in stated.items()
            }
        place = os.path.join(place, "targets.csv")
    table = read_table(place, (columns.id or "id",), flag="--id-column")
    column = _target_column(place, columns_of(table), columns.target, learned.targets, log)
    texts = {id: cells[column] for id, cells in table.items()}
    if classes:
        targets = {id: _class_number(text, learned.class_names, place, id) for id, text in texts.items()}
    else:
        targets = {id: number(text, place, id) for id, text in texts.items()}
    return targets, subjects_of(table, place, columns.subject)


def _target_column(path, there, asked, learned, log):
    """The column of the targets: the one `asked` for, or that the networks `learned`, or `target`, or a guess; logged.

    there: the columns of the table at `path`. Where it has nothing to go by, or more than one guess, that is a UserError.
    """
    if asked is not None:
        chosen = [asked]
    elif any(name in there for name in learned):
        chosen = learned
    else:  # age: of networks that learned from files of labels, whose targets have no name
        chosen = ("target", "label") if learned else ("target", "label", "age")
    found = [name for name in chosen if name in there]
    if len(found) > 1:
        raise UserError(
            f"{path}: got the columns {' and '.join(found)}, wanted one of them: name it, as --column {found[0]}"
        )
    if not found:
        wanted = (
            f"{asked} (--column)"
            if asked
            else f"{' or '.join((*learned, 'target'))}, or the name of the targets' as --column NAME"
        )
        raise UserError(f"{path}: got the columns {', '.join(there)[:500]}, wanted {wanted}")
    if found[0] in (asked, "target", *learned):
        log("evaluate", references=path, column=found[0])
    else:
        log.warn("the targets' column was guessed by its name: give it as --column", references=path, column=found[0])
    return found[0]


def _class_number(text, names, path, id):
    """The number of a class that a table gives by its name, one of `names` in the network's order, or as 0 or 1."""
    called = text.replace(" ", "_")  # as in checkpoints
    if called in names:
        return float(names.index(called))
    numbered = all(
        name in ("0", "1") or spreadsheet.number(name) is None for name in names
    )  # else a 1 might be the name of class 0
    if numbered and spreadsheet.number(text) is not None:
        return number(text, path, id)
    unnamed = "a number: names of classes are known where settings.json of tools/predict.py lies beside the predictions"
    wanted = f"one of the classes {', '.join(names)}" if names else unnamed
    raise UserError(f"{path}: case {id}: got {text[:80]!r}, wanted {wanted}")


def _stated(place, ids, masks):
    """{case id: (number, _File)} of the label.txt files and masks below `place`, which must agree; ids: of the predictions."""
    found, subjects = {}, _subject_folders(place)

    def state(id, value, file):
        first = found.setdefault(id, (value, file))
        if first[0] != value:
            raise UserError(f"case {id}: {first[1].path} says {first[0]:g} and {file.path} says {value:g}; correct one")

    for name, file in _files(place, lambda name: name == "label.txt").items():
        try:
            with open(file.path, encoding="utf-8-sig") as opened:
                value = number(opened.read().strip(), file.path, name)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the label {file.path}: {error}") from error
        sessions = [id for id in ids if id == name or (name == file.subject and _subject_of(id, subjects) == name)]
        for id in sessions or [name]:
            state(id, value, file)
    for id, file in _files(place, _SEGMENTATIONS.__contains__).items() if masks else ():
        state(id, float(any_foreground(Volume(file.path), id)), file)
    return found


def _subject_folders(place):
    """Names of the folders SUB of a data set, or of a folder of labels."""
    inside = [
        os.path.join(place, name)
        for name in ("labels", "labels_masked", "preprocessed", "preprocessed_2", "skull_stripped")
    ]
    tops = [folder for folder in inside if os.path.isdir(folder)] or [place]
    return {name for top in tops for name in os.listdir(top) if os.path.isdir(os.path.join(top, name))}


def _subject_of(id, subjects):
    """Whose session the case SUB_SES is: the longest of the `subjects` that it begins with, or None.

    Where more stands before a session's number, as in sub_1_2_ses_1, sub_1 is another one.
    """
    found = max((subject for subject in subjects if id.startswith(f"{subject}_")), key=len, default=None)
    if found is not None and re.match(
        r"_(?!ses).+[_-]ses(sion)?[_-]?[0-9a-z]+", id[len(found) :], re.ASCII | re.IGNORECASE
    ):
        return None
    return found
