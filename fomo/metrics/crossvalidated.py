"""Confidence intervals of metrics of out-of-fold cases, which the models of a cross-validation have predicted.

Such cases are not independent: each one is also a training case of the other folds' models. Where models have found
no signal, the variance of their cross-validated AUROC, correlation or R2 is twice that of independent test cases:
the product of each two cases enters it twice, once with each of them as the test case. With a signal the factor
falls to nearly 1. An interval from the spread of the cases alone is too narrow, and a t-interval over folds as well.
"""

from typing import NamedTuple

import numpy as np
import scipy

from . import checks, ranking, regression
from .weighted import WITHIN, evaluator

_BLOCKS = 250  # subjects above that are left out in blocks
_SIGNAL = 3.0  # squared distance from chance, in variances, at which half of the doubling is gone
_UNIT, _OTHER = 0.7, 1.25  # over the root of the subjects: what refitting adds to the standard error with any signal


class Interval(NamedTuple):
    """An estimate with its confidence limits; `undefined`: how many resamples (or values) were NaN and left out."""

    value: float
    low: float
    high: float
    undefined: int

    @property
    def reason(self):
        """Why there are no limits; empty where there are."""
        if not np.isnan(self.low):
            return ""
        if not np.isfinite(self.value):
            return "the estimate is " + ("undefined" if np.isnan(self.value) else "infinite")
        return "there are too few cases or subjects, or no spread between them"


class _Model(NamedTuple):
    """How the variance of a metric goes with its true value."""

    low: float  # the least possible value
    high: float
    variance: object  # (n,) true values -> (n,) variances of independent cases; up to a factor where `worth` is 0
    chance: float  # its value without any signal; NaN: none
    worth: float  # of how many subjects `variance` knows the factor, before the spread of the data is seen
    subjects: float  # that have seen the spread


def cross_validated_ci(
    metric, labels, scores=None, *, folds, groups=None, seed=0, level=0.95, within=True, bounds=None, chance=None
):
    """Confidence interval of `metric(labels, scores)` of out-of-fold cases, for models that were trained per fold.

    It is about the mean value of these k models on new cases of the population. It needs the out-of-fold scores alone.
    metric: a function of (labels, scores), or of (labels,) where scores is None, that returns a number.
    labels, scores: arrays with the cases first. folds: (n,) fold of each case. groups: (n,) subject of each case.
    seed: draws the blocks of subjects that are left out together; only used above 250 subjects.
    within: whether auroc, macro_auroc and pearson compare the cases of one fold only (pairs of cases, deviations from
      the fold's means). The scores of two models need not be on one scale, and stratified folds shift each model
      against its own test cases: over all pairs, the AUROC of no signal is .01 to .04 too low (100 to 20 cases).
    bounds, chance: the range of a metric that is not of this package, and its value without signal. np.mean: (0, 1)
      where all values are, (0, inf) where all are at least 0; of 0 and 1 only: chance .5. Limits stay in the range.

    Method: the limits are the farthest true values that a test at this level does not reject (a score interval, as
    Wilson's of a proportion). The test's variance is that of independent cases at the tested value, from a formula
    (proportions: Wilson; AUROC: Newcombe, Stat Med 25:559, 2006, per fold) times a factor that the jackknife over
    subjects gives, shrunk towards 1 for few; times what refitting adds: double at `chance`, less away from it. A value
    at its limit (all right; AUROC 1) so has an interval, too.
    Limits are NaN, and `reason` says why, where the estimate is not finite, or errors or distances have no spread.

    Coverage of the 95% interval in 411 simulated set-ups (tests/experiments/coverage.py has the table): 93 to 97% in
    190, more in 200 (too wide: few positives, 20 cases, several sessions), less in 21: nearly all of models that
    overfit, with more features than training cases, of whose mean absolute error 90 to 92%.
    """
    data, folds = checked(metric, labels, scores), np.asarray(folds)
    level = checks.number(level, "level", 0.5, 0.9999)
    checks.same_shape(folds, "folds", np.empty(len(data[0])), "labels")
    subject = subjects_of(groups, len(data[0]))
    if within and metric in WITHIN:
        value = float(WITHIN[metric](*data, folds)(np.ones((1, len(subject))))[0])
    else:
        value, folds = float(metric(*data)), None
    model = _model(metric, data, folds, subject, bounds, chance)
    factor = _factor(metric, data, folds, subject, bounds, chance, seed)
    return Interval(value, *_limits(value, subject.max() + 1, model, factor, level, refitted=True), 0)


