"""Where a fold's network looks in some of its test cases, stored for the report, which has no network."""

import numpy as np
import torch

from .. import inference
from ..data.cases import read_volume
from ..inference import saliency
from ..space import patches, volume

_SHOWN = 2  # labels, or targets, of a case


def write(config, task, network, cases, rows, fold):
    """Store, in a FoldFolder, maps of `eval.saliency` of its `rows`; cases: the prepared cases of the rows.

    Each file has id, scan, labels (L,), probabilities (L,) and targets (L,). A slice has one plane, and a volume, read
    as the central patch, three through the centre of the first map; `axes` are the axes that they lie across. Of each
    there are image_AXIS (A, B), grad_cam_AXIS (L, A, B) from 0 to 1 and, with CBAM, attention_AXIS (A, B). Of a volume
    with a mask: inside (L,), the share of each Grad-CAM map that lies in it, and chance, its share of the head.
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
        if (mask := _mask(case, start, config.data.patch)) is not None:
            found |= _inside(maps, mask, image.numpy(), case.background)
        planes = _planes(image[0].numpy(), maps, attention)
        np.savez_compressed(fold.saliency(row["id"], new=True), **found, **planes)


def _mask(case, start, patch):
    """(X, Y, Z) whether each voxel of a patch is in the case's mask; None where it has none, or none there."""
    if case.native_mask is None or case.geometry is None:
        return None
    native, _ = read_volume(case.native_mask, like=np.array(case.geometry.native_affine))
    mask = volume.to_grid((native > 0).astype(np.uint8), case.geometry)
    mask = patches.read(mask[None], start, patch, (0,), np.uint8)[0] > 0
    return mask if mask.any() else None


def _inside(maps, mask, image, background):
    """{inside, chance}, see `write`; NaN of a map that is 0 everywhere."""
    totals = [max(float(values.sum()), 1e-12) for values in maps]
    shares = [float(values[mask].sum()) / total if total > 1e-9 else np.nan for values, total in zip(maps, totals)]
    head = (image != np.reshape(background, (-1, 1, 1, 1))).any(0) | mask
    return {"inside": shares, "chance": float(mask.sum() / head.sum())}


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
