"""Intensity transforms of one channel (X, Y, Z), float32, scaled so that its minimum is 0 and its maximum 1.

Functions ending in _ change the channel that they are given (the pipeline owns it) and wait for no device.
Blur, low resolution, ghosting and Gibbs ringing are linear along the axes: those of a channel are one matrix per axis.
"""

import functools
import math

import numpy as np
import torch

from . import axes

# In the order of application. What the tissue and the coil do comes before what the acquisition does.
POINTWISE = ("gamma", "histogram", "contrast", "brightness", "bias_field")
LINEAR = ("blur", "low_resolution", "ghosting", "gibbs")
NOISE = ("noise", "multiplicative_noise", "rician_noise")


# ------------------------------------------------------------------------------------------- draw


def draw(name, generator, keys, patch, hit):
    """The drawn parameters of one channel: a dict of plain values. hit(p): whether an event of probability p happens."""
    return DRAW[name](generator, keys, patch, hit)


def _draw_gamma(generator, keys, patch, hit):
    low, high = np.log(keys["gamma"])
    return dict(gamma=float(np.exp(generator.uniform(low, high))), invert=hit(keys["invert_p"]), retain=keys["retain"])


def _draw_histogram(generator, keys, patch, hit):
    spots = np.linspace(0, 1, keys["points"] + 2)
    # A point moves by less than half the distance to its neighbour, so the map stays increasing.
    moves = generator.uniform(-1, 1, keys["points"]) * generator.uniform(*keys["shift"]) / (keys["points"] + 1)
    return dict(spots=spots, values=spots + np.concatenate(([0.0], moves, [0.0])))


def _draw_bias_field(generator, keys, patch, hit):
    shape = [keys["intervals"] + 3 if size > 1 else 1 for size in patch]
    return dict(nodes=generator.standard_normal(shape), strength=generator.uniform(*keys["strength"]))


def _draw_low_resolution(generator, keys, patch, hit):
    zoom = np.full(3, generator.uniform(*keys["zoom"]))
    if hit(keys["single_axis_p"]):
        zoom[np.arange(3) != _draw_axis(generator, patch)] = 1.0
    return dict(zoom=zoom)


def _draw_ghosting(generator, keys, patch, hit):
    low, high = keys["copies"]
    return dict(
        along=_draw_axis(generator, patch),
        copies=int(generator.integers(low, high + 1)),
        strength=generator.uniform(*keys["strength"]),
    )


def _draw_axis(generator, patch):
    long = [axis for axis in range(3) if patch[axis] > 1]
    return int(long[generator.integers(len(long))]) if long else 0


def _draw_noise(generator, keys, patch, hit):
    # The noise itself is drawn where the image is, from a generator with this seed.
    return dict(sigma=generator.uniform(*keys["sigma"]), seed=int(generator.integers(2**63)))


def _uniform(key):
    return lambda generator, keys, patch, hit: {key: generator.uniform(*keys[key])}


DRAW = {
    "gamma": _draw_gamma,
    "histogram": _draw_histogram,
    "contrast": _uniform("factor"),
    "brightness": _uniform("shift"),
    "bias_field": _draw_bias_field,
    "blur": _uniform("sigma"),
    "low_resolution": _draw_low_resolution,
    "ghosting": _draw_ghosting,
    "gibbs": _uniform("cutoff"),
    "noise": _draw_noise,
    "multiplicative_noise": _draw_noise,
    "rician_noise": _draw_noise,
}


# ---------------------------------------------------------------------------------------- pointwise


def gamma_(channel, gamma, invert, retain):
    """x -> x^gamma, or 1 - (1 - x)^gamma when inverted; retain: with the mean and standard deviation of before."""
    if retain:
        mean, deviation = mean_and_deviation(channel)
    if invert:
        channel.neg_().add_(1)
    channel.clamp_(min=0).log_().mul_(gamma).exp_()  # four times as fast as pow on a CPU; log(0) = -inf gives 0
    if invert:
        channel.neg_().add_(1)
    if retain:
        new_mean, new_deviation = mean_and_deviation(channel)
        ratio = torch.where(new_deviation > 0, deviation / new_deviation, 1.0)
        channel.sub_(new_mean).mul_(ratio).add_(mean)


