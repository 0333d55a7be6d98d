"""Regression metrics by hand and against scikit-learn and scipy; the age-bias correction."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo import metrics
from fomo.metrics import regression


def test_by_hand():
    targets, predictions = [20.0, 40.0, 60.0], [30.0, 40.0, 44.0]  # errors 10, 0, -16
    row = metrics.regression_metrics(targets, predictions)
    assert list(row) == ["mae", "mse", "rmse", "r2", "pearson", "spearman", "ccc", "bias_slope"]
    assert row["mae"] == pytest.approx(26 / 3)
    assert row["mse"] == pytest.approx(356 / 3) and row["rmse"] == pytest.approx(np.sqrt(356 / 3))
    assert row["r2"] == pytest.approx(1 - 356 / 800)
    assert row["bias_slope"] == pytest.approx((-20 * 10 + 20 * -16) / 800)  # -0.65
    assert row["ccc"] == pytest.approx(2 * 280 / (800 + 104 + 3 * 4))  # sums about the means 40 and 38
    assert row["spearman"] == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(3, 60), st.sampled_from([1.0, 1e-6, 1e6]), st.booleans())
def test_equals_scikit_learn_and_scipy(seed, n, scale, ties):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) * scale + 50 * scale
    y = x * 0.7 + rng.normal(size=n) * scale
    if ties:
        x[: n // 2] = x[0]
    row = metrics.regression_metrics(x, y)
    expected = dict(
        mae=sklearn.metrics.mean_absolute_error(x, y),
        mse=sklearn.metrics.mean_squared_error(x, y),
        rmse=sklearn.metrics.root_mean_squared_error(x, y),
        r2=sklearn.metrics.r2_score(x, y),
        pearson=scipy.stats.pearsonr(x, y)[0],
        spearman=scipy.stats.spearmanr(x, y)[0],
        bias_slope=scipy.stats.linregress(x, y - x).slope,
    )
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
    means = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert row["ccc"] == pytest.approx(means)


def test_constants_are_undefined():
    constant, other = [0.1] * 7, [1.0, 2, 3, 4, 5, 6, 7]  # the mean of seven 0.1 is not exactly 0.1
    for metric in (metrics.r2, metrics.pearson, regression.spearman, regression.bias_slope):
        assert np.isnan(metric(constant, other)), metric
    assert np.isnan(metrics.pearson(other, constant)) and np.isnan(regression.spearman(other, constant))
    assert regression.bias_slope(other, constant) == pytest.approx(-1)  # always the same age
    assert regression.ccc(other, constant) == 0 and np.isnan(regression.ccc(constant, constant))
    assert np.isnan(metrics.r2([1.0], [1.0]))


def test_bias_correction_is_fitted_on_one_set_and_applied_to_another():
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, 400)
    predictions = 0.5 * ages + 25 + rng.normal(0, 2, 400)
    correction = metrics.fit_bias_correction(ages[:200], predictions[:200])
    corrected = metrics.apply_bias_correction(predictions[200:], correction)
    assert regression.bias_slope(ages[200:], predictions[200:]) == pytest.approx(-0.5, abs=0.05)
    assert regression.bias_slope(ages[200:], corrected) == pytest.approx(0, abs=0.1)
    line = scipy.stats.linregress(ages[:200], predictions[:200])
    assert correction == pytest.approx((line.slope, line.intercept))


def test_bias_correction_without_a_line():
    assert np.isnan(metrics.fit_bias_correction([5.0, 5.0], [1.0, 2.0])).all()
    flat = metrics.fit_bias_correction([1.0, 2.0, 4.0, 8.0, 9.0, 11.0, 13.0], [0.1] * 7)  # whose mean is not exact
    assert np.isnan(metrics.apply_bias_correction([5.0], flat)).all()


def test_bad_input():
    functions = (regression.spearman, regression.ccc, metrics.fit_bias_correction)
    for metric in (metrics.mae, metrics.r2, metrics.pearson, *functions):
        with pytest.raises(ValueError, match="predictions: got 1 non-finite cases"):
            metric([1.0, 2.0], [1.0, np.nan])
        with pytest.raises(ValueError, match=r"predictions: got shape \(1,\), wanted \(2,\), the shape of targets"):
            metric([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [8, 20, 40])
@pytest.mark.parametrize("r, pull", [(0.04, 0.02), (0.4, 1.0), (0.8, 0.5), (0.8, 1.0), (0.95, 1.0), (0.9, 1.3)])
def test_the_bounded_correction_does_not_make_errors_much_larger(count, r, pull):
    rng, ratios = np.random.default_rng([count, int(100 * r)]), []

    def draw(n):
        ages = rng.uniform(20, 85, n)
        ideal = r**2 * (ages - 52.5) + rng.normal(0, 18.8 * r * np.sqrt(1 - r**2), n)
        return ages, 52.5 + pull * ideal

    for _ in range(20):
        (slope, intercept), _ = metrics.bounded_bias_correction(*draw(count))
        ages, predictions = draw(400)
        corrected = metrics.apply_bias_correction(predictions, (slope, intercept))
        ratios.append(metrics.mae(ages, corrected) / metrics.mae(ages, predictions))
    assert np.sort(ratios)[-2] <= 1.1 and max(ratios) <= 1.25
    if (r, pull) == (0.8, 0.5) and count == 40:
        assert np.mean(ratios) < 0.95, "where the pull is strong and known, it is undone"
    if count == 8:
        assert max(ratios) == 1
