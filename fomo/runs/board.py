"""The tables of a scoreboard: scores with intervals, ranks, and paired differences corrected together."""

import itertools
import math
import os

import numpy as np

from .. import metrics, report
from ..config import UserError, as_user_error, one_line
from ..metrics import fairness
from ..report.differences import holm
from ..report.run import Run
from ..runtime import files
from . import challenge

_METHOD = "heads"  # of the probe, which the challenge ranks by
_RESAMPLES = 1000  # of the comparison of probes


class Board:
    """What is known of checkpoints `names`; rows are dicts of plain values.

    scores: of each checkpoint, task and metric the value with its interval, how many cases it is of, and its rank, NaN
    of a metric that the challenge does not rank by. differences: of each pair and
    metric. ranking: the checkpoints, best first. failed: {(checkpoint, task): why}. notes: texts for the reader.
    paths: {checkpoint: its file}, None of random weights.
    """

    def __init__(self, names, failed, paths=()):
        self.names, self.failed, self.paths = names, failed, dict(paths)
        self.scores, self.differences, self.ranking, self.notes = [], [], [], []
        self._ranked = {}  # {task: challenge.Ranked}

    def add_runs(self, task, ranked, places):
        """Add a task; places: {name: folder of its finished run}."""
        self._ranked[task] = ranked
        runs = {name: Run(place) for name, place in places.items()}
        for name, metric in itertools.product(self.names, (*ranked.metrics, *ranked.beside)):
            self._add(name, task, metric, *_pooled(runs[name] if name in runs else None, metric))
        if len(places) < 2:
            return
        try:
            rows, _ = report.compare([places[name] for name in self._random_first(places)])
        except UserError as error:
            self.notes.append(f"{task}: not compared case by case: {one_line(error)}")
            return
        of_place = {place: name for name, place in places.items()}
        tested = {row["metric"] for row in rows}
        within = {metric + metrics.WITHIN: higher for metric, higher in ranked.metrics.items()}  # where folds are equal
        higher = {**{name: of for name, of in ranked.metrics.items() if name + metrics.WITHIN not in tested}, **within}
        for row in rows:
            if row["metric"] in higher:
                pair = {key: of_place[row[key]] for key in ("first", "second")}
                self.differences.append({"task": task, **row, **pair, "higher": higher[row["metric"]]})

    def add_probes(self, found, has_groups):
        """Add tasks 6 and, with groups, 7; found: {name: (evaluation.probe.Found, Subjects)}."""
        for number in (6, 7) if has_groups else (6,):
            task, ranked = f"task{number}", challenge.TASKS[number]
            self._ranked[task] = ranked
            for name, metric in itertools.product(self.names, ranked.metrics):
                values = _probed(found[name][0], metric) if name in found else (math.nan,) * 3
                self._add(name, task, metric, *values, len(found[name][0].predictions) if name in found else None)
        if found:  # all have the same subjects
            self.notes += [f"task7: {text}" for text in next(iter(found.values()))[0].facts["doubts"]]
        for name, (probe, _) in found.items():
            self.notes += [f"task6 of {name}: {text}" for text in probe.facts["unsaid"]]
            if gone := probe.facts["missing"]:
                said = f"{gone} cases have no embedding, and get the worst answer where they are tested"
                self.notes.append(f"task6 of {name}: {said}")
        for first, second in itertools.combinations(self._random_first(found), 2):
            self.differences += _probe_differences(first, second, found, has_groups)

    def _random_first(self, found):
        """The names that are in `found`, so that a difference from random weights is what a checkpoint gains."""
        return sorted((name for name in self.names if name in found), key=lambda name: self.paths.get(name) is not None)

    def _add(self, name, task, metric, value, low, high, cases):
        place = {"checkpoint": name, "task": task, "metric": metric}
        self.scores.append({**place, "value": value, "low": low, "high": high, "cases": cases, "rank": math.nan})

    def finish(self):
        """Rank the checkpoints, and correct the p values of all differences together."""
        by_task = {}
        for task, ranked in self._ranked.items():
            ranks = []
            for metric, higher in ranked.metrics.items():
                rows = [row for row in self.scores if (row["task"], row["metric"]) == (task, metric)]
                ranks.append(challenge.places([row["value"] for row in rows], higher))
                for row, rank in zip(rows, ranks[-1].tolist()):
                    row["rank"] = rank
            by_task[task] = np.mean(ranks, axis=0)
        weights = {task: ranked.weight for task, ranked in self._ranked.items()}
        overall = challenge.overall(by_task, weights) if by_task else np.full(len(self.names), np.nan)
        for place in np.argsort(overall, kind="stable"):
            of_tasks = {task: float(ranks[place]) for task, ranks in by_task.items()}
            row = {"checkpoint": self.names[place], "overall": float(overall[place]), "tasks": of_tasks}
            self.ranking.append(row)
        for row, p in zip(self.differences, holm([row["p"] for row in self.differences])):
            better = "second" if (row["difference"] > 0) == row.pop("higher") else "first"
            row |= {"p_holm": p, "better": row[better] if p < 0.05 else ""}

    @property
    def weights(self):
        """{task: its share of the ranking}, of the tasks that were asked for."""
        return {task: ranked.weight for task, ranked in self._ranked.items()}

    @property
    def metrics(self):
        """{task: names of the metrics that it is ranked by}."""
        return {task: tuple(ranked.metrics) for task, ranked in self._ranked.items()}

    @property
    def unasked(self):
        """Numbers of the challenge's tasks that were not asked for, where others were."""
        asked = {challenge.number(task) for task in self._ranked} - {None}
        return [number for number in challenge.TASKS if number not in asked] if asked else []

    def write(self, output):
        """scoreboard.csv, differences.csv, scoreboard.json and scoreboard.html in a folder; returns the page's path."""
        missing = [{"checkpoint": name, "task": task, "why": why} for (name, task), why in self.failed.items()]
        with as_user_error(f"cannot write to {output}", OSError):
            files.write_csv(os.path.join(output, "scoreboard.csv"), self.scores)
            files.write_csv(os.path.join(output, "differences.csv"), self.differences)
            content = {"ranking": self.ranking, "weights": self.weights, "scores": self.scores, "missing": missing}
            content["checkpoints"] = self.paths
            files.write_json(os.path.join(output, "scoreboard.json"), {**content, "differences": self.differences})
        return report.write_scoreboard(self, os.path.join(output, "scoreboard.html"))


