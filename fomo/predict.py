"""Prediction: checkpoints and scans in, answers out, in the space of the scans.

A scan goes through the same functions as in training, so that a fold's checkpoint gives its test cases the very numbers
that cross-validation stored. Reading, the network and writing overlap: the network waits for no compression.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from . import checkpoint, config as config_module, dist, inference, optimization, tables, tasks, volume
from .config import UserError
from .data import cache, sources, table

_AHEAD = 3  # cases read before, and written behind, the one that the network is at


@dataclass(frozen=True)
class Member:
    """One checkpoint, ready to predict. Those of an ensemble have the same task, channels and preprocessing."""

    path: str
    sha256: str
    config: config_module.Config
    task: object
    network: torch.nn.Module
    options: dict  # of the sliding window


def choose_device(name=None):
    """The torch device `name` (cpu, cuda, cuda:1), or the first GPU, else the CPU."""
    try:
        device = torch.device(name) if name else dist.device()
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device: got {name}, which cannot be used: {str(error).splitlines()[0]}") from error
    return device


# ------------------------------------------------------------------------------------ checkpoints


def find_checkpoints(path, folds=()):
    """The checkpoint files that `path` stands for, in order.

    A file: itself. A run folder: best.pt of its finished folds, or of `folds` (numbers from 1). Any other folder (a fold,
    final/): its best.pt, or else all *.pt files.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such file or folder, wanted a checkpoint or a run folder")
    inside = os.listdir(path)
    numbers = sorted(int(name[5:]) for name in inside if name.startswith("fold_") and name[5:].isdigit())
    if numbers:
        done = [n for n in numbers if os.path.exists(os.path.join(path, f"fold_{n}", "results.csv"))]
        missing = sorted(set(folds) - set(done))
        if missing or not done:
            raise UserError(
                f"{path}: fold {', '.join(map(str, missing or numbers))} is not finished, wanted one of {done}: run cv.py again"
            )
        return [os.path.join(path, f"fold_{n}", "best.pt") for n in (folds or done)]
    if "final.json" in inside and not tables.read_json(os.path.join(path, "final.json"))["finished"]:
        raise UserError(f"{path}: not finished, wanted a final model: run cv.py again")
    names = (
        ["best.pt"]
        if "best.pt" in inside
        else sorted(name for name in inside if name.endswith(".pt") and name[0] != ".")
    )
    if not names:
        raise UserError(f"{path}: no checkpoint in it, wanted fold_K/best.pt or *.pt")
    return [os.path.join(path, name) for name in names]


def load_members(paths, device, mirror_axes=None):
    """The members of an ensemble from checkpoint files; mirror_axes: instead of those of the checkpoints.

    Nothing of the training machine matters: of the config only what describes the task, the scans and the network is used.
    """
    members = [_load_member(path, device, mirror_axes) for path in paths]
    for member in members[1:]:
        for name, wanted in _must_agree(members[0]).items():
            got = _must_agree(member)[name]
            if got != wanted:
                raise UserError(
                    f"{member.path}: got {name}={got}, and {members[0].path} has {wanted}: they cannot predict together"
                )
    return members


def _must_agree(member):
    config, data = member.config, member.config.data
    if data.source == "slices":  # each network makes its own images of them; the rest is predict_slices.check's
        return {"data.source": data.source, "task.type": config.task.type}
    limits = {"percentile": data.percentiles, "window": data.window}.get(data.normalize)
    return {
        "task.type": config.task.type,
        "task.targets": config.task.targets,
        "task.classes": member.task.state.get("classes", config.task.classes),
        "task.activation": config.task.activation,
        "data.channels": data.channels,
        "data.spacing_mm": data.spacing_mm,
        "data.crop": data.crop,
        "data.normalize": (data.normalize, limits),
        "data.cache_dtype": data.cache_dtype,
    }


def _load_member(path, device, mirror_axes):
    config, task, network = tasks.restore(checkpoint.load(path), path)
    if config.task.pretrains:
        raise UserError(f"{path}: task.type={config.task.type} predicts nothing, wanted a network that was fine-tuned from it (weights.path)")
    optimization.to_channels_last(network.to(device).eval())
    axes = config.eval.mirror_axes if mirror_axes is None else tuple(mirror_axes)
    # a network trained in half precision on a GPU runs in single precision on the CPU
    amp = "off" if config.train.amp == "fp16" and device.type == "cpu" else config.train.amp
    options = dict(
        patch=config.data.patch,
        overlap=config.eval.overlap,
        windows=config.eval.windows,
        device=device,
        autocast=optimization.precision(amp, device)[0],
    )
    return Member(path, _sha256(path), config, task, inference.Mirrored(network, axes) if axes else network, options)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ cases


