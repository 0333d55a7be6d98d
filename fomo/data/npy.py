"""Reads arrays of one volume or several from .npy files, also as pickled objects, without running code in them."""

import math
import os
import pickle
import re
import tokenize

import numpy as np

from ..config import UserError, one_line

_HEADER_BYTES = 10_000  # at most; numpy checks its own limit only after it has taken the memory
# what numpy's and pickle's readers raise on damaged and foreign files
_NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError, RecursionError)
_NO_ARRAY = (OSError, EOFError, pickle.UnpicklingError, AttributeError, LookupError, ImportError, AssertionError)


@np.errstate(all="ignore")  # what it would warn of is infinite, and refused
def read_npy(path, index=None):
    """float32 (X, Y, Z): the volume of a .npy file, or the one at `index` of several; else ValueError with the path."""
    stack = _load_array(path, 3 if index is None else 4)
    array, name = (stack, "the volume") if index is None else (stack[index], f"volume {index}")
    if not isinstance(array, np.ndarray) or array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{path}: got {name} of shape {np.shape(array)}, wanted (x, y, z)")
    try:
        if array.dtype.kind not in "biufO":
            raise TypeError
        array = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: got {name} of type {array.dtype}, wanted real numbers") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has voxels that are NaN or infinite, wanted numbers")
    return array


def count_volumes(path):
    """How many volumes a .npy file holds, from its header."""
    try:
        with open(path, "rb") as file:
            return _npy_header(file, path)[0][0]
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error


class _ArraysOnly(pickle._Unpickler):
    """Builds arrays and numbers only. It is in Python: in C a few bytes can ask for any amount of memory."""

    def __init__(self, file):
        super().__init__(_Bounded(file))

    def find_class(self, module, name):
        if (module, name) == ("numpy", "dtype"):
            return _Type
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # which is only given to _reconstruct
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
            return _Array
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a numpy array; it was not run")


class _Type:
    """A pickled type of numbers or objects. numpy's own dtype can crash on a wrong state."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biufO]\d{0,2}", code):
            raise pickle.UnpicklingError(f"it holds values of type {code[:20]!r}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A pickled array, of numbers or of arrays; `value` is the numpy array."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, kind, fortran, content = state
        if kind.dtype.hasobject:
            flat = np.empty(len(content), dtype=object)
            for place, item in enumerate(content):
                flat[place] = item.value if isinstance(item, _Array) else float(item)
        else:
            flat = np.frombuffer(content, kind.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Bounded:
    """A file that refuses to read more bytes at once than it has: the memory is taken before they are read."""

    def __init__(self, file):
        self.readline, self._file, self._size = file.readline, file, os.fstat(file.fileno()).st_size

    def read(self, count):
        if count > self._size:
            raise EOFError(f"it asks for {count} of {self._size} bytes")
        return self._file.read(count)


def _npy_header(file, path, axes=4):
    try:
        version = np.lib.format.read_magic(file)
        start, width = file.tell(), 2 if version == (1, 0) else 4
        if (length := int.from_bytes(file.read(width), "little")) > _HEADER_BYTES:
            raise ValueError(f"got a header of {length} bytes, wanted at most {_HEADER_BYTES}")
        file.seek(start)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except _NO_HEADER as error:
        raise ValueError(f"{path}: cannot read it as .npy: {one_line(error)[:300]}") from error
    if not shape or (len(shape) != axes and not (dtype.hasobject and axes == 4)):
        raise ValueError(f"{path}: got shape {shape}, wanted {'(x, y, z)' if axes == 3 else '(volumes, x, y, z)'}")
    return shape, dtype


def _load_array(path, axes):
    """The array of a .npy file: memory-mapped, or through `_ArraysOnly` when it holds objects."""
    try:
        with open(path, "rb") as file:
            shape, dtype = _npy_header(file, path, axes)
            if not dtype.hasobject:
                return np.load(path, mmap_mode="r", allow_pickle=False)
            array = getattr(_ArraysOnly(file).load(), "value", None)
    except (*_NO_HEADER, *_NO_ARRAY) as error:
        if str(error).startswith(path):
            raise
        raise ValueError(f"{path}: refused: {one_line(error)[:300]}") from error
    if not isinstance(array, np.ndarray) or array.size != math.prod(shape):
        raise ValueError(f"{path}: got {type(array).__name__}, wanted an array of shape {shape}")
    return array.reshape(shape)
