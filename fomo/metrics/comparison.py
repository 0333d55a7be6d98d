"""Whether one model is better than another on the same cases: (clustered) DeLong for AUROC, paired permutations."""

from typing import NamedTuple

import numpy as np
import scipy

from . import checks
from .crossvalidated import refitting
from .ranking import average_ranks


class Comparison(NamedTuple):
    """`difference`: first minus second, with its standard error and confidence limits; `p`: two-sided."""

    first: float
    second: float
    difference: float
    standard_error: float
    low: float
    high: float
    p: float


class PairedTest(NamedTuple):
    """`difference`: mean of first minus second; `p`: two-sided; `n`: pairs that took part."""

    difference: float
    p: float
    n: int


def _placements(labels, scores):
    """Each positive's share of negatives below it, each negative's share of positives above it; ties count half."""
    positive, negative = scores[labels], scores[~labels]
    m, n = len(positive), len(negative)
    rank = average_ranks(np.concatenate([positive, negative]))
    return (rank[:m] - average_ranks(positive)) / n, 1 - (rank[m:] - average_ranks(negative)) / m


def _delong(labels, first, second, groups):
    """The two AUROCs and their covariance (2, 2); all NaN with fewer than two cases of a class."""
    if min(np.count_nonzero(labels), np.count_nonzero(~labels)) < 2:
        return np.full(2, np.nan), np.full((2, 2), np.nan)
    by_positive, by_negative = map(np.array, zip(_placements(labels, first), _placements(labels, second)))
    values = by_positive.mean(axis=1)
    if len(np.unique(groups)) < len(labels):
        return values, _clustered(labels, by_positive, by_negative, groups)
    return values, np.cov(by_positive) / by_positive.shape[1] + np.cov(by_negative) / by_negative.shape[1]


def _clustered(labels, by_positive, by_negative, groups):
    """Covariance (2, 2) of AUROCs where subjects have several cases (Obuchowski, Biometrics 53:567, 1997).

    The deviations of the placements, (2, positives) and (2, negatives), are summed per subject. So cases of a subject
    may depend on each other, within a class and across. Fewer than two subjects of a class: all NaN.
    """
    names, subject = np.unique(groups, return_inverse=True)

    def sums(placements, of_class):
        deviations = (placements - placements.mean(axis=1, keepdims=True)) / placements.shape[1]
        return np.array([np.bincount(subject[of_class], row, len(names)) for row in deviations])

    def unbiased(subjects, products):
        count = len(np.unique(subjects))
        return (count / (count - 1) if count > 1 else np.nan) * products

    of_positives, of_negatives = sums(by_positive, labels), sums(by_negative, ~labels)
    across = of_positives @ of_negatives.T
    within = unbiased(subject[labels], of_positives @ of_positives.T)
    return within + unbiased(subject[~labels], of_negatives @ of_negatives.T) + unbiased(subject, across + across.T)


def _influence(labels, scores, folds):
    """The AUROCs (2,) of (2, n) scores over the pairs within folds, and what each case adds to them; NaN: no pairs."""
    wins, pairs = np.zeros(scores.shape), np.zeros(len(labels))
    for fold in np.unique(folds):
        positive, negative = np.flatnonzero((folds == fold) & labels), np.flatnonzero((folds == fold) & ~labels)
        if len(positive) and len(negative):
            for own, one in zip(wins, scores):
                both = _placements(labels[folds == fold], one[folds == fold])
                own[positive], own[negative] = both[0] * len(negative), both[1] * len(positive)
            pairs[positive], pairs[negative] = len(negative), len(positive)
    total = pairs[labels].sum() or np.nan
    values = wins[:, labels].sum(axis=1) / total
    return values, (wins - pairs * values[:, None]) / total


def _within(labels, scores, groups, folds):
    """The mean AUROCs (2,) of labels (n, L) by scores (2, n, L), and their covariance (2, 2), summed per subject.

    Pairs are those within folds, and the variance is that of independent cases times what refitting adds: 2 without a
    signal, nearly 1 with a strong one (see `crossvalidated`). folds None: all pairs, of independent cases.
    The labels without pairs are left out. Covariance NaN where none has two subjects of each class.
    """
    own = np.zeros(len(labels)) if folds is None else folds
    found = [_influence(of_label, scores[..., place], own) for place, of_label in enumerate(labels.T)]
    found = [one for one in found if not np.isnan(one[0]).any()]
    two = any(min(len(np.unique(groups[one])), len(np.unique(groups[~one]))) > 1 for one in labels.T)
    if not found or not two:
        return np.full(2, np.nan), np.full((2, 2), np.nan)
    values, influence = (np.mean(part, axis=0) for part in zip(*found))
    subject = np.unique(groups, return_inverse=True)[1]
    subjects = subject.max() + 1
    sums = np.array([np.bincount(subject, row) for row in influence])
    covariance = sums @ sums.T * subjects / (subjects - 1)
    if folds is None:
        return values, covariance
    return values, covariance * refitting(values.mean() - 0.5, covariance.trace() / 2, subjects)


