"""Additive, multiplicative and Rician noise. The noise itself is drawn on the image's device, from a seed."""

import torch

from ..transform import Key, Transform, chances
from . import mean_and_deviation


def draw(generator, keys, grid, hit):
    return dict(sigma=generator.uniform(*keys["sigma"]), seed=int(generator.integers(2**63)))


def normal(channel, seed, count=1):
    """`count` fields of standard Gaussian noise, of the channel's shape, one after the other."""
    generator = torch.Generator(channel.device).manual_seed(seed)
    for _ in range(count):
        yield torch.empty_like(channel).normal_(generator=generator)


def noise_(channel, sigma, seed):
    """Add Gaussian noise of `sigma` standard deviations of the channel."""
    (noise,) = normal(channel, seed)
    channel.addcmul_(noise, mean_and_deviation(channel)[1] * sigma)


def multiplicative_noise_(channel, sigma, seed):
    """Multiply with 1 + sigma · Gaussian noise."""
    (noise,) = normal(channel, seed)
    channel.mul_(noise.mul_(sigma).add_(1))


def rician_noise_(channel, sigma, seed):
    """Magnitude of channel plus complex Gaussian noise of `sigma` standard deviations (Gudbjartsson & Patz 1995)."""
    real, imaginary = normal(channel, seed, 2)
    scale = mean_and_deviation(channel)[1] * sigma
    channel.addcmul_(real, scale)
    torch.hypot(channel, imaginary.mul_(scale), out=channel)


def _noise(apply, high, help):
    return Transform("noise", draw, apply, {**chances(0.2), "sigma": Key((0.02, high), (0.0, 10.0), help)})


NOISE = _noise(noise_, 0.2, "additive Gaussian noise, in standard deviations of the channel")
_MULTIPLIED = "noise as a fraction of the intensity above the channel's minimum"
MULTIPLICATIVE_NOISE = _noise(multiplicative_noise_, 0.15, _MULTIPLIED)
RICIAN_NOISE = _noise(rician_noise_, 0.2, "noise of a magnitude image, in standard deviations of the channel")
