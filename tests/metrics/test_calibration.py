"""Calibration metrics by hand and against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import sklearn.metrics

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


def test_bad_input():
    with pytest.raises(ValueError, match="bins: got 0, wanted a whole number of at least 1"):
        metrics.ece([0, 1], [0.1, 0.2], bins=0)
