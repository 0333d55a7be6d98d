"""Mirroring, quarter turns, scaling, shear, rotation and translation."""

import numpy as np

from ..transform import Key, Transform, probability
from . import Move


def draw_mirror(generator, keys, grid, hit):
    axes = [axis for axis in range(3) if grid.long[axis] and keys["axes"][axis] and hit(keys["p"])]
    return [np.diag(np.where(np.arange(3) == axis, -1.0, 1.0)) for axis in axes]


def draw_turn(generator, keys, grid, hit):
    if not grid.planes or not hit(keys["p"]):
        return None
    axis = grid.planes[generator.integers(len(grid.planes))]
    a, b = (other for other in range(3) if other != axis)
    # A quarter turn keeps the voxel grid only where both axes have the same size and spacing, half a turn always.
    square = grid.patch[a] == grid.patch[b] and grid.unit[a] == grid.unit[b]
    turns = int(generator.integers(1, 4)) if square else 2
    return [np.rint(rotation(axis, 90.0 * turns))]


def rotation(axis, degrees):
    """Rotation matrix about one axis; positive turns x towards y, y towards z, z towards x."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(np.deg2rad(degrees))
    matrix[b, a] = np.sin(np.deg2rad(degrees))
    matrix[a, b] = -matrix[b, a]
    return matrix


def draw_scale(generator, keys, grid, hit):
    if hit(keys["p"]):
        factors = generator.uniform(*keys["factor"], 3 if keys["per_axis"] else 1)
        return [np.diag(np.broadcast_to(factors, 3))]


def draw_shear(generator, keys, grid, hit):
    found = []
    for axis in grid.planes if grid.planes and hit(keys["p"]) else ():
        a, b = (other for other in range(3) if other != axis)
        matrix = np.eye(3)
        matrix[a, b] = np.tan(np.deg2rad(generator.uniform(*keys["degrees"])))
        found.append(matrix)
    return found


def draw_rotate(generator, keys, grid, hit):
    turns = []
    for axis in grid.planes if grid.planes and hit(keys["p"]) else ():
        if hit(keys["axis_p"]):
            # In a plane longer than twice its width the full angle would turn most of the content out of the patch.
            a, b = (grid.patch[other] * grid.unit[other] for other in range(3) if other != axis)
            reduced = min(1.0, 2 * min(a, b) / max(a, b))
            turns.append(rotation(axis, reduced * generator.uniform(*keys["degrees"])))
    return turns


def draw_translate(generator, keys, grid, hit):
    if hit(keys["p"]):
        return generator.uniform(*keys["fraction"], 3) * grid.patch * grid.long


_MIRROR = {"p": probability(0.5, "probability, per axis"), "axes": Key((True, False, False), None, "axes to mirror")}
MIRROR = Transform("spatial", draw_mirror, Move.turned, _MIRROR)

_TURN = {"p": probability(0.5, "of 90, 180 or 270 degrees about one axis (180 where the grid does not allow 90)")}
TURN = Transform("spatial", draw_turn, Move.turned, _TURN)

_SCALE = {
    "p": probability(0.2),
    "factor": Key((0.9, 1.1), (0.1, 10.0), "size of the content, 1.1: larger by a tenth"),
    "per_axis": Key(False, None, "one factor per axis"),
}
SCALE = Transform("spatial", draw_scale, Move.turned, _SCALE)

_SHEAR = {
    "p": probability(0.2),
    "degrees": Key((-5.0, 5.0), (-60.0, 60.0), "angle by which one axis of each plane leans"),
}
SHEAR = Transform("spatial", draw_shear, Move.turned, _SHEAR)

_DEGREES = "angle about an axis; times 2 · width / length in planes longer than twice their width"
_ROTATE = {
    "p": probability(0.2),
    "axis_p": probability(0.66, "probability of each axis, once rotated"),
    "degrees": Key((-30.0, 30.0), (-180.0, 180.0), _DEGREES),
}
ROTATE = Transform("spatial", draw_rotate, Move.turned, _ROTATE)

_TRANSLATE = {
    "p": probability(0.2),
    "fraction": Key((-0.1, 0.1), (-1.0, 1.0), "shift per axis, as a fraction of the patch"),
}
TRANSLATE = Transform("spatial", draw_translate, Move.shifted, _TRANSLATE)
