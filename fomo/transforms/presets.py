"""Every parameter of every transform: its unit, its limits, and its value in each preset.

A preset is a nested dict {transform: {key: value}}; all presets have all keys, and a transform with p = 0 is off.
A pair is a range, drawn from uniformly unless the help says otherwise.
"""

import copy
import math
from numbers import Real

_P = (0.0, 1.0)

# {transform: {key: (value when switched on, lowest, highest or choices, what it means)}}
KEYS = {
    "resample": {
        "border": (
            "min",
            ("min", "zero", "edge", "reflect"),
            "outside the patch: the channel's minimum, 0, or its own voxels; label 0 for min, zero",
        ),
        "image": ("linear", ("linear", "cubic"), "interpolation of the image"),
        "label": (
            "nearest",
            ("nearest", "linear"),
            "of the label; linear: of each class's indicator, the largest wins",
        ),
        "spacing_mm": ((1.0, 1.0, 1.0), (1e-6, 1e6), "voxel size, so that angles and scales are those of space"),
    },
    "mirror": {
        "p": (0.5, _P, "probability, per axis"),
        "axes": ((True, False, False), None, "axes that may be mirrored"),
    },
    "turn": {
        "p": (0.5, _P, "probability of 90, 180 or 270 degrees about one axis (180 where the grid does not allow 90)")
    },
    "scale": {
        "p": (0.2, _P, "probability"),
        "factor": ((0.9, 1.1), (0.1, 10.0), "size of the content, 1.1: larger by a tenth"),
        "per_axis": (False, None, "one factor per axis"),
    },
    "rotate": {
        "p": (0.2, _P, "probability"),
        "axis_p": (0.66, _P, "probability of each axis, once rotated"),
        "degrees": (
            (-30.0, 30.0),
            (-180.0, 180.0),
            "angle about an axis; times 2 · width / length in planes longer than twice their width",
        ),
    },
    "translate": {
        "p": (0.2, _P, "probability"),
        "fraction": ((-0.1, 0.1), (-1.0, 1.0), "shift along each axis, as a fraction of the patch"),
    },
    "elastic": {
        "p": (0.33, _P, "probability"),
        "displacement": ((1.0, 3.0), (0.0, 100.0), "root-mean-square displacement in voxels (of the finest axis)"),
        "spacing": ((24.0, 40.0), (4.0, 1000.0), "distance of the deformation's nodes in voxels; smaller: more local"),
    },
    "gamma": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "gamma": (
            (0.5, 2.0),
            (0.05, 20.0),
            "exponent of the intensities between minimum and maximum; drawn log-uniformly",
        ),
        "invert_p": (0.05, _P, "probability that bright is treated as dark"),
        "retain": (True, None, "keep the channel's mean and standard deviation"),
    },
    "histogram": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "points": (3, (1, 16), "interior points of the increasing, piecewise linear intensity map"),
        "shift": ((0.1, 0.45), (0.0, 0.49), "largest move of a point, as a fraction of the distance between points"),
    },
    "contrast": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "factor": ((0.75, 1.25), (0.0, 10.0), "stretch about the channel's mean"),
        "shared": (False, None, "one draw for all channels, as for those that show the same or neighbouring slices"),
    },
    "brightness": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "shift": ((-0.3, 0.3), (-10.0, 10.0), "added, in standard deviations of the channel"),
        "shared": (False, None, "one draw for all channels, as for those that show the same or neighbouring slices"),
    },
    "bias_field": {
        "p": (0.33, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "strength": ((0.1, 0.5), (0.0, 10.0), "0.5: the strongest gain is 1.5 or 1/1.5"),
        "intervals": (2, (1, 8), "of the field's spline per axis; more: faster variation"),
    },
    "blur": {
        "p": (0.2, _P, "probability"),
        "channel_p": (0.5, _P, "probability of each channel, once applied"),
        "sigma": ((0.0, 1.0), (0.0, 20.0), "standard deviation of the Gaussian in voxels"),
    },
    "low_resolution": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "zoom": ((0.5, 1.0), (0.05, 1.0), "resolution as a fraction of the patch's own"),
        "single_axis_p": (0.25, _P, "probability that one axis alone loses resolution (thick slices)"),
    },
    "ghosting": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "copies": ((2, 11), (2, 64), "equidistant copies along one axis"),
        "strength": ((0.1, 0.4), _P, "share of the signal that goes to the copies"),
    },
    "gibbs": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "cutoff": (
            (0.4, 0.8),
            (0.02, 1.0),
            "highest frequency that is kept, as a fraction of the patch's own, on every axis",
        ),
    },
    "noise": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "sigma": ((0.02, 0.2), (0.0, 10.0), "additive Gaussian noise, in standard deviations of the channel"),
    },
    "multiplicative_noise": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "sigma": ((0.02, 0.15), (0.0, 10.0), "noise as a fraction of the intensity above the channel's minimum"),
    },
    "rician_noise": {
        "p": (0.2, _P, "probability"),
        "channel_p": (1.0, _P, "probability of each channel, once applied"),
        "sigma": ((0.02, 0.2), (0.0, 10.0), "noise of a magnitude image, in standard deviations of the channel"),
    },
    "channel_dropout": {
        "p": (0.1, _P, "probability; at least one channel stays"),
        "channel_p": (0.33, _P, "probability of each channel, once applied; a dropped channel is 0 everywhere"),
    },
}

