"""What is to be predicted: cases by their files, by a table or by a data set; scans by their slices; CT volumes."""

import collections
import dataclasses
import os
from dataclasses import dataclass

from .. import tasks
from ..config import UserError, as_user_error
from ..data import slice_files, sources, spreadsheet
from ..data.cases import ID_WANTED, Case, Volume, names_a_file
from ..data.sources import volumes


def case_from_channels(channels, given, id=None, subject=None, optional=()):
    """A Case from {channel name: path}.

    channels: the config's; of the alternatives 'a|b' one must be given, or none of an optional channel.
    id: names the output files; None: as the first channel's file.
    subject: None: the id.
    """
    wanted = ", ".join(text.replace("|", " or ") for text in channels)
    unknown = sorted(set(given) - _names(channels))
    if unknown:
        raise UserError(f"channel '{unknown[0]}' is not one of this checkpoint's, wanted {wanted}")
    images = []
    for text in channels:
        there = [name for name in text.split("|") if name in given]
        if not there and text in optional:
            images.append(None)
            continue
        if len(there) != 1:
            got = f"both {' and '.join(there)}" if there else "none"
            raise UserError(f"channel {text.replace('|', ' or ')}: got {got}, wanted one file for each of {wanted}")
        images.append(Volume(os.path.normpath(given[there[0]])))
    with as_user_error(f"channels {wanted}: got a path that cannot be one", ValueError):
        paths = [os.path.realpath(image.path) for image in filter(None, images)]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"{twice}: got it as two channels, wanted a file for each of {wanted}")
    if id is None:
        id = slice_files.stem(os.path.basename(next(filter(None, images)).path))
    if not names_a_file(id):
        raise UserError(f"got the id {id[:80]!r}, wanted {ID_WANTED}")
    return Case(id, subject or id, tuple(images), None, None, None)


def _names(channels):
    return {name for text in channels for name in text.split("|")}


def cases_from_table(path, data):
    """Cases of a CSV with a column of ids, of subjects (optional) and one per channel.

    data: the checkpoint's config.data. The columns are called as in its training table, or else id and subject.
    Relative paths start from the folder of the CSV.
    """
    rows = spreadsheet.read_rows(path, {}, "--cases")
    there = rows[0].cells
    id_column = next((name for name in (data.id_column, "id") if name in there), None)
    subject_column = data.subject_column if data.subject_column in there else "subject"
    if id_column is None:
        got, wanted = ", ".join(there)[:500], "id" if data.id_column == "id" else f"{data.id_column} or id"
        raise UserError(f"{path}: line 1: got the columns {got}, wanted {wanted} and one for each channel")
    for text in data.optional_channels:
        if not any(name in there for name in text.split("|")):
            got = f"got the columns {', '.join(there)[:500]}, wanted one of the channel '{text}'"
            raise UserError(f"{path}: line 1: {got}, with blank cells where a case lacks it")
    folder, cases = os.path.dirname(os.path.abspath(path)), {}
    for line, row in rows:
        id = row[id_column]
        if id in cases:
            raise UserError(f"{path}: line {line}: got the id {id!r} again, wanted one for each case")
        given = {name: os.path.join(folder, row[name]) for name in _names(data.channels) if row.get(name)}
        subject = row.get(subject_column)
        with as_user_error(f"{path}: line {line}", UserError):
            cases[id] = case_from_channels(data.channels, given, id, subject, data.optional_channels)
    return list(cases.values())


def cases_from_source(config, source, root):
    """The cases of a data set in one of the layouts; its labels are not read."""
    channels = config.data.channels
    if sources.SOURCES[source].one_channel and len(channels) != 1:
        got = f"got a checkpoint of the channels {', '.join(channels)}"
        raise UserError(f"--source {source}: {got}, wanted one; use --cases")
    data = dataclasses.replace(config.data, source=source, root=root, csv=None, groups=None, cache=None)
    return sources.list_cases(data, tasks.wanted(config), labels=False)


@dataclass(frozen=True)
class Scan:
    """What networks of slices are asked about: the scan `id`, by the files of its slices, or by its volume."""

    id: str
    subject: str
    images: tuple[Volume, ...]  # a file per slice, or the volume
    slices: tuple[str, ...] = ()  # ids of the files; of a volume they are known once it is read

    @property
    def files(self):
        return self.images


def listed_slices(place):
    """The Scans of a table with the columns slice_id, volume_name and file_path, or of the .npy files below a folder.

    A column `patient` of the table says whose they are. Below a folder the scans are the folders that hold the files;
    each must have a name of its own.
    """
    found = _slices_below(place) if os.path.isdir(place) else _slices_of_table(place)
    _each_once([id for _, _, id, _ in found], "slices")
    by_scan = {}
    for scan, *slice in found:
        by_scan.setdefault(scan, []).append(slice)
    scans = []
    for scan, slices in by_scan.items():
        patients, ids, paths = zip(*slices)
        if len(set(patients)) > 1:
            got = ", ".join(sorted({patient or "none" for patient in patients})[:5])
            raise UserError(f"{place}: scan {scan}: got the patients {got}, wanted one")
        scans.append(Scan(scan, patients[0] or _patient(scan), tuple(map(Volume, paths)), ids))
    return scans


def _slices_below(place):
    """[(scan, None, id, path)] of the slices below a folder, which does not say whose they are."""
    found, folders = [], {}
    for folder, _, names in sorted(os.walk(place)):
        names = sorted(name for name in names if name.lower().endswith(".npy"))
        scan = os.path.basename(os.path.abspath(folder))
        if names and folders.setdefault(scan, folder) != folder:
            got = f"two scans are called {scan}: {folders[scan]} and {folder}"
            raise UserError(f"{place}: {got}; rename one, or give a table with volume_name")
        found += [(scan, None, name[:-4], os.path.join(folder, name)) for name in names]
    if not found:
        raise UserError(f"{place}: no slices (*.npy) below it")
    return found


def _slices_of_table(place):
    """[(scan, patient or None, id, path)] of the slices in a table."""
    names = ("slice_id", "volume_name", "file_path")
    rows = spreadsheet.read_rows(place, {f"--slices: {name}": name for name in names}, "--slices")
    folder = os.path.dirname(os.path.abspath(place))
    found = ((cells.get("patient"), *map(cells.get, names)) for _, cells in rows)
    return [(scan, patient, id, os.path.join(folder, path)) for patient, id, scan, path in found]


def listed_volumes(places):
    """The Scans of CT volumes: files, DICOM folders, or folders with such below them."""
    found = []
    for place in places:
        if not os.path.exists(place):
            raise UserError(f"{place}: no such file or folder, wanted CT volumes")
        below = volumes.scans_below(place) if os.path.isdir(place) else [(place, place)]
        found += [(os.path.basename(name), path) for name, path in below]
    if not found:
        wanted = ".nii, .nii.gz, .mha, .npy or folders of DICOM files"
        raise UserError(f"{', '.join(places)}: no volumes below it, wanted {wanted}")
    _each_once([name for name, _ in found], "volumes")
    return [Scan(name, _patient(name), (Volume(path),)) for name, path in found]


def _patient(name):
    """Whose scan it is, by the name of its volume."""
    return slice_files.patient_of(name) or slice_files.stem(name)


def _each_once(names, what):
    [(name, count)] = collections.Counter(names).most_common(1)
    if count > 1:
        raise UserError(f"{count} {what} are called {name}: rename all but one")
