"""The cache: every case preprocessed once, then read as memory maps.

    <cache>/<id>-<hash>/image.npy       (C, X, Y, Z) in data.cache_dtype
                        mask.npy        (X, Y, Z) uint8, where masks are learned
                        foreground.npy  (N, 4) int16: x, y, z, class of foreground voxels, likewise
                        case.json       geometry, background value of each channel, voxels of each class, checksums

    <cache>/index-<hash>.jsonl          the same facts of all entries of one preprocessing, see index.py

The hash covers the preprocessing settings and the path, size and time of every source file (of a link also its
target), so that a change makes a new entry. An entry appears by a rename, whole or not at all.

A start looks at every source file, unless there are many cases (data.rescan). Then a case whose paths are in the index
is taken from there. New, renamed and removed cases are noticed all the same. A file that was changed in place is
noticed when its case is read, and that ends the run.

The checksums are of the voxels, of each channel and of the mask. By them scans are found that stand in the cases of
several subjects, whatever their files are called. Unless there are many cases, each process compares them with the
entry when it first reads it.
"""

import functools
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..config import UserError, as_user_error, fingerprint, one_line
from ..metrics import dice
from ..runtime import files
from ..space import volume
from . import copies, index, jobs
from .cases import NOT_ORIENTED, Case, Prepared, check_classes, looks_at_files, read_volume, rounded, unoriented

_VERSION, _MASK_VERSION = 2, 3  # raise one when preprocessing changes its results, of all entries or of masks
_GOOD = 0.8  # Dice that a mask should have that was brought to the network's grid and back
_FOREGROUND_VOXELS = 10_000  # kept per class
_SHOWN = 20  # failed cases that an error names
_COLUMNS = 512  # of the numbers that a checksum adds up
_FEW = 8  # cases: starting processes takes longer


@dataclass(frozen=True, slots=True)
class CachedCase(Prepared):
    case: Case
    folder: str
    shape: tuple[int, int, int]  # (X, Y, Z)
    background: tuple[float, ...]  # per channel: what lies outside the volume
    class_voxels: tuple[int, ...]  # per class, in the cached mask; empty without a mask
    checksums: tuple[str, ...]  # of each channel, and of the mask
    unseen: str | None  # hash of the settings, where the start has not looked at the sources

    @property
    def entry(self):
        return os.path.basename(self.folder)

    @property
    def geometry(self):
        """The way back to native space, from case.json."""
        return volume.Geometry.from_dict(_read_entry(self.folder, "case.json")["geometry"])

    def image(self):
        """(C, X, Y, Z), memory-mapped. UserError when the sources have changed since, or the entry is damaged."""
        if self.unseen is not None:
            sources = _sources(self.case, masked=bool(self.class_voxels))
            if _entry(self.case, sources, self.unseen) != self.entry:
                changed = f"{self.case.files[0].path} or a file beside it has changed since it was preprocessed"
                raise UserError(f"case {self.id}: {changed}: run again with data.rescan=always")
        return self._read("image.npy", self._channels)

    def mask(self):
        """(X, Y, Z) uint8, memory-mapped; only where `class_voxels` has a mask's."""
        return self._read("mask.npy", self.checksums[len(self._channels) :])

    @property
    def _channels(self):
        """The checksums of the channels."""
        return self.checksums[: len(self.background)]

    def _read(self, name, checksums):
        if self.unseen is None:
            _compare(self.folder, name, checksums)
        return _read_entry(self.folder, name, "r")

    def foreground(self):
        """(N, 4) int16: x, y, z, class, sorted by class, at most 10000 evenly drawn of each; as `mask`."""
        found = _read_entry(self.folder, "foreground.npy")
        if len(found) and (found.min() < 0 or (found[:, :3].max(0) >= self.shape).any()):
            raise UserError(_damaged(self.folder, "foreground.npy"))
        return found


def _read_entry(folder, name, mmap_mode=None):
    """The array of a .npy file of the entry `folder`, or the dict of its case.json."""
    path, id = os.path.join(folder, name), os.path.basename(folder).rpartition("-")[0]
    try:
        if name.endswith(".npy"):
            return np.load(path, mmap_mode)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, EOFError) as error:  # gone, damaged, empty
        said = f"cannot read {path} ({one_line(error)})"
        raise UserError(f"case {id}: {said}: delete that folder and run again") from error


