"""Overlap metrics against counts done by hand and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fomo import metrics
from fomo.metrics import overlap

REFERENCE = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
PREDICTION = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], bool)  # 2 hits, 2 false, 1 missed, 3 right background


def test_counted_by_hand():
    assert metrics.dice(REFERENCE, PREDICTION) == 4 / 7
    rates = dict(dice=4 / 7, jaccard=2 / 5, sensitivity=2 / 3, specificity=3 / 5, precision=2 / 4)
    assert overlap.overlap_metrics(REFERENCE, PREDICTION) == rates | dict(volume_similarity=1 - 1 / 7)


NAN = float("nan")


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [
        (0, 0, dict(dice=NAN, jaccard=NAN, sensitivity=NAN, specificity=1, precision=NAN, volume_similarity=NAN)),
        (0, 1, dict(dice=0, jaccard=0, sensitivity=NAN, specificity=0, precision=0, volume_similarity=0)),
        (1, 0, dict(dice=0, jaccard=0, sensitivity=0, specificity=NAN, precision=NAN, volume_similarity=0)),
        (1, 1, dict(dice=1, jaccard=1, sensitivity=1, specificity=NAN, precision=1, volume_similarity=1)),
    ],
)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_the_docstring_table(reference, prediction, expected, shape):
    got = overlap.overlap_metrics(np.full(shape, reference), np.full(shape, prediction))
    assert list(got) == ["dice", "jaccard", "sensitivity", "specificity", "precision", "volume_similarity"]
    np.testing.assert_equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equals_scikit_learn_where_defined(data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, max_side=6))
    reference, prediction = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    y, p = reference.ravel(), prediction.ravel()
    ours = overlap.overlap_metrics(reference, prediction)
    for name, theirs, defined in (
        ("dice", sklearn.metrics.f1_score, (y | p).any()),
        ("jaccard", sklearn.metrics.jaccard_score, (y | p).any()),
        ("sensitivity", sklearn.metrics.recall_score, y.any()),
        ("precision", sklearn.metrics.precision_score, p.any()),
    ):
        expected = theirs(y, p) if defined else np.nan
        np.testing.assert_allclose(ours[name], expected, rtol=1e-12)
    swapped = metrics.dice(prediction, reference)
    np.testing.assert_equal(metrics.dice(reference, prediction), swapped)


def test_integers_are_masks_only_when_0_and_1():
    assert metrics.dice(REFERENCE.astype(np.uint8), PREDICTION.astype(np.int64)) == 4 / 7
    with pytest.raises(ValueError, match="reference: got integers from 0 to 2, wanted 0 and 1 only"):
        metrics.dice(REFERENCE.astype(int) * 2, PREDICTION)
    with pytest.raises(ValueError, match="prediction: got dtype float64, wanted a bool mask"):
        metrics.dice(REFERENCE, PREDICTION.astype(float))
    with pytest.raises(ValueError, match=r"prediction: got shape \(1, 4\), wanted \(2, 4\)"):
        metrics.dice(REFERENCE, PREDICTION[:1])
    with pytest.raises(ValueError, match="prediction: got labels from 0 to 3, wanted 0 to 2"):
        metrics.segmentation_metrics_per_class(np.zeros(4, int), np.arange(4), (1.0,), classes=3)