def delong_test(labels, first, second, level=0.95, groups=None, folds=None):
    """DeLong's test of two AUROCs on the same cases (Biometrics 44:837, 1988), O(n log n) after Sun and Xu (2014).

    labels: (n,) 0/1; first, second: (n,) scores of two models. All (n, L): the mean AUROC of L labels is compared, of
      those that have one, with the terms of all labels summed per subject.
    level: of the confidence limits.
    groups: (n,) subject of each case. Where subjects have several cases, the placement values are summed per subject
      (clustered DeLong, Obuchowski 1997); p would be far too small without that.
    folds: (n,) fold of each case, where models were trained for each fold. Then the AUROCs compare the cases of one
      fold only (equal numbers: all cases), and the variance is that of models that share their training cases.
    Returns a `Comparison`. Fewer than two cases of a class: NaN. Fewer than two subjects of a class: no limits, no p.
    No variance (equal rankings, or both perfect): p is 1 if the AUROCs are equal, NaN if not.
    False positives at p < 0.05 without a difference, four correlated cases per subject: 20 subjects 6.4%, 40 5.7%,
    80 5.4% (as if the cases were independent: 31 to 32%).
    Of two logistic regressions that are refitted in 5 folds, with the same true mean AUROC of .5, .7 or .85 (20, 40
    and 100 cases, tests/experiments/coverage.py): without folds 5 to 21%, with folds 2 to 9%.
    """
    several = np.ndim(labels) == 2
    labels, first = checks.labels_and_scores(labels, first, 1 + several, name="first")
    labels, second = checks.labels_and_scores(labels, second, 1 + several, name="second")
    level = checks.number(level, "level", 0.5, 0.9999)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    of_case = labels[:, 0] if several else labels
    checks.same_shape(groups, "groups", of_case, "labels")
    if folds is not None:
        folds = np.asarray(folds)
        checks.same_shape(folds, "folds", of_case, "labels")
    if folds is None and not several:
        (a, b), covariance = _delong(labels, first, second, groups)
    else:
        columns = (values.reshape(len(labels), -1) for values in (labels, first, second))
        labels, *scores = columns
        (a, b), covariance = _within(labels, np.stack(scores), groups, folds)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = np.sqrt(variance) if variance > 1e-16 else variance * 0  # rounding is not variance; NaN stays NaN
    half = scipy.special.ndtri((1 + level) / 2) * error
    p = 2 * scipy.special.ndtr(-abs(a - b) / error) if error else 1.0 if a == b else float("nan")
    low, high = np.clip([a - b - half, a - b + half], -1, 1)
    return Comparison(*map(float, (a, b, a - b, error, low, high, p)))


def paired_permutation(first, second, resamples=10000, seed=0):
    """Sign-flip permutation test of the mean difference of two models' per-case values.

    first, second: (n,) finite. All 2^n sign patterns are enumerated where they are at most `resamples`. Otherwise
    `resamples` are drawn, and p = (1 + number as extreme) / (1 + resamples) (Phipson and Smyth 2010).
    """
    first, second = checks.real_pair(first, second, "first", "second")
    checks.whole_number(resamples, "resamples", 1)
    difference = first - second
    n, observed = len(difference), abs(difference.sum())
    exact = n < 63 and 2**n <= resamples
    rng, extreme = np.random.default_rng(seed), 0
    limit = observed * (1 - 1e-12)  # ties are extreme, whatever the rounding
    total = 2**n if exact else resamples
    chunk = max(1, (1 << 21) // n)
    for start in range(0, total, chunk):
        size = min(chunk, total - start)
        if exact:
            flips = np.arange(start, start + size)[:, None] >> np.arange(n) & 1
        else:
            flips = rng.integers(0, 2, (size, n), dtype=np.int8)
        extreme += np.count_nonzero(np.abs((1.0 - 2.0 * flips) @ difference) >= limit)
    p = extreme / total if exact else (1 + extreme) / (1 + total)
    return PairedTest(float(difference.mean()), float(p), n)


def paired_swap(metric, labels, first, second, groups=None, resamples=1000, seed=0, level=0.95):
    """Whether metric(labels, second) - metric(labels, first) is more than chance, of any metric of all cases together.

    labels, first, second: arrays with the cases first. groups: (n,) subject of each case.
    Limits by the percentile bootstrap over subjects; p by swapping the two models' answers of whole subjects, (1 +
    number as extreme) / (1 + resamples). All are NaN where the metric is undefined. Returns a `Comparison` whose
    difference is second minus first, and whose standard error is the bootstrap's.
    """
    checks.whole_number(resamples, "resamples", 1)
    level = checks.number(level, "level", 0.5, 0.9999)
    labels, first, second = map(np.asarray, (labels, first, second))
    checks.same_shape(first, "first", second, "second")
    subject = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)[1]
    a, b = metric(labels, first), metric(labels, second)
    if np.isnan(a) or np.isnan(b):
        return Comparison(float(a), float(b), *[float("nan")] * 5)
    rng, count = np.random.default_rng(seed), subject.max() + 1
    members = np.split(np.argsort(subject, kind="stable"), np.cumsum(np.bincount(subject))[:-1])
    drawn, extreme = [], 0
    for _ in range(resamples):
        index = np.concatenate([members[place] for place in rng.integers(0, count, count)])
        drawn.append(metric(labels[index], second[index]) - metric(labels[index], first[index]))
        swap = (rng.random(count) < 0.5)[subject].reshape(-1, *[1] * (first.ndim - 1))
        one, other = np.where(swap, second, first), np.where(swap, first, second)
        extreme += abs(metric(labels, other) - metric(labels, one)) >= abs(b - a) - 1e-12
    drawn = np.array(drawn)[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
    error = drawn.std(ddof=1) if len(drawn) > 1 else np.nan
    return Comparison(*map(float, (a, b, b - a, error, low, high, (1 + extreme) / (1 + resamples))))
