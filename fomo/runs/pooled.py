"""The tables of a run: each fold, mean and spread over the folds, and all out-of-fold cases together."""

import datetime
import math

import numpy as np

from .. import metrics, run_folder, tasks
from ..config import UserError


def aggregate(config, folder, log):
    """Write the tables of a RunFolder from its finished folds, and the `cv` line of the log."""
    task, recorded = tasks.build(config), folder.recorded()
    splits = recorded["folds"]
    finished = [fold for fold in map(folder.fold, range(1, len(splits) + 1)) if fold.is_finished]
    numbers = [fold.number for fold in finished]
    parts = [_read(fold, task.tested_part(), splits) for fold in finished]
    # a pretraining is scored on features, too, which no table holds: there the fold's own scores stand
    scores = [fold.scores() if task.pretrains else task.score(part) for fold, part in zip(finished, parts)]
    fold_rows = [{"fold": n, "cases": len(part.rows), **own} for n, part, own in zip(numbers, parts, scores)]
    for row, fold in zip(fold_rows, finished):  # what stands beside the task's own scores
        row.update({name: value for name, value in fold.scores().items() if name not in row})
    results = run_folder.joined(parts)
    pooled = scores[-1] if task.pretrains else task.score(results)
    intervals = task.intervals_of(pooled, results, config.eval.bootstrap, config.seed)
    for message in task.shifts(results, config.seed):
        log.warn(message)
    count = len(results.rows)
    aggregated = [_aggregated(name, pooled[name], intervals.get(name), fold_rows, count) for name in pooled]
    by_id = tasks.Results(*(sorted(part, key=lambda row: row["id"]) for part in results))
    folder.write_results(by_id, task.tables(by_id))
    of_folds = {"folds_done": numbers, "folds": len(splits), "cases": count}
    summary = _summary(config, task, of_folds, intervals, task.class_names(recorded["cases"]))
    if search := folder.search.record():
        summary["settings_tried"] = search["settings"]
    summary["metrics"] = {row["metric"]: {k: v for k, v in row.items() if k != "metric"} for row in aggregated}
    folder.write_scores(fold_rows, aggregated, summary)
    shown = _with_limits([task.select, *intervals], pooled, intervals)
    log("cv", folds=len(finished), of=len(splits), cases=count, **shown)


def _with_limits(names, pooled, intervals):
    """{name: value} of metrics and, where they have an interval, of its limits."""
    shown = {}
    for name in dict.fromkeys(names):
        shown[name] = pooled[name]
        if name in intervals and not intervals[name].reason:
            shown[f"{name}_low"], shown[f"{name}_high"] = intervals[name].low, intervals[name].high
    return shown


def _summary(config, task, of_folds, intervals, classes):
    """What summary.json says besides the metrics."""
    finished = datetime.datetime.now().isoformat(timespec="seconds")
    summary = {"name": config.name, "task": config.task.type, "finished": finished, **of_folds, "headline": task.select}
    within = task.select + metrics.WITHIN
    summary |= {"headline_within": within} if within in intervals and not intervals[within].reason else {}
    return summary | ({"classes": classes} if classes else {})


def _read(fold, part, splits):
    """The Results of a FoldFolder; UserError unless they are of the cases in that part of its split."""
    results = fold.results()
    if [row["id"] for row in results.rows] != sorted(splits[fold.number - 1][part]):
        raise UserError(f"{fold.rows_path} does not hold the fold's {part} cases: delete {fold.path} and run again")
    return results


def _aggregated(name, pooled, interval, fold_rows, cases):
    """The row of a metric in aggregated_results.csv; pooled: its value of all cases; interval: of that, or None."""
    absent = 0.0 if name.endswith(metrics.COUNTS) else math.nan  # a fold without anything to count has no count
    values = np.array([row.get(name, absent) for row in fold_rows], float)
    defined = values[np.isfinite(values)]
    mean, std = defined.mean() if len(defined) else math.nan, metrics.deviation(defined)
    low, high = (interval.low, interval.high) if interval else (math.nan, math.nan)
    ci, few = metrics.t_interval(values), len(defined) < 3
    t_low, t_high = (math.nan,) * 2 if few else np.clip((ci.low, ci.high), *metrics.range_of(name, defined)).tolist()
    row = {"metric": name, "mean": mean, "std": std, "ci_low": t_low, "ci_high": t_high, "folds": len(defined)}
    return row | {"pooled": pooled, "pooled_low": low, "pooled_high": high, "cases": cases}
