"""Graded changes of volumes: each does what it says, the same for the same seed, and the mask goes along."""

import numpy as np
import pytest
import scipy.ndimage

from fomo.runtime import seeds
from fomo.transforms.shifts import SHIFTS, without


def generator(name, id="case_1"):
    return seeds.of_change(0, id, name)


@pytest.fixture
def image():
    """(2, 20, 24, 22): smooth blobs in air, and the same inverted in intensity."""
    rng = np.random.default_rng(0)
    blobs = scipy.ndimage.gaussian_filter(rng.normal(size=(20, 24, 22)), 2.0)
    blobs = (blobs - blobs.mean()) / blobs.std()
    return np.stack([blobs, -blobs]).astype(np.float32)


@pytest.mark.parametrize("name", SHIFTS)
def test_every_change_is_deterministic_graded_and_none_at_its_neutral_grade(name, image):
    shift, original = SHIFTS[name], image.copy()
    found = [shift.changed(image, grade, generator(name)) for grade in shift.grades]
    again = [shift.changed(image, grade, generator(name)) for grade in shift.grades]
    assert np.array_equal(image, original), "the input is left alone"
    for one, other in zip(found, again):
        assert one.dtype == np.float32 and one.shape == image.shape and np.array_equal(one, other)
    far = [float(np.sqrt(np.mean((one - image) ** 2))) for one in found]
    for side in (np.array(shift.grades) < shift.neutral, np.array(shift.grades) > shift.neutral):
        own = [distance for distance, on_it in zip(far, side) if on_it]
        steps = [abs(grade - shift.neutral) for grade, on_it in zip(shift.grades, side) if on_it]
        order = np.argsort(steps)
        assert np.all(np.diff(np.array(own)[order]) > 0), f"{name}: a higher grade changes more: {far}"
    assert np.allclose(shift.changed(image, shift.neutral, generator(name)), image, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, shift in SHIFTS.items() if shift.transform is not None])
def test_a_channel_keeps_its_mean_and_deviation_where_it_would_be_normalised_afterwards(name, image):
    shift = SHIFTS[name]
    for grade in shift.grades:
        kept = shift.changed(image, grade, generator(name))
        assert np.allclose(kept.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-4)
        assert np.allclose(kept.std((1, 2, 3)), image.std((1, 2, 3)), rtol=1e-3)
    free = shift.changed(image, shift.grades[-1], generator(name), standardised=False)
    assert not np.allclose(free.std((1, 2, 3)), image.std((1, 2, 3)), rtol=1e-3) or name == "bias_field"


def test_cases_and_channels_have_noise_of_their_own(image):
    flat = np.zeros_like(image)
    flat[:, 0] = 1.0
    noisy = SHIFTS["noise"].changed(flat, 0.2, generator("noise"), standardised=False) - flat
    other = SHIFTS["noise"].changed(flat, 0.2, generator("noise", "case_2"), standardised=False) - flat
    assert noisy.std() == pytest.approx(0.2 * flat[0].std(), rel=0.05)
    for a, b in ((noisy[0], noisy[1]), (noisy[0], other[0])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


def test_known_values(image):
    unit = np.linspace(0, 1, 20 * 24 * 22, dtype=np.float32).reshape(1, 20, 24, 22)
    powered = SHIFTS["gamma"].changed(unit, 2.0, generator("gamma"), standardised=False)
    assert np.allclose(powered, unit**2, atol=1e-5)
    cut = SHIFTS["clipping"].changed(unit, 0.1, generator("clipping"), standardised=False)
    assert cut.max() == pytest.approx(0.9, abs=1e-3) and np.mean(cut == cut.max()) == pytest.approx(0.1, abs=1e-3)
    assert np.allclose(cut[cut < cut.max()], unit[cut < cut.max()], atol=1e-6)
    blurred = SHIFTS["blur"].changed(image, 1.0, generator("blur"), standardised=False)
    inside = (slice(None), *[slice(5, -5)] * 3)
    expected = np.stack([scipy.ndimage.gaussian_filter(one, 1.0, truncate=6) for one in image])
    assert np.allclose(blurred[inside], expected[inside], atol=1e-3)
    thick = SHIFTS["slices"].changed(image, 5.0, generator("slices"), standardised=False)
    assert np.allclose(thick.mean(3), image.mean(3), atol=0.15) and thick.std() < image.std()


@pytest.mark.parametrize("name", ("rotation", "scale"))
def test_the_mask_moves_with_the_image(name):
    mask = np.zeros((48, 52, 44), np.uint8)
    mask[8:28, 14:40, 9:30] = 1
    for grade in SHIFTS[name].grades:
        image = SHIFTS[name].changed(mask[None].astype(np.float32), grade, generator(name))
        moved = SHIFTS[name].changed_mask(mask, grade, generator(name))
        assert moved.dtype == mask.dtype and set(np.unique(moved)) == {0, 1}
        both = np.logical_and(image[0] > 0.5, moved).sum()
        assert 2 * both / ((image[0] > 0.5).sum() + moved.sum()) > 0.95
        factor = grade**3 if name == "scale" else 1.0
        assert moved.sum() == pytest.approx(mask.sum() * factor, rel=0.08)
    assert SHIFTS["noise"].changed_mask(mask, 0.4, generator("noise")) is mask


def test_angles_are_those_of_space_where_voxels_are_long():
    mask = np.zeros((60, 60, 20), np.uint8)
    mask[10:50, 28:32, 9:11] = 1  # a bar along x, 40 mm long, of voxels of 1 x 1 x 3 mm
    for id in map(str, range(8)):
        moved = SHIFTS["rotation"].changed_mask(mask, 15.0, generator("rotation", id), (1.0, 1.0, 3.0))
        points = np.argwhere(moved) * (1.0, 1.0, 3.0)
        along = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
        angle = np.degrees(np.arccos(min(1.0, abs(along[0]))))
        assert min(abs(angle - 15), angle) < 2.5  # about x the bar stays


def test_a_missing_channel_holds_what_the_others_have_outside_and_the_last_one_stays(image):
    shift = without("flair", 1)
    gone = shift.changed(image, 1.0, generator("flair"), outside=(-0.5, -0.7))
    assert np.array_equal(gone[0], image[0]) and np.all(gone[1] == np.float32(-0.5))
    alone = shift.changed(image, 1.0, generator("flair"), outside=(None, -0.7))
    assert np.array_equal(alone, image)
    lacking = SHIFTS["noise"].changed(image, 0.4, generator("noise"), outside=(None, 0.0))
    assert np.array_equal(lacking[0], image[0]) and not np.array_equal(lacking[1], image[1])


def test_voxels_that_are_0_stay_0_and_the_others_keep_their_mean_and_deviation():
    image = np.random.default_rng(0).normal(size=(1, 9, 9, 9)).astype(np.float32)
    image[:, :, 5:] = 0
    for name in ("gamma", "noise", "bias_field"):
        changed = SHIFTS[name].changed(image, SHIFTS[name].grades[-1], generator(name), nonzero=True)
        assert not changed[:, :, 5:].any() and not np.allclose(changed, image, atol=0.05)
        inside = changed[:, :, :5]
        np.testing.assert_allclose(
            [inside.mean(), inside.std()], [image[:, :, :5].mean(), image[:, :, :5].std()], atol=1e-5
        )
