"""A run folder and its log, as the report reads them."""

import datetime
import functools
import json
import math
import os
import re

from .. import metrics
from ..config import UserError
from ..data import cache, entry, sources
from ..run_folder import RunFolder, joined
from ..tasks import Results, build
from ..training import selection


class Run:
    """What a run folder holds, finished or not. It is read once."""

    def __init__(self, path):
        self.folder = folder = RunFolder(path)
        self.fold = folder.fold  # (number) -> its FoldFolder
        folder.check_begun()
        self.config, self.recorded = folder.config_of_folds(), folder.recorded()
        recorded = self.recorded
        self.task, self.splits = build(self.config), recorded["folds"]  # {part: ids} of each fold
        self.classes = self.task.class_names(recorded["cases"])  # names of 0 and 1; [] without two classes
        folds = [folder.fold(number) for number in range(1, len(self.splits) + 1)]
        self.finished = [fold.number for fold in folds if fold.is_finished]
        self.headline, self.complete = self.task.select, len(self.finished) == len(self.splits)
        results = joined([self.fold(number).results() for number in self.finished])
        self.metrics = self._metrics(results)  # {metric: {pooled, pooled_low, pooled_high, mean, ...}}
        self.results = Results(*(sorted(part, key=lambda row: row["id"]) for part in (results.rows, results.scans)))
        self.rows, self.scans = self.results.rows, self.results.scans  # scans: [] unless the rows are slices of scans
        self.units = self.scans or self.rows  # those that count
        tested = {number: len(self.splits[number - 1][self.task.tested_part()]) for number in self.finished}
        self.fold_scores = [{"fold": n, "cases": cases, **self.fold(n).scores()} for n, cases in tested.items()]
        self.histories = {fold.number: rows for fold in folds if (rows := fold.history())}
        self.log = read_log(folder.log_path)  # {time, level, event, key: text} of each line
        self.start = started(self.log)
        search = folder.search.record()
        self.settings_tried = 0 if search is None else search["settings"]  # before this one was chosen

    def _metrics(self, results):
        """As in the summary; computed anew while that lacks a finished fold, of `results` in the order of the folds."""
        summary = self.folder.summary()
        if summary is not None and summary["folds_done"] == self.finished:
            # in it null stands for an undefined number, and "inf" for an infinite one
            return {
                name: {key: math.nan if value is None else float(value) for key, value in facts.items()}
                for name, facts in summary["metrics"].items()
            }
        if not results.rows:
            return {}
        task = self.task
        # a pretraining is also scored on features, which no table holds
        scores = self.fold(self.finished[0]).scores() if task.pretrains else task.score(results)
        found = {name: {"pooled": float(value), "cases": len(results.rows)} for name, value in scores.items()}
        intervals = task.intervals_of(scores, results, self.config.eval.bootstrap, self.config.seed)
        for name, interval in intervals.items():
            found[name].update(pooled_low=interval.low, pooled_high=interval.high)
        return found

    @property
    def cases(self):
        """What its rows are, in words."""
        if self.task.pretrains:  # nothing is tested
            return "validation cases"
        return "test cases" if len(self.splits) == 1 else "out-of-fold cases"

    @property
    def estimate(self):
        """The metric at the top: the headline or, where its models are several, the headline within folds."""
        within = self.headline + metrics.WITHIN
        return within if not math.isnan(self.metrics.get(within, {}).get("pooled_low", math.nan)) else self.headline

    @functools.cached_property
    def _folders(self):
        """{case id: folder} of the cases in the cache; of several entries the one with the voxels of this run."""
        found, voxels = {}, self.recorded.get("images", {})
        for id, several in cache.entries(self.config.data, self.task.wanted(self.config.task)).items():
            own = [facts for facts in several if voxels.get(id) in (None, cache.voxels(facts.checksums))]
            if id in self.recorded["cases"] and own:
                found[id] = os.path.join(self.config.data.cache, own[-1].entry)
        return found

    def has_entry(self, id):
        """Whether the cache holds a case."""
        return id in self._folders

    def entry(self, id):
        """The `data.entry.Entry` of a case; None where the cache does not hold it, or not any more."""
        try:
            return entry.read(self._folders[id])
        except (KeyError, OSError, ValueError):
            return None

    @property
    def in_cache(self):
        """Whether the cases are volumes, which the cache holds; slices lie in their own files."""
        return sources.of(self.config.data).geometry

    @functools.cached_property
    def stacks(self):
        """{scan: Cases of its slices} of a run whose cases are slices; {} where their table is gone."""
        try:
            listed = sources.list_cases(self.config.data, self.task.wanted(self.config.task), labels=False)
        except (UserError, OSError):
            return {}
        found, tested = {}, {row["id"] for row in self.rows}
        for case in listed:
            if case.id in tested:
                found.setdefault(case.scan, []).append(case)
        return found

    def value(self, metric):
        return self.metrics[metric]["pooled"]

    def with_interval(self, metric):
        """(value, low, high) over all out-of-fold cases; NaN limits where no interval was computed."""
        return self.value(metric), *(self.metrics[metric].get(f"pooled_{end}", math.nan) for end in ("low", "high"))

    def best_row(self, fold):
        """The history row of the selected epoch; None before one."""
        return selection.best_row(self.task, self.histories[fold])


_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def read_log(path):
    """The events of a log; [] without one."""
    if not os.path.exists(path):
        return []
    events = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                time, level, event, *pairs = line.rstrip("\n").split(" ", 3)
                datetime.datetime.fromisoformat(time)
                pairs = _PAIR.findall(" ".join(pairs))
                values = {name: json.loads(text) if text.endswith('"') else text for name, text in pairs}
                events.append({**values, "time": time, "level": level, "event": event})
            except ValueError:
                continue  # the line that is being written, or one that a crash of the machine has left in pieces
    return events


def started(log):
    """The latest `run` event, {} without one: what the run runs on, and with which code."""
    return next((event for event in reversed(log) if event["event"] == "run" and "code" in event), {})


def duration_s(log):
    """Seconds that the run has taken: from each start to the last line before the next one; NaN without lines."""
    times = [datetime.datetime.fromisoformat(event["time"]) for event in log]
    spent = [b - a for a, b, event in zip(times, times[1:], log[1:]) if event["event"] != "run"]
    return sum(spent, datetime.timedelta()).total_seconds() if log else math.nan


def data_wait(log, fold):
    """The share of a fold's training steps that was spent waiting for data; NaN before its first `train` line."""
    lines = [event for event in log if event["event"] == "train" and event.get("fold") == str(fold)]
    ends = [0, *(int(line["step"]) for line in lines)]
    steps = [max(b - a, 1) for a, b in zip(ends, ends[1:])]  # a line averages over the steps since the one before
    waited, total = (sum(n * float(line[key]) for n, line in zip(steps, lines)) for key in ("data_s", "step_s"))
    return waited / total if total else math.nan
