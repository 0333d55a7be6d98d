"""The stress test of a run: each fold's model on its own test cases under every change, and the report.

    RUN/stress/fold_K.jsonl   a line per finished pass: what the model of a fold says under one change
               stress.{html,csv,json}, log.txt

Ranks take folds in turn. A pass that is in fold_K.jsonl, of the same checkpoint and the same changes, is not run again.
"""

import os
import time

from .. import report, tasks
from ..config import UserError, as_user_error
from ..data import loader, sources
from ..evaluation import stress
from ..run_folder import RunFolder
from ..runtime import dist, files, interrupt
from ..runtime.log import Log
from ..tasks import Results
from ..training.fold import load_fold
from ..transforms import shifts
from .splits import warn_of_changed_images

_VALUES = ("drop", "low", "high", "unchanged", "changed")


def run(path):
    """Test the finished folds of the run folder `path`; the same call continues."""
    folder = RunFolder(path)
    folder.check_begun()
    config = folder.config_of_folds()
    stress.check(config, tasks.build(config))
    if not folder.finished():
        raise UserError(f"{folder.path}: got no finished fold, wanted one to test: run cv.py again")
    dist.init(config.train.timeout_s)
    try:
        within(config, folder)
    finally:
        dist.close()


def within(config, folder):
    """Test the finished folds of a RunFolder with the ranks that there are; config: that of its folds."""
    with as_user_error(f"cannot write to {folder.stress}", OSError):
        os.makedirs(folder.stress, exist_ok=True)
    log = Log(os.path.join(folder.stress, "log.txt"), active=dist.is_main())
    with interrupt.graceful(), loader.explained():
        _run(config, folder, log)


def _run(config, folder, log):
    wanted, splits, numbers = tasks.wanted(config), folder.recorded()["folds"], folder.finished()
    listed = dist.on_main(lambda: sources.list_cases(config.data, wanted, log=log))
    by_id = {case.id: case for case in listed}
    ids = [id for number in numbers for id in splits[number - 1]["test"]]
    if gone := sorted(set(ids) - by_id.keys()):
        raise UserError(f"{config.data.root}: {len(gone)} test cases are not there any more ({', '.join(gone[:5])})")
    cases = dist.on_main(lambda: sources.prepare([by_id[id] for id in ids], config.data, wanted, log))
    dist.on_main(lambda: warn_of_changed_images(folder, cases, log))
    by_id = {case.id: case for case in cases}
    parts = {number: [by_id[id] for id in sorted(splits[number - 1]["test"])] for number in numbers}
    passes = dist.on_main(lambda: [_Passes(config, folder, number) for number in numbers])
    clock = _Clock([len(one.left) * len(parts[one.number]) for one in passes], dist.world_size())
    done, count = sum(len(one.rows) for one in passes), len(stress.changes_of(config))
    log("stress", folds=numbers, cases=len(ids), changes=count - 1, passes=count * len(numbers), finished=done)
    with dist.teams(1):
        for place in dist.hand_out(list(range(len(passes))), "stress"):
            one = passes[place]
            if one.left:
                clock.begin(place)
                _test(config, folder, one, parts[one.number], clock, log.bind(active=True, fold=one.number))
    dist.wait_for_all("stress_done", stop=interrupt.requested)
    interrupt.stop_if_requested()
    dist.on_main(lambda: _report(config, folder, log))


class _Passes:
    """What is known of a fold: `rows` {(change, grade): rows} of finished passes, and the Changes that are `left`."""

    def __init__(self, config, folder, number):
        fold = folder.fold(number)
        self.number, self.path = number, os.path.join(folder.stress, f"fold_{number}.jsonl")
        checkpoint = files.sha256(config.train.checkpoint or fold.best)
        self.key = [checkpoint, config.seed, shifts.VERSION]  # of what the answers are
        lines = files.read_lines(self.path, _check_line, "delete it and run again")
        changes = stress.changes_of(config)
        known = {(change.name, change.grade) for change in changes}
        found = {(name, grade): rows for key, name, grade, rows in lines if key == self.key}
        self.rows = {place: rows for place, rows in found.items() if place in known}
        self.left = [change for change in changes if (change.name, change.grade) not in self.rows]

    def add(self, change, rows):
        files.append_line(self.path, [self.key, change.name, change.grade, rows])


def _check_line(line):
    """ValueError unless it is [key, change, grade, rows]."""
    key, name, grade, rows = line
    if not (isinstance(name, str) and isinstance(rows, list) and all("id" in row for row in rows)):
        raise ValueError("got a line that is no pass over the cases of a fold")


class _Clock:
    """How long the passes that are left will take, by those that this process has done."""

    def __init__(self, cases, ranks):
        self._cases, self._ranks = cases, ranks  # cases: of each fold, how many answers are wanted
        self._done, self._seconds, self._open, self._after = 0, 0.0, 0, 0

    def begin(self, place):
        """The fold at this place is this process's next; the other ranks have the ones behind it."""
        self._open, self._after = self._cases[place], sum(self._cases[place + self._ranks :]) / self._ranks

    def took(self, cases, seconds):
        """Take in a pass; returns the seconds that are left in all."""
        self._open -= cases
        self._done, self._seconds = self._done + cases, self._seconds + seconds
        return (self._open + self._after) * self._seconds / self._done


def _test(config, folder, passes, cases, clock, log):
    """Run what is left of a fold."""
    task, network, _ = load_fold(config, {"test": cases}, folder.fold(passes.number), log)
    for place, change in enumerate(passes.left, start=1):
        begun = time.perf_counter()
        rows = stress.rows_of(config, task, network, cases, change)
        rows = [{**row, "fold": passes.number} for row in rows]
        passes.add(change, rows)
        seconds = time.perf_counter() - begun
        value = {task.select: task.score(Results(rows))[task.select]}
        left = {"left_s": clock.took(len(cases), seconds), "done": place, "of": len(passes.left)}
        log("stress", change=change.name, grade=change.grade, **value, seconds=seconds, **left)


def _report(config, folder, log):
    """Put all folds together, and write the tables and the page."""
    passes, task = [_Passes(config, folder, number) for number in folder.finished()], tasks.build(config)
    places = [(change.name, change.grade) for change in stress.changes_of(config)]
    rows = {place: [row for one in passes for row in one.rows[place]] for place in places}
    found, unchanged = stress.table(config, task, rows), rows[stress.UNCHANGED, 0.0]
    worst, of_config = stress.worst(found), stress.shifts_of(config)
    facts = {"name": config.name, "task": config.task.type, "folds": [one.number for one in passes]}
    facts |= {"of": len(folder.recorded()["folds"]), "cases": len(unchanged)}
    facts["subjects"] = len({row["subject"] for row in unchanged})
    meant = {
        name: {"title": one.title, "unit": one.unit, "neutral": one.neutral, "help": one.help}
        for name, one in of_config.items()
    }
    inside = os.path.join
    with as_user_error(f"cannot write to {folder.stress}", OSError):
        files.write_csv(inside(folder.stress, "stress.csv"), found)
        content = {**facts, "worst": worst, "rows": found, "changes": meant}
        folder.write_stress(content)
    for row in worst:
        values = {name: row[name] for name in _VALUES}
        log("stress", worst=row["change"], grade=row["grade"], metric=row["metric"], **values)
    page = report.write_stress(facts, found, worst, of_config, inside(folder.stress, "stress.html"))
    log("stress", finished=True, cost_more_than_chance=sum(row["low"] > 0 for row in found), of=len(found))
    log("report", path=page)