@functools.lru_cache(maxsize=None)  # once in a process
def _compare(folder, name, checksums):
    """Raise UserError unless the array in an entry has its checksums, one for each channel of an image."""
    array = _read_entry(folder, name, "r")
    if _checksums(array) != checksums:
        raise UserError(_damaged(folder, name))


def _damaged(folder, name):
    path, id = os.path.join(folder, name), os.path.basename(folder).rpartition("-")[0]
    return f"case {id}: {path} is not as it was written: delete that folder and run again"


def _checksums(array):
    """Of (C, X, Y, Z) one for each channel, of (X, Y, Z) one."""
    return tuple(checksum(part) for part in (array if array.ndim == 4 else [array]))


def checksum(array):
    """16 characters that two arrays share if their values, shapes and types are equal, and else practically never.

    The bytes are a table of numbers of 8 bytes, and the sums of its rows and columns are hashed: to hash the bytes
    themselves takes three times as long, a twentieth of all that is done with a volume.
    """
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    rows = len(content) // (8 * _COLUMNS)
    table = content[: rows * 8 * _COLUMNS].view(np.uint64).reshape(rows, _COLUMNS)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for part in (table.sum(axis=0), table.sum(axis=1), content[table.nbytes :]):
        digest.update(part)
    return digest.hexdigest()[:16]


def prepare(cases, data, wanted, log=None, workers=None):
    """The list of CachedCase for `cases`, in their order; preprocesses those that the cache does not have yet.

    The arguments are those of `sources.prepare`. Raises one UserError when cases are unusable, after all others are
    done: the first in full and the ids of the rest.
    """
    if data.cache is None:
        raise UserError("data.cache: got none, wanted the folder of the preprocessed cases")
    with as_user_error(f"data.cache: cannot make {data.cache}"):
        os.makedirs(data.cache, exist_ok=True)
    settings = _settings(data, wanted)
    settings_hash = fingerprint(settings)
    index_path = _index_path(data, settings_hash)
    there, known = set(os.listdir(data.cache)), index.read(index_path, log)
    look = looks_at_files(data, len(cases))
    keys, entries, unseen = [], [], []
    for case in cases:
        sources = _sources(case, wanted.masked)
        key = _hash([source and [os.path.abspath(source.path), source.index] for source in sources])
        entry = "" if look or key not in known else known[key].entry
        trusted = entry in there and entry.rpartition("-")[0] == case.id
        keys.append(key)
        entries.append(entry if trusted else _entry(case, sources, settings_hash))
        unseen.append(settings_hash if trusted else None)
    places = [os.path.join(data.cache, entry) for entry in entries]
    todo = [(case, place, settings) for case, place, entry in zip(cases, places, entries) if entry not in there]
    if log:
        seen = len(cases) - unseen.count(None)
        log("data", cases=len(cases), cached=len(cases) - len(todo), unseen=seen, cache=data.cache)
    _preprocess_all(todo, data.prepare_workers if workers is None else workers, log)
    known = _updated(index_path, known, there, dict(zip(keys, entries)))
    rows = zip(cases, places, (known[key][1:] for key in keys), unseen)
    prepared = [CachedCase(case, place, *facts, unlooked) for case, place, facts, unlooked in rows]
    copies.check(prepared, wanted.pretraining, log)
    return prepared


def _index_path(data, settings_hash):
    return os.path.join(data.cache, f"index-{settings_hash}.jsonl")


def entries(data, wanted):
    """{case id: [index.Facts of each of its entries]}, as the index has them: no source file is looked at."""
    found = {}
    if data.cache is not None:
        for facts in index.read(_index_path(data, fingerprint(_settings(data, wanted)))).values():
            found.setdefault(facts.entry.rpartition("-")[0], []).append(facts)
    return found


def voxels(checksums):
    """16 characters that stand for the voxels of a case, from the checksums of its entry."""
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:16]


def _updated(path, known, there, entries):
    """The index `known`, {key: Facts}, of what is `there`, with all `entries`, {key: name}; written if it changed."""
    kept = {key: facts for key, facts in known.items() if facts.entry in there}
    new = {key: entry for key, entry in entries.items() if key not in kept or kept[key].entry != entry}
    if not new:
        return known
    known = kept | {key: _facts(os.path.dirname(path), entry) for key, entry in new.items()}
    with as_user_error(f"data.cache: cannot write {path}"):
        index.write(path, known)
    return known


