"""How the scans of a foreign checkpoint were prepared: by the rule of its family, or by the plan that it carries.

nnU-Net and nnssl (OpenMind) crop to the box of non-zero voxels, scale, and resample, in this order, as this project
does with data.crop=true. nnU-Net's checkpoints hold the plan in `init_args`, and plans.json stands in the folder above;
nnssl's hold it in `nnssl_adaptation_plan`. Their arrays are (z, y, x), turned once more by the plan's
`transpose_forward`, and so is their spacing. Sources: nnunetv2, default_preprocessor.py and nnUNetTrainer.py; nnssl,
default_preprocessor.py and adaptation_plan.py.
"""

import os
from typing import NamedTuple

from ..runtime import files

# z-score of the whole volume at its own spacing, or of the brain at 1 mm
_FAMILIES = {
    "fomo26": dict(spacing_mm=None, crop=False, normalize="zscore"),
    "fomo25": dict(spacing_mm=(1.0, 1.0, 1.0), crop=True, normalize="zscore"),
}
_SCHEMES = {
    "ZScoreNormalization": dict(normalize="zscore"),
    "NoNormalization": dict(normalize="none"),
    "RescaleTo01Normalization": dict(normalize="percentile", percentiles=(0.0, 100.0)),
}


class Preparation(NamedTuple):
    """How scans were prepared, as far as it is known.

    data: {key of the config's section data: value}. axes: which axes (x, y, z) of a scan the network has as its first,
    second and third one. doubt: what of a plan cannot be said by keys, or "".
    """

    data: dict
    axes: tuple[int, int, int] = (0, 1, 2)
    doubt: str = ""


def of_foreign(content, family, path):
    """The Preparation of the content of a checkpoint `path` that this project has not written."""
    if family == "openmind":
        plan = _dict(_dict(content["nnssl_adaptation_plan"]).get("pretrain_plan"))
        return _of_plan(plan, None)
    if family == "nnunet":
        own = _dict(content.get("init_args"))
        plan, name = (own.get("plans"), own.get("configuration")) if "plans" in own else _beside(path)
        return _of_plan(_dict(plan), name)
    return Preparation(_FAMILIES.get(family, {}))


def _beside(path):
    """(plans.json, the name of its configuration) of TRAINER__PLANS__NAME/fold_0/file.pth, as far as they are there."""
    folder = os.path.dirname(os.path.abspath(path))
    for place in (folder, os.path.dirname(folder)):
        if os.path.exists(plans := os.path.join(place, "plans.json")):
            words = os.path.basename(place).split("__")
            return files.read_json(plans), words[2] if len(words) == 3 else None
    return None, None


def _of_plan(plan, name):
    """The Preparation of a plan's configuration; name: None where only one is meant, or all say the same."""
    every, turned = _dict(plan.get("configurations")), plan.get("transpose_forward", (0, 1, 2))
    if not isinstance(turned, (list, tuple)) or sorted(map(str, turned)) != ["0", "1", "2"]:
        return Preparation({})
    axes = tuple(2 - int(axis) for axis in turned)
    meant = [name] if isinstance(name, str) and name in every else every
    found = [_of_configuration(_inherited(every, one), axes) for one in meant]
    found = [one for one in found if one is not None]
    return found[0] if found and all(one == found[0] for one in found) else Preparation({})


def _inherited(every, name):
    """A configuration with the values of those that it inherits from."""
    chain = [name]
    while isinstance(above := _dict(every[chain[-1]]).get("inherits_from"), str) and above in every.keys() - {*chain}:
        chain.append(above)
    return {key: value for one in reversed(chain) for key, value in _dict(every[one]).items()}


def _of_configuration(values, axes):
    """The Preparation of a configuration of volumes, or None."""
    spacing = values.get("spacing")
    if "spacing" not in values or not (spacing is None or _is_spacing(spacing)):
        return None
    by_axis = None if spacing is None else dict(zip(axes, map(float, spacing)))
    data = {"spacing_mm": by_axis and (by_axis[0], by_axis[1], by_axis[2]), "crop": True}
    schemes, masked = (values.get(key) for key in ("normalization_schemes", "use_mask_for_norm"))
    kinds = {str(one) for one in schemes} if isinstance(schemes, (list, tuple)) else set()
    if masked is True or isinstance(masked, (list, tuple)) and any(masked):
        return Preparation(data, axes, "by its plan voxels that are 0 are not scaled, which no data.normalize does")
    if len(kinds) == 1 and kinds <= set(_SCHEMES):
        return Preparation({**data, **_SCHEMES[kinds.pop()]}, axes)
    names = ", ".join(sorted(kinds)) or "nothing that it names"
    return Preparation(data, axes, f"by its plan intensities are scaled by {names}, which no data.normalize does")


def _is_spacing(values):
    numbers = isinstance(values, (list, tuple)) and len(values) == 3
    return numbers and all(isinstance(one, (int, float)) and not isinstance(one, bool) and one > 0 for one in values)


def _dict(value):
    return value if isinstance(value, dict) else {}
