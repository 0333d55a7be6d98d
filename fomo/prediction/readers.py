"""What differs between predictions: what is read of a case, a CT volume or slices in files, and how networks are asked.

A reader has `members` and `items` (Cases or Scans), whose `subjects` the members may know, and says
- `what` an item is; what is `counted`, size(item) for each; and how many of these are given to networks `together`;
- which `volumes` it writes, whether rows are `timed`, and whether files should say how they lie `in_space`;
- how many `threads` read at once;
- warn(items, log), of what they lack.
Each item goes through
- read(item), in a thread: what the networks need. Raises ValueError or OSError for files that cannot be used;
- infer([(item, what was read)]): for each item what the networks say. Raises memory.OutOfMemory;
- answer(item, what was said, folder), in a thread: (row, rows of slices); volumes are written into the folder;
- shown(row): what the log shows of it.
"""

import numpy as np
import torch

from .. import tasks
from ..config import UserError
from ..data import cache, ct, listing, slice_files
from ..data.cases import read_volume
from ..tasks import disagreement
from ..training import memory
from .folder import write_volume
from .members import answer, infer

_BATCH = 64  # slices per forward pass


class Cases:
    """Cases whose volumes the networks see whole or in windows.

    optional: names of volumes to write that the task writes only when asked, such as probabilities.
    """

    what, counted, together, threads = "case", "cases", 1, 2
    timed = in_space = True

    def __init__(self, members, cases, optional=()):
        task, config = members[0].task, members[0].config
        self.members, self.items, self.subjects = members, cases, {case.subject for case in cases}
        self.volumes = (*task.volumes, *optional)
        for member in members:
            member.task.ask(optional)
        self._data, self._wanted = config.data, tasks.wanted(config)

    def size(self, case):
        return 1

    def read(self, case):
        return cache.load(case, self._data, self._wanted)

    def infer(self, read):
        [(case, (image, background, geometry))] = read
        return [(infer(self.members, case, image, background), geometry)]

    def answer(self, case, said, folder):
        parts, geometry = said
        row, volumes = answer(self.members, parts, geometry)
        for name in self.volumes:
            write_volume(folder.volume(name, case.id), volumes[name], case, geometry)
        optional = {"missing": listing.missing_in(self._data, case)} if self._data.optional_channels else {}
        return {**row, **optional}, ()

    def warn(self, cases, log):
        listing.warn_missing(self._data, cases, log)

    def shown(self, row):
        return row


class Slices:
    """Scans whose slices are files. Each network makes its own images of them, and pools its own answers."""

    what, counted, together, threads = "scan", "slices", _BATCH, 4
    timed = in_space = False
    volumes = ()

    def __init__(self, members, scans):
        self.members, self.items = members, scans
        # patients or, where an extraction had none, volumes
        self.subjects = {name for scan in scans for name in (scan.subject, slice_files.stem(scan.id))}
        self._readings = [slice_files.reading_of(member.config.data) for member in members]

    def size(self, scan):
        return len(scan.slices)

    def read(self, scan):
        """(ids of the slices, {Reading: images (C, X, Y, 1)})."""
        paths = [image.path for image in scan.images]
        return scan.slices, {one: [slice_files.read_slice(path, one) for path in paths] for one in set(self._readings)}

    def infer(self, read):
        """For each scan (ids of the slices, of each member their probabilities (slices, labels))."""
        contents = [content for _, content in read]
        ends, parts = np.cumsum([len(ids) for ids, _ in contents])[:-1], []
        for member, reading in zip(self.members, self._readings):
            images = [image for _, images in contents for image in images[reading]]
            parts.append(np.split(_probabilities(member, images), ends))
        return [(ids, of_scan) for (ids, _), of_scan in zip(contents, zip(*parts))]

    def answer(self, scan, said, folder):
        (ids, parts), own = said, [member.task for member in self.members]
        slices = [{"id": id, "scan": scan.id, **row} for id, row in zip(ids, own[0].rows_of(own, parts, "slice"))]
        pooled = [task.pool(part, np.zeros(len(ids), int)) for task, part in zip(own, parts)]
        [row] = own[0].rows_of(own, pooled, "volume")
        return {"slices": len(ids), **row}, slices

    def warn(self, scans, log):
        """A scan has no channels to lack."""

    def shown(self, row):
        return {"slices": row["slices"]}


class Volumes(Slices):
    """CT volumes, of which slices are taken in memory as the checkpoints' own were extracted."""

    what, counted, together, threads = "volume", "volumes", 1, 2
    in_space = True

    def __init__(self, members, scans):
        super().__init__(members, scans)
        self._settings = _extraction(members[0])
        for member in members[1:]:
            if _extraction(member) != self._settings:
                otherwise = f"its slices were extracted otherwise than those of {members[0].path}"
                raise UserError(f"{member.path}: {otherwise}: they cannot predict together")

    def size(self, scan):
        return 1

    def read(self, scan):
        [source] = scan.images
        taken = ct.take_slices(*read_volume(source), self._settings)
        stacks = [torch.from_numpy(pixels if pixels.ndim == 3 else pixels[None]) for _, _, pixels in taken]
        ids = tuple(f"{slice_files.stem(scan.id)}_{index:04d}" for index, _, _ in taken)
        readings = set(self._readings)
        return ids, {one: [slice_files.as_image(stack, source.path, one) for stack in stacks] for one in readings}


def check_optional(members, names):
    """Raise UserError for volumes that the task of the members does not have, and where nobody can disagree."""
    for name in names:
        option = "--" + name.replace("_", "-")
        if name not in members[0].task.optional_volumes:
            wanted = " or ".join(kind for kind, task in tasks.TASKS.items() if name in task.optional_volumes)
            got = f"got checkpoints of task.type={members[0].config.task.type}, wanted {wanted}"
            raise UserError(f"{option}: {got}; predictions.csv has the others'")
        voters = sum(len(disagreement.views_of(member.network)) for member in members)
        if name == disagreement.NAME and voters < 2:
            raise UserError(f"{option}: got one network with one view, wanted several, or views of it (--mirror 0 1 2)")


def _extraction(member):
    """The ct.Settings by which the slices were extracted that a network was trained on."""
    extraction = member.task.state["extraction"]
    if extraction is None:
        unknown = "it does not know how its slices were extracted (not by tools/extract_slices.py)"
        raise UserError(f"{member.path}: {unknown}: wanted --slices")
    return ct.Settings.from_dict(extraction)


def _probabilities(member, images):
    """(slices, labels) float64 of images (C, X, Y, 1)."""
    device, outputs = member.windows.device, []
    said = f"{min(len(images), _BATCH)} slices of {'x'.join(map(str, images[0].shape[1:3]))} pixels at once"
    with memory.explained(lambda: memory.advise_prediction(said, device)):
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.stack(images[start : start + _BATCH])).to(device)
            with torch.no_grad(), member.windows.autocast:
                outputs.append(member.network(batch).float())
        return torch.cat(outputs).double().sigmoid().cpu().numpy()
