import numpy as np
import pytest

from fomo import metrics


def test_the_curve_by_hand_with_ties():
    coverage, risk = metrics.risk_coverage([0, 1, 0, 1], [0.9, 0.5, 0.5, 0.1])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 0.25, 1 / 3, 0.5])  # the two of .5 have half an error each
    assert metrics.risk_coverage_area([0, 1, 0, 1], [0.9, 0.5, 0.5, 0.1]) == pytest.approx((0.25 + 1 / 3 + 0.5) / 4)


def test_equal_confidence_has_the_mean_loss_and_order_does_not_count():
    rng = np.random.default_rng(0)
    losses, confidence = rng.random(50), rng.integers(0, 5, 50).astype(float)
    assert metrics.risk_coverage_area(losses, np.ones(50)) == pytest.approx(losses.mean())
    order = rng.permutation(50)
    area = metrics.risk_coverage_area(losses, confidence)
    assert metrics.risk_coverage_area(losses[order], confidence[order]) == pytest.approx(area)
    assert metrics.risk_coverage_area(losses, -losses) < area < metrics.risk_coverage_area(losses, losses)


def test_its_interval_holds_the_value():
    rng = np.random.default_rng(1)
    losses, confidence, folds = (rng.random(60) < 0.3).astype(float), rng.random(60), np.arange(60) % 5
    found = metrics.cross_validated_ci(metrics.risk_coverage_area, losses, confidence, folds=folds, bounds=(0, 1))
    assert 0 <= found.low < found.value < found.high <= 1


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="confidence"):
        metrics.risk_coverage([0.0, 1.0], [0.5, np.nan])
