"""What simple rivals say on the folds of a run, and whether that is better than chance.

A rival is a ridge regression on a few facts that say nothing of the finding, see data/facts. In each fold it learns
from all cases that are not tested, training and validation part, and answers for the test part, so that it has seen as
much as the network. The strength of its penalty is chosen by leaving subjects out. Each answer (a label, say) has a
penalty of its own, so that one rival learns all of them in one go.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy

from .. import ridge
from ..runtime import seeds

_CATEGORIES = 20  # of a text: the most frequent; each is a feature
_FEWEST = 2  # cases of a category
_MOST_FITTED = 2000  # training cases of a rival; of more so many are drawn
_PERMUTATIONS = 499
_ENOUGH = 25  # permutations that are as good: p cannot fall below .05 any more, however many follow
_CHUNK = 1 << 20  # targets of all cases that are learned at once


class Study(NamedTuple):
    """The cases of a run, what is to be said of them, and its folds."""

    ids: list
    subjects: list
    targets: np.ndarray  # (n, K)
    splits: list  # {part: ids} of each fold
    seed: int
    tested: np.ndarray  # (t,) places of the tested cases among all, in the order of the results
    folds: np.ndarray  # (t,) the fold that tests each
    numbers: bool  # whether targets are numbers, or else 0 and 1


class Said(NamedTuple):
    """What a rival says, and how likely it is as good where facts and targets have nothing to do with each other."""

    answers: np.ndarray  # (t, K)
    p: float  # of the mean over the K targets
    each: np.ndarray  # (K,) of each target; all of them together are below .05 by chance once in 20 times


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


def ask(features, study):
    """The Said of a rival with these features (n, F).

    It is fitted anew on targets that are dealt to other subjects of the same fold: that test is exact, however folds
    depend on each other. The p of each target is that of the largest deviation of all (Westfall and Young 1993).
    Where many deals are as good no more are made, which leaves a p below .05 as it is (Besag and Clifford 1991).
    """
    answers = _learned(features, study.targets[:, None], study)
    true = scores(study, study.targets[:, None], answers)[0]
    said, unit = answers[study.tested, 0], _deviations(study)
    if np.isnan(true).all():
        return Said(said, math.nan, np.full(len(true), np.nan))
    mean, far = _mean(true), true / unit
    more, more_each, done = 0, np.zeros(len(true)), 0
    for givers in _deals(study):
        dealt = study.targets[givers.T]  # (n, D, K)
        found = scores(study, dealt, _learned(features, dealt, study))
        more += np.count_nonzero(_mean(found) >= mean - 1e-12)
        farthest = np.nan_to_num(found / unit, nan=-np.inf).max(axis=1)
        more_each += np.count_nonzero(farthest[:, None] >= far - 1e-12, axis=0)
        done += len(givers)
        if min(more, *more_each[~np.isnan(far)]) >= _ENOUGH:
            break
    each = np.where(np.isnan(far), np.nan, (1 + more_each) / (1 + done))
    return Said(said, float((1 + more) / (1 + done)), each)


def _mean(values):
    """Over the last axis, of those that are not NaN; 0 of none."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(-1) / np.maximum(there.sum(-1), 1)


def scores(study, targets, answers):
    """(D, K), the higher the better: AUROC - .5 over the pairs within folds, of numbers the negative error.

    targets, answers: (n, D, K) of all cases, of D versions of the targets. The error is the mean absolute one, in
    standard deviations of the targets. NaN without pairs.
    """
    true, said = targets[study.tested], answers[study.tested]
    if study.numbers:
        return -np.abs(said - true).mean(0) / np.maximum(study.targets[study.tested].std(0), 1e-12)
    flat = (values.reshape(len(true), -1) for values in (true, said))
    return aurocs(*flat, study.folds).reshape(true.shape[1:]) - 0.5


def aurocs(labels, said, folds):
    """(C,) AUROCs over the pairs within folds of (n, C) labels of 0 and 1 and what is said; NaN without pairs."""
    wins, pairs = np.zeros((2, labels.shape[1]))
    for fold in np.unique(folds):
        own = labels[folds == fold]
        positive, ranks = own.sum(0), scipy.stats.rankdata(said[folds == fold], axis=0)
        wins += (ranks * own).sum(0) - positive * (positive + 1) / 2
        pairs += positive * (len(own) - positive)
    with np.errstate(invalid="ignore"):
        return wins / pairs


def _deviations(study):
    """(K,) of the scores where nothing is known, by which deviations are compared: those of rare labels vary more."""
    if study.numbers:
        return np.ones(study.targets.shape[1])
    variance, pairs = np.zeros((2, study.targets.shape[1]))
    for fold in np.unique(study.folds):
        own = study.targets[study.tested][study.folds == fold]
        product = own.sum(0) * (len(own) - own.sum(0))
        variance += product * (len(own) + 1) / 12
        pairs += product
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(variance) / pairs


def _deals(study):
    """Yield (D, n) cases whose targets each case gets: _PERMUTATIONS in all, some at a time.

    All cases of a subject get those of the first case of another one, of the same fold. So folds keep their share.
    """
    of = {id: number for number, split in enumerate(study.splits) for id in split["test"]}
    fold = np.array([of.get(id, -1) for id in study.ids])  # -1: no fold tests it
    _, first, subject = np.unique(study.subjects, return_index=True, return_inverse=True)
    members = [np.flatnonzero(fold[first] == number) for number in np.unique(fold[first])]
    rng, size = seeds.generator(study.seed, "audit", 0), max(1, _CHUNK // study.targets.size)
    for start in range(0, _PERMUTATIONS, size):
        found = []
        for _ in range(min(size, _PERMUTATIONS - start)):
            giver = np.arange(len(first))
            for own in members:
                giver[own] = rng.permutation(own)
            found.append(first[giver[subject]])
        yield np.array(found)


def _learned(features, targets, study):
    """(n, D, K) what a rival says of the tested cases, NaN for others; targets: (n, D, K), each learned by itself."""
    place, said = {id: index for index, id in enumerate(study.ids)}, np.full(targets.shape, np.nan)
    for number, split in enumerate(study.splits, start=1):
        test = [place[id] for id in split["test"]]
        train = np.array([place[id] for part in split if part != "test" for id in split[part]], int)
        if len(train) > _MOST_FITTED:
            drawn = seeds.generator(study.seed, "audit", number)
            train = np.sort(drawn.choice(train, _MOST_FITTED, replace=False))
        learned, own = targets[train], [study.subjects[index] for index in train]
        said[test] = learned.mean(0)
        if len(set(own)) > 2:  # of whom one can be left out
            none, flat = np.zeros(features.shape[1], int), learned.reshape(len(train), -1)
            fitted = ridge.fit(features[train], flat, none, none, own, decays=(1.0,), each=True)
            said[test] = fitted(features[test]).reshape(len(test), *targets.shape[1:])
    return said
