"""Intervals: vectorised equals one by one, resampling is what it says, and scipy agrees where it has the same
interval.
"""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo import metrics
from fomo.metrics import intervals, weighted


def cases(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    return labels, np.round(rng.normal(labels, 1.0), 1)


def pairs(n=40, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.uniform(20, 80, n)
    return targets, 0.6 * targets + 20 + rng.normal(0, 5, n)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "name", ["auroc", "average_precision", "mae", "mse", "rmse", "r2", "pearson", "ccc", "bias_slope", "mean"]
)
def test_vectorised_equals_one_by_one(name, grouped, method):
    ranked = name in ("auroc", "average_precision")
    metric = np.mean if name == "mean" else getattr(metrics if ranked else metrics.regression, name)
    assert metric in weighted.WEIGHTED
    data = cases() if ranked else pairs()[:1] if name == "mean" else pairs()
    groups = np.arange(len(data[0])) // 3 if grouped else None
    options = dict(resamples=60, seed=3, method=method, groups=groups, stratify=ranked)
    fast = metrics.bootstrap_ci(metric, *data, **options)
    slow = metrics.bootstrap_ci(lambda *arrays: metric(*arrays), *data, **options)
    np.testing.assert_allclose(fast, slow, rtol=1e-9)
    assert fast.low < fast.value < fast.high


def widened(n, level=0.95):
    """The level at which an interval without our correction for small n is as wide as ours."""
    return 2 * scipy.stats.norm.cdf(scipy.stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))) - 1


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_agrees_with_scipy(method):
    values = np.random.default_rng(0).beta(8, 2, 25)
    ours = metrics.bootstrap_ci(np.mean, values, None, 20000, 0, method=method)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20000,
        method=method,
        confidence_level=widened(25),
        random_state=np.random.default_rng(1),
    )
    width = ours.high - ours.low
    assert abs(ours.low - theirs.confidence_interval.low) < 0.03 * width
    assert abs(ours.high - theirs.confidence_interval.high) < 0.03 * width


def test_acceleration_over_two_strata_agrees_with_scipy():
    labels, scores = cases()
    positive, negative = scores[labels == 1], scores[labels == 0]

    def two_samples(a, b):
        return metrics.auroc(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b]))

    theirs = scipy.stats.bootstrap(
        (positive, negative),
        two_samples,
        n_resamples=4000,
        vectorized=False,
        confidence_level=widened(60),
        random_state=np.random.default_rng(1),
    ).confidence_interval
    ours = metrics.bootstrap_ci(metrics.auroc, labels, scores, 4000, 0)
    assert abs(ours.low - theirs.low) < 0.06 * (ours.high - ours.low)
    assert abs(ours.high - theirs.high) < 0.06 * (ours.high - ours.low)


def test_the_seed_decides():
    data = cases()
    first = metrics.bootstrap_ci(metrics.auroc, *data, 200, 7)
    assert first == metrics.bootstrap_ci(metrics.auroc, *data, 200, 7)
    assert first != metrics.bootstrap_ci(metrics.auroc, *data, 200, 8)


def test_whole_subjects_are_drawn():
    # Every subject's two cases cancel, so any resample of subjects has the mean 0; one of cases does not.
    values, groups = np.tile([-1.0, 1.0], 20), np.repeat(np.arange(20), 2).astype(str)
    grouped = metrics.bootstrap_ci(np.mean, values, None, 200, 0, groups=groups, method="percentile")
    assert grouped.low == grouped.high == 0
    assert metrics.bootstrap_ci(np.mean, values, None, 200, 0, method="percentile").low < 0


def test_strata_keep_both_classes():
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    stratified = metrics.bootstrap_ci(metrics.auroc, labels, scores, 300, 0, method="percentile")
    assert stratified.undefined == 0
    simple = metrics.bootstrap_ci(metrics.auroc, labels, scores, 300, 0, method="percentile", stratify=False)
    assert 0.2 < simple.undefined / 300 < 0.45  # without the positive case: (3/4)^4 = .32
    single = metrics.bootstrap_ci(metrics.auroc, labels, scores, 300, 0)  # BCa cannot leave the positive case out
    assert 0 < single.low < 0.5 and single.high == 1


def test_strata_of_subjects_with_cases_of_both_classes():
    labels, groups = np.array([1, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 2, 2])
    subject, strata = intervals._strata(labels, groups, True)
    assert sorted(map(tuple, strata)) == [(0,), (1,), (2,)]
    drawn = intervals._draw(strata, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, np.ones((5, 3)))
    np.testing.assert_array_equal(subject, groups)


def test_draws_are_uniform():
    drawn = intervals._draw([np.array([0, 2]), np.array([1, 3, 4])], 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[:, [0, 2]].sum(axis=1), 2)
    np.testing.assert_array_equal(drawn[:, [1, 3, 4]].sum(axis=1), 3)
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.05)
    assert drawn[:, 0].var() == pytest.approx(0.5, abs=0.05)  # binomial(2, 1/2)


def test_blocks_estimate_the_acceleration_of_subjects():
    values = np.random.default_rng(0).exponential(size=4000)

    def acceleration(strata):
        block, blocks = intervals._blocks(strata)
        left_out = [values[block != k].mean() for k in range(block.max() + 1)]
        return intervals._acceleration(np.array(left_out), blocks)

    everyone = np.arange(4000)
    exact = scipy.stats.skew(values) / (6 * np.sqrt(4000))
    assert acceleration([everyone]) == pytest.approx(exact, rel=0.35)
    assert acceleration([everyone[:450], everyone[450:]]) == pytest.approx(exact, rel=0.6)
    assert [len(stratum) for stratum in intervals._blocks([everyone[:450], everyone[450:]])[1]] == [450, 500]


