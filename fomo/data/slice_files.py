"""CT slices, one a file: names, label tables, how they were extracted, and how their pixels become images."""

import functools
import io
import os
import re
from dataclasses import dataclass

import numpy as np

from ..config import UserError, one_line
from ..runtime import files
from ..runtime.lazy import torch
from . import ct, spreadsheet
from .cases import Case, Prepared

# mean and standard deviation of ImageNet's red, green and blue, which pretrained 2D networks saw as 0 and 1
_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
_TYPES = {"|u1": "uint8", "<f2": "float16", "<f4": "float32"}


def stem(name):
    """The name of a volume without the suffix of its file: the key by which tables are joined."""
    return re.sub(r"\.(nii|nii\.gz|mha|npy|npz)$", "", name.strip(), flags=re.IGNORECASE)


def patient_of(name):
    """`valid_12` of `valid_12_a_1.nii.gz`; None for a name of another form."""
    match = re.match(r"((?:train|valid)_[0-9A-Za-z]+)_[0-9A-Za-z]+_", stem(name) + "_")
    return match and match[1]


def read_labels(path, key="--labels", required=()):
    """{volume name without suffix: {other column: text}} of a CSV with VolumeName; see also spreadsheet.read_rows."""
    found = {}
    for line, cells in spreadsheet.read_rows(path, {key: "VolumeName", **dict(required)}, key):
        name = cells.pop("VolumeName")
        if found.setdefault(stem(name), cells) is not cells:
            raise UserError(f"{path}: line {line}: got {name} a second time, wanted a line for each volume")
    return found


def read_settings(folder):
    """The ct.Settings with which tools/extract_slices.py made a folder, or None if it did not make it."""
    path = os.path.normpath(os.path.join(folder, "extract.json"))
    if not os.path.exists(path):
        return None
    try:
        return ct.Settings.from_dict(files.read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"cannot read {path}, the settings of its slices ({error})"
        raise UserError(f"{said}: extract into a new folder") from error


@dataclass(frozen=True)
class Reading:
    """How files become images."""

    size: tuple[int, int]  # (X, Y)
    channels: int
    neighbours: int
    normalize: str

    @property
    def repeats(self):
        """Whether the channels are one slice."""
        return self.channels > 1 and not self.neighbours

    @functools.cached_property
    def scaling(self):
        """(mean, deviation) of each channel, by which pixels are normalized."""
        if self.normalize == "none":
            return ((0.0, 1.0),) * self.channels
        if self.repeats:
            return _IMAGENET
        return (tuple(np.mean(_IMAGENET, axis=0).tolist()),) * self.channels


@dataclass(frozen=True)
class SliceCase(Prepared):
    """A slice, read from its file."""

    case: Case
    reading: Reading
    is_patch = True

    @property
    def scaling(self):
        """(mean, deviation) of each channel where the slice is repeated in all of them, else None."""
        return self.reading.scaling if self.reading.repeats else None

    @property
    def shape(self):
        return (*self.reading.size, 1)

    @property
    def background(self):
        """Per channel: air."""
        return tuple((0.0 - mean) / deviation for mean, deviation in self.reading.scaling)

    def image(self):
        """(C, X, Y, 1) float32; the channels are the slice, the slice several times, or it between its neighbours."""
        return read_slice(self.case.images[0].path, self.reading)

    def distinct(self):
        """image() before it is repeated: a slice that is three channels is read, augmented and mixed as one."""
        reading = Reading(self.reading.size, 1, 0, "none") if self.reading.repeats else self.reading
        return read_slice(self.case.images[0].path, reading)


def stack(cases, data):
    """(image (C, X, Y, N), background of each channel, names of the channels) of a scan's N slices, for pictures.

    A slice that is repeated in all channels is one channel here. UserError for a file that cannot be read.
    """
    reading = reading_of(data)
    slices = [SliceCase(case, reading) for case in cases]
    if reading.repeats:  # as it lies in its file
        return np.concatenate([one.distinct() for one in slices], axis=-1), (0.0,), data.channels[:1]
    return np.concatenate([one.image() for one in slices], axis=-1), slices[0].background, data.channels


def reading_of(data):
    return Reading(tuple(data.patch[:2]), len(data.channels), data.neighbours, data.normalize)


def prepare(cases, data):
    """The SliceCases of `cases`. The first file is read, so that a wrong folder or size is found at once."""
    reading = reading_of(data)
    prepared = [SliceCase(case, reading) for case in cases]
    prepared[0].image()
    return prepared


def read_slice(path, reading):
    """(C, X, Y, 1) float32 of a slice's file: (X, Y), or (2m+1, X, Y) with neighbours on each side, 0 to 1 or uint8."""
    try:
        with open(path, "rb", buffering=0) as file:
            content = bytearray(file.read())
        shape, kind, start = _header(bytes(content[: 10 + int.from_bytes(content[8:10], "little")]))
        pixels = torch.frombuffer(content, dtype=getattr(torch, _TYPES[kind]), offset=start).reshape(shape)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot read it as a .npy slice: {one_line(error)}") from error
    return as_image(pixels, path, reading)


def as_image(pixels, place, reading):
    """(C, X, Y, 1) float32 of a slice's pixels: a tensor (2m+1, X, Y), 0 to 1 or uint8. place: its file, for errors."""
    around, size = (len(pixels) - 1) // 2, tuple(pixels.shape[1:])
    if len(pixels) % 2 == 0 or size != reading.size or around < reading.neighbours:
        got = f"{around} neighbours and {size[0]}x{size[1]} pixels"
        wanted = f"{reading.neighbours} (data.neighbours) and {reading.size[0]}x{reading.size[1]} (data.patch)"
        raise UserError(f"{place}: got {got}, wanted {wanted}")
    taken = pixels[around - reading.neighbours : around + reading.neighbours + 1].float()
    if pixels.dtype == torch.uint8:
        taken.mul_(1 / 255)
    if reading.normalize != "none":
        means, deviations = torch.tensor(reading.scaling).T[..., None, None]
        taken = (taken - means) / deviations
    return taken.expand(reading.channels, *reading.size)[..., None].numpy()


@functools.lru_cache(maxsize=64)  # files of one size and type have the same header
def _header(content):
    """((2m+1, X, Y), type, start of the values) from the first bytes of a .npy file."""
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it does not begin like one")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(content[8:]))
    if len(shape) not in (2, 3) or fortran or dtype.str not in _TYPES:
        wanted = "uint8, float16 or float32 of shape (X, Y) or (2n+1, X, Y)"
        raise ValueError(f"got {dtype} of shape {shape}, wanted {wanted}")
    return (shape if len(shape) == 3 else (1, *shape)), dtype.str, len(content)