_ALL = (
    "elastic",
    "rotate",
    "scale",
    "gamma",
    "bias_field",
    "blur",
    "low_resolution",
    "ghosting",
    "gibbs",
    "noise",
    "multiplicative_noise",
)

# {preset: (transforms that are on, values that differ from KEYS)}
PRESETS = {
    "none": ((), {}),
    "basic": (("rotate", "scale"), {}),
    "all": (_ALL, {}),
    # Of CT slices: position and posture vary, Hounsfield units hardly.
    "slices": (
        ("mirror", "rotate", "translate", "contrast", "brightness"),
        {
            "rotate": {"p": 0.5, "axis_p": 1.0, "degrees": (-15.0, 15.0)},
            "translate": {"p": 0.5},
            "contrast": {"p": 0.5, "factor": (0.8, 1.2), "shared": True},
            "brightness": {"p": 0.5, "shift": (-0.2, 0.2), "shared": True},
        },
    ),
    # For small training sets: everything on but quarter turns, more often and further.
    "strong": (
        tuple(name for name in KEYS if name not in ("resample", "turn")),
        {
            "scale": {"p": 0.4, "factor": (0.75, 1.3), "per_axis": True},
            "rotate": {"p": 0.5, "degrees": (-45.0, 45.0)},
            "translate": {"p": 0.3},
            "elastic": {"p": 0.5, "displacement": (1.0, 5.0)},
            "gamma": {"p": 0.3, "gamma": (0.4, 2.5)},
            "contrast": {"factor": (0.6, 1.6)},
            "brightness": {"shift": (-0.5, 0.5)},
            "bias_field": {"strength": (0.2, 0.8)},
            "blur": {"sigma": (0.0, 1.5)},
            "low_resolution": {"p": 0.25, "zoom": (0.33, 1.0), "single_axis_p": 0.5},
            "gibbs": {"cutoff": (0.3, 0.7)},
            "noise": {"sigma": (0.02, 0.4)},
            "rician_noise": {"p": 0.1},
        },
    ),
}


def resolve(preset, overrides=None):
    """The parameters {transform: {key: value}} of a preset, some of them replaced by `overrides` of the same form.

    Raises ValueError, naming the key, for an unknown preset or key, a wrong type, a value outside its limits and a
    range whose lower end comes second.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    switched_on, changes = PRESETS[preset]
    values = {transform: {key: entry[0] for key, entry in keys.items()} for transform, keys in KEYS.items()}
    for transform, keys in values.items():
        if "p" in keys and transform not in switched_on:
            keys["p"] = 0.0
        keys.update(changes.get(transform, {}))
    for transform, keys in (overrides or {}).items():
        if transform not in KEYS:
            raise ValueError(f"{transform}: unknown transform, wanted one of {', '.join(KEYS)}")
        if not isinstance(keys, dict):
            raise ValueError(f"{transform}: got {keys!r}, wanted a dict of its keys ({', '.join(KEYS[transform])})")
        for key, value in keys.items():
            if key not in KEYS[transform]:
                raise ValueError(f"{transform}.{key}: unknown key, wanted one of {', '.join(KEYS[transform])}")
            values[transform][key] = _checked(f"{transform}.{key}", value, *KEYS[transform][key][:2])
    return copy.deepcopy(values)


def _checked(name, value, default, limits):
    if isinstance(default, str):
        if value not in limits:
            raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(limits)}")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise ValueError(f"{name}: got {value!r}, wanted {len(default)} values")
        value = tuple(_checked(name, item, default[0], limits) for item in value)
        if len(value) == 2 and value[0] > value[1]:
            raise ValueError(f"{name}: got {value!r}, wanted the lower end of the range first")
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: got {value!r}, wanted true or false")
        return value
    whole = isinstance(default, int)
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or (whole and value != int(value))
    ):
        raise ValueError(f"{name}: got {value!r}, wanted a {'whole ' if whole else ''}number")
    if not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name}: got {value!r}, wanted {limits[0]} to {limits[1]}")
    return int(value) if whole else float(value)
