"""The shortcut audit: what simple rivals reach on the folds of a run, and whether its networks are better.

A rival, see `rivals`, knows a few facts that say nothing of the finding: the size of the head, the voxels, the
intensities of a channel, the files, the site. One that is better than chance, and that the network is not shown to be
better than, may be what the network has learned. Of several answers, labels say, the mean is judged, and each one.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..report import differences
from ..tasks import Results
from . import rivals
from .answered import Answered

ALL = "all of these"
_LEVEL = 0.05  # of the tests, after Holm's correction for the number of rivals
_RESAMPLES = 1000  # of the paired tests
_MOST_GROUPS = 30  # of a column whose groups are scored one by one
_KEPT = ("id", "subject", "fold", "loss", "scan")  # of a row: what is no answer, besides target* and training_*
NOTHING, LESS, AS_MUCH = "nothing", "less than the network", "as much as the network"
UNKNOWN = "cannot be said"  # no fold tests cases of both kinds


class Rival(NamedTuple):
    """A rival's score over all tested cases. gain: how much better the network is, with limits; p: of the gain."""

    name: str
    features: int
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    p: float  # corrected, as p_chance: of a rival that is fitted anew on permuted labels
    p_chance: float
    finds: str  # NOTHING, LESS, AS_MUCH or UNKNOWN
    each: list  # of several answers, the score of each


class OfAnswer(NamedTuple):
    """One of several answers, and of the rivals the one that tells most of it: the least likely by chance."""

    name: str
    cases: int  # that have the label; of numbers all
    value: float  # of the network: AUROC within folds, or mean absolute error
    rival: str
    rival_value: float
    gain: float
    gain_low: float
    gain_high: float
    p: float  # of the gain, corrected for the number of answers
    p_chance: float  # corrected for the numbers of answers and of rivals
    finds: str


def audit(task, results, cases, facts, splits):
    """{metric, higher_is_better, cases, value, low, high, rivals, answers, constant} of a finished run.

    results: of its tested cases. cases: all of them, with their `facts`. task: one that knows all classes.
    rivals: [Rival as a dict]. answers: [OfAnswer as a dict] of a task with several answers, else [].
    constant: names of the facts that are equal in all cases, of which no rival is made.
    """
    study, ours = _study(task, results, cases, splits), Answered(task.config, task, results)
    known = rivals.features_of(facts)
    features = {name: own for name, own in known.items() if own.shape[1]}
    constant = [name for name in known if name not in features]
    if len(features) > 1:
        features[ALL] = np.hstack(list(features.values()))
    said = {name: rivals.ask(own, study) for name, own in features.items()}
    of_network = _of_each(task, results, np.array([_answers_of(task, row) for row in results.rows], float))
    compared = []
    for name, own in said.items():
        rival = Answered(task.config, task, _answered(task, results, own.answers))
        each = [] if len(task.rival_outputs()) < 2 else _of_each(task, results, own.answers)
        score, gain = estimate(task, rival.results), _compared(rival, ours)
        compared.append((name, features[name].shape[1], score, gain, own.p, each))
    metric, value, low, high = estimate(task, results)
    found = {"metric": metric, "higher_is_better": task.higher_is_better, "cases": len(results.rows)}
    found |= {"value": value, "low": low, "high": high, "rivals": [rival._asdict() for rival in _judged(compared)]}
    answers = _each_judged(task, results, said, of_network) if len(of_network) > 1 and said else []
    return {**found, "answers": [answer._asdict() for answer in answers], "constant": constant}


def _study(task, results, cases, splits):
    ids = [case.id for case in cases]
    place = {id: index for index, id in enumerate(ids)}
    tested = np.array([place[row["id"]] for row in results.rows])
    folds = np.zeros(len(tested), int) if results.folds is None else results.folds
    targets, subjects = np.array(task.rival_targets(cases), float), [case.subject for case in cases]
    return rivals.Study(ids, subjects, targets, splits, task.config.seed, tested, folds, task.reads == "number")


def _answers_of(task, row):
    """[what a row says, in the order of `rival_targets`]."""
    return [row[output.column] for output in task.rival_outputs()]


def _truth_of(task, results):
    """(t, K)."""
    outputs = task.rival_outputs()
    return np.array([[output.truth(row) for output in outputs] for row in results.rows], float)


def _of_each(task, results, said):
    """[of each answer the AUROC within folds, or the mean absolute error]; said: (t, K)."""
    true = _truth_of(task, results)
    if task.reads == "number":
        return np.abs(said - true).mean(0).tolist()
    folds = np.zeros(len(true), int) if results.folds is None else results.folds
    return rivals.aurocs(true, said, folds).tolist()


