"""Contrast and brightness: a stretch and a shift of the intensities. A slice gets both in one pass."""

from functools import partial

from ..transform import Key, Transform, chances, uniform
from . import mean_and_deviation


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


def _transform(apply, name, key):
    shared = Key(False, None, "one draw for all channels, as for those that show the same or neighbouring slices")
    keys = {**chances(0.2), name: key, "shared": shared}
    return Transform("voxelwise", partial(uniform, name), apply, keys, together=contrast_brightness_)


CONTRAST = _transform(contrast_, "factor", Key((0.75, 1.25), (0.0, 10.0), "stretch about the channel's mean"))
_SHIFT = Key((-0.3, 0.3), (-10.0, 10.0), "added, in standard deviations of the channel")
BRIGHTNESS = _transform(brightness_, "shift", _SHIFT)
