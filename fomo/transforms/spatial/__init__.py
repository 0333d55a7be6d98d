"""Spatial transforms: all that were drawn are one map, by which `resampling` reads image and label once.

Positions and centres are in voxels, (x, y, z); lengths and angles are those of space, by way of `resample.spacing_mm`.
"""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np


class Move(NamedTuple):
    """The content of a patch is turned and stretched about the centre, then shifted, then bent."""

    matrix: Any  # (3, 3), in voxels of the finest axis
    shift: Any  # (3,), in voxels
    elastic: Any = None  # or the displacement of spline nodes (3, kx, ky, kz), in voxels

    def turned(self, matrices):
        return self._replace(matrix=reduce(lambda before, after: after @ before, matrices, self.matrix))

    def shifted(self, shift):
        return self._replace(shift=self.shift + shift)

    def bent(self, elastic):
        return self._replace(elastic=elastic)


def draw(transforms, generator, parameters, grid, hit):
    """One sample's plan by the `transforms` {name: Transform}, or None when nothing was drawn.

    Its `matrix` (3, 3) and `offset` (3,) map output to input voxels relative to the centre; `elastic` as in `Move`.
    """
    move = Move(np.eye(3), np.zeros(3))
    for name, transform in transforms.items():
        drawn = transform.draw(generator, parameters[name], grid, hit)
        if drawn is not None:
            move = transform.apply(move, drawn)
    return plan_of(move, grid)


def plan_of(move, grid):
    """The plan of a Move, as of `draw`; None where it moves nothing."""
    inverse = np.linalg.inv(move.matrix) * grid.unit / grid.unit[:, None]
    if move.elastic is None and not move.shift.any() and np.array_equal(inverse, np.eye(3)):
        return None
    return dict(matrix=inverse, offset=-inverse @ move.shift, elastic=move.elastic)
