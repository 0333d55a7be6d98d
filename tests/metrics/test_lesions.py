"""Lesion counts against drawings and against scipy.ndimage.label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from fomo import metrics


def draw(text):
    return np.array([[letter == "#" for letter in line] for line in text.split()])


REFERENCE = draw("""
##..#...
##...#..
........
.###...#
""")
PREDICTION = draw("""
.#......
........
#......#
.....###
""")


def test_a_drawing():
    # Reference by corners: the square, the diagonal pair, the bar, the last voxel. Predicted: a voxel in the square,
    # one that meets the bar nowhere but touches it at a corner, and an arc over the last voxel.
    got = metrics.lesion_counts(REFERENCE, PREDICTION)
    counts = dict(lesions=4, lesions_detected=2, lesions_missed=2, lesions_false=1)
    assert got == counts | dict(lesion_sensitivity=0.5, lesion_f1=4 / 7)
    assert metrics.lesion_counts(REFERENCE, PREDICTION, connectivity=1)["lesions"] == 5  # the diagonal pair falls apart
    # Of the square 1 of 4 voxels is predicted, which is not more than a quarter.
    assert metrics.lesion_counts(REFERENCE, PREDICTION, min_overlap=0.25)["lesions_detected"] == 1


def test_empty_masks():
    empty = REFERENCE & False
    both = metrics.lesion_counts(empty, empty)
    assert both["lesions"] == both["lesions_false"] == 0
    assert np.isnan(both["lesion_sensitivity"]) and np.isnan(both["lesion_f1"])
    assert metrics.lesion_counts(REFERENCE, empty)["lesion_f1"] == 0
    only_false = metrics.lesion_counts(empty, PREDICTION)
    assert only_false["lesions_false"] == 3 and only_false["lesion_f1"] == 0
    assert np.isnan(only_false["lesion_sensitivity"])


def by_labelling(reference, prediction, connectivity, min_overlap):
    structure = ndimage.generate_binary_structure(reference.ndim, connectivity)
    labels, lesions = ndimage.label(reference, structure)
    components, predicted = ndimage.label(prediction, structure)
    detected = sum(prediction[labels == k].mean() > min_overlap for k in range(1, lesions + 1))
    false = sum(not reference[components == k].any() for k in range(1, predicted + 1))
    return lesions, detected, lesions - detected, false


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equals_labelling_the_voxels(data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=4, max_side=10))
    density, seed = data.draw(st.sampled_from([0.05, 0.2, 0.5, 0.9])), data.draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    reference, prediction = rng.random(shape) < density, rng.random(shape) < density
    connectivity = data.draw(st.integers(1, len(shape)))
    min_overlap = data.draw(st.sampled_from([0.0, 0.3]))
    got = metrics.lesion_counts(np.asfortranarray(reference), prediction, connectivity, min_overlap)
    assert tuple(got.values())[:4] == by_labelling(reference, prediction, connectivity, min_overlap)


@settings(max_examples=20, deadline=None)
@given(arrays(bool, (3, 4, 5)))
def test_a_mask_finds_itself(mask):
    got = metrics.lesion_counts(mask, mask)
    assert got["lesions_detected"] == got["lesions"] and got["lesions_false"] == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="connectivity: got 3, wanted one of 1, 2"):
        metrics.lesion_counts(REFERENCE, PREDICTION, connectivity=3)
    with pytest.raises(ValueError, match="min_overlap: got 1.5"):
        metrics.lesion_counts(REFERENCE, PREDICTION, min_overlap=1.5)
