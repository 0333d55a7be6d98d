"""The cache: every case preprocessed once, then read as memory maps.

    <cache>/<id>-<hash>/image.npy       (C, X, Y, Z) in data.cache_dtype
                        mask.npy        (X, Y, Z) uint8, segmentation only
                        foreground.npy  (N, 4) int16: x, y, z, class of foreground voxels, segmentation only
                        case.json       geometry, background value of each channel, voxels of each class

The hash covers the preprocessing settings and every source file's path, size and time, so a change makes a new entry
and never a wrong one. An entry appears by a rename, whole or not at all; whatever is there already is not done again.
"""

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from .. import volume
from ..config import UserError, fingerprint
from . import sources

_VERSION = 1  # raise it when preprocessing changes its results
_FOREGROUND_VOXELS = 10_000  # kept per class
_FEW = 8  # cases: starting processes takes longer


@dataclass(frozen=True)
class CachedCase:
    case: sources.Case
    folder: str
    shape: tuple[int, int, int]  # (X, Y, Z)
    geometry: volume.Geometry
    background: tuple[float, ...]  # per channel: what lies outside the volume
    class_voxels: tuple[int, ...]  # per class, in the cached mask; empty without a mask

    def image(self):
        """(C, X, Y, Z), memory-mapped."""
        return np.load(os.path.join(self.folder, "image.npy"), mmap_mode="r")

    def mask(self):
        """(X, Y, Z) uint8, memory-mapped; segmentation only."""
        return np.load(os.path.join(self.folder, "mask.npy"), mmap_mode="r")

    def foreground(self):
        """(N, 4) int16: x, y, z, class, sorted by class, at most 10000 evenly drawn of each; segmentation only."""
        return np.load(os.path.join(self.folder, "foreground.npy"))