def _facts(cache, entry):
    facts = _read_entry(os.path.join(cache, entry), "case.json")
    values = facts["geometry"]["shape"], facts["background"], facts.get("class_voxels", ()), facts["checksums"]
    return index.Facts(entry, *map(tuple, values))


def _preprocess_all(todo, workers, log):
    """Make the entries of `todo`, (case, folder, settings) each."""

    def report(done, left_s):
        if log:
            log("data", prepared=done, of=len(todo), eta_s=left_s)

    check_headers([case for case, *_ in todo], log)
    failures, not_oriented = [], []
    for done in jobs.run(_prepare, todo, min(workers, len(todo) // _FEW), report):
        if isinstance(done, jobs.Killed):
            case, folder, _ = done.job
            files.remove_left_by(done.pid, os.path.dirname(folder))
            done = _Outcome(case.id, f"{done}: lower data.prepare_workers, and run again")
        if done.failure:
            failures.append((done.id, done.failure))
        if log and done.warning:
            log.warn(done.warning, case=done.id)
        not_oriented += done.unoriented
    if log and not_oriented:
        log.warn(NOT_ORIENTED, files=len(not_oriented), example=not_oriented[0])
    _refuse(failures)


def check_headers(cases, log=None):
    """Raise UserError for Cases with NIfTI files that are seen to be damaged by their first bytes."""

    def report(done, left_s):
        if log and done < len(cases):
            log("data", headers=done, of=len(cases), eta_s=left_s)

    _refuse([found for found in jobs.run(_damage, list(cases), 0, report) if found])


def _damage(case):
    """(id, what is wrong with its headers) of a case, or None."""
    try:
        unoriented([*case.files, *filter(None, case.findings)])
    except ValueError as error:
        return case.id, one_line(error)
    return None


def _refuse(failures):
    """UserError where there are failures, (id of the case, why) each."""
    if failures:
        failures.sort()
        ids = ", ".join(id for id, _ in failures[1:_SHOWN]) + (", ..." if len(failures) > _SHOWN else "")
        rest = f" ({len(failures) - 1} more failed: {ids})" if failures[1:] else ""
        raise UserError(f"case {failures[0][0]}: {failures[0][1]}{rest}")


def _settings(data, wanted):
    """The settings that decide what an entry holds; its sources decide the rest."""
    used = {
        "version": _VERSION,
        "spacing_mm": data.spacing_mm and list(data.spacing_mm),
        "crop": data.crop,
        "kind": data.normalize,
        "dtype": data.cache_dtype,
        "classes": wanted.mask_classes if wanted.masked else None,
    }
    if wanted.masked:
        used["mask_version"] = _MASK_VERSION
    if wanted.finding:
        used["finding"] = True
    if limits := {"percentile": "percentiles", "window": "window"}.get(data.normalize):
        used[limits] = list(getattr(data, limits))
    return used


def _entry(case, sources, settings_hash):
    """The name of a case's entry. Its `sources` are looked at."""
    try:
        return f"{case.id}-{_hash([settings_hash, _stamps(sources)])}"
    except OSError as error:
        raise UserError(f"case {case.id}: cannot read {error.filename}: {error.strerror}") from error


def input_key(sources):
    """A key that changes when the files of the Volumes `sources` change. Raises OSError where one is missing."""
    return _hash(_stamps(sources))


def _stamps(sources):
    """What tells the files of Volumes from others; None of a channel that the case lacks, whose file may come later."""
    return [source and [os.path.abspath(source.path), source.index, *stamp(source.path)] for source in sources]


def stamp(path):
    """[size, time ...] of a file, or of all files of a folder: it changes when they do."""
    status = os.stat(path)
    own = _file_stamp(status, path, os.path.islink(path))
    if not stat.S_ISDIR(status.st_mode):
        return own
    entries = [entry for entry in os.scandir(path) if entry.is_file()]
    inside = sorted([entry.name, *_file_stamp(entry.stat(), entry.path, entry.is_symlink())] for entry in entries)
    return [*inside, *own[2:]]


def _file_stamp(status, path, is_link):
    """[size, time], and of a link where it leads: another file may have the same size and time."""
    return [status.st_size, status.st_mtime_ns, *([os.path.realpath(path)] if is_link else [])]


def _hash(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _sources(case, masked):
    """The Volumes that go into an entry, and None for each channel that the case lacks."""
    return (*case.images, *case.findings) if masked and any(case.findings) else case.images


class _Outcome(NamedTuple):
    """What came of preparing a case."""

    id: str
    failure: str | None = None
    warning: str | None = None
    unoriented: tuple[str, ...] = ()  # paths of files that do not say how their axes lie


def _prepare(job):
    """The _Outcome of a case."""
    case, folder, settings = job
    try:
        warning = _write(case, folder, settings)
        # the first says it for all, which lie on its grid
        return _Outcome(case.id, warning=warning, unoriented=unoriented(case.files[:1]))
    except (ValueError, OSError) as error:  # UserError is a ValueError; OSError: the disk is full or not ours
        return _Outcome(case.id, str(error))
    except MemoryError as error:
        return _Outcome(case.id, f"{case.files[0].path}: out of memory ({error}): lower data.prepare_workers")


def _write(case, folder, settings):
    """Make the entry `folder`; returns a warning, or None."""
    image, mask, geometry, warning = _preprocess(case, settings)
    facts = {"geometry": geometry.to_dict(), "background": _background(image, settings["kind"])}
    facts["checksums"] = (*_checksums(image), *(() if mask is None else _checksums(mask)))
    try:
        with files.new_folder(folder, mode=0o700) as temporary:
            np.save(os.path.join(temporary, "image.npy"), image)
            if mask is not None:
                facts["class_voxels"] = np.bincount(mask.ravel(), minlength=settings["classes"]).tolist()
                np.save(os.path.join(temporary, "mask.npy"), mask)
                np.save(os.path.join(temporary, "foreground.npy"), foreground_voxels(mask, settings["classes"]))
            with open(os.path.join(temporary, "case.json"), "w", encoding="utf-8") as file:
                json.dump(facts, file, indent=1)
            for name in os.listdir(temporary):  # onto the disk: else a power cut leaves an entry of empty files
                with open(os.path.join(temporary, name), "r+b") as file:
                    os.fsync(file.fileno())
    except OSError:
        if not os.path.isdir(folder):  # else another process made the same entry meanwhile
            raise
    return warning


def load(case, data, wanted):
    """(image (C, X, Y, Z), background per channel, Geometry) of a case, as its entry would hold them."""
    image, _, geometry, _ = _preprocess(case, _settings(data, wanted))
    return image, tuple(_background(image, data.normalize)), geometry


def _background(image, kind):
    """What lies outside of the volume, per channel: as its darkest voxel or, where 0 stays 0, as that."""
    return [0.0] * len(image) if kind == "zscore_nonzero" else image.min(axis=(1, 2, 3)).tolist()


def _preprocess(case, settings):
    """(image, mask or None, Geometry, warning or None)."""
    arrays, affine, native_mask = _read(case, settings)
    options = {
        name: value
        for name, value in settings.items()
        if name not in ("version", "mask_version", "dtype", "classes", "finding")
    }
    paths = [source.path for source in case.files]
    image, mask, geometry = volume.preprocess(arrays, affine, mask=native_mask, names=paths, **options)
    warning = None if mask is None else _lost(native_mask, mask, geometry, settings)
    image = _with_missing(_cast(image, case, settings["dtype"]), case, settings["kind"])
    return image, mask, geometry, warning


def _cast(image, case, dtype):
    """The image in the cache's type. float16 moves a value by at most 1/2048, and refuses one above 65504."""
    limit = np.finfo(dtype).max
    for source, channel in zip(case.files, image):
        if (largest := max(channel.max(), -channel.min())) > limit:
            wanted = f"at most {limit:.6g} for data.cache_dtype={dtype}; set it to float32, or normalize"
            raise ValueError(f"{source.path}: got intensities up to {largest:.6g} after preprocessing, wanted {wanted}")
    return image.astype(dtype, copy=False)


def _with_missing(image, case, kind):
    """All channels, from those that are there: the others hold the mean of these ones' background."""
    if not case.missing:
        return image
    value = np.mean(_background(image, kind), dtype=np.float64)  # as `transforms` fills a channel that is dropped
    whole = np.full((len(case.images), *image.shape[1:]), value, image.dtype)
    whole[[source is not None for source in case.images]] = image
    return whole


def _lost(native, mask, geometry, settings):
    """A warning about what the mask `native` (X, Y, Z) lost on its way to the cache, or None."""
    if not settings.get("finding") or settings["classes"] == 2:
        return _lost_of(native, mask, geometry, settings["classes"])
    found = []
    for label, bit in enumerate(2 ** np.arange(settings["classes"].bit_length() - 1), start=1):
        warning = _lost_of(*((array.astype(np.uint8) & bit > 0 for array in (native, mask))), geometry, 2)
        found += [f"label {label}: {warning}"] if warning else []
    return "; ".join(found) or None


def _lost_of(native, mask, geometry, classes):
    """As `_lost`, of class numbers."""
    inside, total, warnings = native[geometry.native_box], np.count_nonzero(native), []
    if cropped := total - np.count_nonzero(inside):
        where = "where all channels are 0 (data.crop)"
        warnings.append(f"{cropped} of the mask's {total} foreground voxels are cropped off, {where}")
    gone = [str(label) for label in range(1, classes) if not (mask == label).any() and (inside == label).any()]
    if gone:
        warnings.append(f"the mask's class {', '.join(gone)} is smaller than a voxel of data.spacing_mm and vanished")
    elif worst := _best_dice(native, mask, geometry, classes):
        warnings.append(worst)
    return "; ".join(warnings) or None


def _best_dice(native, mask, geometry, classes):
    """A warning where even a network that predicts `mask` exactly has a low Dice on the file's grid, or None."""
    if mask.shape == tuple(stop - start for start, stop in geometry.box):
        return None
    labels = [label for label in range(1, classes) if (native == label).any()]
    back = [volume.to_native((mask == label).astype(np.float32), geometry) > 0.5 for label in labels]
    best = {label: dice(native == label, found) for label, found in zip(labels, back)}
    low = [
        f"{value:.2f}" + (f" (class {label})" if classes > 2 else "") for label, value in best.items() if value < _GOOD
    ]
    return f"the best possible Dice at data.spacing_mm is {', '.join(low)}: use smaller voxels" if low else None


def _read(case, settings):
    """([array per channel that is there], affine, mask or None), all on one grid."""
    arrays, affine, mask, first = [], None, None, case.files[0]
    for source in filter(None, _sources(case, settings["classes"] is not None)):
        array, own = read_volume(source, like=affine)
        if affine is None:
            affine = own
        elif array.shape != arrays[0].shape:
            shapes = f"{source.path} has shape {array.shape} and {first.path} {arrays[0].shape}"
            raise ValueError(f"{shapes}, wanted equal ones")
        elif (distance := volume.grid_distance(array.shape, affine, own)) > 0.1 * min(volume.spacing(affine)):
            wanted = "wanted the same affine (the axes may run otherwise)"
            raise ValueError(f"{source.path} lies up to {distance:.3g} mm off {first.path}, {wanted}")
        if settings.get("finding") and source in case.findings:  # whatever its numbers tell apart
            own = np.float32(2 ** case.findings.index(source)) * (rounded(array) > 0)
            mask = own if mask is None else mask + own
        elif source is case.mask:
            mask = rounded(array)
            check_classes(source.path, mask, settings["classes"])
        else:
            arrays.append(array)
    return arrays, affine, mask


def foreground_voxels(mask, classes, limit=_FOREGROUND_VOXELS):
    """(N, 4) int16: x, y, z and class of up to `limit` voxels of each class above 0, drawn evenly and always the same.

    It needs memory for one slab of the volume, however large the structures are.
    """
    rows, there = [], np.bincount(mask.ravel(), minlength=classes)
    for label in range(1, classes):
        if not there[label]:
            continue
        ends = np.cumsum([np.count_nonzero(slab == label) for slab in mask])
        total = int(ends[-1])
        chosen = np.arange(min(total, limit))
        if total > limit:  # one voxel of each of `limit` equal stretches
            jitter = np.random.default_rng(label).random(limit)
            chosen = np.unique(((chosen + jitter) * (total / limit)).astype(np.int64))
        for x, inside in enumerate(np.split(chosen, np.searchsorted(chosen, ends[:-1]))):
            if inside.size:
                places = np.flatnonzero(mask[x] == label)
                y, z = np.unravel_index(places[inside - (ends[x] - len(places))], mask[x].shape)
                rows.append(np.stack([np.full_like(y, x), y, z, np.full_like(y, label)], axis=1).astype(np.int16))
    return np.concatenate(rows) if rows else np.zeros((0, 4), np.int16)
