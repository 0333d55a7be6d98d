"""Is one run better than another on the same cases: paired differences, intervals and tests.

Every pair of runs is compared on every metric of the task. AUROC by DeLong's test, summed per subject where subjects
have several cases (clustered DeLong, Obuchowski 1997), over all cases and, of runs with the same folds, over the pairs
within folds, with the variance of models that were trained per fold; the mean of any per-case value by sign flips of
whole subjects, its interval by the bootstrap over subjects. The p values of the whole table are corrected together
(Holm, Scand J Stat 6:65, 1979).
"""

import itertools
import math
import os

import numpy as np

from .. import metrics
from ..config import UserError
from ..tasks import Results
from .run import Run

_COLUMNS = "metric first second first_value second_value difference low high p p_holm better cases left_out test"


def compare(folders, resamples=10000, seed=0):
    """(rows, runs): one dict of _COLUMNS per metric and pair of runs, and {name: Run}.

    `difference`: second minus first, with its 95% interval; `better`: the name of the better run where p_holm < 0.05,
    else "". left_out: cases whose value is undefined or infinite in either run; the others are compared. Raises
    UserError unless all runs are finished and have the same task, cases and references.
    """
    if len(folders) < 2:
        raise UserError(f"got {len(folders)} run folder, wanted two or more")
    if resamples < 1:
        raise UserError(f"--resamples: got {resamples}, wanted 1 or more")
    runs = _distinct({folder: Run(folder) for folder in folders})
    _check(list(runs.values()))
    rows = []
    for (first, a), (second, b) in itertools.combinations(runs.items(), 2):
        rows += [{"first": first, "second": second, **row} for row in pair(a, b, resamples, seed)]
    for row, corrected in zip(rows, holm([row["p"] for row in rows])):
        row["p_holm"] = corrected
        better = "second" if (row["difference"] > 0) == row["higher_is_better"] else "first"
        row["better"] = row[better] if corrected < 0.05 else ""
    return [{name: row[name] for name in _COLUMNS.split()} for row in rows], runs


def holm(p_values):
    """Holm's step-down correction; an undefined p stays undefined and counts for nothing."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # which puts NaN last
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]))
    return corrected.tolist()


def _distinct(by_folder):
    """{name: Run}; runs of one name are told apart by their folders."""
    if len({os.path.realpath(folder) for folder in by_folder}) < len(by_folder) or len(by_folder) < 2:
        raise UserError(f"got the same run folder twice: {', '.join(by_folder)}")
    names = [run.config.name for run in by_folder.values()]
    return {run.config.name if names.count(run.config.name) == 1 else folder: run for folder, run in by_folder.items()}


def _check(runs):
    first = runs[0]
    place, kind = first.folder.path, first.config.task.type
    if not first.task.view.per_case:
        why = "nothing to compare case by case: the task's view has no `per_case`"
        raise UserError(f"{place}: runs of task.type={kind} have {why}")
    for run in runs:
        if not run.complete:
            done = f"{len(run.finished)} of {len(run.splits)} folds are finished"
            raise UserError(f"{run.folder.path}: {done}: finish the run first")
        if type(run.task) is not type(first.task):
            raise UserError(f"{run.folder.path} is a run of {run.config.task.type}, {place} of {kind}: wanted one task")
        if run.task.view.per_case.keys() != first.task.view.per_case.keys():
            raise UserError(f"{run.folder.path} is a run of other metrics than {place} (task.parts): wanted the same")
        _check_cases(first, run)


def _check_cases(first, run):
    both, truth = f"{run.folder.path} and {first.folder.path} have other", first.task.view.truth
    ids, ids_of_first = ({row["id"] for row in one.units} for one in (run, first))
    missing, extra = ids_of_first - ids, ids - ids_of_first
    if missing or extra:
        counts = f"{len(missing)} are missing in the one, {len(extra)} in the other"
        raise UserError(f"{both} cases ({counts}: {', '.join(sorted(missing | extra)[:5])}): wanted the same")
    changed = [row["id"] for row, other in zip(run.units, first.units) if truth(row) != truth(other)]
    if changed:
        raise UserError(f"{both} labels for {', '.join(changed[:5])}: wanted the same data")


def pair(a, b, resamples, seed):
    """The rows of two runs, with higher_is_better, and without what needs the other pairs.

    Of each are read config, task, results, rows and units.
    """
    found, view = [], a.task.view
    subjects, ranked = np.array([row["subject"] for row in a.units]), view.ranked(b)
    for metric, (labels, scores) in view.ranked(a).items():
        for ending, folds in _compared(*(Results(run.units).folds for run in (a, b))).items():
            test = metrics.delong_test(labels, ranked[metric][1], scores, groups=subjects, folds=folds)
            facts = {"metric": metric + ending, "cases": len(labels), "left_out": 0, "test": "DeLong"}
            values = {name: getattr(test, name) for name in ("difference", "low", "high", "p")}
            values |= {"higher_is_better": True, "first_value": test.second, "second_value": test.first}
            found.append({**facts, **values})
    for metric, (value_of, higher, _) in view.per_case.items():
        first, second = (np.array([value_of(row) for row in run.units]) for run in (a, b))
        kept = np.isfinite(first) & np.isfinite(second)
        facts = {"metric": metric, "cases": int(kept.sum()), "left_out": int((~kept).sum()), "test": "permutation"}
        values = paired(first[kept], second[kept], subjects[kept], resamples, seed)
        found.append({**facts, **values, "higher_is_better": higher})
    return found


def _compared(first, second):
    """{ending of a metric's name: the folds whose cases are compared}: all cases and, where folds are equal, each."""
    if first is None or second is None:  # one model: independent test cases
        return {"": None}
    return {"": np.zeros(len(first)), **({metrics.WITHIN: first} if np.array_equal(first, second) else {})}


def paired(first, second, subjects, resamples, seed):
    """Means, their difference, its interval and p; sessions of one subject flip together."""
    if not len(first):
        return dict.fromkeys(("first_value", "second_value", "difference", "low", "high", "p"), math.nan)
    difference = second - first
    names, subject = np.unique(subjects, return_inverse=True)
    interval = metrics.bootstrap_ci(np.mean, difference, resamples=min(resamples, 2000), seed=seed, groups=subjects)
    sums = [np.bincount(subject, values, len(names)) for values in (second, first)]
    p = metrics.paired_permutation(*sums, resamples=resamples, seed=seed).p
    means = {"first_value": first, "second_value": second, "difference": difference}
    means = {name: float(values.mean()) for name, values in means.items()}
    return {**means, "low": interval.low, "high": interval.high, "p": p}
