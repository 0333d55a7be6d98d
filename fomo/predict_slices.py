"""Prediction of networks that see slices: the slices' probabilities, and pooled from them the scans' findings.

The slices are files, listed in a table or lying in a folder, or they are taken from CT volumes, in memory, as the
checkpoint's own were extracted. Each network pools its own slices in its own way; probabilities are averaged over the
networks, and decisions are made at the mean of their thresholds.
"""

import os
import time

import numpy as np
import torch

from . import engine, tables
from .config import UserError
from .data import cases as cases_module
from .data import extract, slices, table, volumes

_TOP = 5  # findings of a scan that stand in predictions.json, whatever their probability
_BATCH = 64  # slices per forward pass


def check(members):
    """UserError unless the members of an ensemble see slices, the same ones, and tell the same labels."""
    first = members[0]
    for member in members:
        if member.config.data.source != "slices":
            raise UserError(f"{member.path}: got a network of data.source={member.config.data.source}, wanted one of slices")
        for name in ("task.targets", "data.patch", "data.neighbours"):
            section, key = name.split(".")
            got, wanted = (getattr(getattr(m.config, section), key) for m in (member, first))
            if got != wanted:
                raise UserError(f"{member.path}: got {name}={got}, and {first.path} has {wanted}: they cannot predict together")


def listed_slices(place):
    """[(slice id, scan, path)] of a table with the columns slice_id, volume_name and file_path, or of the .npy files below
    a folder, whose scans are the folders that they lie in.
    """
    if os.path.isdir(place):
        found = []
        for folder, _, names in sorted(os.walk(place)):
            scan = os.path.basename(os.path.abspath(folder))
            found += [(name[:-4], scan, os.path.join(folder, name)) for name in sorted(names) if name.endswith(".npy")]
        if not found:
            raise UserError(f"{place}: no slices (*.npy) below it")
        return found
    rows = table.read_rows(place, {f"--slices: {name}": name for name in ("slice_id", "volume_name", "file_path")}, "--slices")
    folder = os.path.dirname(os.path.abspath(place))
    return [(cells["slice_id"], cells["volume_name"], os.path.join(folder, cells["file_path"])) for _, cells in rows]


def listed_volumes(places):
    """[(scan, path)] of CT volumes: files, DICOM folders, or folders with such below them."""
    found = []
    for place in places:
        if os.path.isdir(place):
            root, names = volumes.scans_below(place)
            found += [(os.path.basename(os.path.normpath(os.path.join(root, name))), os.path.join(root, name)) for name in names]
        else:
            found.append((os.path.basename(place), place))
    if not found:
        raise UserError(f"{', '.join(places)}: no volumes below it, wanted .nii, .nii.gz, .npy or folders of DICOM files")
    twice = sorted({name for name, _ in found if [other for other, _ in found].count(name) > 1})
    if twice:
        raise UserError(f"two volumes are called {twice[0]}: rename one")
    return found


def predict_slices(members, listed, output, log, overwrite=False):
    """Predict listed slices into the folder `output`, see `write`."""
    _claim(output, overwrite)
    log("predict", slices=len(listed), networks=len(members), output=output)
    begin = time.perf_counter()
    cases = [cases_module.Case(id, scan, (cases_module.Volume(path),), None, None, None, scan=scan) for id, scan, path in listed]
    batches = [range(start, min(start + _BATCH, len(cases))) for start in range(0, len(cases), _BATCH)]
    parts = []
    for member in members:
        prepared, device = slices.prepare(cases, member.config.data), member.options["device"]
        found = engine.batch_outputs(member.config, member.network, prepared, batches, device, member.options["autocast"])
        parts.append(torch.cat([outputs for _, outputs in found]).double().sigmoid().cpu().numpy())
    rows = write(members, [case.id for case in cases], [case.scan for case in cases], parts, output)
    log("predict", finished=True, predicted=len(rows), slices=len(cases), seconds=time.perf_counter() - begin)


