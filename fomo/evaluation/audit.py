"""The shortcut audit: what simple rivals reach on the folds of a run, and whether its networks are better.

A rival is a ridge regression on a few facts that say nothing of the finding, see data/facts: the size of the head, the
voxels, the intensities of a channel, the files, the site. In each fold it learns from all cases that are not tested,
training and validation part, and answers for the test part, so that it has seen as much as the network. The strength
of its penalty is chosen by leaving subjects out. Whether it is better than chance is tested by fitting it anew on the
labels of other subjects of the same fold: that is exact, however the folds depend on each other. A rival that is better
than chance, and that the network is not shown to be better than, may be what the network has learned.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import metrics, ridge
from ..report import differences
from ..runtime import seeds
from ..tasks import Results
from .answered import Answered

ALL = "all of these"
_LEVEL = 0.05  # of the tests, after Holm's correction for the number of rivals
_CATEGORIES = 20  # of a text: the most frequent; each is a feature
_FEWEST = 2  # cases of a category
_MOST_FITTED = 2000  # training cases of a rival; of more so many are drawn
_PERMUTATIONS = 499
_MOST_GROUPS = 30  # of a column whose groups are scored one by one
_KEPT = ("id", "subject", "fold", "loss", "scan")  # of a row: what is no answer, besides target* and training_*
NOTHING, LESS, AS_MUCH = "nothing", "less than the network", "as much as the network"


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
    finds: str  # NOTHING, LESS or AS_MUCH


def features_of(facts):
    """{kind of facts: (n, F)} numbers from {kind: {fact: number, text or None}} of n cases.

    A number that is missing is the mean of the others, beside a feature that says so; each frequent text is a feature.
    """
    found = {}
    for kind in dict.fromkeys(kind for case in facts for kind in case):
        names = dict.fromkeys(name for case in facts for name in case.get(kind, ()))
        columns = [column for name in names for column in _columns([case.get(kind, {}).get(name) for case in facts])]
        columns = [column for column in columns if np.ptp(column) > 0]  # equal in all cases: it tells nothing
        found[kind] = np.stack(columns, axis=1) if columns else np.zeros((len(facts), 0))
    return found


def _columns(values):
    """The features of one fact of all cases."""
    if any(isinstance(value, str) for value in values):
        names, counts = np.unique([value for value in values if value is not None], return_counts=True)
        frequent = [names[place] for place in np.argsort(-counts, kind="stable") if counts[place] >= _FEWEST]
        return [np.array([value == name for value in values], float) for name in frequent[:_CATEGORIES]]
    numbers = np.array([math.nan if value is None else value for value in values], float)
    missing = np.isnan(numbers)
    if missing.all():
        return []
    return [np.where(missing, numbers[~missing].mean(), numbers), missing.astype(float)]


def answers(features, targets, ids, subjects, splits, seed):
    """{id: (D, K) what the rival says} of the tested cases.

    features (n, F), targets (n, D, K), ids and subjects (n,) of all cases; splits: [{part: ids}] of each fold. The D
    versions of the targets are learned each by itself, with a penalty of its own.
    """
    place, said = {id: index for index, id in enumerate(ids)}, {}
    for number, split in enumerate(splits, start=1):
        test, train = ([place[id] for id in part] for part in (split["test"], _not_tested(split)))
        train = np.array(train)
        if len(train) > _MOST_FITTED:
            train = np.sort(seeds.generator(seed, "audit", number).choice(train, _MOST_FITTED, replace=False))
        learned = targets[train]
        found = np.repeat(learned.mean(0)[None], len(test), axis=0)
        if features.shape[1]:
            none, own = np.zeros(features.shape[1], int), [subjects[index] for index in train]
            flat = learned.reshape(len(train), -1)
            fitted = ridge.fit(features[train], flat, none, none, own, decays=(1.0,), each=True)
            found = fitted(features[test]).reshape(found.shape)
        said.update(zip((ids[index] for index in test), found))
    return said


def _not_tested(split):
    return [id for part in split if part != "test" for id in split[part]]


def audit(config, task, results, cases, facts, splits):
    """{metric, higher_is_better, cases, value, low, high, rivals: [Rival as a dict], constant} of a finished run.

    results: of its tested cases. cases: all of them, with their `facts`. task: one that knows all classes.
    constant: names of the facts that are equal in all cases, of which no rival is made.
    """
    ids, subjects = [case.id for case in cases], [case.subject for case in cases]
    targets = np.array(task.rival_targets(cases), float)
    dealt = _dealt(targets, subjects, _parts(ids, splits), config.seed)
    known, compared = features_of(facts), []
    found = {name: features for name, features in known.items() if features.shape[1]}
    constant = [name for name in known if name not in found]
    if len(found) > 1:
        found[ALL] = np.hstack(list(found.values()))
    ours = Answered(config, task, results)
    for name, features in found.items():
        said = answers(features, dealt, ids, subjects, splits, config.seed)
        p_chance = _p_chance(task, results, {id: dealt[place] for place, id in enumerate(ids)}, said)
        rival = Answered(config, task, _answered(task, results, {id: answer[0] for id, answer in said.items()}))
        score = estimate(config, task, rival.results)
        compared.append((name, features.shape[1], score, _compared(rival, ours), p_chance))
    rivals = [rival._asdict() for rival in _judged(compared)]
    metric, value, low, high = estimate(config, task, results)
    of_network = {"metric": metric, "higher_is_better": task.higher_is_better, "cases": len(results.rows)}
    return {**of_network, "value": value, "low": low, "high": high, "rivals": rivals, "constant": constant}


def _parts(ids, splits):
    """(n,) the fold that tests each case; -1: none does."""
    of = {id: number for number, split in enumerate(splits) for id in split["test"]}
    return np.array([of.get(id, -1) for id in ids])


def _dealt(targets, subjects, folds, seed):
    """(n, 1 + _PERMUTATIONS, K): the targets, and those of other subjects of the same fold, drawn.

    All cases of a subject get those of the first case of another one. Folds keep their share of each class.
    """
    names, first, subject = np.unique(subjects, return_index=True, return_inverse=True)
    found, of_subject, rng = [targets], folds[first], seeds.generator(seed, "audit", 0)
    for _ in range(_PERMUTATIONS):
        giver = np.arange(len(names))
        for fold in np.unique(of_subject):
            own = np.flatnonzero(of_subject == fold)
            giver[own] = rng.permutation(own)
        found.append(targets[first[giver[subject]]])
    return np.stack(found, axis=1)


def _p_chance(task, results, targets, said):
    """How likely it is that a rival is as good where facts and labels have nothing to do with each other.

    targets, said: {id: (D, K)} of versions of which the first is true; the others were learned as it was.
    """
    ids = [row["id"] for row in results.rows]
    true, found = (np.stack([of[id] for id in ids], axis=1) for of in (targets, said))  # (D, n, K)
    if task.reads == "class":
        folds = np.zeros(len(ids), int) if results.folds is None else results.folds
        pairs = zip(true[..., 0].astype(int), found[..., 0])
        scores = np.array([metrics.within_folds(metrics.auroc, *pair, folds) for pair in pairs])
    else:
        scores = -(np.abs(found - true) / np.maximum(true.std(1, keepdims=True), 1e-12)).mean((1, 2))
    if np.isnan(scores[0]):
        return math.nan
    return float(np.mean(np.append(scores[1:] >= scores[0] - 1e-12, True)))


def _answered(task, results, said):
    """The Results with what a rival says of each case in the place of the network's answer."""
    rows = []
    for row in results.rows:
        kept = {name: row[name] for name in row if name in _KEPT or name.startswith(("target", "training_"))}
        rows.append(task.rival_row(kept, said[row["id"]]))
    return Results(rows)


