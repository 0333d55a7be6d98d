"""Blur, low resolution, ghosting and Gibbs ringing: one matrix (size, size) per axis, in float64.

Every matrix has rows that sum to 1, so a constant image stays constant.
"""

from functools import partial

import numpy as np

from ..axes import product, resize
from ..transform import Key, Transform, chances, probability, uniform


def blur(size, axis, sigma):
    """Gaussian blur, sigma in voxels; at the ends the kernel is cut and renormalised. sigma = 0 is the identity."""
    if sigma <= 0:
        return np.eye(size)
    position = np.arange(size)
    weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
    weights[weights < 1e-6] = 0.0  # denormal float32 products are a hundred times slower
    return weights / weights.sum(1, keepdims=True)


def draw_low_resolution(generator, keys, grid, hit):
    zoom = np.full(3, generator.uniform(*keys["zoom"]))
    if hit(keys["single_axis_p"]):
        zoom[np.arange(3) != draw_axis(generator, grid)] = 1.0
    return dict(zoom=zoom)


def draw_axis(generator, grid):
    long = np.flatnonzero(grid.long)
    return int(long[generator.integers(len(long))]) if len(long) else 0


def low_resolution(size, axis, zoom):
    """Average down to round(zoom[axis] · size) voxels and interpolate linearly back to `size`."""
    coarse = max(1, round(zoom[axis] * size))
    return np.eye(size) if coarse == size else product(resize(coarse, size), resize(size, coarse))


def draw_ghosting(generator, keys, grid, hit):
    along, copies = draw_axis(generator, grid), int(generator.integers(*keys["copies"], endpoint=True))
    return dict(along=along, copies=copies, strength=generator.uniform(*keys["strength"]))


def ghosting(size, axis, along, copies, strength):
    """Spread the share `strength` of the signal over `copies` equidistant positions along one axis, wrapped around.

    Periodic motion along the phase-encoding axis does that: it weakens all lines of k-space but every `copies`-th by
    `strength` (Wood & Henkelman, Med. Phys. 1985).
    """
    if axis != along:
        return np.eye(size)
    matrix = (1 - strength) * np.eye(size)
    for copy in range(copies):
        matrix += strength / copies * np.roll(np.eye(size), round(copy * size / copies), axis=0)
    return matrix


def gibbs(size, axis, cutoff):
    """Keep only the frequencies up to `cutoff` (0 to 1) of the highest one, with a sharp edge: Gibbs ringing."""
    frequency = np.abs(np.fft.fftfreq(size)) * 2
    return np.fft.ifft(np.fft.fft(np.eye(size), axis=0) * (frequency <= cutoff)[:, None], axis=0).real


_BLUR = {**chances(0.2, 0.5), "sigma": Key((0.0, 1.0), (0.0, 20.0), "standard deviation of the Gaussian in voxels")}
BLUR = Transform("linear", partial(uniform, "sigma"), blur, _BLUR)

_LOW_RESOLUTION = {
    **chances(0.2),
    "zoom": Key((0.5, 1.0), (0.05, 1.0), "resolution as a fraction of the patch's own"),
    "single_axis_p": probability(0.25, "probability that one axis alone loses resolution (thick slices)"),
}
LOW_RESOLUTION = Transform("linear", draw_low_resolution, low_resolution, _LOW_RESOLUTION)

_GHOSTING = {
    **chances(0.2),
    "copies": Key((2, 11), (2, 64), "equidistant copies along one axis"),
    "strength": Key((0.1, 0.4), (0.0, 1.0), "share of the signal that goes to the copies"),
}
GHOSTING = Transform("linear", draw_ghosting, ghosting, _GHOSTING)

_GIBBS = {**chances(0.2), "cutoff": Key((0.4, 0.8), (0.02, 1.0), "highest frequency kept, as a fraction")}
GIBBS = Transform("linear", partial(uniform, "cutoff"), gibbs, _GIBBS)
