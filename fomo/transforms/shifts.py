"""Changes of whole volumes that another scanner or another operator brings, each in a few fixed grades.

    image = SHIFTS["noise"].changed(image, 0.2, generator, spacing_mm=(1, 1, 1))

They are the transforms of augmentation with fixed parameters. What is left to chance (a noise field, the nodes of a
bias field, the axis of a rotation) comes from the generator: equal generators give the same field at every grade.
Images are as networks see them, after preprocessing. As a scan would be normalised after such a change, a channel can
get back the mean and the standard deviation that it had before (`standardised`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from . import intensity, spatial
from .registry import TRANSFORMS
from .spatial import affine, resampling
from .transform import Grid, Key, Transform, chances, uniform

VERSION = 1  # raise it when a change gives other voxels
_KEYS = {key: one.value for key, one in resampling.RESAMPLE.keys.items()}  # outside the volume: a channel's minimum
_COPIES, _ALONG, _THICK = 4, 1, 2  # ghosts; the axis of phase encoding (front to back); that of the slices


@dataclass(frozen=True)
class Shift:
    """One kind of change.

    unit: what a grade is, as the axis of a plot says it. neutral: the grade that changes nothing. grades: the others.
    transform: of intensities, applied to each channel with draw(grade, generator, grid). None: a spatial one, whose
    draw gives the matrix (3, 3) by which the content moves, in voxels of the finest axis.
    channel: the only one that is changed; None: all.
    """

    title: str
    unit: str
    neutral: float
    grades: tuple[float, ...]
    help: str
    draw: Callable
    transform: Transform | None = None
    channel: int | None = None

    def changed(
        self, image, grade, generator, spacing_mm=(1.0, 1.0, 1.0), outside=None, standardised=True, nonzero=False
    ):
        """A volume (C, X, Y, Z), any number type, as a new float32 array of the same shape.

        outside: what each channel holds outside its volume, and None for one that the case lacks and that stays as it
        is; None: 0 for all. standardised: whether a channel keeps its mean and standard deviation when its intensities
        change; nonzero: those of the voxels that are not 0, and the others stay 0.
        """
        image = torch.from_numpy(np.array(image, np.float32))
        grid = Grid(tuple(image.shape[1:]), spacing_mm)
        if self.transform is None:
            plan = self._plan(grade, generator, grid)
            return (image if plan is None else resampling.resample(image, None, plan, _KEYS)[0]).numpy()
        outside = [0.0] * len(image) if outside is None else outside
        for number, channel in enumerate(image):
            others = [value for other, value in enumerate(outside) if other != number and value is not None]
            if outside[number] is None or self.channel not in (None, number):
                continue
            if self.transform.stage == "replacement" and not others:  # the last channel of a case stays
                continue
            kept = channel != 0 if nonzero else slice(None)
            before = intensity.mean_and_deviation(channel[kept])
            drawn = self.draw(grade, generator, grid)
            intensity.change_(channel, [(self.transform, drawn)], float(np.mean(others or [0.0])))
            if standardised and self.transform.stage != "replacement":
                channel[kept] = _standardised(channel[kept], *before)
            if nonzero and self.transform.stage != "replacement":
                channel[~kept] = 0
        return image.numpy()

    def changed_mask(self, mask, grade, generator, spacing_mm=(1.0, 1.0, 1.0)):
        """The labels (X, Y, Z) that go with `changed`: an equal generator moves both in the same way."""
        grid = Grid(mask.shape, spacing_mm)
        plan = self._plan(grade, generator, grid) if self.transform is None else None
        if plan is None:
            return mask
        label = torch.from_numpy(np.array(mask))
        where = resampling.inside(resampling.positions(plan, mask.shape, label.device), mask.shape, _KEYS["border"])
        return resampling.resample_label(label, where, _KEYS["border"], _KEYS["label"]).numpy()

    def _plan(self, grade, generator, grid):
        return spatial.plan_of(spatial.Move(self.draw(grade, generator, grid), np.zeros(3)), grid)


def without(name, channel):
    """The Shift by which the channel of this name and number is as if the cases lacked it."""
    help = f"{name} is as in a case that lacks it, which data.optional_channels allows; a case's last channel stays"
    dropout = TRANSFORMS["channel_dropout"]
    return Shift(f"without {name}", "missing (1: yes)", 0.0, (1.0,), help, _nothing, dropout, channel)


def _standardised(values, mean, deviation):
    """The values with this mean and standard deviation; with the mean alone where they have become equal."""
    now, spread = intensity.mean_and_deviation(values)
    return (values - now) * torch.where(spread > 0, deviation / spread, 1.0) + mean


def _saturate_(channel, share):
    """Cut the brightest `share` of the voxels."""
    kept = max(1, channel.numel() - int(round(share * channel.numel())))
    channel.clamp_(max=float(np.partition(channel.numpy().ravel(), kept - 1)[kept - 1]))


def _nothing(grade, generator, grid):
    return {}


def _given(name, grade, generator, grid):
    return {name: grade}


def _gamma(grade, generator, grid):
    return dict(gamma=grade, invert=False, retain=False)


def _field(grade, generator, grid):
    nodes = generator.standard_normal([TRANSFORMS["bias_field"].keys["intervals"].value + 3] * 3)
    flat = tuple(slice(None) if long else slice(1) for long in grid.long)
    return dict(nodes=nodes[flat], strength=grade)


def _noise(grade, generator, grid):
    return dict(sigma=grade, seed=int(generator.integers(2**63)))


def _coarser(axes, grade, generator, grid):
    zoom = np.ones(3)
    zoom[list(axes)] = 1 / grade
    return dict(zoom=zoom)


def _ghosts(grade, generator, grid):
    return dict(along=_ALONG, copies=_COPIES, strength=grade)


def _turn(grade, generator, grid):
    """About an axis and in a direction that are drawn."""
    if not grid.planes:
        return np.eye(3)
    axis, sign = grid.planes[int(generator.integers(len(grid.planes)))], generator.choice((-1, 1))
    return affine.rotation(axis, float(sign * grade))


def _scale(grade, generator, grid):
    return np.diag(np.full(3, float(grade)))


_SHARE = {**chances(0.2), "share": Key((0.0, 0.1), (0.0, 1.0), "of the brightest voxels")}
_SATURATION = Transform("voxelwise", partial(uniform, "share"), _saturate_, _SHARE)

SHIFTS = {
    "gamma": Shift(
        "contrast (gamma)",
        "exponent",
        1.0,
        (0.5, 0.7, 1.4, 2.0),
        "power of the intensities between a channel's darkest and brightest voxel: other weighting of the sequence",
        _gamma,
        TRANSFORMS["gamma"],
    ),
    "bias_field": Shift(
        "bias field",
        "strength (1: gain of 2 or 1/2)",
        0.0,
        (0.25, 0.5, 1.0),
        "smooth gain, one field for each channel: another coil",
        _field,
        TRANSFORMS["bias_field"],
    ),
    "noise": Shift(
        "noise",
        "standard deviations of the channel",
        0.0,
        (0.1, 0.2, 0.4),
        "additive Gaussian noise: fewer averages, a weaker field",
        _noise,
        TRANSFORMS["noise"],
    ),
    "blur": Shift(
        "blur",
        "standard deviation (voxels)",
        0.0,
        (0.5, 1.0, 2.0),
        "Gaussian blur: filters of the scanner, motion",
        partial(_given, "sigma"),
        TRANSFORMS["blur"],
    ),
    "resolution": Shift(
        "resolution",
        "size of a voxel (times)",
        1.0,
        (1.5, 2.0, 3.0),
        "averaged down along all axes, and interpolated back",
        partial(_coarser, (0, 1, 2)),
        TRANSFORMS["low_resolution"],
    ),
    "slices": Shift(
        "slice thickness",
        "thickness of a slice (times)",
        1.0,
        (2.0, 3.0, 5.0),
        "averaged down along z, and interpolated back: thick axial slices",
        partial(_coarser, (_THICK,)),
        TRANSFORMS["low_resolution"],
    ),
    "ghosting": Shift(
        "motion ghosting",
        "share of the signal in the ghosts",
        0.0,
        (0.1, 0.2, 0.4),
        f"{_COPIES} positions along y, the usual axis of phase encoding: periodic motion",
        _ghosts,
        TRANSFORMS["ghosting"],
    ),
    "ringing": Shift(
        "Gibbs ringing",
        "highest frequency kept (share)",
        1.0,
        (0.7, 0.5, 0.35),
        "higher frequencies are cut along all axes: fewer lines of k-space",
        partial(_given, "cutoff"),
        TRANSFORMS["gibbs"],
    ),
    "rotation": Shift(
        "rotation",
        "degrees",
        0.0,
        (5.0, 10.0, 15.0),
        "about x, y or z, to either side, as is drawn for each case: another position of the head",
        _turn,
    ),
    "scale": Shift(
        "scale",
        "size of the content (times)",
        1.0,
        (0.85, 0.93, 1.07, 1.15),
        "smaller and larger along all axes: errors of the gradients, other bodies",
        _scale,
    ),
    "clipping": Shift(
        "clipping",
        "share of the brightest voxels",
        0.0,
        (0.01, 0.03, 0.1),
        "the brightest voxels become equal: saturation",
        partial(_given, "share"),
        _SATURATION,
    ),
}
