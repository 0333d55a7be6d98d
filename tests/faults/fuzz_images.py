"""NIfTI files and arrays for fuzz.py: make(folder, rng) writes one (None: undamaged), check(folder, given) reads it."""

import functools
import gzip
import io
import os
import pickle
import struct

import nibabel
import numpy as np
from fuzz_damage import CANARY, TOUCH, damage, pick

from fomo.data import cases, npy
from fomo.space import nifti, volume

# --------------------------------------------------------------------------------------------- NIfTI

_FIELDS = nibabel.Nifti1Header.template_dtype, nibabel.Nifti2Header.template_dtype
_INTEGERS = [
    0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 128, 255, 256, 348, 512, 540, 1024, 2304,
    32767, -32768, 2**31 - 1, -(2**31), 2**62, -(2**62),
]  # fmt: skip
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e-5, 0.3, 348.0, 1e5, 1e30, 3e38, float("nan"), float("inf"), float("-inf")]


@functools.lru_cache(maxsize=1)
def _niftis():
    rng = np.random.default_rng(0)
    affine = np.array([[-2.0, 0, 0.1, 10], [0, 2, 0, -20], [0.1, 0, 3, 5], [0, 0, 0, 1]])
    result = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for dtype in (np.uint8, np.int16, np.float32, np.float64, np.int32, ">i2", np.complex64):
            image = kind((rng.random((12, 11, 10)) * 200).astype(dtype), affine)
            if dtype == np.int16:
                image.header.set_slope_inter(0.5, -3)
                image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello" * 5))
            if dtype == ">i2":
                image = kind(image.dataobj, affine, kind.header_class(endianness=">"))
            result.append(image.to_bytes())
    return result


def _change_header(rng, data):
    """Some fields of the header set to unlikely values."""
    which = 0 if data[344:348] in (b"n+1\0", b"ni1\0") else 1
    dtype = _FIELDS[which].newbyteorder("<" if data[0] in (92, 28) else ">")
    header = np.frombuffer(data[: dtype.itemsize], dtype).copy()
    names = list(dtype.names)
    weights = np.array(
        [
            8.0 if name in ("dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter") else 1.0
            for name in names
        ]
    )
    for _ in range(int(rng.integers(1, 5))):
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        flat = header[name].reshape(-1)
        at = int(rng.integers(flat.size))
        if flat.dtype.kind in "iu":
            limits = np.iinfo(flat.dtype)
            flat[at] = int(np.clip(pick(rng, _INTEGERS), limits.min, limits.max))
        elif flat.dtype.kind == "f":
            flat[at] = pick(rng, _FLOATS)
        else:
            flat[at] = damage(rng, bytes(flat[at]) or b"x")[: flat.dtype.itemsize]
        header[name] = flat.reshape(header[name].shape)
    return header.tobytes() + data[dtype.itemsize :]


def make_nifti(folder, rng):
    data = _niftis()[1] if rng is None else pick(rng, _niftis())
    if rng is None:
        path = folder / "scan.nii.gz"
        path.write_bytes(gzip.compress(data, 1))
        return path
    kind = rng.integers(10)
    if kind < 6:
        data = _change_header(rng, data)
    elif kind < 8:
        data = damage(rng, data[:540]) + data[540:] if rng.random() < 0.7 else damage(rng, data)
    if rng.random() < 0.1:
        data = data[: int(rng.integers(len(data)))]
    if rng.random() < 0.03:
        data += b"\0" * 100_000_000  # a bomb: much more than the header says
    path = folder / pick(rng, ["scan.nii", "scan.nii.gz", "scan.nii.gz"])
    if path.suffix == ".gz" or rng.random() < 0.05:
        data = gzip.compress(data, 1)
        data = (
            damage(rng, data)
            if rng.random() < 0.2
            else data[: int(rng.integers(len(data)))]
            if rng.random() < 0.1
            else data
        )
    path.write_bytes(data)
    return path


def check_nifti(folder, path):
    array, affine = nifti.read_nifti(str(path))
    assert array.dtype == np.float32 and array.ndim == 3 and np.isfinite(array).all() and np.isfinite(affine).all()
    image, _, geometry = volume.preprocess([array], affine, spacing_mm=(1.0, 1.0, 1.0))
    assert np.isfinite(image).all()
    native = volume.to_native((image[0] > 0).astype(np.uint8), geometry, order=0)
    assert native.shape == array.shape
    nifti.write_nifti(str(folder / "mask.nii.gz"), native, affine, like=str(path))
    written, its_affine = nifti.read_nifti(str(folder / "mask.nii.gz"))
    assert np.array_equal(written, native)


check_nifti.refuses = (ValueError,)

# -------------------------------------------------------------------------------------------- arrays


