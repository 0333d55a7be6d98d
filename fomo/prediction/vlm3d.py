"""VLM3D, the classification of chest CT: the file that the challenge reads, and its container.

Facts are from the challenge's own repository (github.com/forithmus/VLM3D-Dockers at 25f9c7b, abnclass_example_docker
and abnclass_evaluation): a container gets volumes (.mha) in /input and no arguments, and writes /output/results.json.
The scorer decides at 0.5, knows 18 labels by name, and takes 0 for one that is not there. It compares names of volumes
without the suffix of their files, and fails where a volume has no answer.
"""

import os

from ..config import UserError
from ..data import slice_files
from ..data.phantoms.chests import LABELS
from ..runtime import files
from . import inputs, loop, readers
from .members import choose_device, find_checkpoints, load_members

_NAME = "results.json"
_ABOUT = {"name": "Generated probabilities", "type": "Abnormality Classification", "version": {"major": 1, "minor": 0}}


def check(members):
    """Raise UserError for networks that do not have the challenge's labels, or whose decisions are not at 0.5."""
    for member in members:
        task, path = member.task, member.path
        if task.reads != "flags":
            got = f"got a network of task.type={member.config.task.type}"
            raise UserError(f"--format vlm3d: {path}: {got}, wanted one of several labels")
        if unlike := sorted(set(LABELS) ^ set(member.config.task.targets)):
            got = f"'{unlike[0]}' among the labels" if unlike[0] not in LABELS else f"no label '{unlike[0]}'"
            wanted = f"wanted the {len(LABELS)} of the challenge, which takes 0 for one that is not there"
            raise UserError(f"--format vlm3d: {path}: got {got}, {wanted} ({', '.join(LABELS)})")
        if any(threshold != 0.5 for threshold in task.thresholds("volume")["each"]):
            wanted = "train it with eval.calibrate=half, which moves them, or with eval.threshold=half"
            raise UserError(
                f"--format vlm3d: {path}: got thresholds besides 0.5, where the challenge decides: {wanted}"
            )


def write(members, folder):
    """Write results.json into a folder of predictions, with `path` and `rows` {id of a volume: its row}."""
    task, found = members[0].task, []
    columns = {label: f"probability_{name}" for label, name in zip(task.config.task.targets, task.names)}
    for name, id in _names(folder.rows).items():
        values = {label: float(folder.rows[id][columns[label]]) for label in LABELS}
        found.append({"input_image_name": name, "probabilities": values})
    files.write_json(os.path.join(folder.path, _NAME), {**_ABOUT, "predictions": found})


def _names(ids):
    """{name in results.json: id of the volume}, sorted; UserError for volumes that differ by their suffixes only."""
    names = {}
    for id in sorted(ids):
        if other := names.get(name := slice_files.stem(id)):
            raise UserError(f"{_NAME}: got {other} and {id}, which the challenge would call {name}: rename one")
        names[name] = id
    return names


class _Answers:
    """A folder of predictions, as the loop fills it, of which results.json is all that is written."""

    def __init__(self, path, members):
        self.path, self.rows, self._members = os.fspath(path), {}, members

    def begin(self, items, volumes=(), overwrite=False):
        _names(item.id for item in items)
        os.makedirs(self.path, exist_ok=True)
        return items

    def add(self, id, row, slices=()):
        self.rows[id] = row

    def save(self):
        if self.rows:
            write(self._members, self)


def load(checkpoints, device=None):
    """The members of a container, see `check`; checkpoints: run folders, folders of *.pt, or files; device: a name."""
    paths = [path for place in checkpoints for path in find_checkpoints(place)]
    members = load_members(paths, choose_device(device))
    check(members)
    data = members[0].config.data
    if not members[0].sees_slices and len(data.channels) != 1:
        got = f"got a network of the channels {', '.join(data.channels)}"
        raise UserError(f"{members[0].path}: {got}, wanted one: the challenge gives a CT alone")
    return members


def predict_folder(members, place, output, log):
    """Answer all volumes below the folder `place` (or the volume) with results.json in the folder `output`.

    A volume that cannot be used is a `warn` line; the others are answered, and then it is a UserError.
    """
    scans = inputs.listed_volumes([place])
    if members[0].sees_slices:
        reader = readers.Volumes(members, scans)
    else:
        [channel] = members[0].config.data.channels
        given = [({channel.split("|")[0]: scan.images[0].path}, scan.id, scan.subject) for scan in scans]
        reader = readers.Cases(members, [inputs.case_from_channels((channel,), *one) for one in given])
    loop.predict(reader, _Answers(output, members), log)
