"""Is one run better than another on the same cases: paired differences, intervals and tests.

Every pair of runs is compared on every metric of the task. AUROC by DeLong's test, summed per subject where subjects
have several cases (clustered DeLong, Obuchowski 1997); the mean of any per-case value by sign flips of whole subjects,
its interval by the bootstrap over subjects. The p values of the whole table are corrected together (Holm, Scand J Stat
6:65, 1979).
"""

import itertools
import math
import os

import numpy as np

from .. import metrics
from ..config import UserError
from ..tasks import views
from . import run as run_module


def compare(folders, resamples=10000, seed=0):
    """(rows, runs): one dict per metric and pair of runs, and {name: Run}.

    Keys of a row: metric first second first_value second_value difference low high p p_holm better cases left_out test.
    `difference`: second minus first, with its 95% interval; `better`: the name of the better run where p_holm < 0.05,
    else "". left_out: cases whose value is undefined or infinite in either run; the others are compared. Raises
    UserError unless all runs are finished and have the same task, cases and references.
    """
    if len(folders) < 2:
        raise UserError(f"got {len(folders)} run folder, wanted two or more")
    if resamples < 1:
        raise UserError(f"--resamples: got {resamples}, wanted 1 or more")
    runs = _distinct({folder: run_module.read(folder) for folder in folders})
    _check(list(runs.values()))
    rows = []
    for (first, a), (second, b) in itertools.combinations(runs.items(), 2):
        rows += [{"first": first, "second": second, **row} for row in _pair(a, b, resamples, seed)]
    for row, corrected in zip(rows, holm([row["p"] for row in rows])):
        row["p_holm"] = corrected
        second_better = (row["difference"] > 0) == row.pop("higher_is_better")
        row["better"] = (row["second"] if second_better else row["first"]) if corrected < 0.05 else ""
    columns = (
        "metric first second first_value second_value difference low high p p_holm better cases left_out test".split()
    )
    return [{name: row[name] for name in columns} for row in rows], runs


def holm(p_values):
    """Holm's step-down correction; an undefined p stays undefined and counts for nothing."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    corrected, largest = np.full(len(p), np.nan), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = largest
    return corrected.tolist()


def _distinct(by_folder):
    """{name: Run}; runs of one name are told apart by their folders."""
    if len({os.path.realpath(folder) for folder in by_folder}) < len(by_folder) or len(by_folder) < 2:
        raise UserError(f"got the same run folder twice: {', '.join(by_folder)}")
    names = [run.config.name for run in by_folder.values()]
    return {run.config.name if names.count(run.config.name) == 1 else folder: run for folder, run in by_folder.items()}


def _check(runs):
    first, view = runs[0], views.of(runs[0])
    units = view.units
    if not view.per_case:
        raise UserError(
            f"{first.folder}: runs of task.type={first.config.task.type} have nothing to compare case by case"
        )
    for run in runs:
        if not run.complete:
            raise UserError(
                f"{run.folder}: {len(run.finished)} of {len(run.splits)} folds are finished: finish the run first"
            )
        if type(run.task) is not type(first.task):
            kinds = run.config.task.type, first.config.task.type
            raise UserError(f"{run.folder} is a run of {kinds[0]}, {first.folder} of {kinds[1]}: wanted one task")
        missing, extra = (
            {row["id"] for row in units(a)} - {row["id"] for row in units(b)} for a, b in ((first, run), (run, first))
        )
        if missing or extra:
            some = ", ".join(sorted(missing | extra)[:5])
            raise UserError(
                f"{run.folder} and {first.folder} have other cases ({len(missing)} are missing in the one, "
                f"{len(extra)} in the other: {some}): wanted the same"
            )
        pairs = zip(units(run), units(first))
        changed = [row["id"] for row, other in pairs if view.truth(row) != view.truth(other)]
        if changed:
            raise UserError(
                f"{run.folder} and {first.folder} have other labels for {', '.join(changed[:5])}: wanted the same data"
            )


def _pair(a, b, resamples, seed):
    found, view = [], views.of(a)
    of_b, subjects = view.ranked(b), np.array([row["subject"] for row in view.units(a)])
    for metric, (labels, scores) in view.ranked(a).items():
        result = metrics.delong_test(labels.astype(int), of_b[metric][1], scores, groups=subjects)
        found.append(
            {
                "metric": metric,
                "first_value": result.second,
                "second_value": result.first,
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "p": result.p,
                "cases": len(labels),
                "left_out": 0,
                "test": "DeLong",
                "higher_is_better": True,
            }
        )
    for name, (value_of, higher_is_better, _) in view.per_case.items():
        first, second = (np.array([value_of(row) for row in view.units(run)]) for run in (a, b))
        kept = np.isfinite(first) & np.isfinite(second)
        row = {
            "metric": name,
            "cases": int(kept.sum()),
            "left_out": int((~kept).sum()),
            "test": "permutation",
            "higher_is_better": higher_is_better,
        }
        found.append({**row, **_paired(first[kept], second[kept], subjects[kept], resamples, seed)})
    return found


def _paired(first, second, subjects, resamples, seed):
    """Means, their difference, its interval and p; sessions of one subject flip together."""
    if not len(first):
        return dict.fromkeys(("first_value", "second_value", "difference", "low", "high", "p"), math.nan)
    difference = second - first
    names, subject = np.unique(subjects, return_inverse=True)
    interval = metrics.bootstrap_ci(np.mean, difference, resamples=min(resamples, 2000), seed=seed, groups=subjects)
    sums = [np.bincount(subject, values, len(names)) for values in (second, first)]
    p = metrics.paired_permutation(*sums, resamples=resamples, seed=seed).p
    return {
        "first_value": float(first.mean()),
        "second_value": float(second.mean()),
        "difference": float(difference.mean()),
        "low": interval.low,
        "high": interval.high,
        "p": p,
    }