def estimate(config, task, results):
    """(metric, value, low, high) by which a run's report begins, of some of its rows; NaN where it is undefined."""
    scores = task.score(results)
    metric = task.select + metrics.WITHIN
    metric = metric if not math.isnan(scores.get(metric, math.nan)) else task.select
    value = scores[metric]
    if math.isnan(value) or len(results.rows) < 3:
        return metric, value, math.nan, math.nan
    interval = task.intervals_of(scores, results, config.eval.bootstrap, config.seed).get(metric)
    return metric, value, *((interval.low, interval.high) if interval else (math.nan, math.nan))


def _compared(first, second):
    """{gain, low, high, p}: how much better the second is, by the paired test of the comparison of runs.

    By DeLong's test within folds where there are several; or by the mean over the cases of the task's own metric.
    """
    rows = {row["metric"]: row for row in differences.pair(first, second, 1000, first.config.seed)}
    select = first.task.select
    row = next(rows[name] for name in (select + metrics.WITHIN, select) if name in rows)
    low, high = (row["low"], row["high"]) if row["higher_is_better"] else (-row["high"], -row["low"])
    gain = row["difference"] if row["higher_is_better"] else -row["difference"]
    return {"gain": gain, "low": low, "high": high, "p": row["p"]}


def _judged(compared):
    """The Rivals, with p values that are corrected for their number."""
    of_gain, of_chance = (
        differences.holm(p) for p in ([one[3]["p"] for one in compared], [one[4] for one in compared])
    )
    found = []
    for (name, count, (_, *score), better, _), p, p_chance in zip(compared, of_gain, of_chance):
        finds = NOTHING
        if p_chance < _LEVEL:
            finds = LESS if better["gain"] > 0 and p < _LEVEL else AS_MUCH
        found.append(Rival(name, count, *score, better["gain"], better["low"], better["high"], p, p_chance, finds))
    return found


def by_group(config, task, results, groups):
    """[{column, group, cases, value, low, high}] of the network; groups: {column: {id: text or None}}."""
    found = []
    for column, of_case in groups.items():
        names = sorted({name for row in results.rows if (name := of_case.get(row["id"])) is not None})
        if not 1 < len(names) <= _MOST_GROUPS:
            continue
        for name in names:
            rows = [row for row in results.rows if of_case.get(row["id"]) == name]
            _, value, low, high = estimate(config, task, Results(rows))
            found.append(
                {"column": column, "group": name, "cases": len(rows), "value": value, "low": low, "high": high}
            )
    return found
