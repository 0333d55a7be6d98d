"""Surface metrics against boxes measured by hand, a brute-force oracle, and the libraries that define them."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from fomo import metrics
from fomo.metrics import overlap, surface
from fomo.metrics.lesions import lesion_counts
from fomo.metrics.words import Words


def box(shape, *corners):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in corners)] = True
    return mask


#  axis 1 ->   reference 0, prediction 1: two bars, 2 voxels apart along axis 0, the second one voxel longer
#  0000.
#  .....
#  11111
BARS = box((3, 5), (0, 1), (0, 4)), box((3, 5), (2, 3), (0, 5))


@pytest.mark.parametrize("swap", [False, True])
def test_two_bars_by_hand(swap):
    masks = BARS[::-1] if swap else BARS
    spacing = (3.0, 4.0)  # 6 mm apart; the far end of the longer bar is (6, 4) away: sqrt(52) mm
    far = np.sqrt(52)
    assert metrics.hausdorff(*masks, spacing) == far
    assert metrics.hausdorff(*masks, spacing, percentile=50) == 6
    assert np.isclose(metrics.hausdorff(*masks, spacing, percentile=95), 6 + 0.8 * (far - 6))  # 5 elements: 3.8 of 0..4
    assert np.isclose(metrics.average_surface_distance(*masks, spacing), (8 * 6 + far) / 9)
    assert np.isclose(metrics.average_surface_distance(*masks, spacing, combine="mean"), (6 + (4 * 6 + far) / 5) / 2)
    assert metrics.surface_dice(*masks, spacing, tolerance_mm=5.9) == 0
    assert metrics.surface_dice(*masks, spacing, tolerance_mm=6) == 8 / 9  # the tolerance itself is inside
    assert metrics.surface_dice(*masks, spacing, tolerance_mm=8) == 1


@pytest.mark.parametrize("kind", ["voxels", "surfels"])
@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_rounding_of_the_voxel_size_does_not_put_a_surface_beyond_the_tolerance(kind, size):
    reference, prediction = box((12, 12, 12), (2, 10), (2, 10), (2, 10)), box((12, 12, 12), (3, 11), (2, 10), (2, 10))
    exact = metrics.surface_dice(reference, prediction, (size,) * 3, size, surface=kind)
    for rounding in (6.7e-9, 1e-7, -1e-7):  # of affines in float32
        spacing = (size * (1 + rounding),) * 3
        assert metrics.surface_dice(reference, prediction, spacing, size, surface=kind) == pytest.approx(exact)
    larger = metrics.surface_dice(reference, prediction, (size * 1.0001,) * 3, size, surface=kind)
    assert larger < exact - 0.1, "a size that is another one"


def test_anisotropic_axes_are_not_swapped():
    one, other = box((9, 9, 9), (1, 2), (1, 2), (1, 2)), box((9, 9, 9), (3, 4), (4, 5), (5, 6))
    assert np.isclose(metrics.hausdorff(one, other, (0.5, 2.0, 7.0)), np.sqrt(1**2 + 6**2 + 28**2))
    fortran = np.asfortranarray(one), np.asfortranarray(other)
    assert metrics.hausdorff(*fortran, (0.5, 2.0, 7.0)) == metrics.hausdorff(one, other, (0.5, 2.0, 7.0))


def test_surfels_of_a_box_have_its_area():
    # A box of a x b x c voxels: its faces, less the bevelled edges and corners of marching cubes.
    mask, spacing = box((12, 12, 12), (2, 6), (2, 8), (2, 10)), np.array([0.5, 1.0, 3.0])
    areas = surface.surface_distances(mask, mask, spacing, "surfels").reference_weights
    inner = (np.array([4, 6, 8]) - 1) * spacing  # between the outermost voxel centres
    faces = 2 * (inner[0] * inner[1] + inner[1] * inner[2] + inner[0] * inner[2])
    bevels = sum(4 * inner[i] * np.hypot(*np.delete(spacing, i)) / 2 for i in range(3))
    corner = np.linalg.norm(np.prod(spacing) / spacing) / 8  # a triangle through three half edges
    assert np.isclose(areas.sum(), faces + bevels + 8 * corner)


def test_surfels_of_a_square_have_its_length():
    mask = box((6, 6), (1, 4), (1, 5))
    lengths = surface.surface_distances(mask, mask, (1.0, 2.0), "surfels").reference_weights
    assert np.isclose(lengths.sum(), 2 * (2 * 1.0 + 3 * 2.0) + 4 * np.hypot(0.5, 1.0))


@pytest.mark.parametrize("kind", ["voxels", "surfels"])
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
def test_degenerate_masks(kind, shape):
    empty, full, spacing = np.zeros(shape, bool), np.ones(shape, bool), (2.0,) * len(shape)
    for function in (metrics.hausdorff, metrics.average_surface_distance):
        assert np.isnan(function(empty, empty, spacing, surface=kind))
        assert function(empty, full, spacing, surface=kind) == np.inf
        assert function(full, empty, spacing, surface=kind) == np.inf
        assert function(full, full, spacing, surface=kind) == 0
    assert np.isnan(metrics.surface_dice(empty, empty, spacing, 1.0, surface=kind))
    assert metrics.surface_dice(empty, full, spacing, 1.0, surface=kind) == 0
    assert metrics.surface_dice(full, full, spacing, 0, surface=kind) == 1


def test_one_pass_gives_what_the_functions_give():
    rng = np.random.default_rng(3)
    reference, prediction = (ndimage.gaussian_filter(rng.normal(size=(20, 22, 17)), 2) > 0.05 for _ in range(2))
    spacing = (0.7, 1.3, 3.0)
    row = metrics.segmentation_metrics(reference, prediction, spacing, tolerance_mm=1.5)
    assert row["dice"] == metrics.dice(reference, prediction)
    assert row["specificity"] == overlap.overlap_metrics(reference, prediction)["specificity"]
    assert row["hausdorff"] == metrics.hausdorff(reference, prediction, spacing)
    assert row["hd95"] == metrics.hausdorff(reference, prediction, spacing, 95)
    assert row["average_surface_distance"] == metrics.average_surface_distance(reference, prediction, spacing)
    assert row["surface_dice"] == metrics.surface_dice(reference, prediction, spacing, 1.5)
    lesions = lesion_counts(Words(reference), Words(prediction))
    assert {name: row[name] for name in lesions} == lesions and len(row) == 10 + len(lesions)
    labels = np.where(reference, 2, 0), np.where(prediction, 2, 0)
    per_class = metrics.segmentation_metrics_per_class(*labels, spacing, classes=3, tolerance_mm=1.5)
    assert per_class[2] == row and np.isnan(per_class[1]["dice"])


# --------------------------------------------------------------------------------------- properties


@st.composite
def mask_pairs(draw, dimensions=(2, 3), empty=True):
    """Masks of blobs, noise, single voxels, all or nothing; they touch the border as often as not."""
    shape = tuple(draw(st.integers(1, 12)) for _ in range(draw(st.sampled_from(dimensions))))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    masks = []
    for _ in range(2):
        kind = draw(st.sampled_from(["blobs", "noise", "voxel", "full", *(["empty"] if empty else [])]))
        if kind == "blobs":
            mask = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0
        elif kind == "noise":
            mask = rng.random(shape) < rng.choice([0.05, 0.3, 0.7])
        else:
            mask = np.full(shape, kind == "full")
        if kind == "voxel" or not (empty or mask.any()):
            mask[tuple(rng.integers(0, size) for size in shape)] = True
        masks.append(mask)
    spacing = tuple(draw(st.sampled_from([0.5, 0.7, 1.0, 3.0])) for _ in shape)
    return *masks, spacing


def brute_force(reference, prediction, spacing):
    """All directed distances, by definition: surface by padding and looking at the faces, distances by trying all
    pairs.
    """
    points = []
    for mask in (reference, prediction):
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(mask.ndim):
            for shift in (-1, 1):
                inside &= np.roll(padded, shift, axis)[(slice(1, -1),) * mask.ndim]
        points.append(np.argwhere(mask & ~inside) * spacing)
    distances = cdist(*points)
    return distances.min(axis=1), distances.min(axis=0)


@settings(max_examples=50, deadline=None)
@given(mask_pairs(empty=False))
def test_equals_brute_force(case):
    reference, prediction, spacing = case
    got = surface.surface_distances(reference, prediction, spacing)
    forward, backward = brute_force(reference, prediction, spacing)
    np.testing.assert_allclose(got.from_reference, forward, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.from_prediction, backward, rtol=1e-9, atol=1e-9)
    assert np.isclose(metrics.hausdorff(*case), max(forward.max(), backward.max()))
    pooled = np.percentile(np.concatenate([forward, backward]), 95)
    assert np.isclose(metrics.hausdorff(*case, percentile=95, combine="pooled"), pooled)


@settings(max_examples=30, deadline=None)
@given(mask_pairs(), st.sampled_from(["voxels", "surfels"]))
def test_properties(case, kind):
    reference, prediction, spacing = case
    forward = metrics.segmentation_metrics(reference, prediction, spacing, surface=kind, lesions=False)
    backward = metrics.segmentation_metrics(prediction, reference, spacing, surface=kind, lesions=False)
    for name in ("dice", "jaccard", "hausdorff", "hd95", "average_surface_distance", "surface_dice"):
        np.testing.assert_allclose(forward[name], backward[name], rtol=1e-12, err_msg=name)  # symmetric
    scaled = metrics.segmentation_metrics(
        reference, prediction, 2 * np.array(spacing), tolerance_mm=2.0, surface=kind, lesions=False
    )
    for name in ("hausdorff", "hd95", "average_surface_distance"):
        np.testing.assert_allclose(scaled[name], 2 * forward[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(scaled["surface_dice"], forward["surface_dice"], rtol=1e-9)
    if np.isfinite(forward["hausdorff"]):
        assert forward["hd95"] <= forward["hausdorff"] and 0 <= forward["surface_dice"] <= 1
    padded = (np.pad(reference, 3), np.pad(prediction, 3))  # what lies outside is background
    np.testing.assert_allclose(metrics.hausdorff(*padded, spacing, surface=kind), forward["hausdorff"], rtol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.7, 3.0), (4.0, 0.3, 0.3)])
@pytest.mark.parametrize("density", [0.0005, 0.01, 0.3])
def test_near_and_far_elements(density, spacing):
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 20, 25)) < density for _ in range(2)]
    got = surface.surface_distances(*masks, spacing)
    for ours, expected in zip(got[:2], brute_force(*masks, spacing)):
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
    shells = surface._shells(spacing)
    within = np.concatenate(got[:2]) <= shells[-1][1]
    assert within.any() and (density == 0.3 or not within.all())  # both ways were taken
    every = np.linalg.norm((np.array(list(np.ndindex(61, 61, 61))) - 30) * spacing, axis=1)
    complete = np.sum(every <= shells[-1][1] * (1 + 1e-12))
    assert sum(len(offsets) for offsets, _ in shells) == complete


# ------------------------------------------------------------------------------------------- peers


@settings(max_examples=40, deadline=None)
@given(mask_pairs(empty=False), st.sampled_from([0, 50, 95, 100]))
def test_surfels_equal_surface_distance(case, percentile):
    surface_distance = pytest.importorskip("surface_distance")
    reference, prediction, spacing = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its scipy.ndimage.filters
        theirs = surface_distance.compute_surface_distances(reference, prediction, spacing)
    ours = surface.surface_distances(reference, prediction, spacing, "surfels")
    # Where the share of the area is reached exactly, rounding decides between two elements.
    low, high = (surface_distance.compute_robust_hausdorff(theirs, percentile + nudge) for nudge in (-1e-7, 1e-7))
    assert low * (1 - 1e-9) <= surface.hausdorff_from(ours, percentile) <= high * (1 + 1e-9)
    mean = np.mean(surface_distance.compute_average_surface_distance(theirs))
    np.testing.assert_allclose(surface.average_surface_distance_from(ours, "mean"), mean, rtol=1e-9, atol=1e-12)
    dice = surface_distance.compute_surface_dice_at_tolerance(theirs, 1.05)
    np.testing.assert_allclose(surface.surface_dice_from(ours, 1.05), dice, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(mask_pairs(empty=False), st.sampled_from([50, 95, 100]))
def test_voxels_equal_monai(case, percentile):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    reference, prediction, spacing = case
    y, p = (torch.from_numpy(mask)[None, None] for mask in (reference, prediction))
    shared = dict(include_background=True, spacing=spacing)
    tolerance = 1e-6  # MONAI works in float32
    theirs = monai.compute_hausdorff_distance(p, y, percentile=percentile, **shared).item()
    # rounding of their interpolation grows with the distances, not with the percentile between them
    np.testing.assert_allclose(metrics.hausdorff(*case, percentile=percentile), theirs, rtol=tolerance, atol=tolerance)
    theirs = monai.compute_average_surface_distance(p, y, symmetric=True, **shared).item()
    np.testing.assert_allclose(metrics.average_surface_distance(*case), theirs, rtol=tolerance)
    theirs = monai.compute_surface_dice(p, y, class_thresholds=[1.05], **shared).item()
    np.testing.assert_allclose(metrics.surface_dice(*case, tolerance_mm=1.05), theirs, rtol=tolerance)
    theirs = monai.compute_surface_dice(p, y, class_thresholds=[1.05], use_subvoxels=True, **shared).item()
    np.testing.assert_allclose(metrics.surface_dice(*case, 1.05, "surfels"), theirs, rtol=tolerance)
    theirs = monai.compute_dice(p, y, ignore_empty=False).item()
    np.testing.assert_allclose(metrics.dice(reference, prediction), theirs, rtol=tolerance)


@settings(max_examples=20, deadline=None)
@given(mask_pairs(empty=False))
def test_pooled_equals_medpy(case):
    medpy = pytest.importorskip("medpy.metric.binary")
    reference, prediction, spacing = case
    theirs = medpy.hd95(prediction, reference, voxelspacing=spacing)
    np.testing.assert_allclose(metrics.hausdorff(*case, percentile=95, combine="pooled"), theirs, rtol=1e-9)
    theirs = medpy.assd(prediction, reference, voxelspacing=spacing)
    np.testing.assert_allclose(metrics.average_surface_distance(*case), theirs, rtol=1e-9)
    theirs = (medpy.asd(prediction, reference, spacing) + medpy.asd(reference, prediction, spacing)) / 2
    np.testing.assert_allclose(metrics.average_surface_distance(*case, combine="mean"), theirs, rtol=1e-9)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(spacing_mm=(1.0, -1.0)), r"spacing_mm: got \(1.0, -1.0\), wanted finite numbers greater than 0"),
        (dict(spacing_mm=(1.0, np.nan)), "spacing_mm: got"),
        (dict(spacing_mm=1.0), "spacing_mm: got 1.0, wanted 2 numbers"),
        (dict(spacing_mm=(1.0, 1.0, 1.0)), "spacing_mm: .* wanted 2 numbers"),
        (dict(prediction=BARS[1][:2]), r"prediction: got shape \(2, 5\), wanted \(3, 5\)"),
        (dict(reference=BARS[0] * 0.5), "reference: got dtype float64"),
        (dict(percentile=101), "percentile: got 101, wanted a finite number of at least 0 and at most 100"),
        (dict(percentile=np.nan), "percentile: got nan"),
        (dict(surface="voxel"), "surface: got 'voxel', wanted one of 'voxels', 'surfels'"),
        (dict(combine="mean"), "combine: got 'mean', wanted one of 'max', 'pooled'"),
    ],
)
def test_bad_input(changes, message):
    arguments = dict(reference=BARS[0], prediction=BARS[1], spacing_mm=(1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        metrics.hausdorff(**{**arguments, **changes})


def test_bad_tolerance_and_axes():
    for tolerance in (-1, np.inf, "1"):
        with pytest.raises(ValueError, match="tolerance_mm: got"):
            metrics.surface_dice(*BARS, (1.0, 1.0), tolerance)
    with pytest.raises(ValueError, match="reference: got 1 axes, wanted 2 or 3"):
        metrics.hausdorff(np.ones(3, bool), np.ones(3, bool), (1.0,))
