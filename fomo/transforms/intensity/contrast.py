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


_SHARED = Key(False, None, "one draw for all channels, as for those that show the same or neighbouring slices")

_CONTRAST = {
    **chances(0.2),
    "factor": Key((0.75, 1.25), (0.0, 10.0), "stretch about the channel's mean"),
    "shared": _SHARED,
}
CONTRAST = Transform("voxelwise", partial(uniform, "factor"), contrast_, _CONTRAST, together=contrast_brightness_)
_BRIGHTNESS = {
    **chances(0.2),
    "shift": Key((-0.3, 0.3), (-10.0, 10.0), "added, in standard deviations of the channel"),
    "shared": _SHARED,
}
BRIGHTNESS = Transform("voxelwise", partial(uniform, "shift"), brightness_, _BRIGHTNESS, together=contrast_brightness_)
