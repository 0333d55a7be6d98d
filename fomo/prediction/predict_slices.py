"""Prediction of networks that see slices: the slices' probabilities, and pooled from them the scans' findings.

The slices are files, listed in a table or lying in a folder, or they are taken from CT volumes, in memory, as the
checkpoint's own were extracted. Each network pools its own slices in its own way; probabilities are averaged over the
networks, and decisions are made at the mean of their thresholds.
"""

import collections
import os
import time

import numpy as np
import torch

from ..config import UserError
from ..data import ct, slice_files, spreadsheet
from ..data.cases import Case, Volume, read_volume
from ..data.sources import volumes
from ..runtime import files
from ..training import loop
from . import prediction_folder

_TOP = 5  # findings of a scan that stand in predictions.json, whatever their probability
_BATCH = 64  # slices per forward pass
_CHUNK = 2048  # slices that are read ahead of the networks together
_SAVE_S = 60  # of predicting, which is there when it goes on


def check(members):
    """UserError unless the members of an ensemble see slices, the same ones, and tell the same labels."""
    first = members[0]
    for member in members:
        if member.config.data.source != "slices":
            raise UserError(
                f"{member.path}: got a network of data.source={member.config.data.source}, wanted one of slices"
            )
        for name in ("task.targets", "data.patch", "data.neighbours"):
            section, key = name.split(".")
            got, wanted = (getattr(getattr(m.config, section), key) for m in (member, first))
            if got != wanted:
                raise UserError(
                    f"{member.path}: got {name}={got}, and {first.path} has {wanted}: they cannot predict together"
                )


def listed_slices(place):
    """[(slice id, scan, path)] of a table with the columns slice_id, volume_name and file_path, or of the .npy files below
    a folder, whose scans are the folders that they lie in, each with a name of its own.
    """
    if os.path.isdir(place):
        found, folders = [], {}
        for folder, _, names in sorted(os.walk(place)):
            names = sorted(name for name in names if name.lower().endswith(".npy"))
            scan = os.path.basename(os.path.abspath(folder))
            if names and folders.setdefault(scan, folder) != folder:
                raise UserError(
                    f"{place}: two scans are called {scan}: {folders[scan]} and {folder}; rename one, or give a table with volume_name"
                )
            found += [(name[:-4], scan, os.path.join(folder, name)) for name in names]
        if not found:
            raise UserError(f"{place}: no slices (*.npy) below it")
        return _each_once(found, "slices")
    rows = spreadsheet.read_rows(
        place, {f"--slices: {name}": name for name in ("slice_id", "volume_name", "file_path")}, "--slices"
    )
    folder = os.path.dirname(os.path.abspath(place))
    return _each_once(
        [(cells["slice_id"], cells["volume_name"], os.path.join(folder, cells["file_path"])) for _, cells in rows],
        "slices",
    )


def listed_volumes(places):
    """[(scan, path)] of CT volumes: files, DICOM folders, or folders with such below them."""
    found = []
    for place in places:
        if os.path.isdir(place):
            found += [(os.path.basename(name), path) for name, path in volumes.scans_below(place)]
        else:
            found.append((os.path.basename(place), place))
    if not found:
        raise UserError(
            f"{', '.join(places)}: no volumes below it, wanted .nii, .nii.gz, .npy or folders of DICOM files"
        )
    return _each_once(found, "volumes")


def _each_once(listed, what):
    [(name, count)] = collections.Counter(one[0] for one in listed).most_common(1)
    if count > 1:
        raise UserError(f"{count} {what} are called {name}: rename all but one")
    return listed


