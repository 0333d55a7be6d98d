"""A case and its files: what a source lists, and how one file becomes an array.

A volume is a NIfTI file, a MetaImage file (.mha), a .npy array (one volume, or one of several on its first axis) or a
folder of DICOM files.
"""

import os
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from ..config import UserError, as_user_error
from ..runtime import interrupt, lazy
from ..space import metaimage, volume
from . import dicom, npy, spreadsheet

nifti = lazy.Module("..space.nifti", __package__)

NOT_ORIENTED = "files do not say how they lie (no sform, no qform): taken as stored, x to the left, y ahead, z up"
MANY = 2000  # cases: above, data.rescan=auto trusts the index
ID_BYTES = 150  # of a case's id: with the names around it, what any file system takes
FINDINGS = 8  # labels that masks can show: each is a bit of a prepared mask
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
    images: tuple[Volume | None, ...]  # in channel order; None: of data.optional_channels, and the case lacks it
    mask: Volume | None = None
    # a class, a number, or whether the mask has foreground; a tuple of several targets; None without a label
    target: float | tuple[float, ...] | None = None
    group: str | None = None  # site or scanner, from data.groups
    fold: str | None = None  # text of the table's fold column
    scan: str | None = None  # what a slice is from
    labels: tuple[str, ...] = ()  # text of each target as the table has it: the names of classes
    foreground_mm3: float | None = None  # what its mask holds, in the space of its file; None: no mask was looked at
    masks: tuple[Volume | None, ...] = ()  # of several labels, in their order

    @property
    def files(self):
        """The images that are there, in channel order; there is always one."""
        return tuple(image for image in self.images if image is not None)

    @property
    def findings(self):
        """Of each label its mask, or None; of a single one, or where there are none, one."""
        return self.masks or (self.mask,)

    @property
    def missing(self):
        """The channels, by number, that the case lacks."""
        return tuple(channel for channel, image in enumerate(self.images) if image is None)


def known(findings, labels):
    """[whether it is known where a finding is: a mask shows it, or the label says that it is not there]."""
    return [mask is not None or not label for mask, label in zip(findings, labels, strict=True)]


class Wanted(NamedTuple):
    """What a task reads of each case; sources, cache and loader ask this and not which task it is."""

    kind: str  # "class", "number" (or more), "flags" (0 or 1 for each of some findings), "mask", "several" or "nothing"
    targets: tuple[str, ...] = ()  # columns of a table
    classes: int = 2  # of a mask, background included, or of a single target
    pretraining: bool = False  # labels may be missing, and layouts need not have any
    inside: bool = False  # training samples have as their mask which of their voxels lie in the volume
    kinds: tuple[str, ...] = ()  # of several: the kind of each target
    mask: bool = False  # of several: whether a mask is learned, too
    finding: bool = False  # of a class, of flags: also masks of what class 1, or each flag, stands for, where there are

    @property
    def masked(self):
        return self.kind == "mask" or self.mask or self.finding

    @property
    def mask_classes(self):
        """The values below which those of a prepared mask are; of findings each bit is that of a label."""
        labels = len(self.targets) if self.kind == "flags" else 1
        return 2 ** min(labels, FINDINGS) if self.finding else self.classes

    def mask_columns(self, column):
        """Of a table, the column of each finding's masks; of two classes it is `column` itself."""
        return [f"{column}_{name}" for name in self.targets] if self.kind == "flags" else [column]

    def of_column(self, place):
        """The kind of one of the targets."""
        return self.kinds[place] if self.kinds else self.kind


class Prepared:
    """A case that can be read, as `prepare` of its source gives it; it knows what its Case knows.

    image() gives (C, X, Y, Z); `shape` is (X, Y, Z), `background` the value of each channel outside the volume.
    """

    __slots__ = ()
    is_patch = False  # whether it is as large as a training patch, and `distinct()` reads it
    geometry = None  # the way back to the space of its files
    scaling = None  # (mean, deviation) of each channel, where one image is repeated in all of them

    id = property(attrgetter("case.id"))
    subject = property(attrgetter("case.subject"))
    target = property(attrgetter("case.target"))
    labels = property(attrgetter("case.labels"))
    scan = property(attrgetter("case.scan"))
    missing = property(attrgetter("case.missing"))
    findings = property(attrgetter("case.findings"))
    foreground_mm3 = property(attrgetter("case.foreground_mm3"))
    native_mask = property(attrgetter("case.mask"), doc="The Volume of the mask in the space of its file.")

    @property
    def outside(self):
        """`background`, and None for each channel that the case lacks."""
        return tuple(None if c in self.missing else value for c, value in enumerate(self.background))


