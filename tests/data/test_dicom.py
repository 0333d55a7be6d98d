"""DICOM folders: the grid and values of the reference NIfTIs, and one line for every folder that is not one volume."""

import nibabel
import numpy as np
import pytest

from fomo.data import dicom
from fomo.data.cases import Volume, read_volume
from fomo.data.sources import volumes
from fomo.space import volume

pydicom = pytest.importorskip("pydicom")

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
OBLIQUE = np.array([[0.8, 0.6, 0.0], [0.0, 0.0, -1.0]])  # along a row, down a column


def new(kind=MR, series="1.2.3"):
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.SeriesInstanceUID = series
    return data


def pixels(data, stored):
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PixelData = stored.astype("<i2").tobytes()
    return data


def values(count=4, rows=3, columns=5):
    return np.random.default_rng(0).integers(-500, 500, (count, rows, columns))


def write(folder, stored, name="{}.dcm", axes=OBLIQUE, start=(10.0, -20.0, 30.0), step=2.0, change=None):
    """A series of slices, stored in any order; change(data, index) alters one before it is written."""
    folder.mkdir(exist_ok=True)
    normal = np.cross(*axes)
    for index, frame in enumerate(stored):
        data = pixels(new(), frame)
        data.ImagePositionPatient = list(np.round(np.array(start) + normal * step * index, 6))
        data.ImageOrientationPatient = list(axes.ravel())
        data.PixelSpacing = [1.5, 0.5]  # between rows, between columns
        data.SliceThickness = 9
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        if change:
            change(data, index)
        data.save_as(folder / name.format((index * 7) % 10), enforce_file_format=True)
    return str(folder)


def refused(words, folder):
    with pytest.raises(ValueError) as caught:
        dicom.read_dicom(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"


def test_slices_in_order_with_their_place_in_the_patient(tmp_path):
    stored = values()
    folder = write(tmp_path / "a", stored)
    array, affine = read_volume(Volume(folder))
    assert array.shape == (5, 3, 4) and array.dtype == np.float32
    assert np.array_equal(array, 2.0 * stored.transpose(2, 1, 0) - 1024)
    # column 4, row 2, slice 3 by the standard's formula (C.7.6.2.1.1), from LPS to RAS
    place = np.array([10.0, -20, 30]) + 4 * 0.5 * OBLIQUE[0] + 2 * 1.5 * OBLIQUE[1] + 3 * 2 * np.cross(*OBLIQUE)
    assert np.allclose(affine @ [4, 2, 3, 1], [-place[0], -place[1], place[2], 1], atol=1e-5)
    assert np.allclose(volume.spacing(affine), (0.5, 1.5, 2.0), atol=1e-6), (
        "distance of the slices, not their thickness"
    )
    assert Volume(folder).has_geometry


def test_each_slice_has_its_own_slope_and_none_means_one(tmp_path):
    def change(data, index):
        data.RescaleSlope, data.RescaleIntercept = index + 1, index
        if index == 3:
            del data.RescaleSlope, data.RescaleIntercept

    stored = values()
    array, _ = dicom.read_dicom(write(tmp_path / "a", stored, change=change))
    wanted = [1.0 * stored[0], 2.0 * stored[1] + 1, 3.0 * stored[2] + 2, stored[3]]
    assert np.array_equal(array, np.stack(wanted).transpose(2, 1, 0))


def enhanced(path, stored, order=(2, 0, 3, 1), thickness=2.0):
    data = pixels(new(ENHANCED_MR), stored[list(order)])
    data.NumberOfFrames = len(order)
    shared, measures, plane = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 0.5], thickness
    plane.ImageOrientationPatient = list(OBLIQUE.ravel())
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence, frames = [shared], []
    for index in order:
        frame, position, transform = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = list(np.array([10.0, -20, 30]) + np.cross(*OBLIQUE) * 2 * index)
        transform.RescaleSlope, transform.RescaleIntercept = 2, -1024
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transform]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(path, enforce_file_format=True)


def test_a_multi_frame_file_equals_its_single_slices(tmp_path):
    stored = values()
    single, affine = dicom.read_dicom(write(tmp_path / "single", stored))
    (tmp_path / "multi").mkdir()
    enhanced(tmp_path / "multi" / "all.dcm", stored)
    for source in (tmp_path / "multi", tmp_path / "multi" / "all.dcm"):
        array, own = read_volume(Volume(str(source)))
        assert np.array_equal(array, single) and np.allclose(own, affine, atol=1e-5)
    (tmp_path / "one").mkdir()
    enhanced(tmp_path / "one" / "all.dcm", stored, order=(1,), thickness=3.0)
    array, own = dicom.read_dicom(str(tmp_path / "one"))
    assert array.shape == (5, 3, 1) and np.allclose(volume.spacing(own), (0.5, 1.5, 3.0))
    (tmp_path / "twice").mkdir()
    enhanced(tmp_path / "twice" / "all.dcm", stored, order=(0, 1, 2, 1))
    refused(["two slices at one place"], str(tmp_path / "twice"))


def set_(**fields):
    return lambda data, index: [setattr(data, name, value) for name, value in fields.items() if index == 2]


def delete(name):
    return lambda data, index: delattr(data, name) if index == 2 else None


def move(*by):
    def change(data, index):
        if index == 2:
            data.ImagePositionPatient = list(np.array(data.ImagePositionPatient, float) + by)

    return change


ALONG = np.cross(*OBLIQUE)


def unscaled_ct(data, index):
    data.Modality = "CT"
    if index == 2:
        del data.RescaleIntercept