def test_chunks_are_joined(monkeypatch):
    whole = metrics.bootstrap_ci(metrics.auroc, *cases(), 3000, 0)
    monkeypatch.setattr(intervals, "_CHUNK", 60 * 7)
    np.testing.assert_allclose(metrics.bootstrap_ci(metrics.auroc, *cases(), 3000, 0), whole, rtol=0.02)


def test_a_dict_of_metrics_shares_the_resamples():
    labels, scores = cases()
    probabilities = 1 / (1 + np.exp(-scores))
    table = metrics.bootstrap_ci(metrics.binary_metrics, labels, probabilities, 50, 1)
    assert set(table) == set(metrics.binary_metrics(labels, probabilities))
    np.testing.assert_allclose(table["auroc"], metrics.bootstrap_ci(metrics.auroc, labels, probabilities, 50, 1))
    ages = metrics.bootstrap_ci(metrics.regression_metrics, *pairs(), 50, 1)
    np.testing.assert_allclose(ages["mae"], metrics.bootstrap_ci(metrics.mae, *pairs(), 50, 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(0, 9999), st.sampled_from(["percentile", "bca"]), st.sampled_from([1, 4]))
def test_limits_are_ordered_however_few_and_skewed_the_cases(n, seed, method, power):
    values = np.random.default_rng(seed).exponential(size=n) ** power
    got = metrics.bootstrap_ci(np.mean, values, None, 300, seed, method=method)
    room = 1e-12 * values.max()  # sums of the same values in another order
    assert values.min() - room <= got.low <= got.value <= got.high <= values.max() + room


def test_limits_are_the_widened_quantiles_of_the_resamples():
    values = np.random.default_rng(0).normal(size=8)
    drawn = intervals._draw([np.arange(8)], 500, np.random.default_rng(5))
    tail = (1 - widened(8)) / 2
    expected = np.quantile(drawn @ values / 8, [tail, 1 - tail])
    got = metrics.bootstrap_ci(np.mean, values, None, 500, 5, method="percentile")
    np.testing.assert_allclose(got[1:3], expected, rtol=1e-9)


def test_a_correction_beyond_the_last_resample_ends_there():
    left_out = np.array([0.0, 0.0, 0.0, -8.0])  # skewed: the acceleration is .096, and 1 - .096 * 12 is negative
    assert intervals._acceleration(left_out, [np.arange(4)]) == pytest.approx(81 / (6 * 27**1.5))
    values = np.linspace(0, 2, 1001)
    got = intervals._interval(1.0, [values], [left_out], [np.arange(4)], np.array([-1.0, 12.0]))
    assert 0 < got.low < 1 and got.high == 2


def test_an_undefined_estimate_has_no_interval():
    got = metrics.bootstrap_ci(metrics.auroc, [1, 1, 1], [0.1, 0.2, 0.3], 20, 0)
    assert np.isnan(got[:3]).all() and got.undefined == 20
    assert np.isnan(metrics.bootstrap_ci(np.mean, [1.0, np.inf], None, 20, 0)[1:3]).all()
    assert np.isnan(metrics.bootstrap_ci(np.mean, [1.0, 2.0], None, 20, 0, groups=[5, 5]).low)  # one subject
    perfect = metrics.bootstrap_ci(metrics.auroc, [0, 0, 1, 1], [1, 2, 3, 4], 20, 0)
    assert perfect.value == perfect.high == 1 and 0.2 < perfect.low < 0.7


def test_a_resample_of_one_value_has_no_correlation():
    got = metrics.bootstrap_ci(metrics.pearson, [0.1, 0.3], [0.7, 0.2], 400, 0, method="percentile")
    assert got.undefined / 400 == pytest.approx(0.5, abs=0.1) and got.low == got.high == -1


def test_t_interval():
    values = [0.8, 0.7, 0.9, 0.85]
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(metrics.t_interval(values, 0.9)[:3], [np.mean(values), theirs.low, theirs.high])
    with_nan = metrics.t_interval([*values, np.nan])
    assert with_nan[:3] == metrics.t_interval(values)[:3] and with_nan.undefined == 1
    assert np.isnan(metrics.t_interval([0.5])[1:3]).all() and metrics.t_interval([0.5]).value == 0.5
    assert metrics.t_interval([0.5, np.inf]).value == np.inf and np.isnan(metrics.t_interval([0.5, np.inf]).low)
    assert np.isnan(metrics.t_interval([np.nan]).value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(metric="auroc"), "metric: got 'auroc', wanted a function"),
        (dict(resamples=0), "resamples: got 0, wanted a whole number of at least 1"),
        (dict(level=1.5), "level: got 1.5"),
        (dict(method="basic"), "method: got 'basic', wanted one of 'percentile', 'bca'"),
        (dict(groups=[1, 2]), r"groups: got shape \(2,\), wanted \(60,\)"),
        (dict(scores=[0.1, 0.2]), "scores: got 2 cases, wanted 60"),
        (dict(scores=np.full(60, np.nan)), "scores: got 60 non-finite cases"),
        (dict(labels=np.arange(60)), "labels: got the value 2"),
    ],
)
def test_bad_input(changes, message):
    labels, scores = cases()
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_ci(**{**dict(metric=metrics.auroc, labels=labels, scores=scores), **changes})
