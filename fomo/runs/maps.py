"""Where a fold's network looks in some of its test cases, stored for the report, which has no network."""

import numpy as np
import torch

from .. import inference
from ..inference import saliency
from ..space import patches

_SHOWN = 2  # labels, or targets, of a case


def write(config, task, network, cases, rows, fold):
    """Store, in a FoldFolder, maps of `eval.saliency` of its `rows`; cases: the prepared cases of the rows.

    Each file has id, scan, labels (L,), probabilities (L,) and targets (L,). A slice has one plane, and a volume, read
    as the central patch, three through the centre of the first map; `axes` are the axes that they lie across. Of each
    there are image_AXIS (A, B), grad_cam_AXIS (L, A, B) from 0 to 1 and, with CBAM, attention_AXIS (A, B).
    """
    network = network.network if isinstance(network, inference.Mirrored) else network
    outputs = task.outputs()
    by_id = {case.id: case for case in cases}
    for row in chosen(rows, outputs, config.eval.saliency):
        case = by_id[row["id"]]
        start = patches.draw_start(case.shape, config.data.patch, None, "center")
        image = torch.from_numpy(patches.read(case.image(), start, config.data.patch, case.background, np.float32))
        shown = _shown(row, outputs)
        maps = [saliency.grad_cam(network, image, output.index).cpu().numpy() for output in shown]
        attends = config.model.attention == "cbam"
        attention = saliency.attention_map(network, image).cpu().numpy() if attends else None
        found = {"id": row["id"], "scan": row.get("scan") or "", "labels": [output.name for output in shown]}
        found["probabilities"] = [row[output.column] for output in shown]
        found["targets"] = [int(output.is_there(row)) for output in shown]
        planes = _planes(image[0].numpy(), maps, attention)
        np.savez_compressed(fold.saliency(row["id"], new=True), **found, **planes)


def chosen(rows, outputs, count):
    """`count` rows, each of another scan or case: in turn of each output, the most frequent first, the highest left."""
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


def _shown(row, outputs):
    """The outputs whose maps are stored: the most probable ones, of each target one."""
    rising = sorted(outputs, key=lambda output: row[output.column])
    of_targets = {output.target: output for output in rising}.values()
    return sorted(of_targets, key=lambda output: -row[output.column])[:_SHOWN]


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
