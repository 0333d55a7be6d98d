"""Lesion-wise detection: connected components found, missed and invented.

Components are joined from runs of foreground along the last axis, not voxel by voxel. This is as exact as
scipy.ndimage.label, and its time goes with the number of runs, not with the volume.
"""

from itertools import product

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from . import checks
from .words import Words


def lesion_counts(reference, prediction, connectivity=None, min_overlap=0.0):
    """Connected components detected, missed and false.

    reference, prediction: masks of one shape.
    connectivity: 1 (voxels that share a face) up to the number of axes (also edges and corners; default).
    min_overlap: a reference lesion is detected when more than this share of its voxels is predicted (0: one voxel).
    A predicted component is false when it touches no reference lesion. Returns a dict:
    lesions, lesions_detected, lesions_missed, lesions_false (counts),
    lesion_sensitivity = detected / lesions (NaN without lesions),
    lesion_f1 = 2 detected / (2 detected + missed + false) (NaN when both masks are empty).
    """
    reference, prediction = checks.mask_pair(reference, prediction)
    connectivity = reference.ndim if connectivity is None else connectivity
    checks.choice(connectivity, "connectivity", tuple(range(1, reference.ndim + 1)))
    checks.number(min_overlap, "min_overlap", 0, 1)
    return counts_from_words(Words(reference), Words(prediction), connectivity, min_overlap)


def counts_from_words(words, other_words, connectivity, min_overlap=0.0):
    """`lesion_counts` of two masks of one shape, given as `Words`."""
    # each axis is padded by two voxels, so that neighbours beyond a border are never foreground
    strides = np.cumprod([1, *(size + 2 for size in words.mask.shape[:0:-1])])[::-1]
    first, last = (index @ strides for index in words.runs())
    other_first, other_last = (index @ strides for index in other_words.runs())
    label, lesions = _components(first, last, strides, connectivity)
    other_label, predicted = _components(other_first, other_last, strides, connectivity)
    run, other = _meeting(first, last, other_first, other_last)
    common = np.minimum(last[run], other_last[other]) - np.maximum(first[run], other_first[other]) + 1
    size = np.bincount(label, last - first + 1, lesions)
    covered = np.bincount(label[run], common, lesions)
    detected = int(np.count_nonzero(covered > min_overlap * size))
    missed, false = lesions - detected, predicted - len(np.unique(other_label[other]))
    return dict(
        lesions=lesions,
        lesions_detected=detected,
        lesions_missed=missed,
        lesions_false=false,
        lesion_sensitivity=checks.ratio(detected, lesions),
        lesion_f1=checks.ratio(2 * detected, 2 * detected + missed + false),
    )


def _meeting(first, last, other_first, other_last, reach=0):
    """Pairs (run, other run) that overlap, or come within `reach` voxels of overlapping."""
    begin = np.searchsorted(other_last, first - reach, "left")
    end = np.searchsorted(other_first, last + reach, "right")
    many = np.maximum(end - begin, 0)
    run = np.repeat(np.arange(len(first)), many)
    return run, np.arange(len(run)) + np.repeat(begin - np.cumsum(many) + many, many)


def _components(first, last, strides, connectivity):
    """(component of each run, number of components); runs: first and last voxels, ascending."""
    links = [np.zeros((2, 0), np.int64)]
    for steps in product((-1, 0, 1), repeat=len(strides) - 1):
        changed = np.count_nonzero(steps)
        if steps > (0,) * len(steps) and changed <= connectivity:  # each pair of rows once
            offset = int(np.dot(steps, strides[:-1]))
            links.append(np.stack(_meeting(first + offset, last + offset, first, last, int(changed < connectivity))))
    links = np.concatenate(links, axis=1)
    if not len(first):
        return np.zeros(0, np.int64), 0
    graph = coo_array((np.ones(links.shape[1], bool), tuple(links)), shape=(len(first), len(first)))
    count, label = connected_components(graph, directed=False)
    return label, count
