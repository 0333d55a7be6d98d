"""Tests of two models against published formulas done the slow way, and against scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo import metrics


def delong_by_pairs(labels, *scores):
    """AUROCs and covariance by the definition: the kernel of every pair, its row and column means."""
    rows, columns = [], []
    for score in scores:
        difference = score[labels == 1][:, None] - score[labels == 0]
        kernel = (difference > 0) + 0.5 * (difference == 0)
        rows.append(kernel.mean(axis=1))
        columns.append(kernel.mean(axis=0))
    m, n = len(rows[0]), len(columns[0])
    return np.mean(rows, axis=1), np.cov(rows) / m + np.cov(columns) / n


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(6, 40))
def test_delong_equals_the_definition(seed, n):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 0, 1, 1], rng.integers(0, 2, n))
    first, second = rng.normal(labels, 1).round(1), rng.normal(labels, 2).round(1)
    (a, b), covariance = delong_by_pairs(labels, first, second)
    got = metrics.delong_test(labels, first, second)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert got[:3] == pytest.approx((a, b, a - b))
    if variance > 1e-12:
        assert got.standard_error == pytest.approx(np.sqrt(variance))
        assert got.p == pytest.approx(2 * scipy.stats.norm.sf(abs(a - b) / np.sqrt(variance)))
        limits = a - b + np.array([-1.959964, 1.959964]) * np.sqrt(variance)
        assert (got.low, got.high) == pytest.approx(tuple(limits.clip(-1, 1)), abs=1e-6)  # no difference is larger
    swapped = metrics.delong_test(labels, second, first)
    assert swapped.difference == -got.difference and swapped.p == pytest.approx(got.p, nan_ok=True)


@pytest.mark.parametrize("mixed", (False, True), ids=("subjects of one class", "subjects of both classes"))
def test_false_positives_of_clustered_delong(mixed):
    """Four similar sessions a subject, and two models that do not differ: p < 0.05 in 5% of the studies."""

    def study(seed, clustered, subjects=40):
        rng = np.random.default_rng(seed)
        subject = np.repeat(np.arange(subjects), 4)
        labels = rng.permuted(np.tile([0, 0, 1, 1], (subjects, 1)), axis=1).ravel() if mixed else subject % 2
        scores = [
            rng.normal(size=subjects)[subject] + 0.8 * labels + 0.3 * rng.normal(size=4 * subjects) for _ in range(2)
        ]
        return metrics.delong_test(labels, *scores, groups=subject if clustered else None).p

    share = {clustered: np.mean([study(seed, clustered) < 0.05 for seed in range(1000)]) for clustered in (True, False)}
    assert 0.035 < share[True] < 0.075
    assert share[False] < 0.01 if mixed else share[False] > 0.25, "what it is without, or the test would show nothing"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(6, 40))
def test_clustered_delong_of_one_case_each_is_delongs(seed, n):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 0, 1, 1], rng.integers(0, 2, n))
    first, second = rng.normal(labels, 1).round(1), rng.normal(labels, 2).round(1)
    wanted = metrics.delong_test(labels, first, second)
    assert str(metrics.delong_test(labels, first, second, groups=rng.permutation(n + 4))) == str(wanted)
    # every case twice, as two sessions of one subject: nothing is learned from the second one
    twice = metrics.delong_test(
        *(np.repeat(values, 2) for values in (labels, first, second)), groups=np.arange(2 * n + 8) // 2
    )
    assert twice == pytest.approx(wanted, nan_ok=True, abs=1e-12)


def test_clustered_delong_of_few_subjects():
    labels, scores = [0, 0, 0, 1, 1, 1], np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.6])
    one_positive = metrics.delong_test(labels, scores, scores[::-1], groups=list("abcddd"))
    assert (
        one_positive.first == pytest.approx(metrics.auroc(labels, scores))
        and np.isnan([one_positive.p, one_positive.low]).all()
    )
    with pytest.raises(ValueError, match=r"groups: got shape \(2,\), wanted \(6,\), the shape of labels"):
        metrics.delong_test(labels, scores, scores, groups=list("ab"))


def test_delong_without_variance():
    labels, scores = [0, 0, 1, 1], np.array([0.1, 0.3, 0.2, 0.4])
    assert metrics.delong_test(labels, scores, scores * 2).p == 1
    perfect = metrics.delong_test(labels, [1, 2, 3, 4], [4, 3, 2, 1])
    assert perfect.difference == 1 and perfect.standard_error == 0 and np.isnan(perfect.p)
    assert np.isnan(metrics.delong_test([0, 0, 0, 1], scores, scores).first)


def test_permutation_by_enumeration():
    first, second = np.array([3.0, 1.0, 4.0, 1.5, 0.0]), np.array([1.0, 1.5, 1.0, 1.0, 1.0])
    difference = first - second  # 2 -.5 3 .5 -1: sum 4
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=5)]
    got = metrics.paired_permutation(first, second)
    assert got == (pytest.approx(0.8), np.mean(np.array(sums) >= 4), 5)


def test_permutation_agrees_with_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.beta(8, 2, 40), rng.beta(7, 2, 40)
    got = metrics.paired_permutation(first, second, resamples=20000, seed=1)
    theirs = scipy.stats.permutation_test(
        (first, second),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        vectorized=False,
        n_resamples=5000,
        random_state=rng,
    ).pvalue
    assert got.p == pytest.approx(theirs, abs=0.02)
    assert got == metrics.paired_permutation(first, second, resamples=20000, seed=1)
    always_better = metrics.paired_permutation(np.arange(1.0, 41), np.zeros(40), resamples=500)
    assert always_better.p == 1 / 501  # drawn, not enumerated: the observed signs count as one of them


def test_permutation_of_equal_models():
    assert metrics.paired_permutation([1.0, 2.0], [1.0, 2.0]).p == 1


def test_bad_input():
    with pytest.raises(ValueError, match="second: got 1 non-finite cases"):
        metrics.paired_permutation([0.1, 0.2], [0.1, np.inf])
    with pytest.raises(ValueError, match=r"second: got shape \(3,\), wanted \(2,\), the shape of first"):
        metrics.paired_permutation([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"second: got shape \(3,\)"):
        metrics.delong_test([0, 1], [0.1, 0.2], [0.1, 0.2, 0.3])


def test_the_mean_auroc_of_several_labels_is_compared():
    rng, folds = np.random.default_rng(3), np.arange(60) % 3
    labels = np.column_stack([rng.random((60, 3)) < (0.5, 0.2, 0.4), np.zeros(60)]).astype(int)  # the last is nowhere
    first, second = labels + rng.normal(size=(60, 4)), labels + 2 * rng.normal(size=(60, 4))
    for of_folds in (None, folds, np.zeros(60)):
        found = metrics.delong_test(labels, first, second, folds=of_folds)
        own = np.zeros(60) if of_folds is None else of_folds
        for value, scores in ((found.first, first), (found.second, second)):
            assert value == pytest.approx(metrics.within_folds(metrics.macro_auroc, labels, scores, own))
        assert (
            found.difference == pytest.approx(found.first - found.second) and found.low < found.difference < found.high
        )
        one = metrics.delong_test(labels[:, :1], first[:, :1], second[:, :1], folds=of_folds)
        alone = metrics.delong_test(labels[:, 0], first[:, 0], second[:, 0], folds=of_folds)
        assert one == pytest.approx(alone, rel=0.05 if of_folds is None else 1e-12)
        twice = metrics.delong_test(*(np.repeat(x[:, :1], 2, axis=1) for x in (labels, first, second)), folds=of_folds)
        assert twice == pytest.approx(one), "a label that is there twice tells nothing new"
    nothing = metrics.delong_test(labels[:, 3:], first[:, 3:], second[:, 3:], folds=folds)
    assert np.isnan(nothing).all()
    with pytest.raises(ValueError, match="first: got shape"):
        metrics.delong_test(labels, first[:, :2], second)


def test_labels_that_go_together_give_no_false_alarms():
    """Two models without a difference, of labels that subjects share: about 5% of p are below .05."""
    rng, p = np.random.default_rng(0), []
    for _ in range(200):
        shared = rng.normal(size=(80, 1))
        labels = (shared + rng.normal(size=(80, 4)) > 0.5).astype(int)
        first, second = (labels + shared + rng.normal(size=(80, 4)) for _ in range(2))
        p.append(metrics.delong_test(labels, first, second).p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.1
