"""Reading a volume at positions in voxels: the border rules and the interpolations, and a shorter way for slices."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from ..axes import apply_matrices, spline_coefficients, tensors


def inside(where, sizes, border):
    """Positions (3, ...) moved into the volume by the border rule, in place.

    min, zero: into the volume with one voxel of padding on each side of every axis longer than 1 (see `pad`).
    edge: onto the nearest voxel. reflect: mirrored at the outermost voxel centres, repeatedly.
    """
    for axis, size in enumerate(sizes):
        one = where[axis]
        if size == 1:
            one.zero_()
        elif border == "edge":
            one.clamp_(0, size - 1)
        elif border == "reflect":
            one.remainder_(2 * (size - 1)).sub_(size - 1).abs_().neg_().add_(size - 1).clamp_(0, size - 1)
        else:
            one.add_(1).clamp_(0, size + 1)
    return where


def pad(volume, border, fill=0):
    """(C, X, Y, Z) with a voxel of `fill`, a number or (C, 1, 1, 1), around its axes longer than 1 for min and zero."""
    if border not in ("min", "zero"):
        return volume
    channels, *sizes = volume.shape
    around = [int(size > 1) for size in sizes]
    padded = volume.new_empty(channels, *(size + 2 * one for size, one in zip(sizes, around)))
    for axis, one in enumerate(around, start=1):
        for end in (0, padded.shape[axis] - 1) if one else ():
            padded.select(axis, end)[:] = fill if isinstance(fill, (int, float)) else fill.squeeze(axis)
    padded[(slice(None), *(slice(one, one + size) for size, one in zip(sizes, around)))] = volume
    return padded


def sample_linear(volume, where):
    """Trilinear interpolation of (C, X, Y, Z) at positions (3, x, y, z) inside it -> (C, x, y, z)."""
    channels, *sizes = volume.shape
    x, y, z = where
    if volume.device.type != "cpu" or min(sizes) == 1:
        scaled = [one * (2 / max(size - 1, 1)) - 1 for one, size in zip((z, y, x), sizes[::-1])]
        return F.grid_sample(volume[None], torch.stack(scaled, -1)[None], padding_mode="border", align_corners=True)[0]
    # torch's 3D kernel is scalar on the CPU, its 2D kernel is vectorised and ten times as fast. Stacked along x, the
    # volume is one image of X·Y rows: two bilinear reads, of the planes below and above x, and one blend between them.
    # The row number is rounded to about X·Y·1e-7 of a voxel.
    sx, sy, sz = sizes
    image = volume.reshape(1, channels, sx * sy, sz)
    below = x.floor().clamp_(max=sx - 2)
    blend = x - below
    grid = torch.empty(*x.shape, 2)
    torch.mul(z, 2 / (sz - 1), out=grid[..., 0])
    torch.add(y, below, alpha=sy, out=grid[..., 1]).mul_(2 / (sx * sy - 1))
    grid = grid.sub_(1).view(1, -1, x.shape[2], 2)
    first = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
    grid[..., 1].add_(2 * sy / (sx * sy - 1))
    second = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
    return first.view(channels, *x.shape).lerp_(second.view(channels, *x.shape), blend)


def sample_slice(image, plan, border, fill, work=None):
    """A slice (C, X, Y, 1) by an affine plan: what `inside`, `pad` and `sample_linear` give, at a fifth of the work.

    fill: as for `pad`. Interpolating with voxels of `fill` around the slice is interpolating image - fill with zeros.
    work: (X, Y) complex64 to work in, so that the samples of a batch share it.
    """
    # In torch's coordinates, from -1 to 1 between the outermost centres; a complex number is torch's (y, x) of a voxel,
    # so that a grid is one sum.
    steps = plan["matrix"][0] * (2j / (image.shape[1] - 1)) + plan["matrix"][1] * (2 / (image.shape[2] - 1))
    rows, columns = (step * (np.arange(n) - (n - 1) / 2) for step, n in zip(steps, image.shape[1:3]))
    rows += complex(plan["offset"][1] * 2 / (image.shape[2] - 1), plan["offset"][0] * 2 / (image.shape[1] - 1))
    rows, columns = tensors((rows[:, None], columns), image.device, torch.complex64)
    grid = torch.view_as_real(torch.add(rows, columns, out=work))
    padding = {"edge": "border", "reflect": "reflection"}.get(border, "zeros")
    filled = border == "min" and (image.device.type != "cpu" or bool(fill.any()))  # air is mostly 0 already
    if filled:
        image = image - fill
    image = F.grid_sample(image[None, ..., 0], grid[None], padding_mode=padding, align_corners=True)[0, ..., None]
    return image.add_(fill) if filled else image


def sample_cubic(volume, where):
    """Interpolating cubic B-spline, mirrored at the borders of `volume`; an axis of one voxel is left as it is.

    The 64 weights of a position are those of eight trilinear reads (Sigg & Hadwiger, GPU Gems 2, chapter 20).
    """
    sizes = volume.shape[1:]
    device = volume.device
    volume = apply_matrices(volume, tensors([None if n == 1 else spline_coefficients(n) for n in sizes], device))
    reads = []  # per axis: two (position, weight)
    for axis, size in enumerate(sizes):
        if size == 1:
            reads.append([(where[axis], 1.0)])
            continue
        start, end = (volume.narrow(1 + axis, index, 1) for index in (1, size - 2))
        volume = torch.cat((start, volume, end), dim=1 + axis)  # coefficient -1 is coefficient 1
        voxel = where[axis].floor()
        t = where[axis] - voxel
        w0, w3 = (1 - t) ** 3 / 6, t**3 / 6
        w1 = 2 / 3 - t * t + t**3 / 2
        w2 = 1 - w0 - w1 - w3
        left, right = w0 + w1, w2 + w3
        reads.append([(voxel + w1 / left, left), ((voxel + 2 + w3 / right).clamp_(max=size + 1), right)])
    result = 0
    for (x, weight_x), (y, weight_y), (z, weight_z) in itertools.product(*reads):
        result = result + sample_linear(volume, (x, y, z)) * (weight_x * weight_y * weight_z)
    return result


def sample_nearest(volume, where):
    """The nearest voxel of (X, Y, Z), any type, at positions (3, x, y, z) inside it."""
    (x, y, z), (_, sy, sz) = where, volume.shape
    index = x.round().int().mul_(sy).add_(y.round().int()).mul_(sz).add_(z.round().int())
    return volume.reshape(-1).index_select(0, index.view(-1)).view(index.shape)
