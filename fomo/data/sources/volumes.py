"""The volumes source: every scan of a folder tree, or of a list of paths, is a case of one channel without a label.

A scan is a NIfTI file (.nii, .nii.gz), a MetaImage file (.mha), a .npy array with three axes, or a folder of DICOM
files (.dcm, .ima, or without a suffix), which the root may be itself. Suffixes may be in capitals. Names that begin
with a dot are left out, and so are paths below the root that `data.pattern` does not match, such as masks, or that
`data.where` does not choose, see `selection`. Links to folders are followed.

The list (`data.csv`) is a text file with a path a line, relative to `data.root`, or else to the list's folder. Blank
lines and lines that begin with # are left out.

The id is the path below the root without its suffix, its parts joined by _. The subject is, with what lies above it,
- the first folder named sub-X or sub_X (BIDS, FOMO-60K), or the beginning sub-X_ or sub_X_ of the file's name;
- else the top folder below the root (for a list without `data.root`: below the folder that all paths share);
- else the scan itself.
"""

import collections
import fnmatch
import os
import re
import zlib

from ...config import UserError
from ...runtime import lazy
from .. import spreadsheet
from ..cases import ID_BYTES, Case, Volume, looks_at_files
from ..dicom import is_dicom
from . import selection
from .source import Source

nifti = lazy.Module("...space.nifti", __package__)

_SUFFIX = re.compile(r"\.(nii|nii\.gz|mha|npy)\Z", re.IGNORECASE)
_SHOWN = 8  # sequences that the log names
_DICOM = (".dcm", ".ima")
_SUBJECT_FOLDER = re.compile(r"sub[-_][0-9A-Za-z]+", re.ASCII)
_SUBJECT_FILE = re.compile(r"(sub[-_][0-9A-Za-z]+)_", re.ASCII)


def list_volumes(data, wanted=None, labels=True, log=None):
    """The cases of `data.root` or of the list `data.csv`, never labelled."""
    scans = _from_list(data) if data.csv is not None else scans_below(data.root, log)
    chosen = re.compile(fnmatch.translate(data.pattern))
    matching = [(name, path) for name, path in scans if chosen.match(name)]
    if scans and not matching:
        unmatched = f"which none of the {len(scans)} scans match, as {scans[0][0]}"
        raise UserError(f"data.pattern: got {data.pattern}, {unmatched}")
    if data.where is not None:
        place = data.root or os.path.dirname(os.path.abspath(data.csv))
        taken = selection.chosen(data.where, place, [name for name, _ in matching], log)
        if matching and not any(taken):
            raise UserError(f"data.where: got {data.where}, which none of the {len(matching)} scans in {place} fits")
        matching = [scan for scan, wished in zip(matching, taken) if wished]
    ids = _ids([name for name, _ in matching])
    return [Case(id, _subject(name), (Volume(path),)) for id, (name, path) in zip(ids, matching)]


def scans_below(root, log=None):
    """[(path below the root, path)] of every scan in the tree. A root that is one itself stands with its name.

    log: for a warning of files of formats that are not read, or None.
    """
    if not os.path.isdir(root):
        raise UserError(f"data.root: got {root}, which is not a folder, wanted the folder of the scans")
    found, others = [], []
    try:
        for below, names in _folders_below(root):
            found += [os.path.join(below, name) for name in names if _SUFFIX.search(name)]
            others += [os.path.join(below, name) for name in names if nifti.other_format(name)]
            if _holds_dicom(os.path.join(root, below), names):
                found.append(below)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if others and log is not None:
        said = "files of formats that are not read are left out"
        log.warn(said, files=len(others), example=min(others), format=nifti.other_format(min(others)))
    return [(name or os.path.basename(os.path.abspath(root)), os.path.join(root, name)) for name in sorted(found)]


