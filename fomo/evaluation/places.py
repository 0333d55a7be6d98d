"""What an evaluation reads: files by case, tables, whose the cases are, and what is known of the networks."""

import copy
import os
from typing import NamedTuple

from .. import tasks
from ..config import UserError, as_user_error, listed
from ..data import spreadsheet
from ..run_folder import TABLES, RunFolder
from ..runtime import files
from ..runtime.log import Log

_TABLES = (TABLES["scans"], TABLES["rows"])  # of a folder of predictions and of a run; the first that is there counts
_SETTINGS = "settings.json"  # of a folder of predictions


class Columns(NamedTuple):
    """How the table of references calls its columns; None: as usual, see `evaluate`."""

    target: str | None = None
    id: str | None = None
    subject: str | None = None


class Known(NamedTuple):
    """What is known of the networks that made the predictions."""

    task: str | None = None  # task.type
    targets: tuple[str, ...] = ()  # columns of their training table
    classes: int | None = None  # how many their masks tell apart
    class_names: tuple = ()  # of class 0 and class 1, or of each of several targets; of masks of the classes above 0
    untested: frozenset = frozenset()  # cases of a run that are in the test part of none of its folds
    parts: dict = {}  # of several tasks on one encoder: {name: the Known of each}

    @property
    def reads(self):
        """The kind of label that the task learns from, see `data.cases.Wanted`; None: unknown, or it pretrains."""
        task = tasks.TASKS.get(self.task)
        return task.reads if task and not task.pretrains else None

    def task_for(self, kind):
        """The task, if it learns from this kind of label, or else the first that does."""
        fit = (name for name, task in tasks.TASKS.items() if task.reads == kind and not task.pretrains)
        return self.task if self.reads == kind else next(fit)


class Request(NamedTuple):
    """What is asked: the two places, and how they are read and scored."""

    predictions: str
    references: str
    columns: Columns
    known: Known
    tolerance_mm: float
    resamples: int
    log: Log
    challenge: str | None = None  # whose metrics masks have besides, of `masks.CHALLENGES`

    def check_same_cases(self, found, wanted):
        """UserError unless the references `wanted` have all cases `found`, and no more than a run has not tested on."""
        missing, extra = set(wanted) - set(found) - self.known.untested, set(found) - set(wanted)
        for ids, text in ((missing, "of {} are missing"), (extra, "are not in {}")):
            if ids:
                said = f"{len(ids)} cases {text.format(self.references)}: {listed(sorted(ids))}"
                hint = spreadsheet.lost_zeros(sorted(ids), wanted if ids is extra else found)
                raise UserError(f"{self.predictions}: {said}{hint}")

    def begin_rows(self, ids, of_predictions, of_references, *others):
        """[{id, subject}] of `ids`, with the subjects of the first {id: subject} that knows all.

        The predictions' come first, unless the references' column was named. Without one, each case is a subject, and
        there is a warning.
        """
        known = [of_references, of_predictions] if self.columns.subject else [of_predictions, of_references]
        subject_of = next((one for one in (*known, *others) if all(map(one.get, ids))), None)
        if subject_of is None and self.resamples:
            why = "no column `subject` (--subject-column), no folders SUB/SES say whose they are"
            self.log.warn(f"intervals are over cases, which are too narrow where a subject has several: {why}")
        return [{"id": id, "subject": subject_of[id] if subject_of else id} for id in ids]


class File(NamedTuple):
    path: str
    subject: str | None  # the folder SUB, where there is one


def known_of(place):
    """The Known of a run folder or a folder of predictions, or of one of its tables; elsewhere nothing is known."""
    folder = os.path.dirname(os.path.abspath(place)) if os.path.basename(place) in _TABLES else place
    run = RunFolder(folder)
    if run.is_run:
        config, recorded = run.config(), run.recorded()
        kind, section, cases = tasks.kind(config), config.task, recorded["cases"]
        untested = frozenset(cases).difference(*(fold["test"] for fold in recorded["folds"]))
        parts = getattr(tasks.build(config), "parts", ())
        known = {part.name: _learned(part.section, part.kind, part.recorded(cases), untested) for part in parts}
        return _learned(section, kind, cases, untested)._replace(parts=known)
    path = os.path.join(folder, _SETTINGS)
    with as_user_error(f"cannot read {path}", OSError):
        said = files.read_json(path) if os.path.exists(path) else {}
    task, targets, names = (said.get(name) for name in ("task", "targets", "class_names"))
    if task not in (None, *tasks.TASKS):
        raise UserError(f"{path}: task: got {task!r}, wanted one of {', '.join(tasks.TASKS)}")
    parts = {name: _of_part(one) for name, one in said.get("parts", {}).items()}
    return Known(task, tuple(targets or ()), said.get("classes"), tuple(names or ()), parts=parts)


def _learned(section, kind, cases, untested):
    """The Known of a run. section: its `task`; kind: the class of the task; cases: those in splits.json."""
    classes = section.classes if kind.reads == "mask" else None
    names = section.class_names if kind.reads == "mask" else kind.class_names(cases)
    return Known(section.type, section.targets, classes, tuple(names), untested)


def _of_part(said):
    return Known(said["task"], tuple(said["targets"]), said.get("classes"), tuple(said.get("class_names") or ()))


