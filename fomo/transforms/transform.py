"""What a transform says about itself: its keys, the stage in which it acts, how it is drawn and how it is applied.

A new transform is one file that makes a `Transform`, and one line in `registry.TRANSFORMS`. Transforms are drawn and
applied in the order of their stages, and within a stage in that of the registry. The stages:

setting      Others read its keys. It has neither draw nor apply.
spatial      apply(move, drawn) returns the `spatial.Move` with what was drawn. All moves are one resampling.
voxelwise    What the tissue and the coil do. apply(channel, **drawn) changes a channel (X, Y, Z), float32 from 0 to 1,
             in place, and waits for no device.
linear       What the acquisition does. apply(size, axis, **drawn) returns a numpy matrix (size, size) that acts along
             one axis.
noise        What comes last; as voxelwise.
replacement  apply(channel, value, **drawn) fills a channel in place, and nothing else is applied to this channel. One
             channel of those that the sample has, drawn, is never replaced. value: what a missing channel would hold.

draw(generator, keys, grid, hit) gets the values of the keys, the patch as a `Grid`, and hit(p), which says whether an
event of probability p happens. A spatial one asks hit(keys["p"]) itself, and returns None where nothing was drawn. The
others are called for each channel that is hit, or once for all where a key `shared` is true, and return plain values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

INTENSITY = ("voxelwise", "linear", "noise", "replacement")
STAGES = {"setting": (), "spatial": ("p",), **dict.fromkeys(INTENSITY, ("p", "channel_p"))}  # and keys they must have


class Key(NamedTuple):
    """A value that the user may replace. A pair is a range, drawn from uniformly unless `help` says otherwise."""

    value: Any  # that of a transform that is on; its type is the type of the key
    limits: tuple | None  # (lowest, highest) of its numbers, or the choices of a string
    help: str  # what it means, with the unit

    def checked(self, name, value):
        """`value` in the type of the key. Raises ValueError, beginning with `name`, for a wrong one."""
        if not isinstance(self.value, tuple):
            wanted = self._wanted(value)
            if wanted is None:
                return type(self.value)(value)
        elif not isinstance(value, (tuple, list)) or len(value) != len(self.value):
            wanted = f"{len(self.value)} values"
        else:
            value = tuple(self._replace(value=self.value[0]).checked(name, item) for item in value)
            if len(value) != 2 or value[0] <= value[1]:
                return value
            wanted = "the lower end of the range first"
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}")

    def _wanted(self, value):
        if isinstance(self.value, str):
            return None if value in self.limits else f"one of {', '.join(self.limits)}"
        if isinstance(self.value, bool):
            return None if isinstance(value, bool) else "true or false"
        whole = isinstance(self.value, int)
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (whole and value != int(value)):
            return f"a {'whole ' if whole else ''}number"
        return None if self.limits[0] <= value <= self.limits[1] else f"{self.limits[0]} to {self.limits[1]}"


def probability(value, help="probability"):
    return Key(value, (0.0, 1.0), help)


def chances(p, channel_p=1.0):
    """The keys that every transform of single channels has."""
    return {"p": probability(p), "channel_p": probability(channel_p, "probability of each channel, once applied")}


@dataclass(frozen=True)
class Transform:
    """See the top of this file. Raises TypeError, or ValueError, for what is missing or makes no sense.

    together: one pass over a slice instead of `apply`, where all its changes name this function, with all their values.
    """

    stage: str
    draw: Callable | None  # found by its name in worker processes, so no lambda; as `apply`
    apply: Callable | None
    keys: dict[str, Key]
    together: Callable | None = None

    def __post_init__(self):
        if self.stage not in STAGES:
            raise TypeError(f"stage: got {self.stage!r}, wanted one of {', '.join(STAGES)}")
        for name in ("draw", "apply"):
            if callable(getattr(self, name)) == (self.stage == "setting"):
                raise TypeError(f"{name}: got {getattr(self, name)!r} for a transform of stage {self.stage}")
        needed = STAGES[self.stage]
        if not all(isinstance(self.keys.get(name), Key) for name in (*needed, *self.keys)):
            raise TypeError(f"keys: got {self.keys!r}, wanted a Key for each, among them {', '.join(needed) or 'any'}")
        for name, key in self.keys.items():
            one = key.value[0] if isinstance(key.value, tuple) else key.value
            if key.limits is None and not isinstance(one, bool):
                raise TypeError(f"{name}: got no limits, wanted (lowest, highest), or the choices of a string")
            key.checked(name, key.value)


class Grid:
    """The voxels of a patch, for what is drawn.

    patch: (x, y, z) voxels. long: which axes have more than one voxel. planes: the axes that one can rotate about.
    unit: size of a voxel along each axis, in voxels of the finest axis.
    """

    def __init__(self, patch, spacing_mm=(1.0, 1.0, 1.0)):
        self.patch, self.long = patch, np.array(patch) > 1
        self.planes = [axis for axis in range(3) if self.long.sum() - self.long[axis] == 2]
        unit = np.array(spacing_mm, float)
        self.unit = unit / unit[self.long].min() if self.long.any() else np.ones(3)


def uniform(key, generator, keys, grid, hit):
    """Draws one number from the range `key`. partial(uniform, "sigma") is the draw where `apply` takes a sigma only."""
    return {key: generator.uniform(*keys[key])}
