"""Spatial transforms: everything that was drawn is composed into one map and image and label are resampled once.

A drawn plan holds an affine map and, when elastic deformation was drawn, spline coefficients of a displacement; both go
into the coefficients of one separable spline, so the sampling positions of a patch cost three small matrix products.
Positions and centres are in voxels, (x, y, z); lengths and angles are those of space, by way of `spacing_mm`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .axes import apply_matrices, linear_basis, spline_basis, spline_coefficients, tensors

# ------------------------------------------------------------------------------------------- draw


def draw(generator, parameters, patch, hit):
    """One sample's plan, or None when nothing was drawn. hit(p) says whether an event of probability p happens.

    The plan: `matrix` (3, 3) and `offset` (3,) map output to input voxels relative to the patch centre; `elastic` is
    None or the displacement of spline nodes (3, kx, ky, kz), in voxels.
    """
    long = np.array(patch) > 1
    unit = np.array(parameters["resample"]["spacing_mm"], float)
    unit = unit / unit[long].min() if long.any() else np.ones(3)  # axes in voxels of the finest axis
    forward, shift, elastic = np.eye(3), np.zeros(3), None

    mirror = parameters["mirror"]
    for axis in range(3):
        if long[axis] and mirror["axes"][axis] and hit(mirror["p"]):
            forward = np.diag(np.where(np.arange(3) == axis, -1.0, 1.0)) @ forward
    planes = [axis for axis in range(3) if long.sum() - long[axis] == 2]  # axes that one can rotate about
    if planes and hit(parameters["turn"]["p"]):
        axis = planes[generator.integers(len(planes))]
        a, b = (other for other in range(3) if other != axis)
        # A quarter turn keeps the voxel grid only where both axes have the same size and spacing, half a turn always.
        square = patch[a] == patch[b] and unit[a] == unit[b]
        turns = int(generator.integers(1, 4)) if square else 2
        forward = np.rint(rotation(axis, 90.0 * turns)) @ forward
    if hit(parameters["scale"]["p"]):
        low, high = parameters["scale"]["factor"]
        per_axis = parameters["scale"]["per_axis"]
        forward = np.diag(np.broadcast_to(generator.uniform(low, high, 3 if per_axis else 1), 3)) @ forward
    if planes and hit(parameters["rotate"]["p"]):
        for axis in planes:
            if hit(parameters["rotate"]["axis_p"]):
                # In a plane longer than twice its width the full angle would turn most of the content out of the patch.
                a, b = (patch[other] * unit[other] for other in range(3) if other != axis)
                reduced = min(1.0, 2 * min(a, b) / max(a, b))
                forward = rotation(axis, reduced * generator.uniform(*parameters["rotate"]["degrees"])) @ forward
    if hit(parameters["translate"]["p"]):
        shift = generator.uniform(*parameters["translate"]["fraction"], 3) * patch * long
    if long.any() and hit(parameters["elastic"]["p"]):
        spacing, displacement = (generator.uniform(*parameters["elastic"][key]) for key in ("spacing", "displacement"))
        elastic = draw_elastic(generator, patch, spacing, displacement, unit)

    inverse = np.linalg.inv(forward) * unit / unit[:, None]
    if elastic is None and not shift.any() and np.array_equal(inverse, np.eye(3)):
        return None
    return dict(matrix=inverse, offset=-inverse @ shift, elastic=elastic)


def rotation(axis, degrees):
    """Rotation matrix about one axis; positive turns x towards y, y towards z, z towards x."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(np.deg2rad(degrees))
    matrix[b, a] = np.sin(np.deg2rad(degrees))
    matrix[a, b] = -matrix[b, a]
    return matrix


def draw_elastic(generator, patch, spacing, displacement, unit=(1, 1, 1)):
    """Displacement of spline nodes (3, kx, ky, kz), in voxels, about `spacing` apart: a random smooth deformation.

    Its length has the root mean square `displacement` over the patch, exactly: the sum of squares over all voxels is a
    quadratic form of the nodes, so the field itself need not be computed. `spacing` and `displacement` are in voxels of
    the finest axis; unit: size of each axis' voxel in them.
    """
    counts = [max(1, round((size - 1) * u / spacing)) + 3 if size > 1 else 1 for size, u in zip(patch, unit)]
    nodes = generator.standard_normal((3, *counts))
    nodes[np.array(patch) == 1] = 0.0
    grams = [basis.T @ basis for _, basis in map(spline_basis, patch, counts)]
    squares = np.sum(nodes * np.einsum("cijk,il,jm,kn->clmn", nodes, *grams, optimize=True))
    nodes *= displacement / np.sqrt(squares / np.prod(patch))
    return nodes / np.reshape(unit, (3, 1, 1, 1))