def case_from_channels(channels, given, id=None):
    """A Case from {channel name: path}; channels: the config's, of whose alternatives 'a|b' one must be given."""
    wanted = ", ".join(text.replace("|", " or ") for text in channels)
    known = {name: text for text in channels for name in text.split("|")}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(f"channel '{unknown[0]}' is not one of this checkpoint's, wanted {wanted}")
    paths = []
    for text in channels:
        there = [name for name in text.split("|") if name in given]
        if len(there) != 1:
            got = f"both {' and '.join(there)}" if there else "none"
            raise UserError(f"channel {text.replace('|', ' or ')}: got {got}, wanted one file for each of {wanted}")
        paths.append(os.path.normpath(given[there[0]]))
    id = id or os.path.basename(paths[0]).removesuffix(".gz").removesuffix(".nii").removesuffix(".npy")
    return sources.Case(id, id, tuple(sources.Volume(path) for path in paths), None, None, None)


def cases_from_table(path, channels):
    """Cases of a CSV with the column id and one per channel; relative paths start from the table's folder."""
    rows = table.read_rows(path, {"--cases": "id"}, "--cases")
    names = {name for text in channels for name in text.split("|")}
    cases, seen = [], set()
    for line, row in rows:
        id = row["id"]
        if not id or id in seen or not table.names_a_file(id):
            raise UserError(f"{path}: line {line}: got the id {id[:80]!r}, wanted one of its own that can name a file")
        seen.add(id)
        folder = os.path.dirname(os.path.abspath(path))
        given = {name: os.path.join(folder, row[name]) for name in names if row.get(name)}
        try:
            cases.append(case_from_channels(channels, given, id))
        except UserError as error:
            raise UserError(f"{path}: line {line}: {error}") from error
    return cases


def cases_from_source(config, source, root):
    """The cases of a data set in one of the layouts, labels left alone."""
    if source == "volumes" and len(config.data.channels) != 1:
        raise UserError(f"--source volumes: got a checkpoint of the channels {', '.join(config.data.channels)}, wanted one; use --cases")
    data = dataclasses.replace(config.data, source=source, root=root, csv=None, groups=None, cache=None)
    return sources.list_cases(data, config.task, labels=False)


# ------------------------------------------------------------------------------------- prediction


def infer(members, image, background):
    """What each member says about one preprocessed case (image: numpy), in order; the image goes to the device once."""
    image = torch.from_numpy(image).to(members[0].options["device"])
    return [member.task.infer(member.network, image, background, member.options) for member in members]


def answer(members, parts, geometry):
    """(row, {name: volume in native space}) from all members' parts."""
    return members[0].task.answer([member.task for member in members], parts, geometry)


def predict_to_file(members, given, path, log, corrected=False):
    """One case, from {channel name: path}, to one file, as the FOMO25 challenge wants it; returns the row.

    A mask, or one number as text in full precision: the probability, or the (bias-) `corrected` or raw prediction. Of the
    alternatives 'a|b' the first that is given is taken; channels that the checkpoint does not know are left out, and logged.
    """
    config = members[0].config
    mask = config.task.type == "segmentation"
    if path.endswith((".nii", ".nii.gz")) != mask:
        wanted = "a .nii.gz file for the mask" if mask else "a text file for one number"
        raise UserError(f"--output: got {path}, wanted {wanted}: the checkpoints are of task.type={config.task.type}")
    used = {}
    for text in config.data.channels:
        used.update({name: given[name] for name in [name for name in text.split("|") if name in given][:1]})
    if set(given) - set(used):
        log.warn("channels left out", channels=sorted(set(given) - set(used)), used=list(used))
    case = case_from_channels(config.data.channels, used)
    try:
        image, background, geometry = cache.load(case, config.data, config.task)
        row, volumes = answer(members, infer(members, image, background), geometry)
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        if mask:
            write_volume(path, "mask", volumes["mask"], case, geometry)
        else:
            name = "probability" if "probability" in row else "corrected" if corrected else "prediction"
            _write_text(path, f"{row[name]!r}\n")
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if row.get("predicted_voxels") == 0:
        log.warn("the predicted mask is empty", output=path)
    return row


def _write_text(path, text):
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def predict(members, cases, output, log, probabilities=False, overwrite=False):
    """Predict `cases` into the folder `output`: predictions.csv, one row a case, and for segmentation masks/ID.nii.gz.

    probabilities: segmentation also writes probabilities/ID.nii.gz, float32, of class 1 or of all classes (x, y, z, class).
    Cases that are there already are kept unless `overwrite`; a folder that other checkpoints filled is refused. A case that
    fails is logged; the others are predicted, and then one UserError names those that failed.
    """
    volumes = (
        ["mask", *(["probabilities"] if probabilities else [])] if members[0].config.task.type == "segmentation" else []
    )
    try:
        for folder in ("", *(_FOLDERS[name] for name in volumes)):
            os.makedirs(os.path.join(output, folder), exist_ok=True)
        rows = _existing(members, output, [case.id for case in cases] if overwrite else None)
        tables.write_json(os.path.join(output, "settings.json"), _settings(members))
        failures = _predict(members, cases, output, log, volumes, rows)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    if failures:
        rest = f" ({len(failures) - 1} more failed: {', '.join(id for id, _ in failures[1:])})" if failures[1:] else ""
        raise UserError(
            f"case {failures[0][0]}: {failures[0][1]}{rest}; the results of the other cases are in {output}"
        )


