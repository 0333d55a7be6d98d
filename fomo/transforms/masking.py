"""Masks of cubes for masked autoencoders (He et al., CVPR 2022; in 3D as in AMAES, Munk et al. 2024).

cubes, offsets = draw_cubes(generators, samples, patch, ratio=0.6, cube=4)
masked, mask = mask_image(image, cubes, offsets, cube=4)

The grid of the cubes begins anywhere. A grid that always begins in the corner of a patch is that of the network's own
pooling: its answers are then of use for patches with such a corner only.
"""

import numpy as np
import torch

from .generators import per_sample


def draw_cubes(generator, samples, patch, ratio, cube):
    """(cubes (B, nx, ny, nz), bool, offsets (B, 3)): which cubes are masked, and where the grid of each sample begins.

    Exactly round(ratio · cubes) of each sample's cubes are True. cube: edge length in voxels, one number or (x, y, z).
    offsets: how many voxels of the first cubes lie outside of the image, less than an edge. The last cubes are cut
    where they reach beyond it. Raises ValueError for an impossible argument.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: got {ratio!r}, wanted 0 to 1")
    edges, counts = _cubes(patch, cube)
    total = int(np.prod(counts))
    masked, offsets = np.zeros((samples, total), bool), np.zeros((samples, 3), int)
    for row, offset, one in zip(masked, offsets, per_sample(generator, samples)):
        row[one.permutation(total)[: round(ratio * total)]] = True
        offset[:] = one.integers(edges)
    return torch.from_numpy(masked.reshape(samples, *counts)), torch.from_numpy(offsets)


def mask_image(image, cubes, offsets, cube, value=0.0):
    """(image (B, C, X, Y, Z) with `value` in the masked cubes, bool mask (B, 1, X, Y, Z), True where masked)."""
    size = tuple(image.shape[2:])
    edges, counts = _cubes(size, cube)
    if cubes.shape[1:] != counts or offsets.shape != (len(cubes), 3):
        got = f"{tuple(cubes.shape)} of edge {cube}, {tuple(offsets.shape)}"
        raise ValueError(f"cubes, offsets: got {got}, which do not cover an image of {size} voxels")
    mask = cubes.to(image.device, non_blocking=True)
    for axis, edge in enumerate(edges, start=1):
        mask = mask.repeat_interleave(edge, dim=axis)
    boxes = [tuple(slice(begin, begin + n) for begin, n in zip(offset, size)) for offset in offsets.tolist()]
    mask = torch.stack([one[box] for one, box in zip(mask, boxes)])[:, None]
    return image.masked_fill(mask, value), mask


def _cubes(size, cube):
    """(edge length, number of cubes) along each axis of `size` voxels, wherever the grid begins."""
    edges = (cube,) * 3 if isinstance(cube, int) else tuple(cube)
    if len(edges) != 3 or min(edges) < 1:
        raise ValueError(f"cube: got {cube!r}, wanted a positive edge length in voxels, or three")
    return edges, tuple(-(-(n + edge - 1) // edge) for n, edge in zip(size, edges))