def histogram_(channel, spots, values):
    """Piecewise linear map that takes `spots` (from 0 to 1, increasing) to `values`; linear beyond the ends."""
    slopes = np.diff(values) / np.diff(spots)
    source = channel.clone()
    channel.mul_(float(slopes[0])).add_(float(values[0] - slopes[0] * spots[0]))
    for spot, change in zip(spots[1:-1].tolist(), np.diff(slopes).tolist()):
        channel.add_((source - spot).clamp_(min=0), alpha=change)


def contrast_(channel, factor):
    """Stretch about the mean."""
    mean = channel.mean()
    channel.sub_(mean).mul_(factor).add_(mean)


def brightness_(channel, shift):
    """Add `shift` standard deviations."""
    channel.add_(mean_and_deviation(channel)[1] * shift)


def contrast_brightness_(channel, factor=1.0, shift=0.0):
    """Both, in either order the same and whatever the channel's scale is: in one pass, for slices."""
    mean, deviation = mean_and_deviation(channel)
    channel.mul_(factor).add_(mean * (1 - factor) + deviation * (factor * shift))


def bias_field_(channel, nodes, strength):
    """Multiply with a smooth positive field, the exponential of a spline.

    Scaled so that its largest gain is 1 + strength or its smallest 1 / (1 + strength), whichever comes first.
    """
    bases = [axes.spline_basis(size, count)[1] for size, count in zip(channel.shape, nodes.shape)]
    (coefficients,) = axes.tensors([nodes], channel.device)
    field = axes.apply_matrices(coefficients, axes.tensors(bases, channel.device))
    largest = torch.maximum(field.amax(), -field.amin())
    channel.mul_(field.mul_(math.log1p(strength) / largest.clamp(min=1e-12)).exp_())


def mean_and_deviation(channel):
    """Mean and (population) standard deviation as 0-d tensors; ten times as fast as torch.std on a CPU."""
    mean = channel.mean()
    return mean, torch.linalg.vector_norm(channel - mean) / channel.numel() ** 0.5


# ------------------------------------------------------------------------------------------- linear


MATRICES = {
    "blur": lambda size, axis, sigma: axes.blur(size, sigma),
    "low_resolution": lambda size, axis, zoom: axes.low_resolution(size, zoom[axis]),
    "ghosting": lambda size, axis, along, copies, strength: axes.ghosting(
        size, copies, strength if axis == along else 0.0
    ),
    "gibbs": lambda size, axis, cutoff: axes.gibbs(size, cutoff),
}


def linear_(channel, changes):
    """Apply all linear transforms among `changes` {name: parameters} at once: one matrix per axis."""
    matrices = []
    for axis, size in enumerate(channel.shape):
        one = [MATRICES[name](size, axis, **changes[name]) for name in LINEAR if name in changes]
        one = [matrix for matrix in one if np.abs(matrix - np.eye(size)).max() > 1e-9]
        matrices.append(functools.reduce(lambda before, after: axes.product(after, before), one) if one else None)
    channel.copy_(axes.apply_matrices(channel, axes.tensors(matrices, channel.device)))


# -------------------------------------------------------------------------------------------- noise


def _normal(channel, generator):
    return torch.empty_like(channel).normal_(generator=generator)


def noise_(channel, sigma, generator):
    """Add Gaussian noise of `sigma` standard deviations of the channel."""
    channel.addcmul_(_normal(channel, generator), mean_and_deviation(channel)[1] * sigma)


def multiplicative_noise_(channel, sigma, generator):
    """Multiply with 1 + sigma · Gaussian noise."""
    channel.mul_(_normal(channel, generator).mul_(sigma).add_(1))


def rician_noise_(channel, sigma, generator):
    """Magnitude of channel plus complex Gaussian noise of `sigma` standard deviations (Gudbjartsson & Patz 1995)."""
    scale = mean_and_deviation(channel)[1] * sigma
    channel.addcmul_(_normal(channel, generator), scale)
    torch.hypot(channel, _normal(channel, generator).mul_(scale), out=channel)


APPLY = {
    "gamma": gamma_,
    "histogram": histogram_,
    "contrast": contrast_,
    "brightness": brightness_,
    "bias_field": bias_field_,
    "noise": noise_,
    "multiplicative_noise": multiplicative_noise_,
    "rician_noise": rician_noise_,
}
