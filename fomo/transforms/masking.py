"""Masks of cubes for masked autoencoders (He et al., CVPR 2022; in 3D as in AMAES, Munk et al. 2024).

cubes = draw_cubes(generators, samples, patch, ratio=0.6, cube=4)
masked, mask = mask_image(image, cubes, cube=4)
"""

import numpy as np
import torch

from .generators import per_sample


def draw_cubes(generator, samples, patch, ratio, cube):
    """Which cubes are masked: bool (B, nx, ny, nz), True for exactly round(ratio · cubes) of each sample.

    cube: edge length in voxels, one number or (x, y, z). The last cubes are cut where the patch is no multiple of it.
    Raises ValueError for an impossible argument.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: got {ratio!r}, wanted 0 to 1")
    _, counts = _cubes(patch, cube)
    total = int(np.prod(counts))
    masked = np.zeros((samples, total), bool)
    for row, one in zip(masked, per_sample(generator, samples)):
        row[one.permutation(total)[: round(ratio * total)]] = True
    return torch.from_numpy(masked.reshape(samples, *counts))


def mask_image(image, cubes, cube, value=0.0):
    """(image (B, C, X, Y, Z) with `value` in the masked cubes, bool mask (B, 1, X, Y, Z), True where masked)."""
    x, y, z = size = tuple(image.shape[2:])
    edges, counts = _cubes(size, cube)
    if cubes.shape[1:] != counts:
        got = f"{tuple(cubes.shape)} of edge {cube}"
        raise ValueError(f"cubes: got {got}, which do not cover an image of {size} voxels")
    mask = cubes.to(image.device, non_blocking=True)
    for axis, edge in enumerate(edges, start=1):
        mask = mask.repeat_interleave(edge, dim=axis)
    mask = mask[:, None, :x, :y, :z]
    return image.masked_fill(mask, value), mask


def _cubes(size, cube):
    """(edge length, number of cubes) along each axis of `size` voxels."""
    edges = (cube,) * 3 if isinstance(cube, int) else tuple(cube)
    if len(edges) != 3 or min(edges) < 1:
        raise ValueError(f"cube: got {cube!r}, wanted a positive edge length in voxels, or three")
    return edges, tuple(-(-n // edge) for n, edge in zip(size, edges))
