"""A case and its files: what a source lists, and how one file becomes an array.

A volume is a NIfTI file, a .npy array (one volume, or one of several on its first axis) or a folder of DICOM files.
"""

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..config import UserError
from ..space import volume
from . import dicom, npy

MANY = 2000  # cases: above, data.rescan=auto trusts the index
ID_BYTES = 150  # of a case's id: with the names around it, what any file system takes
ROUNDING = 1e-4  # how far a resampling, or the scale factor of a header, moves the whole numbers of a mask
ID_WANTED = f"printable text without / and \\, without . or ~ in front, at most {ID_BYTES} bytes: files are named by it"


@dataclass(frozen=True, slots=True)
class Volume:
    path: str
    index: int | None = None  # which volume of a .npy that holds several

    @property
    def has_geometry(self):
        """False for .npy: no orientation and no voxel size; it is taken as RAS with 1 mm voxels."""
        return not self.path.lower().endswith(".npy")


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    subject: str  # the unit that folds keep together
    images: tuple[Volume, ...]  # in channel order
    mask: Volume | None
    # class, presence of foreground (segmentation) or regression value; a tuple of them where there are several targets;
    # None: not labelled
    target: float | tuple[float, ...] | None
    group: str | None  # site or scanner, from data.groups
    fold: str | None = None  # text of the table's fold column
    scan: str | None = None  # what a slice is from
    labels: tuple[str, ...] = ()  # text of each target as the table has it: the names of classes


class Wanted(NamedTuple):
    """What a task reads of each case; sources, cache and loader ask this and not which task it is."""

    kind: str  # "class", "number", "flags" (0 or 1 for each of several findings), "mask" or "nothing"
    targets: tuple[str, ...] = ()  # columns of a table
    classes: int = 2  # of a mask, background included, or of a single target
    pretraining: bool = False  # labels may be missing, and layouts need not have any

    @property
    def masked(self):
        return self.kind == "mask"


class Prepared:
    """A case that can be read, as `prepare` of its source gives it; it knows what its Case knows.

    image() gives (C, X, Y, Z); `shape` is (X, Y, Z), `background` the value of each channel outside the volume.
    """

    __slots__ = ()
    is_patch = False  # whether it is as large as a training patch, and `distinct()` reads it
    entry = None  # name of its entry in the cache
    geometry = None  # the way back to the space of its files
    scaling = None  # (mean, deviation) of each channel, where one image is repeated in all of them

    @property
    def id(self):
        return self.case.id

    @property
    def subject(self):
        return self.case.subject

    @property
    def target(self):
        return self.case.target

    @property
    def labels(self):
        return self.case.labels

    @property
    def scan(self):
        return self.case.scan

    @property
    def native_mask(self):
        """The Volume of the mask in the space of its file."""
        return self.case.mask


def names_a_file(id):
    """Whether an id can be the name of a file, and of no file elsewhere."""
    return (
        id.isprintable()
        and not re.search(r"[/\\]", id)
        and id[:1] not in ("", ".", "~")
        and len(id.encode()) <= ID_BYTES
    )


# ------------------------------------------------------------------------------------------- reading


def read_volume(source, like=None):
    """(array float32 (X, Y, Z), affine) of a Volume; ValueError, with the path, for what is unreadable or non-finite.

    like: the affine of a volume beside it, whose order and directions of the axes it gets; it may be stored with others.
    A .npy file has no geometry: its affine is the identity, as if RAS with 1 mm voxels.
    """
    if not source.has_geometry:
        array, affine = npy.read_npy(source.path, source.index), np.eye(4)
    elif source.path.lower().endswith(".dcm") or os.path.isdir(source.path):
        array, affine = dicom.read_dicom(source.path)
    else:
        array, affine = volume.read_nifti(source.path)
    return (array, affine) if like is None else volume.to_axes_of(like, array, affine)


def any_foreground(mask, case):
    """Whether the Volume `mask` of the case with the id `case` has a voxel above 0; UserError unless it holds whole numbers."""
    try:
        array = rounded(read_volume(mask)[0])
    except ValueError as error:
        raise UserError(f"case {case}: mask: {error}") from error
    broken = array[array != np.rint(array)]
    if broken.size:
        raise UserError(f"case {case}: mask: {mask.path}: got the value {digits(broken[0])}, wanted whole numbers")
    return bool((array > 0).any())


def rounded(array):
    """The voxels of a mask, those next to a whole number (ROUNDING) as that number and any others as they are."""
    whole = np.rint(array)
    return np.where(np.abs(array - whole) <= ROUNDING, whole, array)


def digits(value):
    """A number in as many digits as tell it from its neighbours: 0.9998 is not shown as 1."""
    return np.format_float_positional(value, trim="-")


def looks_at_files(data, count):
    """Whether a start looks at every one of `count` cases' files, see data.rescan."""
    return data.rescan == "always" or (data.rescan == "auto" and count <= MANY)
