"""Presets: which transforms are on, and which of their values differ from those that they declare themselves.

All presets have all keys; a transform with p = 0 is off.
"""

_ALL = "elastic rotate scale gamma bias_field blur low_resolution ghosting gibbs noise multiplicative_noise".split()

# {preset: {transform that is on: {key: value that differs}}}
PRESETS = {
    "none": {},
    "basic": {"rotate": {}, "scale": {}},
    # For short trainings, where more is learned from seeing each case as it is: what occurs anyway.
    "light": {
        "mirror": {},
        "rotate": {"degrees": (-15.0, 15.0)},
        "scale": {},
        "gamma": {"p": 0.15, "gamma": (0.7, 1.5), "invert_p": 0.0},
        "noise": {"p": 0.1, "sigma": (0.0, 0.1)},
    },
    "all": dict.fromkeys(_ALL, {}),
    # Every sample as another scan of the same head might be: how it lies, what the scanner and its coil do.
    "other_scan": {
        "rotate": {"p": 1.0, "degrees": (-8.0, 8.0)},
        "scale": {"p": 1.0, "factor": (0.9, 1.1)},
        "elastic": {"p": 0.7},
        "gamma": {"p": 1.0, "gamma": (0.75, 1.33), "invert_p": 0.0},
        "bias_field": {"p": 1.0, "strength": (0.1, 0.3)},
        "noise": {"p": 0.5, "sigma": (0.0, 0.1)},
    },
    # Of CT slices, as the VLM3D pipeline has it (mehreen019/vlm3d-task-2 at 219c323, get_transforms): half of them are
    # flipped, all turned by up to 10 degrees, shifted by a twentieth, contrast and brightness changed by a tenth (of
    # the mean pixel: 0.2 deviations of ImageNet). Its guide says "affine" without amounts: scale and shear are ours.
    "slices": {
        "mirror": {},
        "rotate": {"p": 1.0, "axis_p": 1.0, "degrees": (-10.0, 10.0)},
        "translate": {"p": 1.0, "fraction": (-0.05, 0.05)},
        "scale": {"p": 0.5},
        "shear": {"p": 0.5},
        "contrast": {"p": 1.0, "factor": (0.9, 1.1), "shared": True},
        "brightness": {"p": 1.0, "shift": (-0.2, 0.2), "shared": True},
    },
    # Of CT slices: position and posture vary, Hounsfield units hardly.
    "slices_shifted": {
        "mirror": {},
        "rotate": {"p": 0.5, "axis_p": 1.0, "degrees": (-15.0, 15.0)},
        "translate": {"p": 0.5},
        "contrast": {"p": 0.5, "factor": (0.8, 1.2), "shared": True},
        "brightness": {"p": 0.5, "shift": (-0.2, 0.2), "shared": True},
    },
    # For small training sets: everything on but quarter turns, more often and further.
    "strong": {
        **dict.fromkeys(_ALL, {}),
        "mirror": {},
        "scale": {"p": 0.4, "factor": (0.75, 1.3), "per_axis": True},
        "rotate": {"p": 0.5, "degrees": (-45.0, 45.0)},
        "translate": {"p": 0.3},
        "elastic": {"p": 0.5, "displacement": (1.0, 5.0)},
        "gamma": {"p": 0.3, "gamma": (0.4, 2.5)},
        "histogram": {},
        "contrast": {"factor": (0.6, 1.6)},
        "brightness": {"shift": (-0.5, 0.5)},
        "bias_field": {"strength": (0.2, 0.8)},
        "blur": {"sigma": (0.0, 1.5)},
        "low_resolution": {"p": 0.25, "zoom": (0.33, 1.0), "single_axis_p": 0.5},
        "gibbs": {"cutoff": (0.3, 0.7)},
        "noise": {"sigma": (0.02, 0.4)},
        "rician_noise": {"p": 0.1},
        "channel_dropout": {},
    },
}


def resolve(preset, overrides=None):
    """The parameters {transform: {key: value}} of a preset, some of them replaced by `overrides` of the same form.

    Raises ValueError, naming the key, for an unknown preset or key and for a value that `Key.checked` refuses.
    """
    from .registry import TRANSFORMS  # which needs torch: the names above are read without it

    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(PRESETS)}")
    values = {}
    for name, transform in TRANSFORMS.items():
        off = {"p": 0.0} if "p" in transform.keys else {}
        values[name] = {key: one.value for key, one in transform.keys.items()} | PRESETS[preset].get(name, off)
    for name, changes in (overrides or {}).items():
        if name not in TRANSFORMS:
            raise ValueError(f"{name}: unknown transform, wanted one of {', '.join(TRANSFORMS)}")
        keys = TRANSFORMS[name].keys
        if not isinstance(changes, dict):
            raise ValueError(f"{name}: got {changes!r}, wanted a dict of its keys ({', '.join(keys)})")
        for key, value in changes.items():
            if key not in keys:
                raise ValueError(f"{name}.{key}: unknown key, wanted one of {', '.join(keys)}")
            values[name][key] = keys[key].checked(f"{name}.{key}", value)
    return values
