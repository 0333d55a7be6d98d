"""Files, orientation, resampling and the way to the network's grid and back."""

import gzip
import itertools
import json

import nibabel
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations

from fomo.space import nifti, volume

IDENTITY = np.eye(4)


def save(path, array, affine=IDENTITY, **header):
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return str(path)


def oblique(degrees, spacing_mm, code="RAS", shape=(4, 5, 6)):
    """Affine of a grid whose axes run along `code`, turned about the z axis."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = (-10, 20, 5)
    ornt = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    return affine @ orientations.inv_ornt_aff(ornt, shape), ornt


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


# ---------------------------------------------------------------------------------------------- files


def test_scaling_is_applied_once_and_big_endian_is_read(tmp_path):
    stored = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(stored, np.diag([2, 3, 4, 1]), header)
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, tmp_path / "a.nii")
    raw = nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled()
    array, affine = nifti.read_nifti(tmp_path / "a.nii")
    assert array.dtype == np.float32 and raw.dtype.byteorder == ">"
    np.testing.assert_allclose(array, raw.astype(float) * 2 - 1000)
    np.testing.assert_array_equal(affine, np.diag([2, 3, 4, 1]))


def test_a_trailing_axis_of_one_is_dropped_and_4d_is_refused(tmp_path):
    one = save(tmp_path / "one.nii.gz", np.ones((2, 3, 4, 1), np.float32))
    assert nifti.read_nifti(one)[0].shape == (2, 3, 4)
    with pytest.raises(ValueError, match="two.nii.gz: got shape 2x3x4x2, wanted one 3D volume"):
        nifti.read_nifti(save(tmp_path / "two.nii.gz", np.ones((2, 3, 4, 2), np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted(tmp_path, value):
    array = np.ones((3, 3, 3), np.float32)
    array[0, :2, 0] = value
    with pytest.raises(ValueError, match="a.nii.gz: got 2 voxels that are NaN or infinite"):
        nifti.read_nifti(save(tmp_path / "a.nii.gz", array))


def test_unreadable_files_are_value_errors(tmp_path):
    whole = save(tmp_path / "whole.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    packed = open(whole, "rb").read()
    contents = {
        "truncated.nii.gz": packed[: len(packed) // 2],
        "truncated.nii": gzip.decompress(packed)[:5000],
        "corrupt.nii.gz": packed[:2000] + b"\xff" * 500 + packed[2500:],
        "text.nii.gz": b"not an image",
        "empty.nii": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "absent.nii.gz"):
        with pytest.raises(ValueError, match=name):
            nifti.read_nifti(str(tmp_path / name))


def test_a_singular_affine_and_complex_voxels_are_refused(tmp_path):
    flat = tmp_path / "flat.nii"
    content = bytearray(open(save(flat, np.ones((2, 2, 2), np.float32), sform_code=1), "rb").read())
    content[312:328] = bytes(16)  # srow_z
    flat.write_bytes(content)
    with pytest.raises(ValueError, match="flat.nii.*invertible"):
        nifti.read_nifti(str(flat))
    with pytest.raises(ValueError, match="real numbers"):
        nifti.read_nifti(save(tmp_path / "complex.nii.gz", np.ones((2, 2, 2), np.complex64)))


def test_written_masks_are_uint8_with_slope_1_and_the_header_of_the_input(tmp_path):
    affine, _ = oblique(12, (1, 2, 3), "PIR", (4, 5, 6))
    source = save(
        tmp_path / "in.nii.gz", np.ones((4, 5, 6), np.int16), affine, descrip=b"scanner", sform_code=1, qform_code=1
    )
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 1
    nifti.write_nifti(tmp_path / "out.nii.gz", mask, affine, like=source)
    image = nibabel.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == np.uint8 and image.dataobj.slope == 1 and image.dataobj.inter == 0
    assert bytes(image.header["descrip"]).startswith(b"scanner") and int(image.header["sform_code"]) == 1
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii.gz", "out.nii.gz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nifti.write_nifti(path, np.ones((2, 2, 2), np.uint8), np.eye(4))
    before = path.read_bytes()

    def full_disk(image, volumes, name):
        open(name, "wb").write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nifti, "_save", full_disk)
    with pytest.raises(OSError, match="No space"):
        nifti.write_nifti(path, np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"] and path.read_bytes() == before


# ---------------------------------------------------------------------------------------- resampling


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
)
def test_resample_equals_scipy(before, after, order, channels):
    array = np.random.default_rng(0).normal(size=before).astype(np.float32)
    expected = scipy.ndimage.zoom(array, np.array(after) / before, order=order, mode="nearest", grid_mode=True)
    given_array = np.stack([array, -array]) if channels else array
    result = volume.resample(given_array, after, order)
    np.testing.assert_allclose(result[0] if channels else result, expected, atol=2e-5)
    assert result.dtype == np.float32


def test_resample_to_the_same_shape_is_the_input_itself():
    array = np.ones((3, 4, 5), np.float32)
    assert volume.resample(array, (3, 4, 5), 3) is array


def test_linear_resampling_by_hand():
    array = np.array([0.0, 4.0]).reshape(2, 1, 1)
    # four voxels over the same two: centres at -0.25, 0.25, 0.75, 1.25 of the old ones
    np.testing.assert_allclose(volume.resample(array, (4, 1, 1), 1).ravel(), [0, 1, 3, 4], atol=1e-6)


def test_labels_keep_their_place_when_the_grid_halves():
    """....####.... -> ..##..: nearest neighbour would do as well here, but it moves an odd start by half a voxel."""
    for start in range(8):
        line = np.zeros((16, 2, 2), np.uint8)
        line[start : start + 6] = 3
        half = volume.resample_labels(line, (8, 1, 1)).ravel()
        assert set(half) == {0, 3}
        centre = np.flatnonzero(half).mean() * 2 + 0.5
        assert abs(centre - (start + 2.5)) <= 0.01, f"start {start}: centre {centre}"


