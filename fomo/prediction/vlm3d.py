"""The file that the VLM3D challenge reads of the classification of chest CT: probabilities of findings per volume."""

import os

from ..config import UserError
from ..runtime import files

_NAME = "results.json"


def check(members):
    """Raise UserError for networks that have no label each of a volume, or whose decisions are not at 0.5."""
    for member in members:
        task, path = member.task, member.path
        if task.reads != "flags":
            got = f"got a network of task.type={member.config.task.type}"
            raise UserError(f"--format vlm3d: {path}: {got}, wanted one of several labels")
        if any(threshold != 0.5 for threshold in task.thresholds("volume")["each"]):
            wanted = "train it with eval.calibrate=half, which moves them, or with eval.threshold=half"
            raise UserError(
                f"--format vlm3d: {path}: got thresholds besides 0.5, where the challenge decides: {wanted}"
            )


def write(members, folder):
    """Write results.json into a PredictionFolder whose rows are there; returns its path.

    {"predictions": [{"input_image_name": name of the volume, "probabilities": {label: probability}}]}
    """
    task, found = members[0].task, []
    labels = dict(zip(task.config.task.targets, task.names))
    for id in sorted(folder.rows):
        row = folder.rows[id]
        values = {label: float(row[f"probability_{name}"]) for label, name in labels.items()}
        found.append({"input_image_name": id, "probabilities": values})
    path = os.path.join(folder.path, _NAME)
    files.write_json(path, {"predictions": found})
    return path