def predict_volumes(members, listed, output, log, overwrite=False):
    """Predict CT volumes into the folder `output`, see `write`. One that fails is logged; the others are predicted, and then
    one UserError names those that failed.
    """
    settings = [extraction(member) for member in members]
    for member, own in zip(members, settings):
        if own != settings[0]:
            raise UserError(f"{member.path}: its slices were extracted otherwise than those of {members[0].path}: they cannot predict together")
    _claim(output, overwrite)
    log("predict", volumes=len(listed), networks=len(members), output=output)
    begin, ids, scans, parts, failures = time.perf_counter(), [], [], [[] for _ in members], []
    for done, (scan, path) in enumerate(listed, start=1):
        clock = time.perf_counter()
        try:
            taken = extract.take_slices(*cases_module.read_volume(cases_module.Volume(path)), settings[0])
        except (ValueError, OSError) as error:
            failures.append((scan, " ".join(str(error).split())))
            log.warn("volume failed", volume=scan, error=failures[-1][1])
            continue
        read_s, clock = time.perf_counter() - clock, time.perf_counter()
        for part, member in zip(parts, members):
            part.append(_probabilities(member, [pixels for _, _, pixels in taken], path))
        ids += [f"{slices.stem(scan)}_{index:04d}" for index, _, _ in taken]
        scans += [scan] * len(taken)
        log("predict", id=scan, slices=len(taken), read_s=read_s, network_s=time.perf_counter() - clock, done=done, of=len(listed))
    if ids:
        write(members, ids, scans, [np.concatenate(part) for part in parts], output)
    log("predict", finished=True, predicted=len(listed) - len(failures), failed=len(failures), seconds=time.perf_counter() - begin)
    if failures:
        rest = f" ({len(failures) - 1} more failed: {', '.join(name for name, _ in failures[1:])})" if failures[1:] else ""
        raise UserError(f"volume {failures[0][0]}: {failures[0][1]}{rest}; the results of the other volumes are in {output}")


def extraction(member):
    """The Settings with which the checkpoint's slices were extracted."""
    found = member.task.state["extraction"]
    if found is None:
        raise UserError(f"{member.path}: it does not know how its slices were extracted (not by tools/extract_slices.py): wanted --slices")
    return extract.Settings.from_dict(found)


def _probabilities(member, pixels, place):
    """(slices, labels) float64 of one volume's slices (X, Y) or (2n+1, X, Y)."""
    reading = slices.reading_of(member.config.data)
    scaling = slices.scaling_of(reading)
    device, outputs = member.options["device"], []
    for start in range(0, len(pixels), _BATCH):
        stacks = [torch.from_numpy(one if one.ndim == 3 else one[None]) for one in pixels[start : start + _BATCH]]
        images = np.stack([slices.as_image(stack, place, reading, scaling) for stack in stacks])
        with torch.no_grad(), member.options["autocast"]:
            outputs.append(member.network(torch.from_numpy(images).to(device)).float())
    return torch.cat(outputs).double().sigmoid().cpu().numpy()


def write(members, ids, scans, parts, output):
    """predictions.csv, a row per slice; predictions_volumes.csv, a row per scan; predictions.json, each scan's findings.

    parts: of each member the probabilities (slices, labels). Returns the rows of the scans.
    """
    own = [member.task for member in members]
    names, scan = np.unique(scans, return_inverse=True)
    of_slices = own[0].rows_of(own, parts, "slice")
    of_scans = own[0].rows_of(own, [task.pool(part, scan) for task, part in zip(own, parts)], "volume")
    rows = [{"id": str(name), "slices": int(count), **row} for name, count, row in zip(names, np.bincount(scan), of_scans)]
    labels = list(zip(own[0].config.task.targets, own[0].names))
    findings = []
    for row in rows:
        probabilities = {label: row[f"probability_{name}"] for label, name in labels}
        ranked = sorted(probabilities, key=probabilities.get, reverse=True)
        decided = {label for label, name in labels if row[f"decision_{name}"]}
        top = [{"finding": label, "probability": probabilities[label], "decision": int(label in decided)} for label in ranked[:_TOP]]
        found = [label for label in ranked if label in decided]
        findings.append({"id": row["id"], "slices": row["slices"], "findings": found, "top": top, "probabilities": probabilities})
    about = {"checkpoints": [{"path": m.path, "sha256": m.sha256, "pooling": m.task.state["pooling"]} for m in members]}
    try:
        tables.write_csv(os.path.join(output, "predictions.csv"), [{"id": id, "scan": s, **row} for id, s, row in zip(ids, scans, of_slices)])
        tables.write_csv(os.path.join(output, "predictions_volumes.csv"), rows)
        tables.write_json(os.path.join(output, "predictions.json"), {**about, "volumes": findings})
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    return rows


def _claim(output, overwrite):
    """Make the folder; one with predictions in it is left alone."""
    if os.path.exists(os.path.join(output, "predictions.csv")) and not overwrite:
        raise UserError(f"{output} holds predictions already: choose another --output, or --overwrite")
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
