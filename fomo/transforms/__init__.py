"""Augmentation of batches of patches: draw on the CPU, apply on whatever device the batch lives on.

    augment = build("all", patch=(96, 96, 96), parameters={"rotate": {"degrees": (-15, 15)}})
    batch = augment({"image": image, "mask": mask}, generator)

Each sample is treated by its own drawn parameters and alone, so it does not matter which samples share a batch.
A sample for which nothing was drawn is passed through; flips and quarter turns alone permute the voxels; everything
else that is spatial is one resampling of image and label.
"""

import torch

from . import intensity, spatial
from .generators import per_sample
from .presets import KEYS, PRESETS, resolve
from .views import Views

__all__ = ["Augmentation", "KEYS", "PRESETS", "Views", "build", "build_views", "resolve"]


def build(preset, patch, parameters=None):
    """The augmentation `preset` (none, basic, all, strong, slices) of patches of `patch` = (x, y, z) voxels.

    parameters: {transform: {key: value}} that replace the preset's; `KEYS` has all of them with unit and limits.
    Returns a callable (batch, generator) -> batch, see `Augmentation`. Raises ValueError that names the wrong key.
    """
    return Augmentation(resolve(preset, parameters), patch)


def build_views(
    preset,
    patch,
    parameters=None,
    *,
    global_size,
    global_scale=(0.4, 1.0),
    local_size=None,
    local_scale=(0.05, 0.4),
    local_views=0,
):
    """The views of patches of `patch` = (x, y, z) voxels for self-supervised learning, see `Views`.

    preset, parameters: as for `build`, of the augmentation of each view; what they don't say about `mirror` is that
    views are mirrored left-right with probability 0.5. sizes: voxels (x, y, z) of a view. resample.spacing_mm is that of
    the patch. Raises ValueError that names the wrong key.
    """
    resolve(preset, parameters)
    parameters = {**(parameters or {}), "mirror": {"p": 0.5, **(parameters or {}).get("mirror", {})}}
    spacing = resolve(preset, parameters)["resample"]["spacing_mm"]
    augment = {}
    for kind, size in (("global", global_size), ("local", local_size)):
        if kind == "global" or local_views:
            stretched = tuple(mm * length / n for mm, length, n in zip(spacing, patch, size))
            own = {**parameters, "resample": {**parameters.get("resample", {}), "spacing_mm": stretched}}
            augment[kind] = build(preset, size, own)
    return Views(patch, augment, {"global": global_scale, "local": local_scale}, local_views)