class _Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@functools.lru_cache(maxsize=1)
def _arrays():
    rng = np.random.default_rng(0)
    stack = (rng.random((4, 6, 7, 5)) * 9).astype(np.float32)
    objects = np.empty(4, dtype=object)
    objects[:] = list(stack)
    parts = [
        stack,
        stack.astype(np.int16),
        stack.astype(">f8"),
        np.asfortranarray(stack),
        objects,
        stack.astype(object),
        stack.astype(complex),
    ]
    parts += [
        stack.astype("S4"),
        stack.astype(bool),
        np.zeros((4, 2, 2, 2), "f4,i2"),
        stack[0],
        np.zeros((4, 0, 2, 2)),
        np.zeros((4, 2, 2, 2), "M8[s]"),
    ]
    result = []
    for array in parts:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        result.append(file.getvalue())
    return result


def _pickles(rng):
    """A header of an object array, and then what runs code, or asks for much memory, where it is unpickled."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|O", "fortran_order": False, "shape": pick(rng, [(4,), (4, 6, 7, 5), (), (10**6, 10**6)])}
    )
    reconstruct, touch = np.ndarray.__reduce__(np.empty(0))[0], ["touch", CANARY]
    import subprocess

    call = pick(
        rng,
        [
            _Runs(os.system, TOUCH),
            _Runs(eval, f"__import__('os').system('{TOUCH}')"),
            _Runs(exec, f"open('{CANARY}', 'w')"),
            _Runs(subprocess.Popen, touch),
            _Runs(open, CANARY, "w"),
            _Runs(np.load, "/etc/passwd"),
            _Runs(getattr, _Runs(__import__, "os"), "system"),
            _Runs(np.ndarray, (10**9,)),
            _Runs(reconstruct, np.ndarray, (10**10,), b"b"),
            _Runs(reconstruct, np.dtype, (0,), b"b"),
            _Runs(np.dtype, "O", False, True),
            _Runs(np.dtype, ",".join(["f8"] * 1000)),
            _Runs(map, os.system, [TOUCH]),
        ],
    )
    data = pickle.dumps([call] if rng.random() < 0.5 else call, protocol=int(rng.integers(5)))
    other = [
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"]a" * 100_000 + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",
        b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
        f"cos\nsystem\n(S'{TOUCH}'\ntR.".encode(),
        b"I" + b"9" * 6000 + b"\n.",
    ]
    return file.getvalue() + (data if rng.random() < 0.7 else pick(rng, other))


_NPY_HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 100000, 100000, 100000), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, -1, 7, 5), }",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (4, 6, 7, 5), }",
    "{'descr': 'O', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 6, 7, 5), }",
    "{'descr': '<f4', 'shape': (4, 6, 7, 5)}", "[" * 5000, "(" * 500 + ")" * 500,
    f"__import__('os').system('{TOUCH}')",
    "{'descr': __import__('os'), 'fortran_order': False, 'shape': (4, 6, 7, 5)}", "9" * 9000, "-" * 9000, "", "\0",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 6, 7, 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6, 7, 1e3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2**70, 1, 1, 1), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4, 4, 4), }",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (4, 1, 1, 1), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (4, 6, 7, 5), }",
    "{'descr': ('<f4', (100000, 100000)), 'fortran_order': False, 'shape': (4, 6, 7, 5), }",
]  # fmt: skip


def make_array(folder, rng):
    path = folder / "scan.npy"
    if rng is None:
        path.write_bytes(_arrays()[0])
        return path
    kind, data = rng.integers(10), pick(rng, _arrays())
    if kind < 4:
        data = damage(rng, data)
    elif kind < 6:
        data = damage(rng, data[:128], [b"(", b")", b"9999999", b"-", b"'", b"O", b"{", b"\n"]) + data[128:]
    elif kind < 8:
        data = _pickles(rng)
        data = damage(rng, data) if rng.random() < 0.3 else data
    else:
        header = pick(rng, _NPY_HEADERS).encode()
        version = pick(rng, [1, 2, 3, 9])
        length = struct.pack(
            "<H" if version == 1 else "<I",
            len(header)
            if rng.random() < 0.8
            else pick(rng, [0, 65535, 2**32 - 1]) % (65536 if version == 1 else 2**32),
        )
        data = b"\x93NUMPY" + bytes([version, 0]) + length + header + data[128:]
    path.write_bytes(data)
    return path


def check_array(folder, path):
    count = npy.count_volumes(str(path))
    for index in range(min(count, 5)):
        array, _ = cases.read_volume(cases.Volume(str(path), index))
        assert array.dtype == np.float32 and array.ndim == 3 and np.isfinite(array).all()
    if count > 5:
        cases.read_volume(cases.Volume(str(path), count - 1))


check_array.refuses = (ValueError,)
