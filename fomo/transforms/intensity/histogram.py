"""Histogram shift: a random increasing map of the intensities."""

import numpy as np

from ..transform import Key, Transform, chances


def draw(generator, keys, grid, hit):
    spots = np.linspace(0, 1, keys["points"] + 2)
    # A point moves by less than half the distance to its neighbour, so the map stays increasing.
    moves = generator.uniform(-1, 1, keys["points"]) * generator.uniform(*keys["shift"]) / (keys["points"] + 1)
    return dict(spots=spots, values=spots + np.concatenate(([0.0], moves, [0.0])))


def histogram_(channel, spots, values):
    """Piecewise linear map that takes `spots` (from 0 to 1, increasing) to `values`; linear beyond the ends."""
    slopes = np.diff(values) / np.diff(spots)
    source = channel.clone()
    channel.mul_(float(slopes[0])).add_(float(values[0] - slopes[0] * spots[0]))
    for spot, change in zip(spots[1:-1].tolist(), np.diff(slopes).tolist()):
        channel.add_((source - spot).clamp_(min=0), alpha=change)


_HISTOGRAM = {
    **chances(0.2),
    "points": Key(3, (1, 16), "interior points of the increasing, piecewise linear intensity map"),
    "shift": Key((0.1, 0.45), (0.0, 0.49), "largest move of a point, in distances between points"),
}
HISTOGRAM = Transform("voxelwise", draw, histogram_, _HISTOGRAM)
