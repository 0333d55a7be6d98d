"""Where a fold's network looks in some of its test cases, stored for the report, which has no network."""

import os
from typing import NamedTuple

import numpy as np
import torch

from .. import inference
from ..inference import saliency
from ..space import patches
from ..tasks.classification import Classification
from ..tasks.multilabel import Multilabel

_SHOWN = 2  # labels, or targets, of a case


class Output(NamedTuple):
    """An output of the network of a classification."""

    index: int
    column: str  # of a row: its probability
    target: str  # of a row: what is true; of several outputs of one target one is shown
    value: int  # of the target where the case has what this output stands for
    name: str  # in print

    def is_there(self, row):
        return row[self.target] == self.value


def write(config, task, network, cases, rows, folder):
    """`eval.saliency` cases of `rows` (of `cases`, in native order), to folder/saliency/ID.npz.

    Each has id, scan, labels (L,), probabilities (L,), targets (L,) and, for the planes across the axes in `axes`
    (a slice has one, a volume three, through the centre of the first map), image_AXIS (A, B), grad_cam_AXIS (L, A, B) in 0 .. 1
    and, of a network with CBAM, attention_AXIS (A, B). Volumes are read as the central patch.
    """
    network = network.network if isinstance(network, inference.Mirrored) else network
    outputs = _outputs(task)
    by_id = {case.case.id: case for case in cases}
    os.makedirs(os.path.join(folder, "saliency"), exist_ok=True)
    for row in chosen(rows, outputs, config.eval.saliency):
        case = by_id[row["id"]]
        start = patches.draw_start(case.shape, config.data.patch, None, "center")
        image = torch.from_numpy(patches.read(case.image(), start, config.data.patch, case.background, np.float32))
        rising = sorted(outputs, key=lambda output: row[output.column])
        shown = list({output.target: output for output in rising}.values())  # of each target the most probable
        shown = sorted(shown, key=lambda output: -row[output.column])[:_SHOWN]
        maps = [saliency.grad_cam(network, image, output.index).cpu().numpy() for output in shown]
        stored = {
            "id": row["id"],
            "scan": row.get("scan") or "",
            "labels": [output.name for output in shown],
            "probabilities": [row[output.column] for output in shown],
            "targets": [int(output.is_there(row)) for output in shown],
        }
        stored.update(_planes(image[0].numpy(), maps, _attention(config, network, image)))
        np.savez_compressed(os.path.join(folder, "saliency", f"{row['id']}.npz"), **stored)


def _attention(config, network, image):
    return saliency.attention_map(network, image).cpu().numpy() if config.model.attention == "cbam" else None


def _planes(image, maps, attention):
    axes = [2] if image.shape[2] == 1 else [2, 1, 0]  # axial first
    found = {"axes": axes}
    for axis in axes:
        weights = maps[0].sum(axis=tuple(other for other in range(3) if other != axis)) + 1e-12
        at = int(round(np.average(np.arange(len(weights)), weights=weights)))
        found[f"image_{axis}"] = image.take(at, axis).astype(np.float16)
        found[f"grad_cam_{axis}"] = np.stack([values.take(at, axis) for values in maps]).astype(np.float16)
        if attention is not None:
            found[f"attention_{axis}"] = attention.take(at, axis).astype(np.float16)
    return found


def _outputs(task):
    """[Output] of a task."""
    if isinstance(task, Classification):
        return [Output(1, "probability", "target", 1, "class 1")]
    if isinstance(task, Multilabel):  # each is there or not
        names = zip(task.names, task.config.task.targets)
        found = [(f"probability_{name}", f"target_{name}", 1, title) for name, title in names]
    else:
        found = [
            (f"probability_{name}_{text}", f"target_{name}", k, f"{name} {text}")
            for name, classes in zip(task.names, task.state["classes"])
            for k, text in enumerate(classes)
        ]
    return [Output(index, *output) for index, output in enumerate(found)]


def chosen(rows, outputs, count):
    """`count` rows, each of another scan or case: for each output in turn, the most frequent first, the highest one left."""
    order = sorted(outputs, key=lambda output: -sum(map(output.is_there, rows)))
    found, used = [], set()
    for turn in range(count):
        left = [row for row in rows if (row.get("scan") or row["id"]) not in used]
        if not left:
            break
        column = order[turn % len(order)].column
        found.append(max(left, key=lambda row: row[column]))
        used.add(found[-1].get("scan") or found[-1]["id"])
    return found