class Augmentation:
    """augment(batch, generator) = augment.apply(batch, augment.draw(generator, batch size, channels)).

    batch: dict with `image` (B, C, X, Y, Z), floating point, and optionally `mask` (B, X, Y, Z), integer or bool; other
    keys are passed on. The result is a new dict with the same keys, shapes and types; the input is left as it was (a
    result may share memory with it where nothing was drawn). generator: a numpy Generator, or a list of one per sample.
    """

    def __init__(self, parameters, patch):
        if len(patch) != 3 or any(int(size) != size or size < 1 for size in patch):
            raise ValueError(f"patch: got {patch!r}, wanted three positive whole numbers (x, y, z)")
        self.parameters = parameters
        self.patch = tuple(int(size) for size in patch)

    def __call__(self, batch, generator):
        samples, channels = batch["image"].shape[:2]
        return self.apply(batch, self.draw(generator, samples, channels))

    def draw(self, generator, samples, channels):
        """One plan per sample: a dict of plain values, empty when nothing is to be done."""
        return [self._draw_sample(one, channels) for one in per_sample(generator, samples)]

    def _draw_sample(self, generator, channels):
        parameters, patch = self.parameters, self.patch

        def hit(p):  # the only place where a probability becomes an event; p = 0 costs no draw
            return p > 0 and bool(generator.random() < p)

        plan = {}
        where = spatial.draw(generator, parameters, patch, hit)
        if where is not None:
            plan["spatial"] = where
        for name in (*intensity.POINTWISE, *intensity.LINEAR, *intensity.NOISE):
            keys = parameters[name]
            if hit(keys["p"]):
                chosen = [c for c in range(channels) if hit(keys["channel_p"])]
                if chosen and keys.get("shared"):
                    plan[name] = dict.fromkeys(chosen, intensity.draw(name, generator, keys, patch, hit))
                elif chosen:
                    plan[name] = {c: intensity.draw(name, generator, keys, patch, hit) for c in chosen}
        if hit(parameters["channel_dropout"]["p"]):
            keep = int(generator.integers(channels))
            dropped = [c for c in range(channels) if hit(parameters["channel_dropout"]["channel_p"]) and c != keep]
            if dropped:
                plan["channel_dropout"] = dict.fromkeys(dropped)
        return plan

    @torch.no_grad()
    def apply(self, batch, plans):
        """Apply one plan per sample. Deterministic; computes in float32 whatever the image's type or autocast say."""
        image, mask = batch["image"], batch.get("mask")
        self._check(image, mask, plans)
        if not any(plans):
            return dict(batch)
        with torch.autocast(image.device.type, enabled=False):
            changed = None if mask is None else torch.empty_like(mask)
            result = torch.empty_like(image)
            grid = (
                torch.empty(self.patch[:2], dtype=torch.complex64, device=image.device) if self.patch[2] == 1 else None
            )
            for b, plan in enumerate(plans):  # written at once: the memory of one sample serves the next
                values, labels = self._apply_sample(image[b], None if mask is None else mask[b], plan, grid)
                result[b] = values
                if mask is not None:
                    changed[b] = labels
        return dict(batch, image=result) if mask is None else dict(batch, image=result, mask=changed)

    def _check(self, image, mask, plans):
        if image.ndim != 5 or tuple(image.shape[2:]) != self.patch or not image.is_floating_point():
            wanted = f"floating point of shape (B, C, {', '.join(map(str, self.patch))})"
            raise ValueError(f"image: got {image.dtype} of shape {tuple(image.shape)}, wanted {wanted}")
        if mask is not None and (mask.shape != image[:, 0].shape or mask.is_floating_point()):
            wanted = f"integers of shape {tuple(image[:, 0].shape)}"
            raise ValueError(f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, wanted {wanted}")
        if len(plans) != len(image):
            raise ValueError(f"plans: got {len(plans)}, wanted one for each of {len(image)} samples")

    def _apply_sample(self, image, mask, plan, grid=None):
        """(C, X, Y, Z) and (X, Y, Z) or None -> the same."""
        where = plan.get("spatial")
        permutation = spatial.exact(where, self.patch) if where else None
        values = image
        if permutation:
            values = spatial.permute(values, *permutation)
            mask = None if mask is None else spatial.permute(mask, *permutation)
        elif where:
            values, mask = self._resample(values.float(), mask, where, grid)
        if plan.keys() - {"spatial"}:
            values = values.to(torch.float32, copy=values is image)
            for channel, one in enumerate(values):
                self._change_(
                    one, {name: each[channel] for name, each in plan.items() if name != "spatial" and channel in each}
                )
        if values.dtype != image.dtype:
            limit = min(torch.finfo(image.dtype).max, torch.finfo(torch.float32).max)
            values = values.clamp_(-limit, limit).to(image.dtype)
        return values, mask

    def _resample(self, image, mask, where, grid):
        keys = self.parameters["resample"]
        border = keys["border"]
        fill = image.amin((1, 2, 3), keepdim=True) if border == "min" else 0
        if mask is None and keys["image"] == "linear" and spatial.is_affine_slice(where, self.patch):
            return spatial.sample_slice(image, where, border, fill, grid), None
        positions = spatial.inside(spatial.positions(where, self.patch, image.device), self.patch, border)
        image = spatial.sample(spatial.pad(image, border, fill), positions, keys["image"])
        if mask is not None:
            mask = spatial.resample_label(mask, positions, border, keys["label"])
        return image, mask

    def _change_(self, channel, changes):
        """Apply the drawn intensity transforms to one channel (X, Y, Z), in place."""
        if "channel_dropout" in changes:
            channel.zero_()
        elif channel.shape[-1] == 1 and changes.keys() <= {"contrast", "brightness"}:
            intensity.contrast_brightness_(channel, **changes.get("contrast", {}), **changes.get("brightness", {}))
        elif changes:
            # Work on intensities from 0 to 1: the darkest voxel is no signal, amplitudes mean the same for every
            # channel, and huge values do not overflow.
            low, high = channel.amin(), channel.amax()
            extent = torch.where(high > low, high - low, 1.0)
            channel.sub_(low).div_(extent)
            self._change_scaled_(channel, changes)
            limit = torch.finfo(channel.dtype).max
            torch.addcmul(low, channel, extent, out=channel).clamp_(-limit, limit)

    def _change_scaled_(self, channel, changes):
        for name in intensity.POINTWISE:
            if name in changes:
                intensity.APPLY[name](channel, **changes[name])
        if not changes.keys().isdisjoint(intensity.LINEAR):
            intensity.linear_(channel, changes)
        for name in intensity.NOISE:
            if name in changes:
                generator = torch.Generator(channel.device).manual_seed(changes[name]["seed"])
                intensity.APPLY[name](channel, changes[name]["sigma"], generator)
