"""MetaImage files against what SimpleITK wrote, and damaged ones."""

import base64
import re
import zlib

import numpy as np
import pytest

from fomo.data import cases, slice_files
from fomo.data.sources import volumes
from fomo.space.metaimage import read_metaimage

# SimpleITK 2.5.7: 2x3x4 voxels of 0.7x0.8x2.5 mm, axes swapped, flipped and turned by 10 degrees
LINES = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = -0.17364817766693033 0.98480775301220802 0 -0.98480775301220802 -0.17364817766693033 0 0 0 -1
Offset = -10.5 20.25 -300
CenterOfRotation = 0 0 0
AnatomicalOrientation = ALS
ElementSpacing = 0.69999999999999996 0.80000000000000004 2.5
DimSize = 2 3 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
PACKED = "eF4BMADP/5z/wf/m/wsAMABVAHoAnwDEAOkADgEzAVgBfQGiAccB7AERAjYCWwKAAqUCygLvArYlD5c="
VOXELS = (np.arange(24).reshape(4, 3, 2).T * 37 - 100).astype(np.int16)  # (x, y, z), x fastest
# of the NIfTI file that SimpleITK wrote of the same image
AFFINE = [[0.12155373, 0.78784621, 0, 10.5], [-0.68936539, 0.13891855, 0, -20.25], [0, 0, -2.5, -300], [0, 0, 0, 1]]


def write(path, lines=LINES, voxels=None):
    voxels = VOXELS.tobytes(order="F") if voxels is None else voxels
    path.write_bytes(lines.encode() + voxels)
    return str(path)


def packed(lines):
    return lines.replace("CompressedData = False", "CompressedData = True\nCompressedDataSize = 59")


def test_it_is_what_itk_wrote(tmp_path):
    for path in (
        write(tmp_path / "plain.mha"),
        write(tmp_path / "packed.MHA", packed(LINES), base64.b64decode(PACKED)),
    ):
        array, affine = cases.read_volume(cases.Volume(path))
        assert array.dtype == np.float32 and np.array_equal(array, VOXELS)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("name, dtype", [("MET_UCHAR", "u1"), ("MET_INT", "<i4"), ("MET_FLOAT", ">f4")])
def test_types_and_orders_of_bytes(tmp_path, name, dtype):
    values = np.abs(VOXELS) % 200
    lines = LINES.replace("MET_SHORT", name).replace("MSB = False", f"MSB = {dtype.startswith('>')}")
    path = write(tmp_path / "a.mha", lines, values.astype(dtype).tobytes(order="F"))
    assert np.array_equal(read_metaimage(path)[0], values)


def test_it_is_listed_and_has_a_name_and_a_place(tmp_path):
    path = write(tmp_path / "train_1_a_1.mha")
    assert volumes.scans_below(tmp_path) == [("train_1_a_1.mha", path)]
    assert slice_files.stem("train_1_a_1.mha") == "train_1_a_1"
    assert not cases.unoriented([cases.Volume(path)]) and cases.Volume(path).has_geometry


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("NDims = 3", "NDims = 2", "got NDims = 2, wanted 3"),
        ("CenterOfRotation = 0 0 0", "ElementNumberOfChannels = 3", "got ElementNumberOfChannels = 3, wanted 1"),
        ("LOCAL", "voxels.raw", "got ElementDataFile = voxels.raw, wanted LOCAL"),
        ("MET_SHORT", "MET_LONG", "got ElementType = MET_LONG, wanted one of MET_CHAR"),
        ("DimSize = 2 3 4", "DimSize = 2 3", "got DimSize = 2 3, wanted 3 numbers"),
        ("DimSize = 2 3 4", "DimSize = 2 3 -4", "got DimSize = 2 3 -4, wanted three positive numbers"),
        ("DimSize = 2 3 4", "DimSize = 2 3 nan", "got DimSize = 2 3 nan, wanted three positive numbers"),
        ("DimSize = 2 3 4", "DimSize = 9999999999 9999999999 9999999999", "got 48 bytes of voxels, wanted"),
        ("DimSize = 2 3 4", "DimSize = 2 3 3", "got 37 bytes or more of voxels, wanted 36"),
        ("DimSize = 2 3 4", "DimSize = 2 3 5", "got 48 bytes of voxels, wanted 60 .* is it cut?"),
        ("0.80000000000000004", "0", "wanted an invertible"),
        ("0.80000000000000004", "nan", "wanted an invertible"),
        ("TransformMatrix = -0.17364817766693033", "TransformMatrix = 0.9", "off right angles|invertible"),
        ("TransformMatrix", "Matrix", "got TransformMatrix = None, wanted 9 numbers"),
        ("ElementDataFile = LOCAL\n", "", "does not begin with lines"),
        ("ObjectType = Image", "\x89PNG", "does not begin with lines"),
        ("MSB = False", "MSB = maybe", "got maybe as the order of bytes"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, old, new, said):
    assert old in LINES
    path = write(tmp_path / "a.mha", LINES.replace(old, new, 1))
    with pytest.raises(ValueError, match=said) as error:
        read_metaimage(path)
    assert str(error.value).startswith(path)


def test_damaged_voxels_are_refused(tmp_path):
    damaged = base64.b64decode(PACKED)
    for voxels, said in (
        (b"not packed" * 9, "cannot unpack its voxels"),
        (damaged[:20], "bytes or more of voxels, wanted 48"),
        (zlib.compress(bytes(49)), "got 49 bytes or more of voxels, wanted 48"),
        (b"", "got 0 bytes of voxels"),
    ):
        with pytest.raises(ValueError, match=said):
            read_metaimage(write(tmp_path / "a.mha", packed(LINES), voxels))
    values = np.where(VOXELS == VOXELS[0, 0, 0], np.nan, 1.0)
    with pytest.raises(ValueError, match="got 1 voxels that are NaN or infinite"):
        read_metaimage(write(tmp_path / "a.mha", LINES.replace("SHORT", "DOUBLE"), values.tobytes(order="F")))
    with pytest.raises(ValueError, match="cannot read it as MetaImage: No such file"):
        read_metaimage(str(tmp_path / "none.mha"))


def test_lines_that_never_end_are_read_to_a_limit(tmp_path):
    endless = re.sub("LOCAL\n", "LOCAL", LINES) + "x" * 2**20
    with pytest.raises(ValueError, match="does not begin with lines"):
        read_metaimage(write(tmp_path / "a.mha", endless, b""))
