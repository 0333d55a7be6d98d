"""Reading a run folder, finished or not."""

import datetime
import json
import math
import os
import re
from dataclasses import dataclass

from .. import config as config_module
from .. import tasks
from ..config import Config, UserError
from ..runtime import files
from ..training import selection


@dataclass(frozen=True)
class Run:
    folder: str
    config: Config
    task: object  # of tasks.TASKS
    splits: list  # {part: ids} of each fold
    classes: list  # names of classes 0 and 1; empty where it does not tell two classes apart
    finished: list  # numbers of the finished folds, from 1
    rows: list  # out-of-fold cases of the finished folds, by id
    volumes: list  # the scans, where the rows are slices of scans
    fold_scores: list  # {fold, cases, metric: value} of the finished folds
    metrics: dict  # {metric: {pooled, pooled_low, pooled_high, mean, ...}}, as in summary.json
    histories: dict  # {fold: rows of history.csv}
    log: list  # {time, level, event, key: text} of each line

    @property
    def headline(self):
        return self.task.select

    @property
    def pretrains(self):
        """Whether its rows are validation cases: a pretraining has no test part."""
        return self.config.task.pretrains

    @property
    def cases(self):
        """What its rows are, in words."""
        return "validation cases" if self.pretrains else "test cases" if len(self.splits) == 1 else "out-of-fold cases"

    def with_interval(self, metric):
        """(value, low, high) over all out-of-fold cases; NaN limits where no interval was computed."""
        facts = self.metrics[metric]
        return facts["pooled"], facts.get("pooled_low", math.nan), facts.get("pooled_high", math.nan)

    @property
    def complete(self):
        return len(self.finished) == len(self.splits)

    def best_row(self, fold):
        """The history row of the selected epoch; None before one."""
        return selection.best_row(self.task, self.histories[fold])


def read(folder):
    """The Run in a folder. Its numbers are summary.json's; while that lacks a finished fold they are computed anew."""
    if not os.path.exists(os.path.join(folder, "config.yaml")):
        raise UserError(f"{folder}: got no config.yaml in it, wanted the folder of a run, <output>/<name>")
    if not os.path.exists(os.path.join(folder, "splits.json")):
        raise UserError(f"{folder}: got no splits.json in it, so the run has not begun: wait until its first fold does")
    config = config_module.load(os.path.join(folder, "config.yaml"))
    task = tasks.build(config)
    recorded = files.read_json(os.path.join(folder, "splits.json"), "cases", "folds")
    splits = recorded["folds"]
    classes = tasks.coverage.class_names(recorded["cases"]) if isinstance(task, tasks.Classification) else []
    numbers = range(1, len(splits) + 1)
    finished = [n for n in numbers if os.path.exists(_in_fold(folder, n, "results.csv"))]
    rows = [row for n in finished for row in files.read_numbers(_in_fold(folder, n, "predictions.csv"))]
    volumes = [path for n in finished if os.path.exists(path := _in_fold(folder, n, "predictions_volumes.csv"))]
    volumes = [row for path in volumes for row in files.read_numbers(path)]
    metrics = _metrics(folder, config, task, finished, rows, volumes)
    rows.sort(key=lambda row: row["id"])
    volumes.sort(key=lambda row: row["id"])
    fold_scores = []
    for n in finished:
        scores = {row["metric"]: row["value"] for row in files.read_numbers(_in_fold(folder, n, "results.csv"))}
        fold_scores.append({"fold": n, "cases": len(splits[n - 1][config.task.tested_part]), **scores})
    histories = {n: _in_fold(folder, n, "history.csv") for n in numbers}
    histories = {n: files.read_numbers(path) for n, path in histories.items() if os.path.exists(path)}
    return Run(
        folder,
        config,
        task,
        splits,
        classes,
        finished,
        rows,
        volumes,
        fold_scores,
        metrics,
        histories,
        read_log(folder),
    )


def _in_fold(folder, number, name):
    return os.path.join(folder, f"fold_{number}", name)


def _metrics(folder, config, task, finished, rows, volumes):
    """rows: in the order of the folds, as the summary's resamples take them."""
    path = os.path.join(folder, "summary.json")
    if os.path.exists(path):
        summary = files.read_json(path, "folds_done", "metrics")
        if summary["folds_done"] == finished:
            return {
                name: {key: _number(value) for key, value in row.items()} for name, row in summary["metrics"].items()
            }
    if not rows:
        return {}
    of_scans = {"volumes": volumes} if volumes else {}
    intervals = task.intervals(rows, config.eval.bootstrap, config.seed, **of_scans) if config.eval.bootstrap else {}
    if config.task.pretrains:  # also scored on features, which no table holds
        scores = {
            row["metric"]: row["value"] for row in files.read_numbers(_in_fold(folder, finished[0], "results.csv"))
        }
    else:
        scores = task.score(rows, **of_scans)
    found = {name: {"pooled": float(value), "cases": len(rows)} for name, value in scores.items()}
    for name, interval in intervals.items():
        found[name].update(pooled_low=interval.low, pooled_high=interval.high)
    return found


def _number(value):
    """Of summary.json: null is undefined, "inf" infinite."""
    return math.nan if value is None else float(value)


# -------------------------------------------------------------------------------------------- log

_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def read_log(folder):
    """Events of log.txt; [] without one."""
    path = os.path.join(folder, "log.txt")
    if not os.path.exists(path):
        return []
    events = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            parts = line.rstrip("\n").split(" ", 3)
            try:
                datetime.datetime.fromisoformat(parts[0])
                values = dict(_PAIR.findall(parts[3])) if len(parts) > 3 else {}
                values = {name: json.loads(text) if text.endswith('"') else text for name, text in values.items()}
                events.append({**values, "time": parts[0], "level": parts[1], "event": parts[2]})
            except (ValueError, IndexError):
                continue  # the line that is being written, or one that a crash of the machine has left in pieces
    return events


def started(log):
    """The latest `run` event, {} without one: what the run runs on, and with which code."""
    return next((event for event in reversed(log) if event["event"] == "run" and "code" in event), {})


def duration_s(log):
    """Seconds that the run has taken: from each start to the last line before the next one."""
    total, start, last = 0.0, None, None
    for event in log:
        time = datetime.datetime.fromisoformat(event["time"])
        if event["event"] == "run" or start is None:
            total += (last - start).total_seconds() if start is not None else 0.0
            start = time
        last = time
    return total + (last - start).total_seconds() if start is not None else math.nan


def data_wait(log, fold):
    """Share of a fold's training steps that was spent waiting for data; NaN before its first `train` line."""
    waited = total = 0.0
    previous = 0
    for event in log:
        if event["event"] == "train" and event.get("fold") == str(fold):
            steps = max(int(event["step"]) - previous, 1)  # a line averages over the steps since the one before
            previous = int(event["step"])
            waited += steps * float(event["data_s"])
            total += steps * float(event["step_s"])
    return waited / total if total else math.nan