def masks_of(place):
    """{case id: File} of the predicted masks in a folder, or in all folds of a run folder."""
    run, found = RunFolder(place), {}
    # predictions have their masks in a folder of that name, and beside it what is no mask, such as probabilities
    predicted = os.path.isfile(os.path.join(place, _SETTINGS))
    one = os.path.join(place, "masks") if predicted else place
    for folder in [fold.masks for fold in run.folds()] if run.is_run else [one]:
        new = masks_in(folder)
        for id in sorted(found.keys() & new):
            raise UserError(f"{place}: two masks of the case {id}: {found[id].path} and {new[id].path}")
        found.update(new)
    return found


def masks_in(place):
    return files_in(place, lambda name: name.endswith((".nii.gz", ".nii")))


def files_in(place, wanted):
    """{case id: File} of place/ID.nii.gz, or place/SUB/SES/NAME, where wanted(NAME).

    Of predictions those in `masks`; of a data set those in `labels`, or rather in `labels_masked`, as in training.
    """
    found = {}
    for top in folders_in(place, ("labels", "labels_masked", "masks")):
        below = {}
        for folder, names in _walk(top):
            parts = [] if folder == top else os.path.relpath(folder, top).split(os.sep)
            for name in filter(wanted, names):
                path = os.path.join(folder, name)
                id = "_".join(parts) if parts else name.removesuffix(".gz").removesuffix(".nii")
                if id in below:
                    raise UserError(f"{top}: two files for the case {id}: {below[id].path} and {path}")
                below[id] = File(path, parts[0] if parts else None)
        found.update(below)
    return found


def folders_in(place, names):
    """The folders place/NAME that are there, or those of the only folder in it that has some, or the place itself."""

    def there(folder):
        return [path for path in (os.path.join(folder, name) for name in names) if os.path.isdir(path)]

    below = [] if there(place) or not os.path.isdir(place) else sorted(os.listdir(place))
    deeper = [found for found in map(there, (os.path.join(place, name) for name in below)) if found]  # Task_1/Task_1
    return there(place) or (deeper[0] if len(deeper) == 1 else [place])


def _walk(folder, above=()):
    """Yield (folder, sorted names of its files) of a tree, as in training; above: the real paths it lies in."""
    real = os.path.realpath(folder)
    if not os.path.isdir(folder) or real in above:  # a link back
        return
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    folders = {name: os.path.isdir(os.path.join(folder, name)) for name in names}
    yield folder, [name for name in names if not folders[name]]
    for name in filter(folders.get, names):
        yield from _walk(os.path.join(folder, name), (*above, real))


class Table:
    """A CSV with a line per case; `place` stands for it in errors, `columns` and `cells` {id: ...} are its content."""

    def __init__(self, path, keys, name=str, flag=None, place=None):
        """The ids are in the first of the columns `keys` that is there, each name(id) once; flag: names another one."""
        rows, lines = spreadsheet.read_rows(path, {}, "table"), {}
        self.place, self.columns, self.cells = path, list(rows[0].cells), {}
        key = next((key for key in keys if key in self.columns), None)
        if key is None:
            self.refuse(f"wanted {' or '.join(keys)}{f' ({flag})' if flag else ''} and a line per case")
        for line, cells in rows:
            id = name(cells[key])
            if lines.setdefault(id, line) != line:
                raise UserError(f"{path}: line {line}: got the case {id} as in line {lines[id]}, wanted each once")
            self.cells[id] = cells
        self.place = place or path

    def of_part(self, name):
        """The columns of one of several tasks, called as if it were alone, behind id, subject and fold."""
        begin, table = f"{name}_", copy.copy(self)

        def own(column):
            return column in ("id", "subject", "fold", "missing") or column.startswith(begin)

        table.columns = [column.removeprefix(begin) for column in self.columns if own(column)]
        table.cells = {
            id: {column.removeprefix(begin): text for column, text in cells.items() if own(column)}
            for id, cells in self.cells.items()
        }
        return table

    def refuse(self, wanted):
        """UserError about its columns; wanted: what they should be."""
        raise UserError(f"{self.place}: got the columns {', '.join(self.columns)[:500]}, {wanted}")

    def subjects(self, column=None):
        """{id: subject or None} by the column `subject`, or by the one that --subject-column names."""
        if column is not None and column not in self.columns:
            self.refuse(f"wanted {column} (--subject-column)")
        return {id: cells.get(column or "subject") for id, cells in self.cells.items()}

    def number(self, id, column, undefined=False, label=""):
        """The number in a cell; undefined: NaN, or a blank, is a value; label: what it is of, for errors."""
        text = self.cells[id][column]
        if undefined and text.lower() in ("", "nan"):
            return float("nan")
        value = spreadsheet.number(text)
        if value is None:
            raise UserError(f"{self.place}: case {id}{label}: got {text[:80]!r}, wanted a number")
        return value

    def zero_or_one(self, id, column, label=""):
        value = self.number(id, column, label=label)
        if value not in (0, 1):
            raise UserError(f"{self.place}: case {id}{label}: got {value:g}, wanted 0 or 1")
        return int(value)


def table_of(place):
    """The Table of predictions `place`, or the first of _TABLES in the folder `place`; None without one."""
    paths = [os.path.join(place, name) for name in _TABLES] if os.path.isdir(place) else [place]
    path = next(filter(os.path.isfile, paths), None)
    return path and Table(path, ("id",), place=place)
