"""CT volumes into axial slices on disk, for training on slices.

    <output>/slices/train_12_a_1/train_12_a_1_0131.npy   one slice: (X, Y), or (2n+1, X, Y) with n neighbours on each side
                                 slices.json             which slices, and of which file: the volume is done
             splits/{train,valid,all}_slices.csv         a line per slice; file_path is relative to this file's folder
             extract.json                                the settings

A slice is (X, Y) in RAS order (x to the patient's right, y to the front), its window of Hounsfield units mapped to 0..1
(uint8: 0..255). The field of view is kept whole and is made square by air on two sides, never stretched; then it is
averaged down (or interpolated up) to `size` pixels, so that a pixel is as long as it is wide.

Body: the largest connected region above -500 HU, its holes filled in each slice. Slices in which it is smaller than a
quarter of its largest cross-section are not taken. Lung: air within the body.
"""

import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass

import numpy as np
import scipy.ndimage

from .. import tables, volume
from ..config import UserError
from ..transforms import axes
from . import cache, cases, volumes
from .slices import patient_of, read_labels, stem

STRATEGIES = ("multi_slice", "best_slice", "anatomical", "uniform")
UNITS = ("auto", "hu", "stored", "twice")
DTYPES = ("float16", "uint8")
SPLITS = ("train", "valid")
COLUMNS = ("slice_id", "volume_name", "slice_index", "relative_position", "file_path", "split", "patient")  # and the labels'
_COARSE_MM = 4.0  # of the grid on which body and lungs are found
_SMALLEST_CM2 = 20.0  # cross-section of a body, of a child as well
# shares of the lungs' height: bases, ventricles, left atrium and hila, carina, aortic arch, apices
_LEVELS = (0.10, 0.28, 0.45, 0.60, 0.73, 0.90)


class ExtractionFailed(RuntimeError):
    exit_code = 1


