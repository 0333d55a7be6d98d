"""Ranking metrics against pairs counted by hand and against scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fomo import metrics
from fomo.metrics import ranking


@st.composite
def labels_and_scores(draw):
    """Scores with and without ties, in float64, float32 or whole numbers; both classes occur."""
    n, seed = draw(st.integers(2, 60)), draw(st.integers(0, 9999))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = rng.normal(size=n) + labels
    kind = draw(st.sampled_from(["float64", "float32", "ties", "constant"]))
    if kind == "ties":
        return labels, np.round(scores * 2).astype(int)
    return labels, np.ones(n) if kind == "constant" else scores.astype(kind)


def test_pairs_counted_by_hand():
    # positives .8 .4, negatives .4 .2 .9: wins of .8: 2, of .4: 1 and a tie -> 3.5 of 6
    labels, scores = [1, 1, 0, 0, 0], [0.8, 0.4, 0.4, 0.2, 0.9]
    assert metrics.auroc(labels, scores) == 3.5 / 6
    # at .8: recall 1/2, precision 1/2; at .4: recall 1, precision 2/4
    assert metrics.average_precision(labels, scores) == 0.5 * 0.5 + 0.5 * 0.5
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores)
    np.testing.assert_allclose(fpr, [0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(tpr, [0, 0, 1 / 2, 1, 1])
    np.testing.assert_array_equal(thresholds, [np.inf, 0.9, 0.8, 0.4, 0.2])


@settings(max_examples=50, deadline=None)
@given(labels_and_scores())
def test_equals_scikit_learn(case):
    labels, scores = case
    np.testing.assert_allclose(metrics.auroc(labels, scores), sklearn.metrics.roc_auc_score(labels, scores), rtol=1e-12)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    np.testing.assert_allclose(metrics.average_precision(labels, scores), expected, rtol=1e-12)
    for ours, theirs in zip(
        metrics.roc_curve(labels, scores), sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    ):
        np.testing.assert_allclose(ours, theirs)
    precisions, recalls, thresholds = sklearn.metrics.precision_recall_curve(labels, scores)
    ours = metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(ours[0], precisions[-2::-1])
    np.testing.assert_allclose(ours[1], recalls[-2::-1])
    np.testing.assert_allclose(ours[2], thresholds[::-1])


@settings(max_examples=30, deadline=None)
@given(labels_and_scores())
def test_only_the_order_counts(case):
    labels, scores = case
    value = metrics.auroc(labels, scores)
    assert np.isclose(metrics.auroc(labels, np.exp(scores / 10)), value)
    assert np.isclose(metrics.auroc(labels, -scores), 1 - value)
    assert np.isclose(metrics.auroc(1 - labels, scores), 1 - value)


@settings(max_examples=20, deadline=None)
@given(labels_and_scores())
def test_equals_torchmetrics(case):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    labels, scores = case
    probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
    theirs = functional.binary_auroc(torch.tensor(probabilities), torch.tensor(labels)).item()
    np.testing.assert_allclose(metrics.auroc(labels, probabilities), theirs, rtol=1e-6)  # theirs is float32
    theirs = functional.binary_average_precision(torch.tensor(probabilities), torch.tensor(labels)).item()
    np.testing.assert_allclose(metrics.average_precision(labels, probabilities), theirs, rtol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined(label):
    assert np.isnan(metrics.auroc([label] * 3, [0.1, 0.2, 0.3]))
    assert np.isnan(metrics.average_precision([label] * 3, [0.1, 0.2, 0.3]))
    fpr, tpr, _ = metrics.roc_curve([label] * 3, [0.1, 0.2, 0.3])
    assert np.isnan(fpr).all() == (label == 1) and np.isnan(tpr).all() == (label == 0)


@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([0, 1, 2], [0.1, 0.2, 0.3], "labels: got the value 2, wanted labels 0 and 1"),
        ([0, 1, np.nan], [0.1, 0.2, 0.3], "labels: got the value nan"),
        ([0, 1, 1], [0.1, np.nan, np.inf], r"scores: got 2 non-finite cases \(first at index 1\), wanted finite"),
        ([0, 1], [0.1, 0.2, 0.3], r"scores: got shape \(3,\), wanted \(2,\), the shape of labels"),
        ([0, 1], ["a", "b"], "scores: got dtype <U1, wanted real numbers"),
        ([0, 1], [[0.1, 0.2], [0.3, 0.4]], r"scores: got shape \(2, 2\)"),
        ([], [], r"labels: got shape \(0,\), wanted .* at least one case"),
    ],
)
def test_bad_input(labels, scores, message):
    for metric in (metrics.auroc, metrics.average_precision, metrics.roc_curve, metrics.precision_recall_curve):
        with pytest.raises(ValueError, match=message):
            metric(labels, scores)


@pytest.mark.parametrize(
    "values", [[3.0], [2, 2, 2], [3, 1, 2, 1, 9, 9, 9], np.random.default_rng(0).integers(0, 9, 50)]
)
def test_ranks_of_equal_values_are_their_mean(values):
    assert np.array_equal(ranking.average_ranks(values), stats.rankdata(values))


def test_the_metrics_are_imported_without_what_takes_seconds():
    code = (
        "import sys, fomo.metrics; print([name for name in sys.modules if name in ('scipy.stats', 'scipy.optimize')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
