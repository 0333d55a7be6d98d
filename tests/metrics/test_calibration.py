"""Calibration metrics by hand and against scikit-learn and torchmetrics; temperature scaling recovers what it
should.
"""

import numpy as np
import pytest
import sklearn.metrics
from scipy import special

from fomo import metrics


def test_by_hand():
    labels, probabilities = [1, 0, 1], [0.8, 0.4, 0.5]
    assert metrics.brier(labels, probabilities) == pytest.approx((0.04 + 0.16 + 0.25) / 3)
    assert metrics.log_loss(labels, probabilities) == pytest.approx(-np.log([0.8, 0.6, 0.5]).mean())
    # Two bins: [0, .5) holds .4 (outcome 0), [.5, 1] holds .5 and .8 (outcomes 1): |0 - .4| / 3 + |2 - 1.3| / 3
    assert metrics.ece(labels, probabilities, bins=2) == pytest.approx((0.4 + 0.7) / 3)
    table = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    assert metrics.brier(labels, table) == pytest.approx(2 * metrics.brier(labels, probabilities))
    assert metrics.log_loss(labels, table) == pytest.approx(metrics.log_loss(labels, probabilities))


def test_certain_and_wrong_is_finite_as_in_scikit_learn():
    labels, probabilities = [0, 1, 1], [1.0, 0.0, 1.0]
    assert metrics.log_loss(labels, probabilities) == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    assert metrics.ece(labels, probabilities) == pytest.approx(2 / 3)  # 1 is in the last bin: |1 - 0| / 3 + |1 - 2| / 3


@pytest.mark.parametrize("seed", range(5))
def test_ece_equals_torchmetrics(seed):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, 2, 100), rng.random(100)
    theirs = functional.binary_calibration_error(torch.tensor(probabilities), torch.tensor(labels), n_bins=15)
    assert metrics.ece(labels, probabilities) == pytest.approx(theirs.item(), rel=1e-6)
    table, classes = rng.dirichlet(np.ones(3), 100), rng.integers(0, 3, 100)
    theirs = functional.multiclass_calibration_error(
        torch.tensor(table), torch.tensor(classes), num_classes=3, n_bins=10
    )
    assert metrics.ece(classes, table, bins=10) == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20000)
    labels = rng.random(20000) < special.expit(logits)
    fitted = metrics.fit_temperature(labels, logits * temperature)
    assert fitted == pytest.approx(temperature, rel=0.05)
    two_columns = np.stack([np.zeros(20000), logits * temperature], axis=1)
    assert metrics.fit_temperature(labels.astype(int), two_columns) == pytest.approx(fitted, rel=1e-6)


def test_temperature_is_the_minimum_and_keeps_the_order():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(60, 3)) * 4
    labels = (logits / 3 + rng.gumbel(size=(60, 3))).argmax(axis=1)
    fitted = metrics.fit_temperature(labels, logits)
    nearby = fitted * np.array([0.98, 1, 1.02])
    losses = [metrics.log_loss(labels, metrics.apply_temperature(logits, temperature)) for temperature in nearby]
    assert losses[1] == min(losses)
    np.testing.assert_array_equal(metrics.apply_temperature(logits, fitted).argmax(axis=1), logits.argmax(axis=1))


def test_temperature_at_its_limits():
    assert np.isnan(metrics.fit_temperature([1, 1], [0.3, 2.0]))
    assert np.isnan(metrics.apply_temperature([0.3], np.nan)).all()
    # Separable cases: the sharper the better; the wrong way round: the flatter.
    assert metrics.fit_temperature([0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0]) == pytest.approx(0.05)
    assert metrics.fit_temperature([1, 1, 0, 0], [-2.0, -1.0, 1.0, 2.0]) == pytest.approx(20)
    assert np.isfinite(metrics.apply_temperature(np.array([1e4, -1e4]), 0.05)).all()


def test_bad_input():
    with pytest.raises(ValueError, match="bins: got 0, wanted a whole number of at least 1"):
        metrics.ece([0, 1], [0.1, 0.2], bins=0)
    with pytest.raises(ValueError, match="logits: got 1 non-finite cases"):
        metrics.fit_temperature([0, 1], [0.1, np.inf])
    with pytest.raises(ValueError, match="bounds: got 0"):
        metrics.fit_temperature([0, 1], [0.1, 0.3], bounds=(0, 1))
