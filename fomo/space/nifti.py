"""NIfTI files in and out. Nothing in a header that decides on voxels or on geometry is guessed.

nibabel mends a header that is odd, and says so on stderr. Here such a header is refused where the mended field is one
that is read: the start of the voxels, the codes of the two forms and, where there is no sform, voxel size and
quaternion. A field that nothing reads (the bits per voxel, the voxel size beside an sform) may be wrong.
"""

import contextlib
import gzip
import itertools
import logging
import math
import os
import struct
import zlib
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from . import volume

_UNITS_MM = {0: ("", 1.0), 1: ("metre", 1e3), 2: ("", 1.0), 3: ("micron", 1e-3)}  # by code; 0: unknown, taken as mm
_CODES = range(6)  # of a form: 0 none, 1 scanner, 2 aligned, 3 Talairach, 4 MNI, 5 another template
_TOO_LONG = 1e-4  # how much a quaternion may exceed 1, by rounding
_INFLATION = 1032  # gzip makes nothing smaller than by this
_EXTENSION_BYTES = 2**26
_BEHIND_BYTES = 2**26  # behind the voxels
_BLOCK = 2**20
_DAMAGED = nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, struct.error, zlib.error
_UNREADABLE = (OSError, EOFError, OverflowError, MemoryError, *_DAMAGED)
_SILENT = logging.Logger(__name__, level=100)
_FREESURFER = "of FreeSurfer: mri_convert"
_PAIR = "whose header and voxels are two files: fslchfiletype NIFTI_GZ, or nibabel.save(nibabel.load(...), ...)"
_ITK = "of ITK: SimpleITK.WriteImage(SimpleITK.ReadImage(...), 'scan.nii.gz')"
_PACKED = "packed otherwise: unpack it, or pack it by gzip"
_FORMATS = {
    **dict.fromkeys((".mgz", ".mgh"), _FREESURFER),
    **dict.fromkeys((".hdr", ".img"), _PAIR),
    **dict.fromkeys((".nrrd", ".nhdr", ".mhd", ".gipl"), _ITK),
    **dict.fromkeys((".bz2", ".zst", ".xz", ".zip", ".7z", ".tar", ".tgz"), _PACKED),
    **dict.fromkeys((".head", ".brik"), "of AFNI: 3dAFNItoNIFTI"),
    **dict.fromkeys((".par", ".rec"), "of Philips: dcm2niix"),
    ".mnc": "MINC: mnc2nii",
}


class Header(NamedTuple):
    """What a file says before its voxels."""

    raw: nibabel.Nifti1Header  # or Nifti2Header
    shape: tuple[int, int, int]
    affine: np.ndarray  # float64 (4, 4), from voxel indices to mm
    unit_mm: float  # the length of the header's own unit
    oriented: bool  # False: neither form has a code, and the axes are taken as nibabel does: x to the left, y, z up


def read_nifti(path):
    """(array float32 (X, Y, Z), affine float64 (4, 4)) of a 3D NIfTI file, scaled by its own slope and intercept.

    A fourth axis of length 1 is dropped; a unit of metres or microns becomes mm. A .gz is read to its end, where its
    checksum is. ValueError for a file that is missing, damaged, of another format, not 3D or not of real numbers, for
    NaN and infinity, and for a geometry that cannot be or that the header does not say, see `volume.check_affine`.
    """
    with _opened(path) as file:
        header = _header(file, path)
        array = np.asarray(ArrayProxy(file, header.raw), dtype=np.float32).reshape(header.shape)
        _read_on(file, path)
    if bad := array.size - np.count_nonzero(np.isfinite(array)):
        raise ValueError(f"{path}: got {bad} voxels that are NaN or infinite, wanted numbers")
    return array, header.affine


_HEADER_BYTES = (348, 540)  # of NIfTI-1 and 2: the number with which such a file begins


def read_header(path):
    """The Header of a NIfTI file. ValueError as `read_nifti`, as far as the header shows what is wrong."""
    with _opened(path) as file:
        return _header(file, path)


def other_format(path):
    """Which known format that is not read the name of a file stands for, and how it becomes NIfTI; None if none."""
    return _FORMATS.get(os.path.splitext(os.fspath(path).lower().removesuffix(".gz"))[1])


