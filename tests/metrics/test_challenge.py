"""The challenge's Dice and NSD: hand-computed, against brute force, and against its own package where it is."""

import importlib.util
import itertools
import math

import numpy as np
import pytest
import scipy.spatial

from fomo import metrics

SPACINGS = [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.7, 1.3, 4.0)]


def nothing(shape=(6, 7, 8)):
    return np.zeros(shape, bool)


def test_empty_masks():
    some = nothing()
    some[2, 2, 2] = True
    for pair, dice, nsd in (((nothing(), nothing()), 1, 0), ((some, nothing()), 0, 0), ((nothing(), some), 0, 0)):
        assert metrics.fomo26_dice(*pair) == dice and metrics.fomo26_nsd(*pair, (1, 1, 1)) == nsd
        ours = metrics.dice(*pair)
        assert math.isnan(ours) if dice else ours == 0
    assert metrics.fomo26_dice(some, some) == metrics.fomo26_nsd(some, some, (1, 1, 1)) == 1


def test_dice_by_hand():
    a, b = nothing(), nothing()
    a[:3, 1, 1], b[1:5, 1, 1] = True, True
    assert metrics.fomo26_dice(a, b) == 2 * 2 / (3 + 4)


@pytest.mark.parametrize("moved, within", [(1, True), (2, False)])
def test_two_slabs_whose_faces_lie_a_millimetre_or_two_apart(moved, within):
    """The faces of slabs through the whole volume: at 1 mm they are within the tolerance, at 2 mm they are not."""
    a, b = nothing((12, 8, 8)), nothing((12, 8, 8))
    a[3:6], b[3 + moved : 6 + moved] = True, True
    assert (metrics.fomo26_nsd(a, b, (1, 1, 1)) == 1) == within


def random_masks(seed):
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(2, 9, 10, 11)), (0, 1.2, 1.2, 1.2))
    return smooth[0] > 0.08, smooth[1] > 0.05


def surface(mask, spacing):
    """(positions in mm, areas) of surface elements, by brute force: every 2x2x2 neighbourhood, its triangles by hand.

    The area is the one of the triangles between the middles of the edges that the surface cuts, summed for each group
    of connected foreground corners: exact for the codes that one plane or separate corners cut.
    """
    padded = np.pad(mask, 1)
    positions, codes = [], []
    for start in itertools.product(*(range(size - 1) for size in padded.shape)):
        box = padded[tuple(slice(at, at + 2) for at in start)]
        if 0 < box.sum() < 8:
            positions.append(start)
            codes.append(box.copy())
    return np.array(positions) * spacing, codes


def plane_area(box, spacing):
    """Area of the cut of one neighbourhood if it is a corner, a face or the complement of one; else None."""
    x, y, z = spacing
    count = int(box.sum())
    box = box if count <= 4 else ~box
    count = int(box.sum())
    if count == 1:
        a, b, c = (np.eye(3)[axis] * spacing[axis] / 2 for axis in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a)) / 2)
    for axis, area in enumerate((y * z, x * z, x * y)):
        if count == 4 and box.take(0, axis).all() != box.take(1, axis).all():
            if box.take(0, axis).all() or box.take(1, axis).all():
                return area
    return None


@pytest.mark.parametrize("spacing", SPACINGS)
def test_nsd_of_boxes_against_brute_force(spacing):
    """Boxes, whose neighbourhoods are faces, edges and corners; the edges' area is that of the slanting rectangle."""

    def areas(codes):
        found = []
        for box in codes:
            area = plane_area(box, spacing)
            if area is None:  # an edge of the box: 2 or 6 corners along one axis
                few = box if box.sum() == 2 else ~box
                axis = next(k for k in range(3) if (few.take(0, k) == few.take(1, k)).all())
                others = [spacing[k] / 2 for k in range(3) if k != axis]
                area = spacing[axis] * float(np.hypot(*others))
            found.append(area)
        return np.array(found)

    a, b = nothing((14, 14, 14)), nothing((14, 14, 14))
    a[2:8, 3:9, 2:6], b[3:8, 3:11, 2:7] = True, True
    (first, codes), (second, others) = surface(a, np.array(spacing)), surface(b, np.array(spacing))
    distances = scipy.spatial.distance.cdist(first, second)
    near = [distances.min(1) <= 1 + 1e-6, distances.min(0) <= 1 + 1e-6]
    weights = [areas(codes), areas(others)]
    share = sum(w[n].sum() for w, n in zip(weights, near)) / sum(w.sum() for w in weights)
    assert metrics.fomo26_nsd(a, b, spacing) == pytest.approx(share, abs=1e-12)
    assert 0 < share < 1


@pytest.mark.skipif(importlib.util.find_spec("surface_distance") is None, reason="surface-distance is not installed")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_nsd_against_surface_distance(seed, spacing):
    import surface_distance

    a, b = random_masks(seed)
    theirs = surface_distance.compute_surface_dice_at_tolerance(
        surface_distance.compute_surface_distances(a, b, spacing), 1.0
    )
    assert metrics.fomo26_nsd(a, b, spacing) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_where_both_have_foreground_they_are_ours(seed):
    a, b = random_masks(seed)
    assert metrics.fomo26_dice(a, b) == metrics.dice(a, b)
    ours = metrics.surface_dice(a, b, (0.5, 0.5, 1.0), 1.0, surface="surfels")
    assert metrics.fomo26_nsd(a, b, (0.5, 0.5, 1.0)) == ours
    assert set(metrics.fomo26_metrics(a, b, (1, 1, 1))) == {"fomo26_dice", "fomo26_nsd"}