def test_bad_arguments_are_named():
    array = np.ones((2, 2, 2))
    for arguments, words in [
        ((array, (2, 2, 3), 2), "order"),
        ((array, (2, 0, 3), 1), "shape"),
        ((array, (2, 2), 1), "shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            volume.resample(*arguments)
    with pytest.raises(ValueError, match="kind"):
        volume.normalize(np.arange(8.0).reshape(2, 2, 2), "minmax")


# ------------------------------------------------------------------------------------- normalisation


def test_normalisations_by_hand():
    array = np.array([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1)
    np.testing.assert_allclose(
        volume.normalize(array, "zscore").ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6
    )
    np.testing.assert_allclose(
        volume.normalize(array, "percentile", percentiles=(0, 100)).ravel(), [0, 1 / 3, 2 / 3, 1]
    )
    np.testing.assert_allclose(volume.normalize(array, "window", window=(2, 4)).ravel(), [0, 0, 1, 1])
    np.testing.assert_array_equal(volume.normalize(array, "none"), array)


def test_voxels_that_are_not_0_have_mean_0_and_deviation_1_and_the_others_stay_0():
    array = np.array([0, 0, 0, 0, 0, 2, 4, 6], np.int16).reshape(2, 2, 2)
    expected = [0, 0, 0, 0, 0, -np.sqrt(1.5), 0, np.sqrt(1.5)]
    np.testing.assert_allclose(volume.normalize(array, "zscore_nonzero").ravel(), expected, rtol=1e-6)
    filled = np.random.default_rng(0).uniform(1, 9, (4, 4, 4))
    np.testing.assert_allclose(volume.normalize(filled, "zscore_nonzero"), volume.normalize(filled), atol=1e-6)
    with pytest.raises(ValueError, match="constant volume: every voxel that is not 0 is 7"):
        volume.normalize(np.array([0.0, 7, 7, 7, 7, 7, 7, 0]).reshape(2, 2, 2), "zscore_nonzero")


@pytest.mark.parametrize("kind", ["zscore", "percentile", "window", "none"])
def test_a_constant_volume_is_refused(kind):
    with pytest.raises(ValueError, match="constant volume"):
        volume.normalize(np.full((2, 2, 2), 7.0), kind)


@pytest.mark.parametrize("window, value", [((100, 200), 0), ((-20, -10), 1)])
def test_a_window_beside_all_intensities_is_refused(window, value):
    array = np.array([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1)
    with pytest.raises(
        ValueError, match=f"constant volume: got intensities from 0 to 6, .*window from .* makes {value}$"
    ):
        volume.normalize(array, "window", window=window)
    with pytest.raises(ValueError, match="^flair.nii: constant volume"):
        volume.preprocess(
            [array + 100, array], np.eye(4), kind="window", window=(100, 200), crop=False, names=["t1.nii", "flair.nii"]
        )


def test_percentiles_that_coincide_are_refused():
    array = np.zeros((10, 10, 10))
    array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="constant volume"):
        volume.normalize(array, "percentile")


def test_z_score_of_large_values_does_not_lose_precision():
    array = (1e6 + np.random.default_rng(0).normal(size=(40, 40, 40))).astype(np.float32)
    result = volume.normalize(array, "zscore")
    assert abs(result.mean(dtype=np.float64)) < 0.05 and abs(result.std(dtype=np.float64) - 1) < 0.05


def test_nonzero_box():
    first, second = np.zeros((5, 6, 7)), np.zeros((5, 6, 7))
    first[1, 2, 3], second[3, 2, 5] = 1, -1
    assert volume.nonzero_box([first, second]) == ((1, 4), (2, 3), (3, 6))
    assert volume.nonzero_box([np.zeros((2, 2, 2))]) is None


# ----------------------------------------------------------------------------------- there and back


def test_to_ras_puts_world_axes_first():
    array = np.arange(24).reshape(2, 3, 4)
    affine, _ = oblique(5, (1, 1, 2), "PIR", (2, 3, 4))
    ras, ras_affine = volume.to_ras(array, affine)
    assert nibabel.aff2axcodes(ras_affine) == ("R", "A", "S")
    for index in itertools.product(*map(range, ras.shape)):
        world = ras_affine @ (*index, 1)
        native = np.round(np.linalg.solve(affine, world)[:3]).astype(int)
        assert array[tuple(native)] == ras[index], "a voxel keeps its place in the world"


def test_axes_of_another_volume_are_taken_over_without_moving_a_voxel():
    array = np.arange(24).reshape(2, 3, 4)
    affine, _ = oblique(5, (1, 1, 2), "PIR", array.shape)
    for code in ("LAS", "SPL"):
        other, _ = oblique(5, (3, 1, 1), code, (9, 9, 9))
        turned, own = volume.to_axes_of(other, array, affine)
        assert nibabel.aff2axcodes(own) == tuple(code)
        for index in itertools.product(*map(range, turned.shape)):
            native = np.round(np.linalg.solve(affine, own @ (*index, 1))[:3]).astype(int)
            assert array[tuple(native)] == turned[index]
    one, other = (
        oblique(degrees, (1, 1, 1))[0] for degrees in (44.999, 45.001)
    )  # RAS is nearest to other axes of them
    assert np.array_equal(volume.to_axes_of(one, array, other)[0], array)


CODES = ["".join(code) for axes in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*axes)]


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_goes_there_and_back_exactly(code):
    rng = np.random.default_rng(0)
    array = rng.integers(1, 50, (5, 6, 7)).astype(np.float32)
    array[0], array[:, -1] = 0, 0  # something to crop
    affine, _ = oblique(9, (1.0, 1.5, 3.0), code, array.shape)
    image, _, geometry = volume.preprocess([array], affine, kind="none")
    assert image.shape[1:] == geometry.shape and image.size == 4 * 5 * 7
    np.testing.assert_array_equal(volume.to_native(image[0], geometry), array)
    assert np.array_equal(np.sort(array[geometry.native_box], axis=None), np.sort(image, axis=None))
    np.testing.assert_array_equal(volume.to_native(image, geometry)[0], array)


def blob(shape, spacing_mm, radius_mm):
    """A lumpy ball in mm, a little off the centre."""
    centre = (np.array(shape) - 1) / 2 * spacing_mm + (1.3, -2.1, 0.7)
    offset = np.indices(shape) * np.reshape(spacing_mm, (3, 1, 1, 1)) - centre.reshape(3, 1, 1, 1)
    distance = np.sqrt((offset**2).sum(0))
    return distance < radius_mm * (1 + 0.15 * np.sin(offset[0] / 4) * np.cos(offset[1] / 5))


@pytest.mark.parametrize("code, degrees", [("RAS", 0), ("LPS", 8), ("PIR", 20), ("SAR", 35)])
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.9, 0.9, 5.0), (5.0, 1.2, 1.2), (2, 2, 2), (0.8, 1.1, 1.6)])
def test_a_mask_pushed_forward_and_back_overlaps_itself(code, degrees, spacing_mm):
    shape = tuple(int(70 / size) for size in spacing_mm)
    mask = blob(shape, spacing_mm, 18)
    affine, ornt = oblique(degrees, spacing_mm, code, shape)
    image = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    native_image, native_mask = (orientations.apply_orientation(array, ornt) for array in (image, mask))
    _, forward, geometry = volume.preprocess(
        [native_image], affine, spacing_mm=(1, 1, 1), mask=native_mask.astype(np.uint8)
    )
    probabilities = np.stack([forward == 0, forward == 1]).astype(np.float32)
    back = volume.to_native(probabilities, geometry).argmax(0) == 1
    assert back.shape == native_mask.shape
    assert dice(back, native_mask) >= 0.98
    world = np.abs(np.array(geometry.spacing_mm) - 1)
    assert world.max() < 0.05, "about 1 mm along every axis"


