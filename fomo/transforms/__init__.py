"""Augmentation of batches of patches: draw on the CPU, apply on whatever device the batch lives on.

    augment = build("all", patch=(96, 96, 96), parameters={"rotate": {"degrees": (-15, 15)}})
    batch = augment({"image": image, "mask": mask}, generator)

Each sample has its own drawn parameters, so it does not matter which samples share a batch. `transform` says what a
transform is, and how one is added, `registry` has them all. torch is imported when something is built.
"""

from .presets import PRESETS, resolve
from .transform import Key, Transform


def build(preset, patch, parameters=None):
    """The augmentation `preset`, one of PRESETS, of patches of `patch` = (x, y, z) voxels.

    parameters: {transform: {key: value}} that replace the preset's; `registry.TRANSFORMS[name].keys` are those of one.
    Returns a callable (batch, generator) -> batch, see `Augmentation`. Raises ValueError that names the wrong key.
    """
    from .augmentation import Augmentation

    return Augmentation(resolve(preset, parameters), patch)


def build_views(preset, patch, parameters=None, *, global_size, global_scale, local_size, local_scale, local_views):
    """The views of patches of `patch` = (x, y, z) voxels for self-supervised learning, see `Views`.

    preset, parameters: as for `build`, for each view, but mirror.p is 0.5; resample.spacing_mm is that of the patch.
    global_size, local_size: voxels (x, y, z) of a view. global_scale, local_scale, local_views: as for `Views`.
    Raises ValueError that names the wrong key.
    """
    from .views import Views

    spacing = resolve(preset, parameters)["resample"]["spacing_mm"]
    parameters = parameters or {}
    augment = {}
    for kind, size in (("global", global_size), ("local", local_size)):
        if kind == "global" or local_views:
            stretched = tuple(mm * length / n for mm, length, n in zip(spacing, patch, size))
            resample = {**parameters.get("resample", {}), "spacing_mm": stretched}
            own = {**parameters, "mirror": {"p": 0.5, **parameters.get("mirror", {})}, "resample": resample}
            augment[kind] = build(preset, size, own)
    return Views(patch, augment, {"global": global_scale, "local": local_scale}, local_views)