def _answered(task, results, said):
    """The Results with what a rival says, (t, K), in the place of the network's answers."""
    rows = []
    for row, answers in zip(results.rows, said):
        kept = {name: row[name] for name in row if name in _KEPT or name.startswith(("target", "training_"))}
        rows.append(task.rival_row(kept, answers))
    return Results(rows)


def estimate(task, results):
    """(metric, value, low, high) by which a run's report begins, of some of its rows; NaN where it is undefined."""
    scores = task.score(results)
    metric = task.select + metrics.WITHIN
    metric = metric if not math.isnan(scores.get(metric, math.nan)) else task.select
    value = scores[metric]
    if math.isnan(value) or len(results.rows) < 3:
        return metric, value, math.nan, math.nan
    interval = task.intervals_of(scores, results, task.config.eval.bootstrap, task.config.seed).get(metric)
    return metric, value, *((interval.low, interval.high) if interval else (math.nan, math.nan))


def _compared(first, second):
    """{gain, low, high, p}: how much better the second is, by the paired test of the comparison of runs.

    By DeLong's test within folds where there are several; or by the mean over the cases of the task's own metric.
    """
    rows = {row["metric"]: row for row in differences.pair(first, second, _RESAMPLES, first.config.seed)}
    select = first.task.select
    found = [rows[name] for name in (select + metrics.WITHIN, select) if name in rows]
    if not found:  # no label has cases of both kinds
        return dict.fromkeys(("gain", "low", "high", "p"), math.nan)
    row = found[0]
    low, high = (row["low"], row["high"]) if row["higher_is_better"] else (-row["high"], -row["low"])
    gain = row["difference"] if row["higher_is_better"] else -row["difference"]
    return {"gain": gain, "low": low, "high": high, "p": row["p"]}


def _judged(compared):
    """The Rivals, with p values that are corrected for their number."""
    of_gain, of_chance = (
        differences.holm(p) for p in ([one[3]["p"] for one in compared], [one[4] for one in compared])
    )
    found = []
    for (name, count, (_, *score), better, _, each), p, p_chance in zip(compared, of_gain, of_chance):
        finds = _verdict(better["gain"], p, p_chance)
        gain = better["gain"], better["low"], better["high"]
        found.append(Rival(name, count, *score, *gain, p, p_chance, finds, each))
    return found


def _verdict(gain, p, p_chance):
    if math.isnan(p_chance):
        return UNKNOWN
    if p_chance >= _LEVEL:
        return NOTHING
    return LESS if gain > 0 and p < _LEVEL else AS_MUCH


def _each_judged(task, results, said, of_network):
    """An OfAnswer for each answer; said: {name of a rival: rivals.Said}; of_network: its own scores."""
    true, ours = _truth_of(task, results), np.array([_answers_of(task, row) for row in results.rows], float)
    names, sign = list(said), -1 if task.reads == "number" else 1
    values = np.array([_of_each(task, results, own.answers) for own in said.values()])  # (rivals, K)
    chance, found = np.minimum(1, np.array([own.each for own in said.values()]) * len(names)), []
    for place, output in enumerate(task.rival_outputs()):
        order = np.lexsort((-sign * values[:, place], chance[:, place]))  # NaN last
        best = order[0]
        other = said[names[best]].answers[:, place]
        gain = _gain(task, results, true[:, place], ours[:, place], other)
        cases = len(true) if task.reads == "number" else int(true[:, place].sum())
        pair = of_network[place], names[best], float(values[best, place])
        found.append((OfAnswer(output.name, cases, *pair, *gain, float(chance[best, place]), ""), gain[-1]))
    corrected = differences.holm([p for _, p in found])
    return [one._replace(p=p, finds=_verdict(one.gain, p, one.p_chance)) for (one, _), p in zip(found, corrected)]


def _gain(task, results, true, ours, other):
    """(gain of ours over the other's, low, high, p) of one answer."""
    subjects = results.arrays("subject")[0]
    if task.reads != "number":
        test = metrics.delong_test(true, ours, other, groups=subjects, folds=results.folds)
        return test.difference, test.low, test.high, test.p
    found = differences.paired(np.abs(ours - true), np.abs(other - true), subjects, _RESAMPLES, task.config.seed)
    return found["difference"], found["low"], found["high"], found["p"]


def by_group(task, results, groups):
    """[{column, group, cases, value, low, high}] of the network; groups: {column: {id: text or None}}."""
    found = []
    for column, of_case in groups.items():
        names = sorted({name for row in results.rows if (name := of_case.get(row["id"])) is not None})
        if not 1 < len(names) <= _MOST_GROUPS:
            continue
        for name in names:
            rows = [row for row in results.rows if of_case.get(row["id"]) == name]
            _, value, low, high = estimate(task, Results(rows))
            found.append(
                {"column": column, "group": name, "cases": len(rows), "value": value, "low": low, "high": high}
            )
    return found
