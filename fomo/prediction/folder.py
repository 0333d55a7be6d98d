"""The folder of predictions: which checkpoints and files they are of, what is in it already, and what stays.

    settings.json            the checkpoints, and what they learned
    predictions.csv          a row per case; of networks that see slices a row per slice
    predictions.json         of those: the findings of each scan
    predictions_volumes.csv  of those: a row per scan
    masks/ID.nii.gz  probabilities/ID.nii.gz
    log.txt
    .unsaved.jsonl           while it is filled: the rows that the tables lack

The column `input` of a case's or a scan's row stands for the files that it was predicted from.
"""

import functools
import os
import time

import numpy as np

from .. import tasks
from ..config import UserError, as_user_error
from ..data import cache
from ..run_folder import TABLES, check_id
from ..runtime import files
from ..space import nifti

_TOP = 5  # findings of a scan that stand in predictions.json, whatever their probability
_REST = 20  # times the duration of a writing of the tables pass until the next, so that many cases are not slow


class PredictionFolder:
    """The folder for what `members` predict; nothing is read or written before `begin`."""

    def __init__(self, path, members):
        self.path, self._members = os.fspath(path), members
        self._path = functools.partial(os.path.join, self.path)
        self._by_slices = members[0].sees_slices
        self._table = TABLES["scans" if self._by_slices else "rows"]  # which says what is there
        self.log_path, self._settings = self._path("log.txt"), self._path("settings.json")
        self.rows, self._slices = {}, {}  # {id of a case or scan that is there: its row}, {id: rows of its slices}
        self._keys = {}  # {id: key of the files}
        self._unsaved = self._path(".unsaved.jsonl")
        self._saved, self._took, self._changed = 0.0, 0.0, False  # when the tables were written, and how long it took

    def begin(self, items, volumes=(), overwrite=False):
        """Make the folder; returns the items that are not there yet.

        items: Cases or Scans; a file of theirs that is missing is a UserError before anything goes.
        volumes: names of the volumes that must be there beside a row.
        overwrite: the items are predicted again whatever is there, and predictions of other checkpoints go. Without it
            other checkpoints are a UserError, and so is an answer of the same id for other files.

        Raises OSError if the folder cannot be written.
        """
        self._keys = {item.id: _key_of(item.images) for item in items}
        os.makedirs(self.path, exist_ok=True)
        own = [{"sha256": m.sha256, **_views_of(m.network)} for m in self._members]
        if os.path.exists(self._path(self._table)) or os.path.exists(self._unsaved):
            self._keep(own == self._checkpoints(), overwrite)
        config, paths = self._members[0].config, [member.path for member in self._members]
        learned = {"task": config.task.type, "targets": list(config.task.targets), **self._members[0].task.learned()}
        files.write_json(self._settings, {"checkpoints": own, "paths": paths, **learned})
        if self._by_slices:
            for scan in items:
                if scan.slices and set(scan.slices) != {row["id"] for row in self._slices.get(scan.id, ())}:
                    self.rows.pop(scan.id, None)  # of other slices: it is predicted again
        there = [item for item in items if item.id in self.rows]
        self._check_files(there)
        for name in volumes:
            os.makedirs(self._place(name), exist_ok=True)
        ids = {item.id for item in there if all(os.path.exists(self.volume(name, item.id)) for name in volumes)}
        return [item for item in items if item.id not in ids]

    def _check_files(self, items):
        """Raise UserError unless what is there of `items` was predicted from their files."""
        others = [item for item in items if self.rows[item.id].get("input") != self._keys[item.id]]
        if others:
            more = f" (and {len(others) - 1} more)" if others[1:] else ""
            got = f"holds an answer for {others[0].id}{more} that is not of {others[0].files[0].path} as it is now"
            raise UserError(f"{self.path} {got}: choose another --output, or another id, or --overwrite")

    def _keep(self, same, overwrite):
        """Read the rows that stay; the others go, with their volumes. same: whether the checkpoints are the same."""
        remedy, table = "restore it, or delete it and run again", self._path(self._table)
        saved, unsaved = os.path.exists(table), files.read_lines(self._unsaved, _check_line, remedy)
        there = {row["id"]: row for row in (files.read_csv(table, "id", remedy=remedy) if saved else ())}
        there |= {row["id"]: row for row, _ in unsaved}
        for id in there if not self._by_slices else ():  # which has no files by the name of its scans
            check_id(table, id)
        if same:
            self.rows = {id: row for id, row in there.items() if not (overwrite and id in self._keys)}
        elif not overwrite:
            got = "holds predictions of other checkpoints or options"
            raise UserError(f"{self.path} {got}: choose another --output, or --overwrite")
        if self._by_slices and self.rows and saved:
            for row in files.read_csv(self._path(TABLES["rows"]), "id", "scan", remedy=remedy):
                self._slices.setdefault(row["scan"], []).append(row)
        self._slices.update({row["id"]: slices for row, slices in unsaved})
        self._forget(there.keys() - self.rows.keys())
        if unsaved:
            self._write(self._tables().items())
        self._forget_unsaved()

    def _forget(self, gone):
        """Remove the volumes of the ids that are `gone`, and their rows."""
        kinds = () if self._by_slices else tasks.TASKS.values()  # a scan that is cut into slices has no volumes
        names = {name for task in kinds for name in (*task.volumes, *task.optional_volumes)}
        for path in (self.volume(name, id) for id in gone for name in names):
            if os.path.exists(path):  # it would be taken for an answer of the new checkpoints
                os.remove(path)
        if gone:  # before what they are of is replaced: an interruption leaves no row that is wrong
            self._write(reversed(self._tables().items()))

    def _forget_unsaved(self):
        """The tables have it all."""
        if os.path.exists(self._unsaved):
            os.remove(self._unsaved)

    def _checkpoints(self):
        """Those in settings.json; None without one that can be read."""
        try:
            return files.read_json(self._settings, "checkpoints")["checkpoints"]
        except (FileNotFoundError, files.Damaged):
            return None

    def volume(self, name, id):
        """The path of a volume of a case, by the name that its task gives it."""
        check_id(self.path, id)
        return os.path.join(self._place(name), f"{id}.nii.gz")

    def _place(self, name):
        return self._path({"mask": "masks"}.get(name, name))

    def add(self, id, row, slices=()):
        """Take in the row of a case or scan, and those of its slices; whatever comes, they are on the disk."""
        self.rows[id], self._slices[id] = {"id": id, "input": self._keys[id], **row}, slices
        files.append_line(self._unsaved, [files.as_text(self.rows[id]), [files.as_text(row) for row in slices]])
        self._changed = True
        if time.perf_counter() - self._saved > _REST * self._took:
            self.save()

    def save(self):
        """Write the tables, if there is something new."""
        if self._changed:
            begun = time.perf_counter()
            self._write(self._tables().items())
            self._forget_unsaved()
            self._saved, self._changed = time.perf_counter(), False
            self._took = self._saved - begun

    def _tables(self):
        """{file name: content}, in the order of writing: the last one says what is there."""
        ids = sorted(self.rows)
        rows = [self.rows[id] for id in ids]
        if not self._by_slices:
            return {self._table: rows}
        slices = [row for id in ids for row in self._slices.get(id, ())]
        return {TABLES["rows"]: slices, "predictions.json": self._findings(rows), self._table: rows}

    def _write(self, tables):
        for name, content in tables:
            if self.rows:
                (files.write_json if isinstance(content, dict) else files.write_csv)(self._path(name), content)
            elif os.path.exists(self._path(name)):
                os.remove(self._path(name))

    def _findings(self, rows):
        """The content of predictions.json: how each network pools, and the findings of each scan."""
        networks = [{"path": m.path, "sha256": m.sha256, "pooling": m.task.state["pooling"]} for m in self._members]
        task, scans = self._members[0].task, []
        labels = dict(zip(task.config.task.targets, task.names))
        for row in rows:
            probabilities = {label: float(row[f"probability_{name}"]) for label, name in labels.items()}
            decisions = {label: int(row[f"decision_{name}"]) for label, name in labels.items()}
            ranked = sorted(probabilities, key=probabilities.get, reverse=True)
            found, top = [one for one in ranked if decisions[one]], ranked[:_TOP]
            top = [{"finding": one, "probability": probabilities[one], "decision": decisions[one]} for one in top]
            scan = {"id": row["id"], "slices": int(row["slices"]), "findings": found, "top": top}
            scans.append({**scan, "probabilities": probabilities})
        return {"checkpoints": networks, "volumes": scans}


def _views_of(network):
    """{name: value} of the test-time views of a network, for settings.json."""
    gammas = list(getattr(network, "gammas", ()))
    return {"mirror_axes": list(getattr(network, "axes", ())), **({"gammas": gammas} if gammas else {})}


def _check_line(line):
    """ValueError unless it is [the row of a case or scan, [the rows of its slices]]."""
    row, slices = line
    if not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in (row, *slices)):
        raise ValueError("got a line that is no row with an id")


def _key_of(images):
    """What the column `input` has for Volumes; UserError if one is not there."""
    try:
        return cache.input_key(images)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def write_volume(path, array, case, geometry):
    """Write a mask (X, Y, Z), or a sequence of classes' probabilities, with the header of the case's first channel.

    Of two classes the probability of class 1 is written, of more all, on the last axis. Nothing partial stays when it
    fails.
    """
    if len(array) == 2 and not isinstance(array, np.ndarray):
        array = array[1]
    first = case.files[0].path
    like = first if first.lower().endswith((".nii", ".nii.gz")) else None
    with as_user_error(f"cannot write {path}", OSError):
        nifti.write_nifti(path, array, np.array(geometry.native_affine), like)
