"""Headers of NIfTI files: what a unit means, what is refused instead of mended, and what a checksum is for."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from fomo.space import nifti, volume

_PLACES = dict(
    bitpix=(72, "h"),
    pixdim=(76, "8f"),
    vox_offset=(108, "f"),
    xyzt_units=(123, "b"),
    qform_code=(252, "h"),
    sform_code=(254, "h"),
    quatern=(256, "3f"),
    srow_y=(296, "4f"),
)
ARRAY = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def write(path, affine=AFFINE, array=ARRAY, **fields):
    """A NIfTI-1 file whose header `fields` are then written over, byte by byte."""
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    content = bytearray(image.to_bytes())
    for name, values in fields.items():
        place, kind = _PLACES[name]
        struct.pack_into("<" + kind, content, place, *np.atleast_1d(values))
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return str(path)


def refused(words, path):
    with pytest.raises(ValueError) as caught:
        nifti.read_nifti(path)
    assert path in str(caught.value) and "\n" not in str(caught.value), caught.value
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize("code, mm", [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (2 + 8, 1.0)])
def test_affines_are_in_mm_whatever_the_unit(tmp_path, code, mm):
    affine = np.diag([2.0, 3.0, 4.0, mm]) / mm
    affine[:3, 3] = np.array([7.0, -8.0, 9.0]) / mm
    array, read = nifti.read_nifti(write(tmp_path / "a.nii.gz", affine, xyzt_units=code))
    np.testing.assert_allclose(read, [[2, 0, 0, 7], [0, 3, 0, -8], [0, 0, 4, 9], [0, 0, 0, 1]], rtol=1e-6)
    assert np.array_equal(array, ARRAY)


def test_a_mask_is_written_in_the_unit_of_its_image(tmp_path):
    source = write(tmp_path / "a.nii.gz", np.diag([0.002, 0.003, 0.004, 1.0]), xyzt_units=1)
    _, affine = nifti.read_nifti(source)
    nifti.write_nifti(str(tmp_path / "m.nii.gz"), (ARRAY > 30).astype(np.uint8), affine, like=source)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(mask.affine, nibabel.load(source).affine)
    assert mask.header.get_xyzt_units()[0] == "meter"
    np.testing.assert_allclose(nifti.read_nifti(str(tmp_path / "m.nii.gz"))[1], affine)


@pytest.mark.parametrize(
    "size, fields, words",
    [
        (1.0, dict(xyzt_units=1), ["unit is the metre", "voxels of 1000x1000x1000 mm, wanted 0.01 to 100 mm"]),
        (1.0, dict(xyzt_units=3), ["unit is the micron", "voxels of 0.001x0.001x0.001 mm"]),
        (0.001, {}, ["voxels of 0.001x0.001x0.001 mm"]),
        (101.0, {}, ["voxels of 101x101x101 mm"]),
        (1.0, dict(xyzt_units=5), ["got 5 as the header's code of its unit"]),
    ],
)
def test_implausible_voxels_are_refused(tmp_path, size, fields, words):
    refused(words, write(tmp_path / "a.nii.gz", np.diag([size, size, size, 1.0]), **fields))


FORMS = dict(sform_code=0, qform_code=1)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(vox_offset=0), ["voxels from byte 0 on (vox_offset), wanted 352 or more"]),
        (dict(vox_offset=348), ["byte 348"]),
        (dict(vox_offset=352.5), ["byte 352.5"]),
        (dict(vox_offset=np.nan), ["byte nan"]),
        (dict(FORMS, pixdim=(1, 2, 2, 0, 0, 0, 0, 0)), ["voxels of 2x2x0 (pixdim), and no sform"]),
        (dict(FORMS, pixdim=(1, 2, -2, 2, 0, 0, 0, 0)), ["voxels of 2x-2x2 (pixdim), and no sform"]),
        (dict(FORMS, qform_code=0, pixdim=(1, 2, np.nan, 2, 0, 0, 0, 0)), ["2xnanx2"]),
        (dict(FORMS, pixdim=(3, 2, 2, 2, 0, 0, 0, 0)), ["3 for the side of the third axis"]),
        (dict(FORMS, quatern=(0.8, 0.8, 0)), ["quaternion of length 1.13137"]),
        (dict(FORMS, quatern=(np.nan, 0, 0)), ["quaternion of length nan"]),
        (dict(sform_code=77), ["sform_code 77, wanted 0 to 5"]),
        (dict(FORMS, qform_code=-1), ["qform_code -1, wanted 0 to 5"]),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_nibabel_would_mend_is_refused(tmp_path, capfd, name, fields, words):
    refused(words, write(tmp_path / name, **fields))
    assert capfd.readouterr() == ("", "")


def test_fields_that_nothing_reads_may_be_wrong(tmp_path, capfd):
    """Beside an sform neither voxel size nor quaternion counts; the type says how many bits there are."""
    path = write(tmp_path / "a.nii", pixdim=(0, 0, -1, 0, 0, 0, 0, 0), quatern=(9, 9, 9), bitpix=8)
    array, affine = nifti.read_nifti(path)
    assert np.array_equal(array, ARRAY) and np.array_equal(affine, np.diag([2, 3, 4, 1]))
    assert capfd.readouterr() == ("", "")
    nifti.write_nifti(str(tmp_path / "m.nii.gz"), ARRAY.astype(np.uint8), affine, like=path)
    assert np.array_equal(nibabel.load(tmp_path / "m.nii.gz").affine, affine)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("excess", [4e-7, 1e-5, 5e-5])
def test_a_quaternion_that_is_a_rounding_error_too_long_is_read(tmp_path, excess):
    """Half a turn about the diagonal of x and y exchanges them, and turns z."""
    value = np.sqrt((1 + excess) / 2)
    _, affine = nifti.read_nifti(
        write(tmp_path / "a.nii.gz", **FORMS, quatern=(value, value, 0), pixdim=(1, 2, 3, 4, 0, 0, 0, 0))
    )
    np.testing.assert_allclose(affine[:3, :3], [[0, 3, 0], [2, 0, 0], [0, 0, -4]], atol=1e-5)


@pytest.mark.parametrize("degrees", [20.0, 1.5, -3.0])
def test_a_sheared_volume_is_refused(tmp_path, degrees):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 3 * np.tan(np.radians(degrees))
    refused([f"axes that are {abs(degrees):g} degrees off right angles"], write(tmp_path / "a.nii.gz", affine))
    affine[1, 2] = 3 * np.tan(np.radians(0.5))  # of a rounding or a registration by small angles
    nifti.read_nifti(write(tmp_path / "b.nii.gz", affine))


def test_files_that_do_not_say_how_they_lie(tmp_path):
    assert nifti.read_header(write(tmp_path / "a.nii")).oriented
    assert nifti.read_header(write(tmp_path / "b.nii", **FORMS)).oriented
    header = nifti.read_header(write(tmp_path / "c.nii", sform_code=0, qform_code=0))
    assert not header.oriented and np.array_equal(np.diag(header.affine), [-2, 3, 4, 1]), "x to the left, as nibabel"


# ------------------------------------------------------------------------------------------ gzip


@pytest.mark.parametrize("name, endianness", [("a.nii", "<"), ("a.nii.gz", "<"), ("a.nii", ">")])
def test_volumes_are_written_one_after_another_as_nibabel_writes_them_together(tmp_path, name, endianness):
    like, theirs = tmp_path / f"like_{name}", tmp_path / f"theirs_{name}"
    header = nibabel.Nifti1Header(endianness=endianness)
    nibabel.save(nibabel.Nifti1Image(ARRAY, AFFINE, header), like)
    asked = []

    class Several:
        def __len__(self):
            return 3

        def __getitem__(self, place):
            if place == 3:
                raise IndexError
            asked.append(place)
            return ARRAY.astype(np.float32) / (1 + place)

    for given, whole in ((Several(), np.stack(list(Several()), -1)), (ARRAY[::-1], ARRAY[::-1])):
        image = nibabel.Nifti1Image(whole, AFFINE, nibabel.load(like).header)
        image.set_data_dtype(whole.dtype)
        nibabel.save(image, theirs)
        nifti.write_nifti(tmp_path / name, given, AFFINE, like=str(like))
        assert (tmp_path / name).read_bytes() == theirs.read_bytes()
    assert asked == [0, 1, 2] * 2, "each once"


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    array = np.zeros((30, 30, 30), np.int16)
    plain = open(write(tmp_path / "a.nii", array=array), "rb").read()
    content = bytearray(gzip.compress(plain, 0))  # stored: any bit may flip
    content[1000] ^= 4
    (tmp_path / "flipped.nii.gz").write_bytes(content)
    assert np.asarray(nibabel.load(tmp_path / "flipped.nii.gz").dataobj).any(), "others read another voxel"
    refused(["CRC check failed"], str(tmp_path / "flipped.nii.gz"))


def test_zeros_behind_a_gzip_file_are_no_damage_and_anything_else_is(tmp_path):
    packed = open(write(tmp_path / "a.nii.gz"), "rb").read()
    (tmp_path / "padded.nii.gz").write_bytes(packed + bytes(1000))
    assert np.array_equal(nifti.read_nifti(str(tmp_path / "padded.nii.gz"))[0], ARRAY)
    (tmp_path / "garbage.nii.gz").write_bytes(packed + b"garbage")
    refused(["Not a gzipped file"], str(tmp_path / "garbage.nii.gz"))
    (tmp_path / "cut.nii.gz").write_bytes(packed[:-6])
    refused(["end-of-stream"], str(tmp_path / "cut.nii.gz"))


# --------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.mgz", ["a file of FreeSurfer: mri_convert", "wanted .nii, .nii.gz"]),
        ("a.MGH", ["FreeSurfer"]),
        ("a.hdr", ["two files"]),
        ("a.img.gz", ["two files"]),
        ("a.nrrd", ["of ITK"]),
        ("a.mnc", ["MINC"]),
        ("a.nii.bz2", ["packed otherwise"]),
        ("a", ["without a suffix of NIfTI"]),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"anything")
    refused(words, str(tmp_path / name))


def test_a_header_of_two_files_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(ARRAY, np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    refused(["two files"], str(tmp_path / "a.nii"))


# ------------------------------------------------------------------------------------- collapsing


def test_a_grid_that_collapses_or_explodes_is_refused():
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    with pytest.raises(ValueError, match=r"20x20x20 voxels of 0.1x0.1x0.1 mm, which would be 2x2x2 voxels of 1"):
        volume.preprocess([array], np.diag([0.1, 0.1, 0.1, 1.0]), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="which would be 2e.04x2e.04x2e.04 voxels"):
        volume.preprocess([array], np.diag([100.0, 100.0, 100.0, 1.0]), spacing_mm=(0.1, 0.1, 0.1))
    image, _, _ = volume.preprocess([array[:3, :3, :3]], np.eye(4), spacing_mm=(2.0, 2.0, 2.0))
    assert image.shape == (1, 2, 2, 2), "a small one stays small"