@dataclass(frozen=True)
class Settings:
    strategy: str = "multi_slice"
    slices: int = 16  # per volume: multi_slice and uniform
    size: int = 224
    window: tuple[float, float] = (-1000.0, 400.0)
    dtype: str = "float16"
    neighbours: int = 0  # slices on each side that are stored with each slice
    neighbour_mm: float | None = None  # their distance; None: adjacent
    units: str = "auto"

    def __post_init__(self):
        for name, wanted in (("strategy", STRATEGIES), ("units", UNITS), ("dtype", DTYPES)):
            if getattr(self, name) not in wanted:
                raise UserError(f"{name}: got {getattr(self, name)!r}, wanted one of {', '.join(wanted)}")
        for name, least in (("slices", 1), ("size", 16), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: got {getattr(self, name)}, wanted at least {least}")
        if self.window[0] >= self.window[1]:
            raise UserError(f"window: got {self.window[0]:g} {self.window[1]:g}, wanted the lower one first")
        if self.neighbour_mm is not None and not self.neighbour_mm > 0:
            raise UserError(f"neighbour_mm: got {self.neighbour_mm:g}, wanted more than 0")

    def to_dict(self):
        return {**asdict(self), "window": list(self.window)}

    @classmethod
    def from_dict(cls, values):
        return cls(**{**values, "window": tuple(values["window"])})


def extract(root, output, settings, log, *, labels=None, split="names", patients="names", workers=2):
    """Extract the slices of every volume below `root` (NIfTI, DICOM folders, 3D .npy); see the top of the file.

    labels: a CSV with the column VolumeName; its other columns are copied to the slices' lines, so none of them may be
    called as one of COLUMNS, but for that of the split (`split`) and that of the patient (`patient`). split: `names`
    (train_*, valid_*), `train` or `valid` for all, or a column of the labels. patients: `names` (train_12 of
    train_12_a_1.nii.gz), `volumes` (each its own) or a column of the labels. Volumes that are done are not done again.
    Raises ExtractionFailed, after all others are done, when a volume could not be used, and UserError for what
    concerns all of them.
    """
    if workers < 0:
        raise UserError(f"workers: got {workers}, wanted 0 (this process) or more")
    found = _find(root)
    rows = {} if labels is None else read_labels(labels)
    columns = list(next(iter(rows.values()), ()))
    for name in columns:
        if name in COLUMNS and {"split": split, "patient": patients}.get(name) != name:
            hint = {"split": ", or --split split", "patient": ", or --patients patient"}.get(name, "")
            raise UserError(f"{labels}: got the column '{name}', which the slices' tables have of their own: rename it{hint}")
    facts = {}
    for key, (name, _) in found.items():
        facts[key] = _facts(name, rows.get(key), split, patients, labels)
    _check_patients(facts)
    try:
        _claim(output, settings)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    jobs = [(path, os.path.join(output, "slices", key), key, settings) for key, (_, path) in found.items()]
    todo = [job for job in jobs if not _is_done(job)]
    log("extract", volumes=len(jobs), done=len(jobs) - len(todo), output=output)
    failures, begin = {}, time.monotonic()
    shown = begin
    for count, (key, failure) in enumerate(cache.run_jobs(_extract_one, todo, min(workers, len(todo))), start=1):
        if failure:
            failures[key] = failure
            log.warn(failure, volume=found[key][0])
        if count == len(todo) or time.monotonic() > shown + 10:
            shown = time.monotonic()
            log("extract", extracted=count, of=len(todo), failed=len(failures), eta_s=(shown - begin) / count * (len(todo) - count))
    try:
        _write_splits(output, [job for job in jobs if job[2] not in failures], found, facts, rows, columns, log)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    if failures:
        names = ", ".join(found[key][0] for key in sorted(failures))
        raise ExtractionFailed(f"{len(failures)} of {len(jobs)} volumes failed, the others are done: {names}")


def _find(root):
    """{name without suffix: (volume name, path)} of the volumes below `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"got {root}, which is no folder, wanted the folder of the volumes")
    found = {}
    for name, path in volumes.scans_below(root):
        name = os.path.basename(name)
        key = stem(name)
        if key in found:
            raise UserError(f"{root}: two volumes are called {key}: {found[key][1]} and {path}; rename one")
        found[key] = (name, path)
    if not found:
        raise UserError(f"{root}: no volumes found, wanted .nii, .nii.gz, .npy or folders of DICOM files")
    return found


def _facts(name, row, split, patients, labels):
    """(split, patient) of a volume."""

    def cell(option, column):
        if labels is None:
            raise UserError(f"{option}: got {column}, which is no column without a table: wanted --labels as well")
        if row is None:
            raise UserError(f"{labels}: no line for {name}, wanted its {column} ({option})")
        if not row.get(column):
            raise UserError(f"{labels}: {name}: no value of the column {column} ({option}), got the columns {', '.join(row)}")
        return row[column]

    if split == "names":
        part = name.partition("_")[0]
        if part not in SPLITS:
            raise UserError(
                f"{name}: neither train nor valid by its name: give --split train, valid or a column of the labels"
            )
    else:
        part = split if split in SPLITS else cell("--split", split)
        if part not in SPLITS:
            raise UserError(f"{labels}: {name}: got {split}={part}, wanted train or valid")
    if patients == "names":
        patient = patient_of(name)
        if patient is None:
            raise UserError(
                f"{name}: its patient is not known by its name, wanted a name like train_12_a_1.nii.gz; "
                "give --patients volumes (each its own) or a column of the labels"
            )
    else:
        patient = stem(name) if patients == "volumes" else cell("--patients", patients)
    return part, patient


def _check_patients(facts):
    seen = {}
    for name, (part, patient) in facts.items():
        other = seen.setdefault(patient, (part, name))
        if other[0] != part:
            raise UserError(f"patient {patient} is in both splits: {other[1]} ({other[0]}), {name} ({part}); wanted one")


# ------------------------------------------------------------------------------------------ the folder


def _claim(output, settings):
    """Make the output folder, or check that what it holds was made with the same settings."""
    path = os.path.join(output, "extract.json")
    wanted = settings.to_dict()
    if os.path.exists(path):
        there = _settings_in(path, output).to_dict()
        for name, value in wanted.items():
            if there[name] != value:
                raise UserError(f"{output} holds slices with {name}={there[name]}, got {value}: wanted the same, or another folder")
        return
    for folder in ("slices", "splits"):
        os.makedirs(os.path.join(output, folder), exist_ok=True)
    tables.write_json(path, wanted)


def has_settings(csv):
    """Whether the slices of a table were extracted by this file, so that `read_settings` knows how."""
    return os.path.exists(_settings_of(csv))


def _settings_of(csv):
    return os.path.join(os.path.dirname(os.path.abspath(csv)), "..", "extract.json")


def read_settings(csv):
    """The Settings with which the slices of a table `splits/*_slices.csv` were extracted."""
    return _settings_in(_settings_of(csv), csv)


def _settings_in(path, whose):
    try:
        return Settings.from_dict(tables.read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {os.path.normpath(path)}, the settings of {whose} ({error}): extract into a new folder") from error


def _source(path):
    """What tells that a volume has changed."""
    return [os.path.abspath(path), *cache.stamp(path)]


def _is_done(job):
    path, folder, _, _ = job
    try:
        record = tables.read_json(os.path.join(folder, "slices.json"))
        return record["source"] == _source(path) and len(record["slices"]) > 0
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        return False


def _extract_one(job):
    """(key, failure or None); runs in a worker process."""
    path, folder, key, settings = job
    try:
        # what is in it when it is renamed stays
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=os.path.dirname(folder), ignore_cleanup_errors=True) as temporary:
            os.chmod(temporary, 0o755)
            source = _source(path)  # before it is read
            array, affine = cases.read_volume(cases.Volume(path))
            rows = []
            for index, position, pixels in take_slices(array, affine, settings):
                np.save(os.path.join(temporary, f"{key}_{index:04d}.npy"), pixels)
                rows.append([index, position])
            tables.write_json(os.path.join(temporary, "slices.json"), {"source": source, "slices": rows})
            shutil.rmtree(folder, ignore_errors=True)  # of a file that has changed since
            os.rename(temporary, folder)
    except (ValueError, OSError) as error:  # UserError is a ValueError; OSError: unreadable, or the disk is full
        text = str(error)
        return key, text if path in text else f"{path}: {text}"
    return key, None


def _write_splits(output, jobs, found, facts, rows, columns, log):
    lines = []
    unlabelled = 0
    for _, folder, key, _ in jobs:
        part, patient = facts[key]
        labels = rows.get(key, dict.fromkeys(columns, ""))
        unlabelled += bool(columns) and key not in rows
        for index, position in tables.read_json(os.path.join(folder, "slices.json"))["slices"]:
            id = f"{key}_{index:04d}"
            own = (id, found[key][0], index, f"{position:.4f}", f"../slices/{key}/{id}.npy", part, patient)
            lines.append({**dict(zip(COLUMNS, own)), **labels})
    for part in (*SPLITS, "all"):
        own = [line for line in lines if part in (line["split"], "all")]
        path = os.path.join(output, "splits", f"{part}_slices.csv")
        if own:
            tables.write_csv(path, own)
        elif os.path.exists(path):  # of volumes that are gone
            os.remove(path)
    if unlabelled:
        log.warn("volumes without a line in the label table: their cells are blank", volumes=unlabelled, of=len(jobs))
    log("extract", slices=len(lines), volumes=len(jobs), output=output)


# -------------------------------------------------------------------------------------------- one volume


def take_slices(array, affine, settings):
    """[(slice index, relative position, pixels)] of a CT volume (X, Y, Z) with its affine, from below to above.

    The index is that of the volume in RAS order; the position is 0 at the lowest slice with body and 1 at the highest.
    pixels: (X, Y), or (2n+1, X, Y) with the neighbours from below to above, in settings.dtype. Raises ValueError for
    values that are no Hounsfield units (settings.units) and for a volume without a body.
    """
    array, affine = volume.to_ras(in_hounsfield(array, settings.units), affine)
    spacing_mm = volume.spacing(affine)
    body_cm2, lung_cm2 = cross_sections(array, spacing_mm)
    if body_cm2.max() < _SMALLEST_CM2:
        raise ValueError(
            f"no body found: the largest region above -500 HU measures {body_cm2.max():.3g} cm2 in a slice, wanted {_SMALLEST_CM2:g}"
        )
    inside = np.flatnonzero(body_cm2 >= body_cm2.max() / 4)
    step = 1 if settings.neighbour_mm is None else max(1, round(settings.neighbour_mm / spacing_mm[2]))
    around = np.arange(-settings.neighbours, settings.neighbours + 1) * step
    result = []
    for index in choose(inside, lung_cm2, settings):
        stack = [array[:, :, z] for z in np.clip(index + around, 0, array.shape[2] - 1)]
        pixels = np.stack([_pixels(one, spacing_mm, settings) for one in stack])
        position = (index - inside[0]) / max(1, inside[-1] - inside[0])
        result.append((int(index), float(position), pixels if settings.neighbours else pixels[0]))
    return result


def in_hounsfield(array, units="auto"):
    """`array` in Hounsfield units. ValueError when it looks as if it were not, and `units` does not say what it is.

    units: `auto` (Hounsfield units, checked), `hu` (taken as they are), `stored` (the scanner's values, HU + 1024) or
    `twice` (the intercept was applied twice, HU - 1024); the last two are checked after the correction.
    """
    if units == "hu":
        return array
    array = array + {"auto": 0, "stored": -1024, "twice": 1024}[units]
    step = tuple(slice(None, None, max(1, size // 96)) for size in array.shape)
    sample = array[step]

    def looks_like(offset):
        """Whether 3% are soft tissue and 3% air, once `offset` is taken off."""
        tissue = np.mean((sample >= offset - 200) & (sample <= offset + 300))
        air = np.mean((sample >= offset - 1100) & (sample <= offset - 500))
        return min(tissue, air) >= 0.03

    if looks_like(0):
        return array
    seen = f"values from {array.min():.6g} to {array.max():.6g}, median {np.median(sample):.6g}"
    if looks_like(1024):
        raise ValueError(f"got {seen}: stored values without the rescale intercept, wanted Hounsfield units (or --units stored)")
    if looks_like(-1024):
        raise ValueError(f"got {seen}: rescaled twice, wanted Hounsfield units (or --units twice)")
    raise ValueError(f"got {seen}: neither air nor soft tissue where Hounsfield units have them (--units hu takes them as they are)")


def cross_sections(array, spacing_mm):
    """(body, lungs): their area in cm2 in each axial slice of (X, Y, Z) Hounsfield units in RAS order."""
    step = [max(1, int(_COARSE_MM / size)) for size in spacing_mm[:2]]
    solid = array[:: step[0], :: step[1]] > -500
    regions, count = scipy.ndimage.label(solid)
    if not count:
        return np.zeros(array.shape[2]), np.zeros(array.shape[2])
    body = regions == 1 + np.bincount(regions.ravel())[1:].argmax()
    filled = np.stack([scipy.ndimage.binary_fill_holes(body[:, :, z]) for z in range(body.shape[2])], axis=2)
    pixel_cm2 = step[0] * step[1] * spacing_mm[0] * spacing_mm[1] / 100
    return filled.sum((0, 1)) * pixel_cm2, (filled & ~solid).sum((0, 1)) * pixel_cm2


def choose(inside, lung_cm2, settings):
    """Slice indices, ascending and each once, among `inside`: those with body.

    uniform: the middles of equal stretches of the body. multi_slice: the same, drawn towards the middle, where they are
    twice as dense as in `uniform`. best_slice: the one with the most lung. anatomical: six levels of the lungs.
    """
    if settings.strategy == "best_slice":
        return [inside[np.argmax(lung_cm2[inside])]]
    if settings.strategy == "anatomical":
        lungs = inside[lung_cm2[inside] >= lung_cm2[inside].max() / 10]
        if lung_cm2[inside].max() < _SMALLEST_CM2:
            raise ValueError(f"no lungs found: at most {lung_cm2[inside].max():.3g} cm2 in a slice, wanted {_SMALLEST_CM2:g} for anatomical")
        return np.unique([lungs[np.abs(lungs - (lungs[0] + level * (lungs[-1] - lungs[0]))).argmin()] for level in _LEVELS])
    places = 2 * (np.arange(settings.slices) + 0.5) / settings.slices - 1  # from -1 to 1
    if settings.strategy == "multi_slice":
        places = (places + places**3) / 2
    places = (places + 1) / 2 * len(inside) - 0.5
    return inside[np.unique(np.clip(np.round(places).astype(int), 0, len(inside) - 1))]


def _pixels(pixels, spacing_mm, settings):
    """(size, size) in settings.dtype of one axial slice in Hounsfield units."""
    low, high = settings.window
    pixels = np.clip((pixels - np.float32(low)) / np.float32(high - low), 0, 1)
    side = max(n * mm for n, mm in zip(pixels.shape, spacing_mm))
    for axis in (0, 1):
        missing = max(0, round(side / spacing_mm[axis]) - pixels.shape[axis])
        around = [(0, 0), (0, 0)]
        around[axis] = (missing // 2, missing - missing // 2)
        pixels = np.pad(pixels, around)  # the window's lower end: air
    matrices = [axes.resize(size, settings.size).astype(np.float32) for size in pixels.shape]
    pixels = np.clip(matrices[0] @ pixels @ matrices[1].T, 0, 1)
    return np.round(255 * pixels).astype(np.uint8) if settings.dtype == "uint8" else pixels.astype(np.float16)