def predict_slices(members, listed, output, log, overwrite=False):
    """Predict listed slices into the folder `output`, see `_write`. A scan of which the same slices are there is kept unless `overwrite`.

    One of which a slice fails is logged; the others are predicted, and then one UserError names those that failed.
    """
    ids, files = {}, {}
    for id, scan, path in listed:
        ids.setdefault(scan, set()).add(id)
        files.setdefault(scan, []).append(Volume(path))
    of_slices, rows = _start(members, output, files, overwrite)
    for scan in ids.keys() & rows.keys():
        if {row["id"] for row in of_slices[scan]} != ids[scan]:
            del rows[scan]
    prediction_folder.check_inputs(output, rows, files)
    cases = [
        Case(id, scan, (Volume(path),), None, None, None, scan=scan) for id, scan, path in listed if scan not in rows
    ]
    log(
        "predict",
        slices=len(listed),
        kept=len(listed) - len(cases),
        **prediction_folder.describe(members),
        output=output,
    )
    keys = {scan: prediction_folder.key_of(files[scan]) for scan in files if scan not in rows}
    begin = saved = time.perf_counter()
    of_scan, failures = {}, []
    for case in cases:
        of_scan.setdefault(case.scan, []).append(case)
    for scans in _together(of_scan):
        for scan, own, parts in _of_scans(members, {scan: of_scan[scan] for scan in scans}, failures, log):
            of_slices[scan], rows[scan] = _answer(members, scan, keys[scan], [case.id for case in own], parts)
        if time.perf_counter() - saved >= _SAVE_S:
            _write(members, of_slices, rows, output)
            saved = time.perf_counter()
    if len(failures) < len(of_scan):
        _write(members, of_slices, rows, output)
    predicted = len(of_scan) - len(failures)
    log(
        "predict",
        finished=True,
        predicted=predicted,
        failed=len(failures),
        slices=len(cases),
        seconds=time.perf_counter() - begin,
    )
    prediction_folder.refuse("scan", failures, output)


def _together(of_scan):
    """The scans of {scan: slices} in lists of at least _CHUNK slices, for which the loader's workers start once."""
    chunk, count = [], 0
    for scan, cases in of_scan.items():
        chunk.append(scan)
        count += len(cases)
        if count >= _CHUNK:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def _of_scans(members, of_scan, failures, log):
    """[(scan, cases, of each member the probabilities (slices, labels))] of {scan: cases}; one that fails is logged instead."""
    try:
        parts = [_of_files(member, [case for cases in of_scan.values() for case in cases]) for member in members]
    except UserError as error:
        listed, half = list(of_scan.items()), len(of_scan) // 2
        if half:  # which of them it is
            return [
                found
                for part in (listed[:half], listed[half:])
                for found in _of_scans(members, dict(part), failures, log)
            ]
        failures.append((*of_scan, str(error)))
        log.warn("scan failed", scan=failures[-1][0], error=failures[-1][1])
        return []
    ends = np.cumsum([len(cases) for cases in of_scan.values()])[:-1]
    return [
        (scan, cases, of_one)
        for (scan, cases), *of_one in zip(of_scan.items(), *(np.split(part, ends) for part in parts))
    ]


def predict_volumes(members, listed, output, log, overwrite=False):
    """Predict CT volumes into the folder `output`, see `_write`. Those that are there already are kept unless `overwrite`.

    One that fails is logged; the others are predicted, and then one UserError names those that failed.
    """
    settings = [extraction(member) for member in members]
    for member, own in zip(members, settings):
        if own != settings[0]:
            raise UserError(
                f"{member.path}: its slices were extracted otherwise than those of {members[0].path}: they cannot predict together"
            )
    inputs = {scan: [Volume(path)] for scan, path in listed}
    of_slices, rows = _start(members, output, inputs, overwrite)
    prediction_folder.check_inputs(output, rows, inputs)
    todo = [one for one in listed if one[0] not in rows]
    log(
        "predict",
        volumes=len(listed),
        kept=len(listed) - len(todo),
        **prediction_folder.describe(members),
        output=output,
    )
    begin = saved = time.perf_counter()
    failures = []
    for done, (scan, path) in enumerate(todo, start=1):
        clock = time.perf_counter()
        try:
            key = prediction_folder.key_of([Volume(path)])  # before it is read
            taken = ct.take_slices(*read_volume(Volume(path)), settings[0])
        except (ValueError, OSError) as error:
            failures.append((scan, " ".join(str(error).split())))
            log.warn("volume failed", volume=scan, error=failures[-1][1])
            continue
        read_s, clock = time.perf_counter() - clock, time.perf_counter()
        parts = [_of_arrays(member, [pixels for _, _, pixels in taken], path) for member in members]
        ids = [f"{slice_files.stem(scan)}_{index:04d}" for index, _, _ in taken]
        of_slices[scan], rows[scan] = _answer(members, scan, key, ids, parts)
        log(
            "predict",
            id=scan,
            slices=len(taken),
            read_s=read_s,
            network_s=time.perf_counter() - clock,
            done=done,
            of=len(todo),
        )
        if time.perf_counter() - saved >= _SAVE_S:
            _write(members, of_slices, rows, output)
            saved = time.perf_counter()
    if len(failures) < len(todo):
        _write(members, of_slices, rows, output)
    log(
        "predict",
        finished=True,
        predicted=len(todo) - len(failures),
        failed=len(failures),
        seconds=time.perf_counter() - begin,
    )
    prediction_folder.refuse("volume", failures, output)


