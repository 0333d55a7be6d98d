"""Probes against scikit-learn where it is installed, and by hand."""

import numpy as np
import pytest

from fomo import metrics
from fomo.metrics import probe


def clouds(n=60, classes=2, distance=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = rng.normal(size=(n, 6)) * [1, 100, 0.01, 1, 1, 1] + 5
    features[:, 2] += 0.01 * distance * labels  # in the feature that varies least
    return features, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_regularised_logistic_regression(classes):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds(classes=classes)
    train, test = np.arange(60) % 4 > 0, np.arange(60) % 4 == 0
    found = probe.linear(features[train], labels[train], features[test], classes)
    mean, deviation = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / deviation
    # two classes: theirs has one set of coefficients, ours two opposite ones, whose penalty is half as large
    theirs = linear_model.LogisticRegression(C=1.0 if classes > 2 else 2.0, tol=1e-8, max_iter=1000)
    theirs.fit(scaled[train], labels[train])
    np.testing.assert_allclose(found, theirs.predict_proba(scaled[test]), atol=1e-3)
    np.testing.assert_allclose(found.sum(1), 1)


def test_nearest_by_hand():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # mean 0, equal deviations
    labels = np.array([0, 1, 1, 0])
    new = np.array([[1.0, 0.0]])  # cosines 1, 0, -1, 0 with a temperature of 1
    weights = np.exp([1.0, 0.0, -1.0, 0.0])
    found = probe.nearest(features, labels, new, neighbours=4, temperature=1.0)
    np.testing.assert_allclose(found[0, 1], (weights[1] + weights[2]) / weights.sum())
    np.testing.assert_allclose(probe.nearest(features, labels, new, neighbours=1), [[1.0, 0.0]])


def test_cross_validation_finds_the_clouds():
    features, labels = clouds(120, 3, distance=4.0)
    found = probe.cross_validated(features, labels, np.arange(120), classes=3)
    one_hot = np.eye(3, dtype=int)[labels]
    assert metrics.macro_auroc(one_hot, found["linear"]) > 0.9 and metrics.macro_auroc(one_hot, found["nearest"]) > 0.8
    again = probe.cross_validated(features, labels, np.arange(120), classes=3)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_a_feature_that_names_the_subject_is_of_no_use():
    """Were a subject's cases in several folds, nearest neighbours would read its label off its other cases."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 3)
    labels = rng.permutation(np.arange(40) % 2)[groups]
    features = rng.normal(size=(40, 8))[groups] + 1e-3 * rng.normal(size=(120, 8))
    apart = probe.cross_validated(features, labels, groups)["nearest"][:, 1]
    mixed = probe.cross_validated(features, labels, np.arange(120))["nearest"][:, 1]
    assert metrics.auroc(labels, apart) < 0.7 and metrics.auroc(labels, mixed) > 0.95


def test_one_subject_of_a_class_is_too_few():
    features, _ = clouds(10)
    found = probe.cross_validated(features, [1] + [0] * 9, np.arange(10))
    assert all(np.isnan(scores).all() for scores in found.values())


def test_features_that_do_not_vary_are_left_out():
    features, labels = clouds()
    same = np.column_stack([features, np.full(60, 3.0)])
    np.testing.assert_allclose(probe.linear(same, labels, same), probe.linear(features, labels, features))
    np.testing.assert_allclose(probe.cosines(same), probe.cosines(features))
    np.testing.assert_allclose(np.diag(probe.cosines(features)), 1)


def test_what_is_refused():
    with pytest.raises(ValueError, match="labels: got"):
        probe.linear(np.zeros((2, 3)), [0, 2], np.zeros((1, 3)))
    with pytest.raises(ValueError, match="features, new: got shapes"):
        probe.nearest(np.zeros((2, 3)), [0, 1], np.zeros((1, 4)))