def _folders_below(root):
    """Yield (path below the root, names of its files) of every folder of the tree, and of the root."""
    open_folders = [("", (os.path.realpath(root),))]
    while open_folders:
        below, parents = open_folders.pop()  # parents: the real paths of the folders from the root down to this one
        with os.scandir(os.path.join(root, below)) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in (entry for entry in visible if entry.is_dir()):
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parents[-1], entry.name)
            if real not in parents:  # else a cycle: what is in it is listed already
                open_folders.append((os.path.join(below, entry.name), (*parents, real)))
        yield below, [entry.name for entry in visible if not entry.is_dir()]


def _holds_dicom(folder, names):
    if any(name.lower().endswith(_DICOM) for name in names):
        return True
    plain = [name for name in names if name != "DICOMDIR" and ("." not in name or name.rpartition(".")[2].isdigit())]
    return any(is_dicom(os.path.join(folder, name)) for name in sorted(plain))


def _from_list(data):
    """[(path below the root, path)] of a text file of paths."""
    with spreadsheet.opened(data.csv, f"data.csv: cannot read {data.csv}") as file:
        lines = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    start = data.root or os.path.dirname(os.path.abspath(data.csv))
    look, seen = looks_at_files(data, len(lines)), {}
    for number, line in lines:
        path = os.path.normpath(os.path.join(start, line))
        if path in seen:
            raise UserError(f"{data.csv}: line {number}: got {line} as in line {seen[path]}, wanted each scan once")
        if not line.isprintable() or (look and not os.path.exists(path)):
            raise UserError(f"{data.csv}: line {number}: got {path!r}, which does not exist, wanted the path of a scan")
        seen[path] = number
    if not seen:
        raise UserError(f"{data.csv}: got no paths, wanted one a line")
    root = data.root or os.path.commonpath([os.path.dirname(path) for path in seen])
    names = [os.path.relpath(path, root) for path in seen]
    for name, number in zip(names, seen.values()):
        if name.startswith(".."):
            raise UserError(f"{data.csv}: line {number}: got {name}, which is not below data.root={root}")
    return [(name, os.path.join(root, name)) for name in names]


def _ids(relatives):
    """Ids made of the paths below the root. Those that differ only in capitals, or are too long, get a checksum."""
    names = [_SUFFIX.sub("", path).replace(os.sep, "_").lstrip(".~") for path in relatives]
    count = collections.Counter(name.lower() for name in names)
    for place, (name, path) in enumerate(zip(names, relatives)):
        if count[name.lower()] > 1 or len(os.fsencode(name)) > ID_BYTES:
            short = os.fsencode(name)[: ID_BYTES - 9].decode(errors="ignore")
            names[place] = f"{short}-{zlib.crc32(os.fsencode(path)):08x}"
    return names


def _subject(relative):
    *folders, name = relative.split(os.sep)
    for place, part in enumerate(folders):
        if _SUBJECT_FOLDER.fullmatch(part):
            return "_".join(folders[: place + 1])
    if named := _SUBJECT_FILE.match(name):
        return "_".join([*folders, named[1]])
    return folders[0] if folders else _SUFFIX.sub("", name)


def _check(config, refuse):
    where = config.data.where
    try:
        selection.parse("a=b" if where is None else where)
    except ValueError:
        refuse("data.where", where, selection.GRAMMAR)


def _found(data, cases):
    """How many scans there are of each sequence, by their names, of the most frequent ones."""
    counts = collections.Counter(selection.modality(case.images[0].path) for case in cases)
    return {"sequences": [f"{name}:{count}" for name, count in counts.most_common(_SHOWN)]} if data.where else {}


VOLUMES = Source(
    list=list_volumes,
    gives=("nothing",),
    needs=(("data.root", "data.csv"), "the folder of the scans, or their list as data.csv"),
    geometry=True,
    keys=("data.pattern", "data.where"),
    reads_csv=True,
    one_channel=True,
    check=_check,
    found=_found,
)