@contextlib.contextmanager
def _opened(path):
    """The file, decompressed, to read; errors of damaged and missing files become a ValueError."""
    name = os.fspath(path).lower()
    if not name.endswith((".nii", ".nii.gz")):
        known = other_format(path)
        got = f"a file {known}" if known else "a file without a suffix of NIfTI"
        raise ValueError(f"{path}: got {got}, wanted .nii, .nii.gz, .mha, a 3D .npy or a folder of DICOM files")
    try:
        with gzip.open(path) if name.endswith(".gz") else open(path, "rb") as file:
            with np.errstate(all="ignore"):  # what it would warn of is infinite, and refused
                yield file
    except _UNREADABLE as error:
        why = _no_gzip(path) or " ".join(str(error).split())
        raise ValueError(f"{path}: cannot read it as NIfTI: {why}") from error


def _no_gzip(path):
    """What a file is that is called .gz and is none; None where it is one, or no file."""
    if not _packed(path) or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        return None
    if int.from_bytes(start, "little") in _HEADER_BYTES or int.from_bytes(start, "big") in _HEADER_BYTES:
        return "it is not compressed: take the .gz off its name"
    return f"it is no .gz file: it begins with {start!r}"


def _header(file, path):
    """The Header at the start of an open file."""
    raw = _raw_header(file, path)
    try:
        shape, dtype = raw.get_data_shape(), raw.get_data_dtype()
    except KeyError:
        raise ValueError(
            f"{path}: got voxels of the unknown type {int(raw['datatype'])}, wanted real numbers"
        ) from None
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise ValueError(f"{path}: got shape {_by(shape)}, wanted one 3D volume (x, y, z)")
    if dtype.kind not in "iufb":
        raise ValueError(f"{path}: got voxels of type {dtype}, wanted real numbers")
    size, inflation = os.path.getsize(path), _INFLATION if _packed(path) else 1
    if math.prod(shape) * dtype.itemsize > size * inflation:  # before it is allocated
        lacking = f"which cannot hold the header's {_by(shape)} voxels of type {dtype}"
        raise ValueError(f"{path}: got {size} bytes, {lacking}")
    code = int(raw["xyzt_units"]) & 7
    if code not in _UNITS_MM:
        raise ValueError(f"{path}: got {code} as the header's code of its unit of length, wanted 1 m, 2 mm or 3 micron")
    unit, unit_mm = _UNITS_MM[code]
    oriented = _check_forms(raw, path)
    raw.check_fix(logger=_SILENT, error_level=100)  # of what is left, nothing is read
    affine = np.array(raw.get_best_affine(), dtype=np.float64)
    affine[:3] *= unit_mm
    volume.check_affine(affine, f"{path} (whose header's unit is the {unit})" if unit else path)
    return Header(raw, shape[:3], affine, unit_mm, oriented)


def _packed(path):
    return os.fspath(path).lower().endswith(".gz")


def _raw_header(file, path):
    """nibabel's header as it stands in the file, for one file with voxels from a place behind it."""
    start = file.read(nibabel.Nifti2Header.sizeof_hdr + 4)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(start) < kind.sizeof_hdr or not kind.may_contain_header(start):
            continue
        header = kind(start[: kind.sizeof_hdr], check=False)
        if header["magic"].item() != kind.single_magic:
            raise ValueError(f"{path}: got a header {_PAIR}")
        offset, least = float(header["vox_offset"]), kind.single_vox_offset
        if not (offset >= least and offset.is_integer()):
            raise ValueError(f"{path}: got voxels from byte {offset:g} on (vox_offset), wanted {least} or more")
        if start[kind.sizeof_hdr :][:1] > b"\0":
            _check_extensions(file, path, header, kind.sizeof_hdr + 4)
        return header
    what = "it does not begin with the header of one" if start else "it is empty"
    raise ValueError(f"{path}: cannot read it as NIfTI: {what}")


def _check_extensions(file, path, header, place):
    """Raise ValueError for extensions of the header that do not add up."""
    while place + 16 <= header["vox_offset"]:
        file.seek(place)
        length = struct.unpack(header.endianness + "i", file.read(4).ljust(4, b"\0"))[0]
        if not 8 <= length <= _EXTENSION_BYTES:
            raise ValueError(f"{path}: got a header extension of {length} bytes, which is damaged")
        place += length