def extraction(member):
    """The Settings with which the checkpoint's slices were extracted."""
    found = member.task.state["extraction"]
    if found is None:
        raise UserError(
            f"{member.path}: it does not know how its slices were extracted (not by tools/extract_slices.py): wanted --slices"
        )
    return ct.Settings.from_dict(found)


def _of_files(member, cases):
    """(slices, labels) float64 of slices that are files."""
    batches = [range(start, min(start + _BATCH, len(cases))) for start in range(0, len(cases), _BATCH)]
    prepared, device = slice_files.prepare(cases, member.config.data), member.options["device"]
    found = loop.batch_outputs(member.config, member.network, prepared, batches, device, member.options["autocast"])
    return torch.cat([outputs for _, outputs in found]).double().sigmoid().cpu().numpy()


def _of_arrays(member, pixels, place):
    """(slices, labels) float64 of one volume's slices (X, Y) or (2n+1, X, Y)."""
    reading = slice_files.reading_of(member.config.data)
    scaling = slice_files.scaling_of(reading)
    device, outputs = member.options["device"], []
    for start in range(0, len(pixels), _BATCH):
        stacks = [torch.from_numpy(one if one.ndim == 3 else one[None]) for one in pixels[start : start + _BATCH]]
        images = np.stack([slice_files.as_image(stack, place, reading, scaling) for stack in stacks])
        with torch.no_grad(), member.options["autocast"]:
            outputs.append(member.network(torch.from_numpy(images).to(device)).float())
    return torch.cat(outputs).double().sigmoid().cpu().numpy()


def _answer(members, scan, key, ids, parts):
    """(rows of one scan's slices, its own row); key: of its files; parts: of each member the probabilities (slices, labels)."""
    own = [member.task for member in members]
    of_slices = [{"id": id, "scan": scan, **row} for id, row in zip(ids, own[0].rows_of(own, parts, "slice"))]
    pooled = [task.pool(part, np.zeros(len(ids), int)) for task, part in zip(own, parts)]
    [row] = own[0].rows_of(own, pooled, "volume")
    return of_slices, {"id": scan, "input": key, "slices": len(ids), **row}


# ------------------------------------------------------------------------------------- the folder


def _start(members, output, inputs, overwrite):
    """({scan: rows of its slices}, {scan: its row}) that are in the folder and stay, see prediction_folder.start."""
    try:
        rows = prediction_folder.start(output, members, "predictions_volumes.csv", inputs, overwrite)
        of_slices = {scan: [] for scan in rows}
        for row in files.read_csv(os.path.join(output, "predictions.csv")) if rows else ():
            of_slices.setdefault(row["scan"], []).append(row)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    return of_slices, rows


def _write(members, of_slices, rows, output):
    """predictions.csv, a row per slice; predictions.json, each scan's findings; predictions_volumes.csv, a row per scan."""
    task, scans = members[0].task, sorted(rows)
    labels, findings = list(zip(task.config.task.targets, task.names)), []
    for scan in scans:
        probabilities = {label: float(rows[scan][f"probability_{name}"]) for label, name in labels}
        ranked = sorted(probabilities, key=probabilities.get, reverse=True)
        decided = {label: int(rows[scan][f"decision_{name}"]) for label, name in labels}
        top = [
            {"finding": label, "probability": probabilities[label], "decision": decided[label]}
            for label in ranked[:_TOP]
        ]
        found = [label for label in ranked if decided[label]]
        findings.append(
            {
                "id": scan,
                "slices": int(rows[scan]["slices"]),
                "findings": found,
                "top": top,
                "probabilities": probabilities,
            }
        )
    about = {"checkpoints": [{"path": m.path, "sha256": m.sha256, "pooling": m.task.state["pooling"]} for m in members]}
    try:
        files.write_csv(os.path.join(output, "predictions.csv"), [row for scan in scans for row in of_slices[scan]])
        files.write_json(os.path.join(output, "predictions.json"), {**about, "volumes": findings})
        # last: what is in it is there
        files.write_csv(os.path.join(output, "predictions_volumes.csv"), [rows[scan] for scan in scans])
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