def prepare(cases, data, task, log=None, workers=None):
    """The list of CachedCase for `cases`, in their order; preprocesses those that the cache does not have yet.

    data, task: the config's sections; workers: processes (0: this one; None: data.prepare_workers). log: fomo.log's
    Log, for progress (`data`) and warnings. Raises one UserError when cases are unusable, after all others are done:
    the first in full and the ids of the rest.
    """
    if data.cache is None:
        raise UserError("data.cache: got none, wanted the folder of the preprocessed cases")
    settings = _settings(data, task)
    jobs = [(case, _entry(case, data.cache, settings), settings) for case in cases]
    todo = [job for job in jobs if not os.path.isdir(job[1])]
    failures, started, shown = [], time.monotonic(), time.monotonic()
    if log:
        log("data", cases=len(cases), cached=len(cases) - len(todo), cache=data.cache)
    try:
        os.makedirs(data.cache, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache: cannot make {data.cache}: {error}") from error
    workers = data.prepare_workers if workers is None else workers
    for done, (case, failure, warning) in enumerate(_run(todo, min(workers, len(todo) // _FEW)), start=1):
        if failure:
            failures.append((case.id, failure))
        if log and warning:
            log.warn(warning, case=case.id)
        if log and (done == len(todo) or time.monotonic() > shown + 10):
            shown = time.monotonic()
            log("data", prepared=done, of=len(todo), eta_s=(shown - started) / done * (len(todo) - done))
    if failures:
        failures.sort()
        rest = f" ({len(failures) - 1} more failed: {', '.join(id for id, _ in failures[1:])})" if failures[1:] else ""
        raise UserError(f"case {failures[0][0]}: {failures[0][1]}{rest}")
    return [_open(case, folder) for case, folder, _ in jobs]


def _run(jobs, workers):
    """Yield (case, failure, warning) of each job as it finishes."""
    if workers == 0:
        yield from map(_prepare, jobs)
        return
    # spawn: the parent may hold threads (BLAS, a process group) that a fork would break
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(_prepare, job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _settings(data, task):
    """What decides on the content of an entry, besides its sources."""
    used = {
        "version": _VERSION,
        "spacing_mm": data.spacing_mm and list(data.spacing_mm),
        "crop": data.crop,
        "kind": data.normalize,
        "dtype": data.cache_dtype,
        "classes": task.classes if task.type == "segmentation" else None,
    }
    if data.normalize in ("percentile", "window"):
        limits = {"percentile": "percentiles", "window": "window"}[data.normalize]
        used[limits] = list(getattr(data, limits))
    return used


def _entry(case, cache, settings):
    """The folder of a case's entry."""
    files = []
    for source in _sources(case, settings):
        try:
            status = os.stat(source.path)
        except OSError as error:
            raise UserError(f"case {case.id}: cannot read {source.path}: {error.strerror}") from error
        files.append([os.path.abspath(source.path), source.index, status.st_size, status.st_mtime_ns])
    return os.path.join(cache, f"{case.id}-{fingerprint({'settings': settings, 'files': files})}")


def _sources(case, settings):
    masked = settings["classes"] is not None and case.mask is not None
    return (*case.images, case.mask) if masked else case.images


def _prepare(job):
    """(case, failure or None, warning or None); runs in a worker process."""
    case, folder, settings = job
    try:
        return case, None, _write(case, folder, settings)
    except (ValueError, OSError) as error:  # UserError is a ValueError; OSError: the disk is full or not ours
        return case, str(error), None


def _write(case, folder, settings):
    """Make the entry `folder`; returns a warning, or None."""
    image, mask, geometry = _preprocess(case, settings)
    facts = {"geometry": geometry.to_dict(), "background": image.min(axis=(1, 2, 3)).tolist()}
    warning = None
    temporary = tempfile.mkdtemp(prefix=f".{case.id}-", dir=os.path.dirname(folder))
    try:
        np.save(os.path.join(temporary, "image.npy"), image)
        if mask is not None:
            counts = np.bincount(mask.ravel(), minlength=settings["classes"])
            facts["class_voxels"] = [int(count) for count in counts]
            np.save(os.path.join(temporary, "mask.npy"), mask)
            np.save(os.path.join(temporary, "foreground.npy"), foreground_voxels(mask, settings["classes"]))
            warning = _vanished(case, counts)
        with open(os.path.join(temporary, "case.json"), "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
        os.rename(temporary, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another process made the same entry meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return warning


def load(case, data, task):
    """(image (C, X, Y, Z), background per channel, Geometry) of a case as its entry would hold them, without writing one."""
    settings = _settings(data, task)
    image, _, geometry = _preprocess(case, settings)
    return image, tuple(float(value) for value in image.min(axis=(1, 2, 3))), geometry


def _preprocess(case, settings):
    arrays, affine, mask = _read(case, settings)
    names = ("spacing_mm", "crop", "kind", "percentiles", "window")
    options = {name: settings[name] for name in names if name in settings}
    try:
        image, mask, geometry = volume.preprocess(arrays, affine, mask=mask, **options)
    except ValueError as error:
        raise _blame(case, arrays, error) from error
    return _cast(image, case, settings["dtype"]), mask, geometry


def _cast(image, case, dtype):
    """The image in the cache's type. float16 keeps 11 bits: values move by at most 1/2048 of themselves (by at most 3e-8
    below 6e-5), z-scores of 1 by 0.0005 and of 10 by 0.004. Values beyond 65504 would be infinite and are an error.
    """
    limit = np.finfo(dtype).max
    for source, channel in zip(case.images, image):
        largest = max(channel.max(), -channel.min())
        if largest > limit:
            raise ValueError(
                f"{source.path}: got intensities up to {largest:.6g} after preprocessing, wanted at most {limit:.6g} for "
                f"data.cache_dtype={dtype}; set it to float32, or normalize"
            )
    return image.astype(dtype, copy=False)


def _vanished(case, counts):
    if case.target and not counts[1:].any():
        return "the mask's foreground is smaller than a voxel of data.spacing_mm and vanished"
    return None


def _read(case, settings):
    """([array per channel], affine, mask or None), all on one grid."""
    arrays, affine, first = [], None, case.images[0]
    mask = None
    for source in _sources(case, settings):
        array, own = sources.read_volume(source)
        if affine is None:
            affine = own
        elif array.shape != arrays[0].shape:
            raise ValueError(
                f"{source.path} has shape {array.shape} and {first.path} {arrays[0].shape}, wanted equal ones"
            )
        else:
            distance = volume.grid_distance(array.shape, affine, own)
            if distance > 0.1 * min(volume.spacing(affine)):
                raise ValueError(f"{source.path} lies up to {distance:.3g} mm off {first.path}, wanted the same affine")
        if source is case.mask:
            _check_classes(source.path, array, settings["classes"])
            mask = array
        else:
            arrays.append(array)
    return arrays, affine, mask


def _check_classes(path, array, classes):
    values = np.unique(array)
    wrong = [f"{value:g}" for value in values if value != int(value) or not 0 <= value < classes]
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(f"{path}: got the mask values {shown}, wanted whole numbers below task.classes={classes}")


def _blame(case, arrays, error):
    """`error` of `volume.preprocess` with the file of the channel that it is about."""
    for source, array in zip(case.images, arrays):
        if array.min() == array.max():
            return ValueError(f"{source.path}: {error}")
    return ValueError(f"{', '.join(source.path for source in case.images)}: {error}")


def foreground_voxels(mask, classes, limit=_FOREGROUND_VOXELS):
    """(N, 4) int16: x, y, z, class of up to `limit` voxels of each class above 0, evenly drawn, always the same ones.

    Memory stays at one slab of the volume, however large the structures are.
    """
    rows = []
    for label in range(1, classes):
        per_slab = [int(np.count_nonzero(slab == label)) for slab in mask]
        total = sum(per_slab)
        chosen = np.arange(min(total, limit))
        if total > limit:  # one voxel of each of `limit` equal stretches
            jitter = np.random.default_rng(label).random(limit)
            chosen = np.unique(((chosen + jitter) * (total / limit)).astype(np.int64))
        before = 0
        for x, count in enumerate(per_slab):
            if count:
                inside = chosen[(chosen >= before) & (chosen < before + count)] - before
                y, z = np.unravel_index(np.flatnonzero(mask[x] == label)[inside], mask[x].shape)
                rows.append(np.stack([np.full_like(y, x), y, z, np.full_like(y, label)], axis=1).astype(np.int16))
                before += count
    return np.concatenate(rows) if rows else np.zeros((0, 4), np.int16)


def _open(case, folder):
    with open(os.path.join(folder, "case.json"), encoding="utf-8") as file:
        facts = json.load(file)
    geometry = volume.Geometry.from_dict(facts["geometry"])
    return CachedCase(
        case=case,
        folder=folder,
        shape=geometry.shape,
        geometry=geometry,
        background=tuple(facts["background"]),
        class_voxels=tuple(facts.get("class_voxels", ())),
    )
