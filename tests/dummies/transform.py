"""A transform that a user might add, in one file: `saturate` cuts off the brightest intensities of a channel."""

from fomo.transforms.transform import Key, Transform, chances

NAME = "saturate"


def draw(generator, keys, grid, hit):
    return {"share": generator.uniform(*keys["share"])}


def saturate_(channel, share):
    channel.clamp_(max=1 - share)


_SATURATE = {**chances(0.2), "share": Key((0.1, 0.3), (0.0, 0.5), "share of the channel's range that is cut off")}
SATURATE = Transform("voxelwise", draw, saturate_, _SATURATE)


def register(monkeypatch):
    """Until the end of the test: `augment.parameters.saturate.p` and the other keys exist."""
    from fomo.transforms.registry import TRANSFORMS

    monkeypatch.setitem(TRANSFORMS, NAME, SATURATE)
