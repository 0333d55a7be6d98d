"""The spatial plan applied: image and label are read once at the positions that all moves together give.

The affine map and the displacement are coefficients of one separable spline, so the positions cost three small matrix
products. Where the plan only permutes voxels, they are permuted.
"""

import numpy as np
import torch

from ..axes import apply_matrices, spline_basis, tensors
from ..transform import Key, Transform
from .sampling import inside, pad, sample_cubic, sample_linear, sample_nearest, sample_slice

_BORDER = "outside the patch: the channel's minimum, 0, or its own voxels; label 0 for min, zero"
_LABEL = "of the label; linear: of each class's indicator, the largest wins"
_RESAMPLE = {
    "border": Key("min", ("min", "zero", "edge", "reflect"), _BORDER),
    "image": Key("linear", ("linear", "cubic"), "interpolation of the image"),
    "label": Key("nearest", ("nearest", "linear"), _LABEL),
    "spacing_mm": Key((1.0, 1.0, 1.0), (1e-6, 1e6), "voxel size, so that angles and scales are those of space"),
}
RESAMPLE = Transform("setting", None, None, _RESAMPLE)


def resample(image, mask, plan, keys, work=None):
    """Image (C, X, Y, Z) and label (X, Y, Z) or None by a plan. keys: those of RESAMPLE.

    The image is float32 afterwards, or of its own type where voxels are only permuted. work: as for `sample_slice`.
    """
    patch = image.shape[1:]
    permutation = exact(plan, patch)
    if permutation:
        return permute(image, *permutation), None if mask is None else permute(mask, *permutation)
    image, border = image.float(), keys["border"]
    fill = image.amin((1, 2, 3), keepdim=True) if border == "min" else 0
    if mask is None and keys["image"] == "linear" and is_affine_slice(plan, patch):
        return sample_slice(image, plan, border, fill, work), None
    where = inside(positions(plan, patch, image.device), patch, border)
    read = sample_linear if keys["image"] == "linear" else sample_cubic
    image = read(pad(image, border, fill), where)
    return image, None if mask is None else resample_label(mask, where, border, keys["label"])


def exact(plan, patch):
    """(axis order, flipped axes) when the map only permutes axes of equal size and flips axes, else None."""
    if plan["elastic"] is not None or plan["offset"].any():
        return None
    matrix = np.rint(plan["matrix"])
    if not np.allclose(matrix, plan["matrix"], rtol=0, atol=1e-12) or not np.array_equal(matrix @ matrix.T, np.eye(3)):
        return None
    order = np.abs(matrix).argmax(0)  # output axis j runs along input axis order[j]
    if any(patch[order[j]] != patch[j] for j in range(3)):
        return None
    return tuple(int(a) for a in order), tuple(j for j in range(3) if matrix[order[j], j] < 0)


def permute(volume, order, flips):
    """Permute and flip the last three axes: no interpolation."""
    lead = volume.ndim - 3
    moved = volume.permute(*range(lead), *(lead + axis for axis in order))
    return moved.flip([lead + axis for axis in flips]) if flips else moved.contiguous()


def positions(plan, patch, device):
    """Where each output voxel is read: (3, X, Y, Z) float32, in input voxels."""
    elastic = plan["elastic"]
    nodes, bases = zip(*map(spline_basis, patch, (2, 2, 2) if elastic is None else elastic.shape[1:]))
    centre = (np.array(patch) - 1) / 2
    grid = np.stack(np.meshgrid(*nodes, indexing="ij")) - centre.reshape(3, 1, 1, 1)
    coefficients = np.tensordot(plan["matrix"], grid, 1) + (plan["offset"] + centre).reshape(3, 1, 1, 1)
    if elastic is not None:
        coefficients = coefficients + elastic
    # float64 on CUDA: there a float32 product may be rounded to TF32, which would move voxels by 0.05.
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    (coefficients,) = tensors([coefficients], device, dtype)
    return apply_matrices(coefficients, tensors(bases, device, dtype)).float()


def is_affine_slice(plan, patch):
    """Whether the patch is a slice (X, Y, 1) that is turned, scaled and shifted, but not bent."""
    return patch[2] == 1 and min(patch[:2]) > 1 and plan["elastic"] is None


def resample_label(label, where, border, interpolation):
    """Labels (X, Y, Z) at positions that `inside` moved: nearest, or the label whose linear indicator is largest."""
    padded = pad(label[None], border)
    if interpolation == "nearest":
        return sample_nearest(padded[0], where)
    best = torch.full_like(where[0], -1.0)
    result = torch.zeros_like(best, dtype=label.dtype)
    for value in torch.unique(padded):
        share = sample_linear((padded == value).float(), where)[0]
        better = share > best
        best, result = torch.where(better, share, best), torch.where(better, value, result)
    return result