def _pooled(run, metric):
    """(value, low, high, cases) of a metric of a Run, None: it is missing; cases: that a mean does not leave out."""
    found = {} if run is None else run.metrics.get(metric, {})
    if not found:
        return (*(math.nan,) * 3, None)
    left_out = sum(run.metrics[metric + end]["pooled"] for end in metrics.COUNTS if metric + end in run.metrics)
    return (*(found.get(key, math.nan) for key in ("pooled", "pooled_low", "pooled_high")), found["cases"] - left_out)


def _probed(found, metric):
    """(value, low, high) of a metric of tasks 6 and 7."""
    kind, _, name = metric.rpartition("_")
    rows = [row for row in found.fairness if row["kind"] == "fairness"] if kind else found.summary
    row = next(row for row in rows if (row["method"], row["metric"]) == (_METHOD, name))
    return tuple(row[key] for key in ("value", "low", "high"))


def _probe_differences(first, second, found, has_groups):
    """Rows of the differences of two checkpoints' probes on the subjects that both have tested."""
    (one, subjects), (other, _) = found[first], found[second]
    place = {id: number for number, id in enumerate(subjects.ids)}
    index = np.array([place[row["id"]] for row in one.predictions])
    labels = np.eye(len(subjects.classes), dtype=int)[subjects.labels[index]]
    columns = [f"probability_{name}" for name in subjects.classes]
    scores = [np.array([[row[name] for name in columns] for row in of.predictions]) for of in (one, other)]
    groups = {name: of._replace(codes=of.codes[index]) for name, of in subjects.groups.items()}
    with_groups = np.column_stack([labels, *(of.codes for of in groups.values())])
    whose = subjects.subjects[index]
    for number, name in itertools.product((6, 7) if has_groups else (6,), ("auroc", "f1")):
        metric, truth, title = fairness.METRICS[name], labels, name
        if number == 7:
            metric, truth, title = _evenness(name, len(subjects.classes), groups), with_groups, f"fairness_{name}"
        test = metrics.paired_swap(metric, truth, *scores, groups=whose, resamples=_RESAMPLES)
        facts = {"task": f"task{number}", "metric": title, "first": first, "second": second}
        facts |= {"first_value": test.first, "second_value": test.second}
        facts |= {key: getattr(test, key) for key in ("difference", "low", "high", "p")}
        yield {**facts, "cases": len(index), "left_out": 0, "test": "swaps of subjects", "higher": True}


def _evenness(name, classes, groups):
    """The fairness score as a function of labels, behind which stand the numbers of the groups, and of scores."""

    def metric(labels, scores):
        codes = labels[:, classes:].T
        drawn = {variable: of._replace(codes=one) for (variable, of), one in zip(groups.items(), codes)}
        return fairness.ByGroup(fairness.METRICS[name], drawn)(labels[:, :classes], scores)["fairness",]

    return metric