def _predict(members, cases, output, log, volumes, rows):
    """Predict the cases that are not in `rows` {id: row} yet, and add them; [(id, message)] of those that failed."""
    todo = [
        case
        for case in cases
        if case.id not in rows or not all(os.path.exists(_place(output, name, case.id)) for name in volumes)
    ]
    log("predict", cases=len(cases), kept=len(cases) - len(todo), networks=len(members), output=output)
    predicted, failures, started, waited_s = [], [], time.perf_counter(), 0.0
    data, task = members[0].config.data, members[0].config.task
    writing = collections.deque()

    def fail(case, error):
        failures.append((case.id, " ".join(str(error).split())))
        log.warn("case failed", case=case.id, error=failures[-1][1])

    def finish(case, future):
        try:
            row, times = future.result()
        except (ValueError, OSError) as error:
            return fail(case, error)
        predicted.append(case.id)
        rows[case.id] = {"id": case.id, **row, "seconds": round(sum(times.values()), 3)}
        tables.write_csv(os.path.join(output, "predictions.csv"), [rows[id] for id in sorted(rows)])
        log("predict", id=case.id, **row, **times, done=len(predicted) + len(failures), of=len(todo))

    with concurrent.futures.ThreadPoolExecutor(2) as readers, concurrent.futures.ThreadPoolExecutor(2) as writers:
        for case, reading in _read_ahead(readers, todo, data, task):
            clock = time.perf_counter()
            try:
                (image, background, geometry), read_s = reading.result()
            except (ValueError, OSError) as error:
                fail(case, error)
                continue
            waited_s += time.perf_counter() - clock
            clock = time.perf_counter()
            parts = infer(members, image, background)
            times = {"read_s": read_s, "network_s": time.perf_counter() - clock}
            writing.append((case, writers.submit(_write, members, parts, geometry, case, output, volumes, times)))
            clock = time.perf_counter()
            while writing and (writing[0][1].done() or len(writing) > _AHEAD):
                finish(*writing.popleft())
            waited_s += time.perf_counter() - clock
        while writing:
            finish(*writing.popleft())
    seconds = time.perf_counter() - started
    log(
        "predict",
        finished=True,
        predicted=len(predicted),
        failed=len(failures),
        seconds=seconds,
        waited_s=waited_s,
    )
    return failures


def _read_ahead(readers, cases, data, task):
    """Yield (case, future of (what cache.load gives, seconds)) in order, with some more under way."""
    reading = collections.deque()
    for case in cases:
        reading.append((case, readers.submit(_timed, cache.load, case, data, task)))
        if len(reading) > _AHEAD:
            yield reading.popleft()
    yield from reading


_FOLDERS = {"mask": "masks", "probabilities": "probabilities"}


def _place(output, name, id):
    return os.path.join(output, _FOLDERS[name], f"{id}.nii.gz")


def _timed(function, *arguments):
    clock = time.perf_counter()
    return function(*arguments), time.perf_counter() - clock


def _write(members, parts, geometry, case, output, volumes, times):
    """(row, seconds of each step); runs in a thread of its own."""
    clock = time.perf_counter()
    row, arrays = answer(members, parts, geometry)
    for name in volumes:
        write_volume(_place(output, name, case.id), name, arrays[name], case, geometry)
    return row, {**times, "write_s": time.perf_counter() - clock}


def write_volume(path, name, array, case, geometry):
    """Write a mask or probabilities with the header of the case's first channel; nothing partial stays when it fails."""
    if name == "probabilities":
        array = array[1] if len(array) == 2 else np.moveaxis(array, 0, -1)
    like = case.images[0].path if case.images[0].path.endswith((".nii", ".nii.gz")) else None
    try:
        volume.write_nifti(path, array, np.array(geometry.native_affine), like)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _existing(members, output, overwrite):
    """The rows that are in `output` already; overwrite: ids to predict again (None: none, and other checkpoints are refused)."""
    settings, table = os.path.join(output, "settings.json"), os.path.join(output, "predictions.csv")
    if not os.path.exists(table):
        return {}
    if not os.path.exists(settings) or tables.read_json(settings)["checkpoints"] != _settings(members)["checkpoints"]:
        if overwrite is None:
            raise UserError(
                f"{output} holds predictions of other checkpoints or options: choose another --output, or --overwrite"
            )
        return {}
    return {row["id"]: row for row in tables.read_csv(table) if row["id"] not in (overwrite or ())}


def _settings(members):
    axes = [list(getattr(member.network, "axes", ())) for member in members]
    return {
        "checkpoints": [{"sha256": m.sha256, "mirror_axes": a} for m, a in zip(members, axes)],
        "paths": [m.path for m in members],
    }
