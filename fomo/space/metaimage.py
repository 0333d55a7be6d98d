"""MetaImage files (.mha): lines of text, then the voxels, which zlib may have packed. Read only.

grand-challenge.org gives volumes to containers in this format. Source: MetaIO's documentation and ITK's MetaImageIO,
by which the world is LPS+ (here RAS+), row i of TransformMatrix is the direction of axis i, and x varies fastest.
"""

import contextlib
import math
import os
import zlib

import numpy as np

from . import volume

_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_LINES_BYTES = 2**16  # of the text, at most
_INFLATION = 1032  # zlib makes nothing smaller than by this
_LAST = "ElementDataFile"
_FIXED = {  # what a line must say if it is there
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "ElementNumberOfChannels": "1",
    "HeaderSize": "0",
    _LAST: "LOCAL",
}
_NUMBERS = {"DimSize": 3, "ElementSpacing": 3, "TransformMatrix": 9, "Offset": 3}
_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")  # two names of one thing


def read_metaimage(path):
    """(array float32 (X, Y, Z), affine float64 (4, 4)) of a 3D .mha file; the affine leads to RAS+ mm.

    ValueError for a file that is missing, damaged or cut, has several channels or numbers that are not finite, does not
    say where its voxels lie, or has a geometry that cannot be, see `volume.check_affine`.
    """
    try:
        with open(path, "rb") as file:
            fields = _fields(file, path)
            dtype = _dtype(fields, path)
            shape, spacing_mm, directions, offset = (_numbers(fields, name, path) for name in _NUMBERS)
            if not all(size.is_integer() and size >= 1 for size in shape):
                raise ValueError(f"{path}: got DimSize = {fields['DimSize']}, wanted three positive numbers")
            shape = tuple(map(int, shape))
            stored = _voxels(file, fields, math.prod(shape) * dtype.itemsize, path)
    except OSError as error:
        raise ValueError(f"{path}: cannot read it as MetaImage: {error.strerror}") from error
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * spacing_mm
    affine[:3, 3] = offset
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    volume.check_affine(affine, path)
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and refused
        array = np.frombuffer(stored, dtype).astype(np.float32).reshape(shape, order="F")
    if bad := array.size - np.count_nonzero(np.isfinite(array)):
        raise ValueError(f"{path}: got {bad} voxels that are NaN or infinite, wanted numbers")
    return array, affine


def _fields(file, path):
    """{key: text} of the lines of an open file, which then stands at its voxels."""
    fields, left = {}, _LINES_BYTES
    while _LAST not in fields:
        line = file.readline(left)
        left -= len(line)
        key, equals, text = line.decode("latin-1").partition("=")
        if not (equals and line.endswith(b"\n")):
            got = "it does not begin with lines KEY = VALUE that end with ElementDataFile"
            raise ValueError(f"{path}: cannot read it as MetaImage: {got}")
        fields[key.strip()] = text.strip()
    for key, wanted in _FIXED.items():
        if fields.get(key, wanted).lower() != wanted.lower():
            raise ValueError(f"{path}: got {key} = {fields[key]}, wanted {wanted}")
    return fields


def _dtype(fields, path):
    """The numpy type of the stored voxels."""
    if (name := fields.get("ElementType")) not in _TYPES:
        raise ValueError(f"{path}: got ElementType = {name}, wanted one of {', '.join(_TYPES)}")
    order = next((fields[key] for key in _ORDERS if key in fields), "False").lower()
    if order not in ("true", "false"):
        raise ValueError(f"{path}: got {order} as the order of bytes, wanted True or False")
    return np.dtype((">" if order == "true" else "<") + _TYPES[name])


def _numbers(fields, key, path):
    found = []
    with contextlib.suppress(ValueError):
        found = [float(text) for text in fields.get(key, "").split()]
    if len(found) != _NUMBERS[key]:
        raise ValueError(f"{path}: got {key} = {fields.get(key)}, wanted {_NUMBERS[key]} numbers")
    return found


def _voxels(file, fields, wanted, path):
    """The `wanted` bytes of the voxels, unpacked; nothing is allocated by what the lines claim."""
    there, packed = os.path.getsize(path) - file.tell(), fields.get("CompressedData", "False").lower() == "true"
    if wanted > there * (_INFLATION if packed else 1):
        stored = b""
    elif packed:
        unpacking = zlib.decompressobj()
        try:
            stored = unpacking.decompress(file.read(), wanted + 1)
        except zlib.error as error:
            raise ValueError(f"{path}: cannot unpack its voxels: {error}") from error
    else:
        stored = file.read(wanted + 1)
    if len(stored) != wanted:
        got = f"{there} bytes of voxels" if not stored else f"{len(stored)} bytes or more of voxels"
        raise ValueError(f"{path}: got {got}, wanted {wanted} for DimSize = {fields['DimSize']}: is it cut?")
    return stored
