"""Prediction: checkpoints and scans in, answers out, in the space of the scans.

A scan goes through the same functions as in training, so that a fold's checkpoint gives its test cases the very numbers
that cross-validation stored. Reading, the network and writing overlap: the network waits for no compression.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from .. import checkpoint, inference, tasks
from .. import config as config_module
from ..config import UserError
from ..data import cache, listing, sources, spreadsheet
from ..data.cases import ID_WANTED, Case, Volume, names_a_file
from ..runtime import dist, files
from ..space import volume
from ..tasks import Classification, Regression, Segmentation
from ..training import memory, optimization
from . import prediction_folder

_AHEAD = 3  # cases read before, and written behind, the one that the network is at


@dataclass(frozen=True)
class Member:
    """One checkpoint, ready to predict. Those of an ensemble have the same task, channels and preprocessing."""

    path: str
    sha256: str
    config: config_module.Config
    task: object
    network: torch.nn.Module
    amp: str  # bf16, fp16 or off: the precision in which the network runs
    subjects: frozenset  # that it was trained on, or chosen by
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
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder, wanted a checkpoint or a run folder")
    inside = os.listdir(path) if os.path.isdir(path) else []
    numbers = sorted(int(name[5:]) for name in inside if name.startswith("fold_") and name[5:].isdigit())
    if folds and not numbers:
        raise UserError(f"--folds: got {', '.join(map(str, folds))}, and {path} is no run folder to choose from")
    if os.path.isfile(path):
        return [path]
    if numbers:
        done = [n for n in numbers if os.path.exists(os.path.join(path, f"fold_{n}", "results.csv"))]
        missing = sorted(set(folds) - set(done))
        if missing or not done:
            raise UserError(
                f"{path}: fold {', '.join(map(str, missing or numbers))} is not finished, wanted one of {done}: run cv.py again"
            )
        return [os.path.join(path, f"fold_{n}", "best.pt") for n in (folds or done)]
    if "final.json" in inside and not files.read_json(os.path.join(path, "final.json"), "finished")["finished"]:
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
    if mirror_axes is not None and len(set(mirror_axes)) < len(mirror_axes):
        raise UserError(f"--mirror: got {' '.join(map(str, mirror_axes))}, wanted each axis once")
    members = [_load_member(path, device, mirror_axes) for path in paths]
    by_content = {}
    for member in members:
        first = by_content.setdefault(member.sha256, member)
        if first is not member:
            raise UserError(
                f"{member.path}: the same checkpoint as {first.path}, wanted each once: it would count twice"
            )
    for member in members[1:]:
        for name, wanted in _must_agree(members[0]).items():
            got = _must_agree(member)[name]
            if got != wanted:
                raise UserError(
                    f"{member.path}: got {name}={got}, and {members[0].path} has {wanted}: they cannot predict together"
                )
    return members


def _must_agree(member):
    config = member.config
    if config.data.source == "slices":  # each network makes its own images of them; the rest is predict_slices.check's
        return {"task.type": config.task.type, "data.source": "slices"}
    return {"task.type": config.task.type, "data.source": "volumes", **tasks.meaning(config, member.task.state)}


def _load_member(path, device, mirror_axes):
    content = checkpoint.load(path)
    config, task, network = tasks.restore(content, path)
    if config.task.pretrains:
        raise UserError(
            f"{path}: task.type={config.task.type} predicts nothing, wanted a network that was fine-tuned from it (weights.path)"
        )
    optimization.lay_out(network.eval(), device)
    axes = config.eval.mirror_axes if mirror_axes is None else tuple(mirror_axes)
    amp = optimization.amp_of(config.train.amp, device)
    if amp == "fp16" and device.type == "cpu":
        amp = "off"  # which the CPU does not have
    options = dict(
        patch=config.data.patch,
        overlap=config.eval.overlap,
        windows=config.eval.windows,
        device=device,
        autocast=optimization.precision(amp, device)[0],
    )
    network = inference.Mirrored(network, axes) if axes else network
    return Member(path, _sha256(path), config, task, network, amp, frozenset(content.get("subjects", ())), options)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ cases


def case_from_channels(channels, given, id=None, subject=None):
    """A Case from {channel name: path}; channels: the config's, of whose alternatives 'a|b' one must be given.

    id: names the output files; None: as the first channel's file. subject: None: the id.
    """
    if id is not None and not names_a_file(id):
        raise UserError(f"got the id {id[:80]!r}, wanted {ID_WANTED}")
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
    if id is None:
        id = os.path.basename(paths[0]).removesuffix(".gz").removesuffix(".nii").removesuffix(".npy")
    return Case(id, subject or id, tuple(Volume(path) for path in paths), None, None, None)


def cases_from_table(path, data):
    """Cases of a CSV with a column of ids, of subjects (optional) and one per channel; relative paths start from its folder.

    data: the checkpoint's config.data. The columns are called as in its training table, or else id and subject.
    """
    rows = spreadsheet.read_rows(path, {}, "--cases")
    there = rows[0].cells
    id_column = next((name for name in (data.id_column, "id") if name in there), None)
    subject_column = data.subject_column if data.subject_column in there else "subject"
    if id_column is None:
        wanted = "id" if data.id_column == "id" else f"{data.id_column} or id"
        raise UserError(
            f"{path}: line 1: got the columns {', '.join(there)[:500]}, wanted {wanted} and one for each channel"
        )
    names = {name for text in data.channels for name in text.split("|")}
    cases, seen = [], set()
    for line, row in rows:
        id = row[id_column]
        if id in seen:
            raise UserError(f"{path}: line {line}: got the id {id!r} again, wanted one for each case")
        seen.add(id)
        folder = os.path.dirname(os.path.abspath(path))
        given = {name: os.path.join(folder, row[name]) for name in names if row.get(name)}
        try:
            cases.append(case_from_channels(data.channels, given, id, row.get(subject_column)))
        except UserError as error:
            raise UserError(f"{path}: line {line}: {error}") from error
    return cases


def cases_from_source(config, source, root):
    """The cases of a data set in one of the layouts, labels left alone."""
    if source == "volumes" and len(config.data.channels) != 1:
        raise UserError(
            f"--source volumes: got a checkpoint of the channels {', '.join(config.data.channels)}, wanted one; use --cases"
        )
    data = dataclasses.replace(config.data, source=source, root=root, csv=None, groups=None, cache=None)
    return sources.list_cases(data, config.task, labels=False)


# ------------------------------------------------------------------------------------- prediction


def infer(members, case, image, background):
    """What each member says about a preprocessed case (image: numpy), in order; memory.OutOfMemory where it does not fit."""
    options = members[0].options
    with memory.explained(lambda: memory.advise_prediction(case, image.shape, options)):
        on_device = torch.from_numpy(image).to(options["device"])  # once for all of them
        return [member.task.infer(member.network, on_device, background, member.options) for member in members]


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
    if tasks.kind(config) not in (Classification, Segmentation, Regression):
        raise UserError(
            f"{members[0].path}: got a network of several targets or labels, wanted one of a single answer: use tools/predict.py"
        )
    if path.endswith((".nii", ".nii.gz")) != mask:
        wanted = "a .nii.gz file for the mask" if mask else "a text file for one number"
        raise UserError(f"--output: got {path}, wanted {wanted}: the checkpoints are of task.type={config.task.type}")
    used = {}
    for text in config.data.channels:
        used.update({name: given[name] for name in [name for name in text.split("|") if name in given][:1]})
    if corrected and config.task.type != "regression":
        raise UserError(f"--corrected: got checkpoints of task.type={config.task.type}, wanted regression")
    if set(given) - set(used):
        log.warn("channels left out", channels=sorted(set(given) - set(used)), used=list(used))
    case = case_from_channels(config.data.channels, used)
    try:
        image, background, geometry = cache.load(case, config.data, config.task)
        row, volumes = answer(members, infer(members, case, image, background), geometry)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if corrected and not math.isfinite(row["corrected"]):
        raise UserError(
            "--corrected: it is undefined by these checkpoints' validation cases, wanted the raw prediction"
        )
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if mask:
            write_volume(path, "mask", volumes["mask"], case, geometry)
        else:
            name = "probability" if "probability" in row else "corrected" if corrected else "prediction"
            files.write_text(path, f"{row[name]!r}\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    if row.get("predicted_voxels") == 0:
        log.warn("the predicted mask is empty", output=path)
    return row


def predict(members, cases, output, log, probabilities=False, overwrite=False):
    """Predict `cases` into the folder `output`: predictions.csv, one row a case, and for segmentation masks/ID.nii.gz.

    probabilities: segmentation also writes probabilities/ID.nii.gz, float32, of class 1 or of all classes (x, y, z, class).
    Cases that are there already are kept unless `overwrite`; a folder that other checkpoints filled, or that has a case of the
    same id but of other files, is refused. A case that fails is logged; the others are predicted, and then one UserError names those that failed.
    """
    volumes = (
        ["mask", *(["probabilities"] if probabilities else [])] if members[0].config.task.type == "segmentation" else []
    )
    inputs = {case.id: case.images for case in cases}
    try:
        rows = prediction_folder.start(output, members, "predictions.csv", inputs, overwrite)
        prediction_folder.check_inputs(output, rows, inputs)
        for name in volumes:
            os.makedirs(os.path.join(output, _FOLDERS[name]), exist_ok=True)
        failures = _predict(members, cases, output, log, volumes, rows)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    prediction_folder.refuse("case", failures, output)


def _predict(members, cases, output, log, volumes, rows):
    """Predict the cases that are not in `rows` {id: row} yet, and add them; [(id, message)] of those that failed."""
    listing.warn_without_geometry(cases, log)
    for member in members:
        checkpoint.warn_of_known({case.subject for case in cases}, member.subjects, member.path, log)
    todo = [
        case
        for case in cases
        if case.id not in rows or not all(os.path.exists(_place(output, name, case.id)) for name in volumes)
    ]
    for message in optimization.doubts(members[0].options["device"]):
        log.warn(message)
    log("predict", cases=len(cases), kept=len(cases) - len(todo), **prediction_folder.describe(members), output=output)
    predicted, failures, started, waited_s = [], [], time.perf_counter(), 0.0
    data, task = members[0].config.data, members[0].config.task
    writing = collections.deque()

    def fail(case, error):
        failures.append((case.id, " ".join(str(error).split())))
        log.warn("case failed", case=case.id, error=failures[-1][1])

    def finish(case, key, future):
        try:
            row, times = future.result()
        except (ValueError, OSError) as error:
            return fail(case, error)
        predicted.append(case.id)
        rows[case.id] = {"id": case.id, "input": key, **row, "seconds": round(sum(times.values()), 3)}
        files.write_csv(os.path.join(output, "predictions.csv"), [rows[id] for id in sorted(rows)])
        log("predict", id=case.id, **row, **times, done=len(predicted) + len(failures), of=len(todo))

    with concurrent.futures.ThreadPoolExecutor(2) as readers, concurrent.futures.ThreadPoolExecutor(2) as writers:
        for case, reading in _read_ahead(readers, todo, data, task):
            clock = time.perf_counter()
            try:
                key, (image, background, geometry), read_s = reading.result()
            except (ValueError, OSError) as error:
                fail(case, error)
                continue
            waited_s += time.perf_counter() - clock
            clock = time.perf_counter()
            try:
                parts = infer(members, case, image, background)
            except memory.OutOfMemory as error:
                fail(case, error)
                continue
            times = {"read_s": read_s, "network_s": time.perf_counter() - clock}
            writing.append((case, key, writers.submit(_write, members, parts, geometry, case, output, volumes, times)))
            clock = time.perf_counter()
            while writing and (writing[0][-1].done() or len(writing) > _AHEAD):
                finish(*writing.popleft())
            waited_s += time.perf_counter() - clock
        while writing:
            finish(*writing.popleft())
    seconds = time.perf_counter() - started
    log("predict", finished=True, predicted=len(predicted), failed=len(failures), seconds=seconds, waited_s=waited_s)
    return failures


def _read_ahead(readers, cases, data, task):
    """Yield (case, future of what _read gives) in order, with some more under way."""
    reading = collections.deque()
    for case in cases:
        reading.append((case, readers.submit(_read, case, data, task)))
        if len(reading) > _AHEAD:
            yield reading.popleft()
    yield from reading


_FOLDERS = {"mask": "masks", "probabilities": "probabilities"}


def _place(output, name, id):
    return os.path.join(output, _FOLDERS[name], f"{id}.nii.gz")


def _read(case, data, task):
    """(key of its files, what cache.load gives, seconds)."""
    clock = time.perf_counter()
    key = prediction_folder.key_of(case.images)  # before they are read
    return key, cache.load(case, data, task), time.perf_counter() - clock


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
    like = case.images[0].path if case.images[0].path.lower().endswith((".nii", ".nii.gz")) else None
    try:
        volume.write_nifti(path, array, np.array(geometry.native_affine), like)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
