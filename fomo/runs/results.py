"""The tables of a run: each fold, mean and spread over the folds, and all out-of-fold cases together."""

import datetime
import math
import os

import numpy as np

from .. import metrics, tasks
from ..config import UserError
from ..runtime import files


def aggregate(config, folder, splits, finished, log):
    """Write the tables of the run folder from the `finished` folds (numbers from 1), and the `cv` line of the log."""
    task = tasks.build(config)
    rows, volumes, fold_rows = [], [], []
    for number in finished:
        fold_folder = os.path.join(folder, f"fold_{number}")
        fold_part, of_scans = files.read_numbers(os.path.join(fold_folder, "predictions.csv")), {}
        if os.path.exists(os.path.join(fold_folder, "predictions_volumes.csv")):
            of_scans = {"volumes": files.read_numbers(os.path.join(fold_folder, "predictions_volumes.csv"))}
            volumes += of_scans["volumes"]
        part = config.task.tested_part
        if [row["id"] for row in fold_part] != sorted(splits[number - 1][part]):
            raise UserError(
                f"{fold_folder}/predictions.csv does not hold the fold's {part} cases: delete {fold_folder} and run again"
            )
        # a pretraining is scored on features, too, which no table holds: there the fold's own scores stand
        scores = _stored_scores(fold_folder) if config.task.pretrains else task.score(fold_part, **of_scans)
        fold_rows.append({"fold": number, "cases": len(fold_part), **scores})
        rows += fold_part
    of_scans = {"volumes": volumes} if volumes else {}
    pooled = scores if config.task.pretrains else task.score(rows, **of_scans)
    intervals = task.intervals(rows, config.eval.bootstrap, config.seed, **of_scans) if config.eval.bootstrap else {}
    aggregated = []
    for name in pooled:
        absent = (
            0.0 if name.endswith(metrics.COUNTS) else math.nan
        )  # counts stand there where there is something to count
        values = np.array([row.get(name, absent) for row in fold_rows], float)
        defined = values[np.isfinite(values)]
        over_folds = metrics.t_interval(values)
        aggregated.append(
            {
                "metric": name,
                "mean": defined.mean() if len(defined) else math.nan,
                "std": defined.std(ddof=1) if len(defined) > 1 else math.nan,
                "ci_low": over_folds.low,
                "ci_high": over_folds.high,
                "folds": len(defined),
                "pooled": pooled[name],
                "pooled_low": intervals[name].low if name in intervals else math.nan,
                "pooled_high": intervals[name].high if name in intervals else math.nan,
                "cases": len(rows),
            }
        )
    write_rows(folder, task, sorted(rows, key=lambda row: row["id"]), sorted(volumes, key=lambda row: row["id"]))
    files.write_csv(os.path.join(folder, "fold_results.csv"), fold_rows)
    files.write_csv(os.path.join(folder, "aggregated_results.csv"), aggregated)
    summary = {
        "name": config.name,
        "task": config.task.type,
        "finished": datetime.datetime.now().isoformat(timespec="seconds"),
        "folds_done": [row["fold"] for row in fold_rows],
        "folds": len(splits),
        "cases": len(rows),
        "headline": task.select,
        **({"classes": _class_names(folder)} if isinstance(task, tasks.Classification) else {}),
        "metrics": {row["metric"]: {k: v for k, v in row.items() if k != "metric"} for row in aggregated},
    }
    files.write_json(os.path.join(folder, "summary.json"), summary)
    shown = {}
    for name in dict.fromkeys([task.select, *intervals]):
        shown[name] = pooled[name]
        if name in intervals:
            shown[f"{name}_low"], shown[f"{name}_high"] = intervals[name].low, intervals[name].high
    log("cv", folds=len(fold_rows), of=len(splits), cases=len(rows), **shown)


def _class_names(folder):
    return tasks.coverage.class_names(files.read_json(os.path.join(folder, "splits.json"), "cases")["cases"])


def _stored_scores(fold_folder):
    return {row["metric"]: row["value"] for row in files.read_numbers(os.path.join(fold_folder, "results.csv"))}


def write_rows(folder, task, rows, volumes=()):
    """predictions.csv, predictions_volumes.csv where there are `volumes`, and the task's own tables, in `folder`."""
    for name, part in (("predictions", rows), ("predictions_volumes", volumes)):
        if part:
            stored = [{key: value for key, value in row.items() if key[0] != "_"} for row in part]
            files.write_csv(os.path.join(folder, f"{name}.csv"), stored)
    for name, lines in task.tables(rows, **({"volumes": volumes} if volumes else {})).items():
        files.write_csv(os.path.join(folder, f"{name}.csv"), lines)
