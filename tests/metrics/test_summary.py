"""The summary keeps what a mean would hide."""

import numpy as np
import pytest

from fomo import metrics


def test_undefined_and_infinite_values_are_counted():
    got = metrics.summarize([1.0, np.nan, np.inf, 3.0, 8.0])
    expected = dict(mean=4, std=np.sqrt(13), median=3, minimum=1, maximum=8, n=5, finite=3, undefined=1, infinite=1)
    assert got == pytest.approx(expected)


def test_equal_values_do_not_spread_by_rounding():
    values = [0.9, 0.3 * 3, 0.1 + 0.8]  # which differ in the last digit
    assert np.std(values, ddof=1) > 0 and metrics.deviation(values) == metrics.summarize(values)["std"] == 0
    assert metrics.t_interval(values).low == metrics.t_interval(values).high
    assert metrics.deviation([1e-20, 3e-20]) == pytest.approx(np.sqrt(2) * 1e-20), "small numbers are no noise"
    assert metrics.deviation([0, 0]) == 0 and np.isnan([metrics.deviation([1]), metrics.deviation([1, np.nan])]).all()


def test_nothing_finite():
    got = metrics.summarize([np.inf, np.nan])
    assert np.isnan([got[name] for name in ("mean", "std", "median", "minimum", "maximum")]).all()
    assert (got["n"], got["finite"], got["undefined"], got["infinite"]) == (2, 0, 1, 1)
    assert np.isnan(metrics.summarize([2])["std"]) and metrics.summarize([2])["mean"] == 2


def test_a_missed_class_is_not_forgotten_in_the_mean_over_classes():
    assert metrics.over_classes([1.0, 3.0, np.nan]) == 2
    assert metrics.over_classes([1.0, np.inf, np.nan]) == np.inf
    assert np.isnan(metrics.over_classes([np.nan, np.nan]))


def test_bad_input():
    with pytest.raises(ValueError, match=r"values: got shape \(0,\)"):
        metrics.summarize([])
    with pytest.raises(ValueError, match="values: got dtype object"):
        metrics.summarize([None, 1.0])