def test_image_and_mask_stay_aligned_through_preprocessing():
    """The mask is the bright part of the image, before and after."""
    mask = blob((40, 44, 12), (1.1, 1.0, 4.0), 14)
    image = np.where(mask, 100.0, 10.0).astype(np.float32)
    affine, _ = oblique(15, (1.1, 1.0, 4.0), "RAS", mask.shape)
    image, forward, _ = volume.preprocess(
        [image], affine, spacing_mm=(1.5, 1.5, 1.5), kind="none", mask=mask.astype(np.uint8)
    )
    assert dice(image[0] > 55, forward == 1) > 0.97


def test_cubic_resampling_stays_within_the_range_of_the_channel():
    array = np.zeros((10, 10, 10), np.float32)
    array[3:7, 3:7, 3:7] = 1
    image, _, _ = volume.preprocess([array], np.eye(4), spacing_mm=(0.7, 0.7, 0.7), kind="none", crop=False)
    assert image.min() == 0 and image.max() == 1


def test_the_geometry_survives_json():
    affine, _ = oblique(15, (1.1, 1.0, 4.0), "PIR", (5, 6, 7))
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    image, _, geometry = volume.preprocess([array], affine, spacing_mm=(2, 2, 2))
    again = volume.Geometry.from_dict(json.loads(json.dumps(geometry.to_dict())))
    assert again == geometry and hash(again) == hash(geometry)
    with pytest.raises(ValueError, match="wanted"):
        volume.to_native(image[:, 1:], geometry)


