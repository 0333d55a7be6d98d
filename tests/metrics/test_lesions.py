"""Lesion counts against drawings and against scipy.ndimage.label."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from fomo.metrics import lesions
from fomo.metrics.words import Words


def lesion_counts(reference, prediction):
    return lesions.lesion_counts(Words(reference), Words(prediction))


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
    got = lesion_counts(REFERENCE, PREDICTION)
    counts = dict(lesions=4, lesions_detected=2, lesions_missed=2, lesions_false=1)
    assert got == counts | dict(lesion_sensitivity=0.5, lesion_f1=4 / 7)


def test_empty_masks():
    empty = REFERENCE & False
    both = lesion_counts(empty, empty)
    assert both["lesions"] == both["lesions_false"] == 0
    assert np.isnan(both["lesion_sensitivity"]) and np.isnan(both["lesion_f1"])
    assert lesion_counts(REFERENCE, empty)["lesion_f1"] == 0
    only_false = lesion_counts(empty, PREDICTION)
    assert only_false["lesions_false"] == 3 and only_false["lesion_f1"] == 0
    assert np.isnan(only_false["lesion_sensitivity"])


def by_labelling(reference, prediction):
    structure = ndimage.generate_binary_structure(reference.ndim, reference.ndim)
    labels, lesions = ndimage.label(reference, structure)
    components, predicted = ndimage.label(prediction, structure)
    detected = sum(prediction[labels == k].any() for k in range(1, lesions + 1))
    false = sum(not reference[components == k].any() for k in range(1, predicted + 1))
    return lesions, detected, lesions - detected, false


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_equals_labelling_the_voxels(data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=4, max_side=10))
    density, seed = data.draw(st.sampled_from([0.05, 0.2, 0.5, 0.9])), data.draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    reference, prediction = rng.random(shape) < density, rng.random(shape) < density
    got = lesion_counts(np.asfortranarray(reference), prediction)
    assert tuple(got.values())[:4] == by_labelling(reference, prediction)


@settings(max_examples=20, deadline=None)
@given(arrays(bool, (3, 4, 5)))
def test_a_mask_finds_itself(mask):
    got = lesion_counts(mask, mask)
    assert got["lesions_detected"] == got["lesions"] and got["lesions_false"] == 0
