"""Elastic deformation: a smooth random displacement, a cubic spline of few nodes."""

import numpy as np

from ..axes import spline_basis
from ..transform import Key, Transform, probability
from . import Move


def draw(generator, keys, grid, hit):
    if grid.long.any() and hit(keys["p"]):
        spacing, displacement = (generator.uniform(*keys[key]) for key in ("spacing", "displacement"))
        return draw_nodes(generator, grid.patch, spacing, displacement, grid.unit)


def draw_nodes(generator, patch, spacing, displacement, unit=(1, 1, 1)):
    """Displacement of spline nodes (3, kx, ky, kz), in voxels, about `spacing` apart: a random smooth deformation.

    `displacement` is its exact root mean square over the patch: the sum of squares over all voxels is a quadratic form
    of the nodes. It and `spacing` are in voxels of the finest axis; unit: size of each axis' voxel in them.
    """
    counts = [max(1, round((size - 1) * u / spacing)) + 3 if size > 1 else 1 for size, u in zip(patch, unit)]
    nodes = generator.standard_normal((3, *counts))
    nodes[np.array(patch) == 1] = 0.0
    grams = [basis.T @ basis for _, basis in map(spline_basis, patch, counts)]
    squares = np.sum(nodes * np.einsum("cijk,il,jm,kn->clmn", nodes, *grams, optimize=True))
    nodes *= displacement / np.sqrt(squares / np.prod(patch))
    return nodes / np.reshape(unit, (3, 1, 1, 1))


_ELASTIC = {
    "p": probability(0.33),
    "displacement": Key((1.0, 3.0), (0.0, 100.0), "root-mean-square displacement in voxels (of the finest axis)"),
    "spacing": Key((24.0, 40.0), (4.0, 1000.0), "distance of the spline's nodes in voxels; smaller: more local"),
}
ELASTIC = Transform("spatial", draw, Move.bent, _ELASTIC)