def test_channels_of_unequal_shape_are_refused():
    with pytest.raises(ValueError, match="5x5x5 and 5x5x4"):
        volume.preprocess([np.ones((5, 5, 5)), np.ones((5, 5, 4))], np.eye(4))


def test_grid_distance_is_that_of_the_worst_corner():
    moved = np.eye(4)
    moved[0, 0] = 1.01
    assert volume.grid_distance((101, 11, 11), np.eye(4), np.eye(4)) == 0
    assert volume.grid_distance((101, 11, 11), np.eye(4), moved) == pytest.approx(1.0)


# ----------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize(
    "name, label, target_mm",
    [
        ("brain1/brain1_image.nii.gz", "brain1/brain1_label.nii.gz", 0.78),
        ("breast1/breast1_image.nii.gz", "breast1/breast1_label.nii.gz", 0.6),
        ("monai/anatomical.nii", "monai/anatomical_label.nii.gz", 1.0),
        ("tcga_fg_6692/flair.nii.gz", "tcga_fg_6692/seg_mav.nii.gz", 1.0),
    ],
)
def test_real_masks_there_and_back(shared_data, name, label, target_mm):
    image, affine = nifti.read_nifti(str(shared_data / name))
    mask, mask_affine = nifti.read_nifti(str(shared_data / label))
    assert volume.grid_distance(image.shape, affine, mask_affine) < 0.05
    classes = np.unique(mask)
    _, forward, geometry = volume.preprocess([image], affine, spacing_mm=(target_mm,) * 3, mask=mask)
    probabilities = np.stack([forward == c for c in classes]).astype(np.float32)
    back = classes[volume.to_native(probabilities, geometry).argmax(0)]
    assert dice(back > 0, mask > 0) >= 0.98