# ------------------------------------------------------------------------------------------ apply


def exact(plan, patch):
    """(axis order, flipped axes) when the map only permutes axes of equal size and flips axes, else None."""
    matrix = np.rint(plan["matrix"])
    if (
        plan["elastic"] is not None
        or plan["offset"].any()
        or not np.allclose(matrix, plan["matrix"], rtol=0, atol=1e-12)
    ):
        return None
    if not np.array_equal(matrix @ matrix.T, np.eye(3)):
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
    if elastic is None:
        nodes, bases = zip(*map(linear_basis, patch))
    else:
        nodes, bases = zip(*map(spline_basis, patch, elastic.shape[1:]))
    centre = (np.array(patch) - 1) / 2
    grid = np.stack(np.meshgrid(*nodes, indexing="ij")) - centre.reshape(3, 1, 1, 1)
    coefficients = np.tensordot(plan["matrix"], grid, 1) + (plan["offset"] + centre).reshape(3, 1, 1, 1)
    if elastic is not None:
        coefficients = coefficients + elastic
    # float64 on CUDA: there a float32 product may be rounded to TF32, which would move voxels by 0.05.
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    (coefficients,) = tensors([coefficients], device, dtype)
    return apply_matrices(coefficients, tensors(bases, device, dtype)).float()


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
    """A voxel of `fill` around each axis longer than 1 of (C, X, Y, Z), where the border rule needs it.

    fill: a number, or one value per channel as a (C, 1, 1, 1) tensor.
    """
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


def sample(volume, where, interpolation):
    """Image (C, X, Y, Z), padded by `pad`, at positions (3, x, y, z) that `inside` moved -> (C, x, y, z)."""
    return sample_linear(volume, where) if interpolation == "linear" else sample_cubic(volume, where)


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


def is_affine_slice(plan, patch):
    """Whether the patch is a slice (X, Y, 1) that is turned, scaled and shifted, but not bent."""
    return patch[2] == 1 and min(patch[:2]) > 1 and plan["elastic"] is None


def sample_slice(image, plan, border, fill, grid=None):
    """A slice (C, X, Y, 1) by an affine plan: what `positions`, `inside`, `pad` and `sample_linear` give, a fifth of the work.

    fill: as for `pad`. Bilinear interpolation with voxels of `fill` around the slice is that of image - fill with zeros.
    grid: (X, Y) complex64 to work in, so that samples need not each have their own.
    """
    # In torch's coordinates, from -1 to 1 between the outermost centres; a complex number is torch's (y, x) of a voxel,
    # so that a grid is one sum.
    steps = plan["matrix"][0] * (2j / (image.shape[1] - 1)) + plan["matrix"][1] * (2 / (image.shape[2] - 1))
    rows, columns = (step * (np.arange(n) - (n - 1) / 2) for step, n in zip(steps, image.shape[1:3]))
    rows += complex(plan["offset"][1] * 2 / (image.shape[2] - 1), plan["offset"][0] * 2 / (image.shape[1] - 1))
    rows, columns = tensors((rows[:, None], columns), image.device, torch.complex64)
    grid = torch.view_as_real(torch.add(rows, columns, out=grid))
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
    for x, weight_x in reads[0]:
        for y, weight_y in reads[1]:
            for z, weight_z in reads[2]:
                result = result + sample_linear(volume, (x, y, z)) * (weight_x * weight_y * weight_z)
    return result


def sample_nearest(volume, where):
    """The nearest voxel of (X, Y, Z), any type, at positions (3, x, y, z) inside it."""
    (x, y, z), (_, sy, sz) = where, volume.shape
    index = x.round().int().mul_(sy).add_(y.round().int()).mul_(sz).add_(z.round().int())
    return volume.reshape(-1).index_select(0, index.view(-1)).view(index.shape)


def resample_label(label, where, border, interpolation):
    """Labels (X, Y, Z) at positions that `inside` moved; outside (border min, zero) they are 0.

    nearest, or linear: the label whose interpolated indicator is largest (ties: the smaller label).
    """
    padded = pad(label[None], border)
    if interpolation == "nearest":
        return sample_nearest(padded[0], where)
    best = result = None
    for value in torch.unique(padded):
        share = sample_linear((padded == value).float(), where)[0]
        if best is None:
            best, result = share, value.expand(share.shape)
        else:
            better = share > best
            best, result = torch.where(better, share, best), torch.where(better, value, result)
    return result
