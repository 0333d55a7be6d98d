"""A folder of DICOM files as one volume, through pydicom (optional: pip install pydicom).

The files are one series of parallel slices. A file has one slice, or many if it is multi-frame ("enhanced"). Whatever
would have to be guessed is an error: several series, slices that are missing, doubled or unevenly spaced, a tilted
gantry (a sheared volume), mosaics, colours. A value is the stored value * RescaleSlope + RescaleIntercept, each slice
with its own. CT must have both: its values are Hounsfield units. Stored values may begin at any bit (HighBit). Files of
old archives may lack the preamble by which DICOM is known: they begin with a data element of the group 2 or 8.
"""

import os
import struct
import warnings
from typing import NamedTuple

import numpy as np

from ..space import volume

_GRID = 0.1  # how far, in slice distances, a slice may lie off the regular grid
_PARALLEL = 1e-3  # how much direction cosines may differ
_FIRST_ELEMENT, _FIRST_BYTES = 0x20, 1024  # of the number and of the length of a file's first data element
# RuntimeError: a compression that pydicom has no decoder for
_MALFORMED = OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RuntimeError


class _Slice(NamedTuple):
    path: str
    series: str
    position: np.ndarray  # (3,) mm, LPS, of the centre of the first pixel
    axes: np.ndarray  # (2, 3): unit vectors along a row (column index) and down a column (row index), LPS
    spacing: tuple  # mm between columns, between rows
    thickness: float | None  # mm to the next slice, as far as the file says
    values: np.ndarray  # (rows, columns) float32


def read_dicom(folder):
    """(array float32 (X, Y, Z), affine) of the series in `folder`, or of one multi-frame file.

    X runs along the rows, Y down the columns, Z along their normal. Subfolders, hidden files and a DICOMDIR are left
    out. Raises ValueError, with the path, for all else that is not one regular volume.
    """
    slices = [part for path in _files(folder) for part in _read(path)]
    first = slices[0]
    for part in slices[1:]:
        _check_same(folder, first, part)
    normal = np.cross(*first.axes)
    slices.sort(key=lambda part: float(part.position @ normal))
    step = _step(folder, slices, normal)
    affine = np.eye(4)
    affine[:3, :2] = first.axes.T * first.spacing
    affine[:3, 2] = normal * step
    affine[:3, 3] = slices[0].position
    array = np.stack([part.values.T for part in slices], axis=-1)
    if not np.isfinite(array).all():
        _refuse(folder, "voxels that are NaN or infinite", "numbers")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    volume.check_affine(affine, folder)
    return array, affine


