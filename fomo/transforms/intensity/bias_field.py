"""Bias field: a smooth gain, as of a receive coil."""

import math

import torch

from .. import axes
from ..transform import Key, Transform, chances


def draw(generator, keys, grid, hit):
    shape = [keys["intervals"] + 3 if size > 1 else 1 for size in grid.patch]
    return dict(nodes=generator.standard_normal(shape), strength=generator.uniform(*keys["strength"]))


def bias_field_(channel, nodes, strength):
    """Multiply with the exponential of a spline, whose extreme gain is 1 + strength or 1 / (1 + strength)."""
    bases = [axes.spline_basis(size, count)[1] for size, count in zip(channel.shape, nodes.shape)]
    (coefficients,) = axes.tensors([nodes], channel.device)
    field = axes.apply_matrices(coefficients, axes.tensors(bases, channel.device))
    largest = torch.maximum(field.amax(), -field.amin())
    channel.mul_(field.mul_(math.log1p(strength) / largest.clamp(min=1e-12)).exp_())


_BIAS_FIELD = {
    **chances(0.33),
    "strength": Key((0.1, 0.5), (0.0, 10.0), "0.5: the strongest gain is 1.5 or 1/1.5"),
    "intervals": Key(2, (1, 8), "of the field's spline per axis; more: faster variation"),
}
BIAS_FIELD = Transform("voxelwise", draw, bias_field_, _BIAS_FIELD)