def names_a_file(id):
    """Whether an id can name a file, and cannot name one in another folder, see ID_WANTED."""
    return id.isprintable() and len(id.encode()) <= ID_BYTES and bool(re.fullmatch(r"[^/\\.~][^/\\]*", id))


def read_volume(source, like=None):
    """(array float32 (X, Y, Z), affine) of a Volume.

    like: an affine whose order and directions of axes the array gets, whatever it is stored with. The affine of a .npy
    file is the identity. Raises ValueError, with the path, for an unreadable file and for numbers that are not finite.
    """
    if not source.has_geometry:
        array, affine = npy.read_npy(source.path, source.index), np.eye(4)
    else:
        array, affine = _reader(source)(source.path)
    return (array, affine) if like is None else volume.to_axes_of(like, array, affine)


def _reader(source):
    """The function that reads a Volume which lies in space."""
    if source.path.lower().endswith(".dcm") or os.path.isdir(source.path):
        return dicom.read_dicom
    if source.path.lower().endswith(".mha"):
        return metaimage.read_metaimage
    return nifti.read_nifti


def unoriented(images):
    """Paths of those of the Volumes `images` that are NIfTI files which do not say how their axes lie."""
    paths = [image.path for image in images if image.has_geometry and _reader(image) is nifti.read_nifti]
    return tuple(path for path in paths if not nifti.read_header(path).oriented)


def foreground_mm3(mask, case, classes=None):
    """Cubic millimetres of the voxels above 0 in the Volume `mask` (of a .npy: voxels).

    Raises UserError unless it holds whole numbers, and those of `classes` where that is given; case: its id.
    """
    interrupt.stop_if_requested()  # reading all of them may take a while
    with as_user_error(f"case {case}: mask", ValueError):
        array, affine = read_volume(mask)
        array = rounded(array)
    broken = array[array != np.rint(array)]
    if broken.size:
        raise UserError(f"case {case}: mask: {mask.path}: got the value {digits(broken[0])}, wanted whole numbers")
    if classes is not None:
        with as_user_error(f"case {case}: mask", ValueError):
            check_classes(mask.path, array, classes)
    return float(np.count_nonzero(array > 0) * np.prod(volume.spacing(affine)))


def check_classes(path, array, classes):
    """Raise ValueError unless an array holds whole numbers from 0 to classes - 1 alone; path: its file."""
    wrong = np.unique(array[(array != np.rint(array)) | (array < 0) | (array >= classes)])
    if wrong.size:
        shown = ", ".join(map(digits, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        wanted = f"whole numbers below task.classes={classes} (task.type=multitask: classes of the mask's part)"
        raise ValueError(f"{path}: got the mask values {shown}, wanted {wanted}")


def stated_number(path, case):
    """The number in a label.txt. Raises UserError for any other text; case: the id of the case."""
    with spreadsheet.opened(path, f"case {case}: cannot read the label {path}") as file:
        text = file.read().strip()
    value = spreadsheet.number(text)
    if value is None:
        raise UserError(f"case {case}: {path}: got the label {text[:40]!r}, wanted a number")
    return value


def rounded(array):
    """The voxels of a mask; those that are as good as whole numbers (see ROUNDING) become them."""
    whole = np.rint(array)
    return np.where(np.abs(array - whole) <= ROUNDING, whole, array)


def digits(value):
    """A number with all its digits, so that 0.9998 is not shown as 1."""
    return np.format_float_positional(value, trim="-")


def looks_at_files(data, count):
    """Whether a start looks at every one of `count` cases' files, see data.rescan."""
    return data.rescan == "always" or (data.rescan == "auto" and count <= MANY)