def is_dicom(path):
    """Whether a file begins as DICOM does, with the preamble or without. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or _begins_bare(start)


def _begins_bare(start):
    """Whether the bytes are a first data element: little-endian as nearly always, or big-endian."""
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", start[:8].ljust(8, b"\0"))
        named = start[4:6].isalpha() and start[4:6].isupper()  # its type, for example CS
        implicit = order == "<" and length % 2 == 0 and length <= _FIRST_BYTES
        if group in (0x0002, 0x0008) and element <= _FIRST_ELEMENT and (named or implicit):
            return True
    return False


def _refuse(path, got, wanted):
    raise ValueError(f"{path}: got {got}, wanted {wanted}")


def _files(folder):
    if os.path.isfile(folder):
        return [folder]
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        raise ValueError(f"{folder}: cannot read it: {error.strerror}") from error
    names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.name.upper() != "DICOMDIR")
    if not names:
        _refuse(folder, "a folder without files", "the DICOM files of one series")
    return [os.path.join(folder, name) for name in names]


def _read(path):
    try:
        import pydicom
    except ImportError as error:
        raise ValueError(f"{path}: reading DICOM needs pydicom: pip install pydicom") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values in fields that are not used here
            data = pydicom.dcmread(path, force=is_dicom(path))
            _check_kind(path, data)
            if "TransferSyntaxUID" not in data.file_meta:  # without a preamble there is none
                data.file_meta.TransferSyntaxUID = _syntax(pydicom, data)
            frames = int(data.get("NumberOfFrames") or 1)
            stored = np.reshape(_stored_values(path, data), (frames, data.Rows, data.Columns))
            return [_slice(path, data, frame, stored[frame]) for frame in range(frames)]
    except pydicom.errors.InvalidDicomError as error:
        wanted = "nothing but the files of one series in the folder"
        raise ValueError(f"{path}: not a DICOM file, wanted {wanted}") from error
    except (*_MALFORMED, struct.error) as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(path) else f"{path}: cannot read it as DICOM: {text[:300]}") from error


def _syntax(pydicom, data):
    """The uncompressed transfer syntax in which a data set was found to be written."""
    found = getattr(data, "original_encoding", None) or (data.is_implicit_VR, data.is_little_endian)  # pydicom 3, or 2
    if not found[1]:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if found[0] else pydicom.uid.ExplicitVRLittleEndian


def _stored_values(path, data):
    """The pixels of a file, of its BitsStored below and at HighBit."""
    allocated, stored, high = int(data.BitsAllocated), int(data.BitsStored), int(data.HighBit)
    compressed = data.file_meta.TransferSyntaxUID.is_compressed
    if not 0 < stored <= high + 1 <= allocated or (compressed and high != stored - 1):
        _refuse(path, f"BitsStored {stored} and HighBit {high} of {allocated} bits", "HighBit to be BitsStored - 1")
    if compressed:
        return data.pixel_array
    data.BitsStored, data.HighBit = allocated, allocated - 1  # pydicom 3 would shift by itself, whatever HighBit is
    array = data.pixel_array
    if np.bitwise_and(array, (1 << (high + 1 - stored)) - 1).any():
        _refuse(path, f"bits that are set below the stored ones (BitsStored {stored}, HighBit {high})", "none")
    return np.right_shift(np.left_shift(array, allocated - 1 - high), allocated - stored)  # keeps the sign


def _check_kind(path, data):
    if "PixelData" not in data:
        kind = data.SOPClassUID.name if "SOPClassUID" in data else data.get("Modality", "unknown")
        _refuse(path, f"a DICOM file without an image ({kind})", "the slices of one series")
    if "MOSAIC" in data.get("ImageType", ()):
        _refuse(path, "a Siemens mosaic (many slices in one picture)", "single slices: convert it with dcm2niix")
    if data.get("SamplesPerPixel", 1) != 1:
        _refuse(path, "a colour image", "grey values")
    if "ModalityLUTSequence" in data:
        _refuse(path, "a lookup table for the values", "RescaleSlope and RescaleIntercept")


def _slice(path, data, frame, stored):
    """One frame of a file. An enhanced file's fields of the frame go before its fields of all frames."""
    places = [data]
    if "PerFrameFunctionalGroupsSequence" in data:
        shared = data.get("SharedFunctionalGroupsSequence") or [{}]
        places = [data.PerFrameFunctionalGroupsSequence[frame], shared[0], data]

    def find(group, name, default=None):
        for place in places:
            inside = place if place is data else (place.get(group) or [{}])[0]
            value = inside.get(name)
            if value is not None and value != "":
                return value
        if default is None:
            _refuse(path, f"no {name}", "slices that say where they lie in the patient and, of CT, what is 0 HU")
        return default

    def numbers(count, *address):
        value = np.array([float(number) for number in find(*address)])
        if value.shape != (count,) or not np.isfinite(value).all():
            _refuse(path, f"{address[1]} {value.tolist()}", f"{count} numbers")
        return value

    position = numbers(3, "PlanePositionSequence", "ImagePositionPatient")
    axes = numbers(6, "PlaneOrientationSequence", "ImageOrientationPatient").reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _PARALLEL:
        _refuse(path, f"ImageOrientationPatient {axes.ravel().tolist()}", "two perpendicular unit vectors")
    between_rows, between_columns = numbers(2, "PixelMeasuresSequence", "PixelSpacing")
    between, thick = (find("PixelMeasuresSequence", name, 0) for name in ("SpacingBetweenSlices", "SliceThickness"))
    thickness = abs(float(between) or float(thick)) or None
    unscaled = (None, None) if data.get("Modality") == "CT" else (1, 0)  # only in CT a value has a unit
    rescale = zip(("RescaleSlope", "RescaleIntercept"), unscaled)
    slope, intercept = (float(find("PixelValueTransformationSequence", *pair)) for pair in rescale)
    if min(between_rows, between_columns) <= 0 or slope == 0:
        got = f"PixelSpacing {between_rows:g} {between_columns:g} and RescaleSlope {slope:g}"
        _refuse(path, got, "none of them 0")
    values = (stored * np.float64(slope) + intercept).astype(np.float32)
    series = str(data.get("SeriesInstanceUID", ""))
    return _Slice(path, series, position, axes, (between_columns, between_rows), thickness, values)


def _check_same(folder, first, part):
    for name, one, other, same in (
        ("series", first.series, part.series, first.series == part.series),
        ("rows x columns", first.values.shape, part.values.shape, first.values.shape == part.values.shape),
        ("pixel spacings", first.spacing, part.spacing, np.allclose(first.spacing, part.spacing, rtol=_PARALLEL)),
        ("orientations", first.axes.tolist(), part.axes.tolist(), np.abs(first.axes - part.axes).max() <= _PARALLEL),
    ):
        if not same:
            one_file, other_file = os.path.basename(first.path), os.path.basename(part.path)
            _refuse(folder, f"several {name} ({one} in {one_file}, {other} in {other_file})", "one series a folder")


def _step(folder, slices, normal):
    """mm between neighbouring slices, which must lie on a regular, straight grid."""
    if len(slices) == 1:
        if slices[0].thickness is None:
            _refuse(folder, "one slice without SliceThickness", "a volume")
        return slices[0].thickness
    places = np.array([part.position for part in slices])
    depths = places @ normal
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    for gap, one, other in zip(gaps, slices, slices[1:]):
        pair = f"{os.path.basename(one.path)} and {os.path.basename(other.path)}"
        if gap < 0.01 or gap < 0.01 * usual:
            copies = "each once: several time points, echoes or copies in a folder?"
            _refuse(folder, f"two slices at one place ({pair})", copies)
        if gap > (2 - _GRID) * usual:
            wanted = f"every slice: {round(gap / usual) - 1} missing?"
            _refuse(folder, f"{gap:.4g} mm between {pair} and {usual:.4g} mm elsewhere", wanted)
    step = (depths[-1] - depths[0]) / (len(slices) - 1)
    off = np.abs(depths - depths[0] - step * np.arange(len(slices)))
    if off.max() > _GRID * step:
        name = os.path.basename(slices[int(off.argmax())].path)
        _refuse(folder, f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart (see {name})", "even distances")
    sideways = np.linalg.norm(places - places[0] - np.outer(depths - depths[0], normal), axis=1).max()
    if sideways > 0.5 * min(slices[0].spacing):
        tilt = f"gantry tilt of {np.degrees(np.arctan2(sideways, depths[-1] - depths[0])):.3g} degrees?"
        _refuse(folder, f"slices shifted sideways by up to {sideways:.3g} mm ({tilt})", "a box")
    return step