@pytest.mark.parametrize(
    "words, change",
    [
        (["several series", "1.2.3", "9.9"], set_(SeriesInstanceUID="9.9")),
        (["several orientations"], set_(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])),
        (["several pixel spacings"], set_(PixelSpacing=[1.5, 0.6])),
        (["two slices at one place", "4.dcm"], move(*(-2 * ALONG))),
        (["1.7 to 2.3 mm apart", "even distances"], move(*(0.3 * ALONG))),
        (["no ImagePositionPatient"], delete("ImagePositionPatient")),
        (["no PixelSpacing"], delete("PixelSpacing")),
        (["perpendicular unit vectors"], set_(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0])),
        (["ImageOrientationPatient", "wanted 6 numbers"], set_(ImageOrientationPatient=[1, 0, 0])),
        (["without an image"], delete("PixelData")),
        (["Siemens mosaic", "dcm2niix"], set_(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])),
        (["RescaleSlope 0"], set_(RescaleSlope=0)),
        (["no RescaleIntercept", "0 HU"], unscaled_ct),
        (["cannot read it as DICOM"], set_(PixelData=b"ab")),
    ],
)
def test_what_is_not_one_volume_is_named(tmp_path, words, change):
    refused(words, write(tmp_path / "a", values(), change=change))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_stored_bits_may_begin_anywhere(tmp_path, high, signed):
    wanted = np.random.default_rng(0).integers(-2048, 2048, (4, 3, 5)) if signed else values() % 4096
    shift = high - 11
    stored = ((wanted % 4096) << shift).astype(np.uint16)

    def twelve(data, index):
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, high, int(signed)
        data.PixelData = stored[index].tobytes()
        data.RescaleSlope, data.RescaleIntercept = 1, 0

    array, _ = read_volume(Volume(write(tmp_path / "a", stored, change=twelve)))
    assert np.array_equal(array, wanted.transpose(2, 1, 0))
    if high > 11:
        stored[2, 1, 1] |= 1  # below the lowest stored bit
        refused(
            ["bits that are set below the stored ones", f"HighBit {high}"], write(tmp_path / "b", stored, change=twelve)
        )


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_and_suffix(tmp_path, implicit):
    folder = write(tmp_path / "good", values())
    bare = tmp_path / "tree" / "sub-1"
    bare.mkdir(parents=True)
    for path in sorted((tmp_path / "good").iterdir()):
        data, plain = pydicom.dcmread(path), pydicom.Dataset()
        plain.update(data)
        arguments = dict(implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        plain.save_as(bare / path.stem, **arguments)
        assert (bare / path.stem).read_bytes()[128:132] != b"DICM" and dicom.is_dicom(bare / path.stem)
    for one, other in zip(read_volume(Volume(str(bare))), read_volume(Volume(folder))):
        assert np.array_equal(one, other)
    (bare / "README").write_text("notes, in a file without a suffix that comes first")
    assert [name for name, _ in volumes.scans_below(str(tmp_path / "tree"))] == ["sub-1"]
    refused(["README", "not a DICOM file"], str(bare))


@pytest.mark.parametrize("size", [0.001, 1000.0])
def test_voxels_of_an_implausible_size_are_refused(tmp_path, size):
    def spaced(data, index):
        data.PixelSpacing = [size, size]

    refused(["got voxels of", "wanted 0.01 to 100 mm"], write(tmp_path / "a", values(), change=spaced))


def test_missing_slices_and_a_tilted_gantry(tmp_path):
    folder = write(tmp_path / "a", values(8))
    (tmp_path / "a" / "8.dcm").unlink()  # the fifth
    refused(["4 mm between 1.dcm and 5.dcm and 2 mm elsewhere", "1 missing"], folder)

    def shear(data, index):
        data.ImagePositionPatient = list(
            np.array(data.ImagePositionPatient, float) + index * 2 * np.tan(np.radians(15)) * OBLIQUE[1]
        )

    refused(["gantry tilt of 15 degrees"], write(tmp_path / "b", values(), change=shear))


def test_files_that_are_no_slices(tmp_path):
    folder = write(tmp_path / "a", values())
    for name in ("DICOMDIR", ".DS_Store"):
        (tmp_path / "a" / name).write_text("x")
    (tmp_path / "a" / "sub").mkdir()
    assert dicom.read_dicom(folder)[0].shape == (5, 3, 4), "these are left alone"
    (tmp_path / "a" / "notes.txt").write_text("x")
    refused(["notes.txt", "not a DICOM file"], folder)
    (tmp_path / "b").mkdir()
    refused(["without files"], str(tmp_path / "b"))
    data = (tmp_path / "a" / "0.dcm").read_bytes()
    (tmp_path / "b" / "cut.dcm").write_bytes(data[:-10])
    refused(["cut.dcm", "cannot read it as DICOM"], str(tmp_path / "b"))


def test_without_pydicom_the_error_says_what_to_install(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", values())
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    refused(["pip install pydicom"], folder)


@pytest.mark.parametrize("name", ["ct_3slice", "mr_t1_oblique_24slice", "mr_t1_sag_HFS"])
def test_the_same_voxels_and_world_as_dcm2niix(shared_data, name):
    array, affine = volume.to_ras(*dicom.read_dicom(str(shared_data / "dicom" / name)))
    image = nibabel.as_closest_canonical(nibabel.load(shared_data / "dicom" / f"{name}_ref.nii.gz"))
    assert np.array_equal(array, np.asarray(image.dataobj, np.float32))
    assert volume.grid_distance(array.shape, affine, image.affine) < 1e-3
    if name == "ct_3slice":
        assert array.min() == -3024, "the padding, in HU"


def test_a_mosaic_is_refused(shared_data):
    refused(["Siemens mosaic"], str(shared_data / "dicom" / "mr_epi_siemens_mosaic"))