def _check_forms(raw, path):
    """Whether the header says how the axes lie. ValueError where it would have to be mended to say it.

    A quaternion that is a rounding error too long is shortened.
    """

    def refuse(got, wanted):
        raise ValueError(f"{path}: got {got}, wanted {wanted}: correct the header")

    for name in ("sform_code", "qform_code"):
        if int(raw[name]) not in _CODES:
            refuse(f"{name} {int(raw[name])}", "0 to 5")
        if int(raw[name]) and name == "sform_code":
            return True
    qfac, *sizes = (float(size) for size in raw["pixdim"][:4])
    if not all(0 < size < math.inf for size in sizes):
        refuse(f"voxels of {_by(f'{size:g}' for size in sizes)} (pixdim), and no sform", "their size")
    if not int(raw["qform_code"]):
        return False
    if qfac not in (-1, 0, 1):  # by the standard 0 means 1
        refuse(f"{qfac:g} for the side of the third axis (pixdim[0])", "1 or -1")
    quaternion = np.array([raw[f"quatern_{part}"] for part in "bcd"], dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if not length <= 1 + _TOO_LONG:
        refuse(f"a quaternion of length {length:.6g} (qform)", "at most 1")
    if length**2 > 1 + raw.quaternion_threshold:
        for part, value in zip("bcd", quaternion / length):
            raw[f"quatern_{part}"] = value
    return True


def _read_on(file, path):
    """Read an open file to its end: gzip compares its checksum there."""
    if not _packed(path):
        return
    behind = 0
    while block := file.read(_BLOCK):
        behind += len(block)
        if behind > _BEHIND_BYTES:
            raise ValueError(f"{path}: got more than {behind} bytes behind the voxels, wanted no more than the voxels")


def write_nifti(path, array, affine, like=None):
    """Write `array` (X, Y, Z) in its own dtype, with slope 1, under a temporary name that is then renamed to `path`.

    array: or a sequence of arrays, which is the fourth axis; one of them is held at a time.
    affine: (4, 4), to mm. like: path of a NIfTI file whose header (units, qform and sform codes, description) is kept.
    Raises OSError when the disk refuses, and then leaves nothing behind.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path: got {path}, wanted a name that ends in .nii or .nii.gz")
    header = read_header(like) if like else None
    if header and header.unit_mm != 1:
        affine = np.diag([1 / header.unit_mm] * 3 + [1.0]) @ affine
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        with np.errstate(all="ignore"):  # of header fields that NIfTI-1 has fewer bits for, and nothing reads
            volumes = iter([array] if isinstance(array, np.ndarray) else array)
            first = whole = next(volumes)
            if first is not array:  # the header is that of all, of which one is there
                whole = np.broadcast_to(first[..., None], (*first.shape, len(array)))
            image = nibabel.Nifti1Image(whole, affine, header and _silently(nibabel.Nifti1Header, header.raw))
            image.set_data_dtype(first.dtype)
            image.header["cal_min"] = image.header["cal_max"] = 0  # display range of the other file
            _save(image, itertools.chain([first], volumes), temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _save(image, volumes, path):
    """Write the header of an image, and for its voxels the `volumes`: as nibabel.save, which would hold all of them."""
    image.update_header()
    image.header.set_slope_inter(1, 0)
    with nibabel.openers.ImageOpener(path, "wb") as file:
        image.header.write_to(file)
        file.write(bytes(image.header.get_data_offset() - file.tell()))
        for array in volumes:
            for plane in np.moveaxis(array, -1, 0):
                file.write(plane.astype(image.get_data_dtype(), copy=False).tobytes("F"))


def _silently(kind, raw):
    """A header as one of this kind, NIfTI-1 or 2."""
    header = kind.from_header(raw, check=False)
    if header["vox_offset"] % 16:  # which nibabel would speak of
        header["vox_offset"] = 0  # where the header ends
    header.check_fix(logger=_SILENT, error_level=100)
    return header


def _by(shape):
    return "x".join(map(str, shape))
