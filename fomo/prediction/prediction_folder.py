"""The folder of predictions: which checkpoints and scans they are of, and what is in it already and stays.

settings.json names the checkpoints, and what they learned; in the tables the column `input` stands for the files that a
row was predicted from.
"""

import os

from ..config import UserError
from ..data import cache
from ..runtime import files


def start(output, members, table, inputs, overwrite):
    """Make the folder for `members`; {id: row} of its `table` that stay. OSError where it cannot be written.

    inputs: {id: Volumes} of what is to be predicted; a file that is not there is a UserError before anything goes.
    overwrite: they are predicted again whatever is there, and the predictions of other checkpoints go; without, a folder of
    other checkpoints is a UserError.
    """
    for volumes in inputs.values():
        key_of(volumes)
    os.makedirs(output, exist_ok=True)
    settings, path, rows = os.path.join(output, "settings.json"), os.path.join(output, table), {}
    own = [{"sha256": m.sha256, "mirror_axes": list(getattr(m.network, "axes", ()))} for m in members]
    if os.path.exists(path):
        there = files.read_csv(path)
        if _checkpoints(settings) == own:
            rows = {row["id"]: row for row in there if not (overwrite and row["id"] in inputs)}
        elif not overwrite:
            raise UserError(
                f"{output} holds predictions of other checkpoints or options: choose another --output, or --overwrite"
            )
        for row in there:
            if row["id"] not in rows:
                _remove_volumes(output, row["id"])
        if not rows:
            os.remove(path)
        elif len(rows) < len(there):  # before what they are of is replaced: an interruption leaves no row that is wrong
            files.write_csv(path, list(rows.values()))
    files.write_json(settings, {"checkpoints": own, "paths": [m.path for m in members], **_learned(members[0])})
    return rows


def _learned(member):
    """{key: value} of settings.json that tools/evaluate.py reads references by: what the columns and classes are called.

    targets: columns of the training table, [] of a source without one. classes: their number, of masks. class_names: of
    each class in the network's order, or a list of them for each of several targets.
    """
    task = member.config.task
    found = {"targets": list(task.targets)}
    if task.type == "segmentation":
        found["classes"] = task.classes
    if task.type == "classification":
        found["class_names"] = member.task.state["classes"]
    return found


def describe(members):
    """{name: value} for the log: how many networks there are, and how they run."""
    amp = sorted({member.amp for member in members})
    return {"networks": len(members), "device": str(members[0].options["device"]), "amp": amp}


def _remove_volumes(output, id):
    """What was written beside a row that goes: it would be taken for an answer of the new checkpoints."""
    for kind in ("masks", "probabilities"):
        path = os.path.join(output, kind, f"{id}.nii.gz")
        if os.path.exists(path):
            os.remove(path)


def _checkpoints(settings):
    """Those in settings.json; None without one that can be read."""
    try:
        return files.read_json(settings)["checkpoints"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def key_of(files):
    """What the column `input` has for the Volumes that a row is predicted from; UserError where one is not there."""
    try:
        return cache.input_key(files)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def check_inputs(output, rows, inputs):
    """UserError unless the `rows` {id: row} in the folder were predicted from `inputs`, {id: Volumes}, as far as both have the id."""
    others = [id for id, files in inputs.items() if id in rows and rows[id].get("input") != key_of(files)]
    if others:
        more = f" (and {len(others) - 1} more)" if others[1:] else ""
        raise UserError(
            f"{output} holds an answer for {others[0]}{more} that is not of {inputs[others[0]][0].path} as it is now: "
            "choose another --output, or another id, or --overwrite"
        )


def refuse(what, failures, output):
    """UserError about those that failed, [(id, message)], if any did; what: "case" or "volume"."""
    if failures:
        (first, message), *rest = failures
        others = f" ({len(rest)} more failed: {', '.join(id for id, _ in rest)})" if rest else ""
        raise UserError(f"{what} {first}: {message}{others}; the results of the other {what}s are in {output}")