def test_a_real_4d_file_is_refused(shared_data):
    with pytest.raises(ValueError, match="52x68x20x10"):
        nifti.read_nifti(str(shared_data / "niivue/pcasl.nii.gz"))


def ball(shape, spacing_mm, centre_mm, radius_mm):
    axes = [(np.arange(n) + 0.5) * mm - at for n, mm, at in zip(shape, spacing_mm, centre_mm)]
    return (sum(np.square(np.ix_(*axes)[i]) for i in range(3)) <= radius_mm**2).astype(np.uint8)


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.9, 0.9, 1.5), (0.9, 0.9, 5.0)])
def test_structures_keep_their_volume(spacing_mm):
    rng, kept = np.random.default_rng(0), []
    shape = [round(40 / mm) for mm in spacing_mm]
    for radius in (2.5, 4.0, 8.0):
        for target in ((1.0, 1.0, 1.5), (2.0, 2.0, 2.0)):
            mask = ball(shape, spacing_mm, 20 + rng.uniform(-0.5, 0.5, 3) * spacing_mm, radius)
            new = [round(n * old / mm) for n, old, mm in zip(shape, spacing_mm, target)]
            found = volume.resample_labels(mask, new)
            kept.append(found.sum() / mask.sum() * mask.size / found.size)
    assert np.mean(kept) == pytest.approx(1, abs=0.02) and 0.9 < min(kept) <= max(kept) < 1.1


def test_a_lesion_on_one_thick_slice_is_kept_beside_a_large_one():
    mask = np.zeros((40, 40, 9), np.uint8)
    mask[5:20, 5:20, 2:7] = 1
    mask[30:33, 30:33, 4] = 1
    found = volume.resample_labels(mask, (36, 36, 45)) == 1
    assert found[25:, 25:].sum() == pytest.approx(9 * 0.81 * 5, rel=0.1)


def test_classes_share_a_structure_without_holes():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[4:16, 4:16, 4:16] = 1
    mask[4:10, 4:16, 4:16] = 2
    found = volume.resample_labels(mask, (30, 30, 30))
    assert (found[6:24, 6:24, 6:24] > 0).all() and (found > 0).sum() == 18**3
    assert [(found == label).sum() for label in (1, 2)] == [18**3 / 2] * 2