def refitting(gap, variance, subjects, more=_UNIT):
    """What multiplies the variance of independent cases, for a value with this `gap` to chance (NaN: there is none)."""
    least = (1 + more / np.sqrt(subjects)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        signal = np.square(gap) / (np.asarray(variance) * _SIGNAL)
    return least + np.where(np.isnan(signal), 0, max(2 - least, 0) / (1 + signal))


def within_folds(metric, labels, scores, folds):
    """auroc, macro_auroc or pearson of the cases of one fold each, as `cross_validated_ci` takes them."""
    data, folds = checked(metric, labels, scores), np.asarray(folds)
    if metric not in WITHIN:
        checks.fail("metric", metric.__name__, "one of " + ", ".join(sorted(known.__name__ for known in WITHIN)))
    checks.same_shape(folds, "folds", np.empty(len(data[0])), "labels")
    return float(WITHIN[metric](*data, folds)(np.ones((1, len(folds))))[0])


def fold_shift(metric, labels, scores, folds, groups=None, seed=0, resamples=200):
    """(difference, noise): `within_folds` minus the value of all cases, and its SD if all models had one scale.

    The SD is over random exchanges of the folds among subjects with the same labels. Above 3 SD the scores of different
    folds' models are not on one scale: 1 to 5% of simulated studies without offsets, 80% with offsets of the logits
    whose SD is 2, of 100 cases (30% of 40 cases).
    """
    data, folds = checked(metric, labels, scores), np.asarray(folds)
    difference = within_folds(metric, *data, folds) - float(metric(*data))
    first = np.unique(subjects_of(groups, len(folds)), return_index=True, return_inverse=True)[1:]
    (first, subject), kinds = first, np.zeros(len(folds), int)
    if metric is not regression.pearson:  # of a subject with several cases, its first label
        kinds = np.unique(data[0].reshape(len(folds), -1), axis=0, return_inverse=True)[1].reshape(len(folds))
    of_subject, kinds, rng, found = folds[first], kinds[first], np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = of_subject.copy()
        for kind in np.unique(kinds):
            drawn[kinds == kind] = rng.permutation(drawn[kinds == kind])
        found.append(within_folds(metric, *data, drawn[subject]))
    return difference, float(np.nanstd(found))


def score_limits(metric, data, subject, level, bounds=None):
    """(low, high) for independent test cases, where resampling gives no interval because all resamples are equal."""
    model = _model(metric, data, None, subject, bounds, None)
    factor = _factor(metric, data, None, subject, bounds, None, 0)
    return _limits(float(metric(*data)), subject.max() + 1, model, factor, level, refitted=False)


def checked(metric, labels, scores):
    """[labels] or [labels, scores] as arrays."""
    if not callable(metric):
        checks.fail("metric", repr(metric), "a function of (labels, scores)")
    data = [np.asarray(labels)] if scores is None else [np.asarray(labels), np.asarray(scores)]
    for array, name in zip(data, ("labels", "scores")):
        if array.ndim == 0 or len(array) == 0:
            checks.fail(name, f"shape {array.shape}", "at least one case")
        if len(array) != len(data[0]):
            checks.fail(name, f"{len(array)} cases", f"{len(data[0])}, the number of labels")
    return data


def subjects_of(groups, cases):
    """(cases,) index of the subject of each case; without groups each is its own."""
    groups = np.arange(cases) if groups is None else np.asarray(groups)
    if groups.shape != (cases,):
        checks.fail("groups", f"shape {groups.shape}", f"({cases},), one subject per case")
    return np.unique(groups, return_inverse=True)[1].reshape(cases)


def _limits(value, subjects, model, factor, level, refitted):
    if not np.isfinite(value) or not factor > 0:
        return np.nan, np.nan
    unit = (model.low, model.high) == (0, 1)
    tail = (1 + level) / 2
    quantile = scipy.special.ndtri(tail) if unit else scipy.special.stdtrit(subjects - 1, tail)

    def rejected(tested):
        variance = factor * model.variance(tested)
        if refitted:
            # below chance an R2 has no signal either; an AUROC or a correlation there is as far from it as above
            above = model.low == -np.inf and model.high == 1
            gap = np.maximum(tested - model.chance, 0) if above else tested - model.chance
            variance = variance * refitting(gap, variance, subjects, _UNIT if unit else _OTHER)
        return (tested - value) ** 2 > quantile**2 * variance

    far = 100 * quantile * np.sqrt(factor * model.variance(np.array([value]))[0])
    ends = (model.low, value - far), (model.high, value + far)
    return tuple(_farthest(rejected, value, limit if np.isfinite(limit) else other) for limit, other in ends)


def _farthest(rejected, near, far):
    """The accepted value that is the farthest from `near` on the way to `far`, by a finer and finer grid."""
    for _ in range(4):
        grid = np.linspace(near, far, 129)
        last = np.flatnonzero(~rejected(grid))
        last = last[-1] if len(last) else 0
        if last == 128:
            return float(far)
        near, far = grid[last], grid[last + 1]
    return float(near)


def _factor(metric, data, folds, subject, bounds, chance, seed):
    """The variance of the data over that of the model: from leaving out subjects in turn, shrunk towards 1.

    That of an AUROC over all cases together, also where its value is within folds: without one case, a small fold
    loses too many pairs.
    """
    within = folds is not None and metric is regression.pearson
    evaluate = WITHIN[metric](*data, folds) if within else evaluator(metric, data)
    value = float(evaluate(np.ones((1, len(subject))))[0])
    model = _model(metric, data, None, subject, bounds, chance)
    expected = model.variance(np.array([value]))[0]
    unseen = 1.0 if model.worth else np.nan
    if not np.isfinite(value) or not expected > 0:  # at the limit, where no variance is seen
        return unseen
    subjects = subject.max() + 1
    count = min(subjects, _BLOCKS)
    block = np.arange(subjects) % count
    block = np.random.default_rng(seed).permutation(block) if subjects > count else block
    chunk = max(1, (1 << 21) // len(subject))
    parts = [np.arange(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    left_out = np.concatenate([evaluate((block[subject] != part[:, None]).astype(np.float64)) for part in parts])
    left_out = left_out[np.isfinite(left_out)]
    kept = len(left_out)
    if kept < 2:
        return unseen
    seen = (kept - 1) / kept * np.sum((left_out - left_out.mean()) ** 2) / expected
    found = (model.subjects * seen + model.worth) / (model.subjects + model.worth)
    return found if found > 1e-12 else np.nan


def _model(metric, data, folds, subject, bounds, chance):
    """The _Model of a metric; `folds` where it is within these."""
    count = _independent(subject, slice(None))
    if metric is ranking.auroc:
        smaller = min(_independent(subject, data[0] == label) for label in (0, 1))
        return _Model(0, 1, _pairs_variance(data[0], folds, subject), 0.5, 20, smaller)
    if metric is ranking.macro_auroc:
        each = [_pairs_variance(column, folds, subject) for column in data[0].T]
        return _Model(0, 1, lambda a: np.nanmean([of_one(a) for of_one in each], axis=0), 0.5, 4, count)
    if metric is ranking.average_precision:
        positive = _independent(subject, data[0] == 1)
        return _Model(0, 1, lambda p: p * (1 - p) / positive, np.nan, 3, positive)
    if metric is regression.pearson:
        return _Model(-1, 1, lambda r: (1 - r * r) ** 2 / count, 0.0, 8, count)
    if metric is regression.r2:
        scale = np.abs(1 - regression.r2(*data)) / count
        return _Model(-np.inf, 1, lambda r: scale * (1 - r), 0.0, 5 if scale else 0, count)
    errors = metric in (regression.mae, regression.mse, regression.rmse)
    return _model_of_means(metric, data, (0, np.inf) if errors else bounds, chance, count)


def _model_of_means(metric, data, bounds, chance, count):
    """The _Model of a mean over cases, as of shares, errors and distances."""
    if metric is np.mean and bounds is None:
        least, most = np.min(data[0]), np.max(data[0])
        bounds = (0 if least >= 0 else -np.inf, 1 if least >= 0 and most <= 1 else np.inf)
        chance = 0.5 if np.isin(data[0], (0, 1)).all() else chance
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    chance = np.nan if chance is None else chance
    if (low, high) == (0, 1):
        return _Model(low, high, lambda p: p * (1 - p) / count, chance, 2, count)
    power = 0.0 if np.isinf(low) else 1.5  # the skewness of errors and distances
    return _Model(low, high, lambda v: np.abs(v - (low if power else 0)) ** power / count, chance, 0, count)


def _independent(subject, chosen):
    """Of the chosen cases: the harmonic mean of their number and that of their subjects; of each one case, these."""
    chosen = subject[chosen]
    subjects = len(np.unique(chosen))
    return 2 * len(chosen) * subjects / max(len(chosen) + subjects, 1)


def _pairs_variance(labels, folds, subject):
    """(n,) AUROCs -> their variances over the pairs of each fold (Newcombe 2006); NaN without any pair."""
    parts = [slice(None)] if folds is None else [folds == fold for fold in np.unique(folds)]
    counts = [[_independent(subject[part], labels[part] == label) for label in (1, 0)] for part in parts]
    m, n = np.array([pair for pair in counts if min(pair) > 0]).reshape(-1, 2).T

    def variance(auroc):
        a = np.clip(np.asarray(auroc, np.float64), 0, 1)[:, None]
        more = ((m + n) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        with np.errstate(invalid="ignore"):
            return (m * n * a * (1 - a) * (1 + more)).sum(axis=1) / np.sum(m * n) ** 2

    return variance
