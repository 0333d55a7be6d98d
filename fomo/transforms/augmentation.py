"""Augmentation: draw on the CPU, apply on whatever device the batch lives on."""

import numpy as np
import torch

from . import intensity, spatial
from .generators import per_sample
from .registry import TRANSFORMS
from .spatial import resampling
from .transform import INTENSITY, Grid


class Augmentation:
    """augment(batch, generator) = augment.apply(batch, augment.draw(generator, batch size, channels, outside)).

    batch: dict with `image` (B, C, X, Y, Z), floating point, and optionally `mask` (B, X, Y, Z), integer or bool; other
    keys are passed on. The result is a new dict with the same keys, shapes and types; the input is left as it was (a
    result may share memory with it where nothing was drawn). generator: a numpy Generator, or a list of one per sample.
    outside: of each sample what each channel holds outside its volume, and None for a channel that its case lacks; it
    is batch["outside"], or else 0. A missing channel holds the mean of what the others have outside, and is left like
    that; a channel that is dropped becomes the same.
    """

    def __init__(self, parameters, patch):
        if len(patch) != 3 or any(int(size) != size or size < 1 for size in patch):
            raise ValueError(f"patch: got {patch!r}, wanted three positive whole numbers (x, y, z)")
        self.parameters = parameters
        self.patch = tuple(int(size) for size in patch)
        self.grid = Grid(self.patch, parameters["resample"]["spacing_mm"])
        # Kept here, and not looked up later: a worker process may know fewer transforms.
        self.spatial = {name: one for name, one in TRANSFORMS.items() if one.stage == "spatial"}
        self.intensity = {n: one for stage in INTENSITY for n, one in TRANSFORMS.items() if one.stage == stage}

    def __call__(self, batch, generator):
        return self.apply(batch, self.draw(generator, *batch["image"].shape[:2], batch.get("outside")))

    def draw(self, generator, samples, channels, outside=None):
        """One plan per sample: a dict of plain values, empty when nothing is to be done."""
        outside = [(0.0,) * channels] * samples if outside is None else outside
        generators = per_sample(generator, samples)
        return [self._draw_sample(one, values) for one, values in zip(generators, outside, strict=True)]

    def _draw_sample(self, generator, outside):
        def hit(p):  # the only place where a probability becomes an event; p = 0 costs no draw
            return p > 0 and bool(generator.random() < p)

        there = [c for c, value in enumerate(outside) if value is not None]
        drawn = {"spatial": spatial.draw(self.spatial, generator, self.parameters, self.grid, hit)}
        for name, transform in self.intensity.items():
            drawn[name] = intensity.draw(transform, generator, self.parameters[name], self.grid, there, hit)
        drawn = {name: what for name, what in drawn.items() if what}
        replaced = [drawn.get(name, {}) for name, one in self.intensity.items() if one.stage == "replacement"]
        absent = set(range(len(outside))).difference(there).union(*replaced)
        if drawn and absent:
            drawn["absent"] = dict.fromkeys(sorted(absent), _missing([outside[c] for c in there if c not in absent]))
        return drawn

    @torch.no_grad()
    def apply(self, batch, plans):
        """Apply one plan per sample. Deterministic; computes in float32 whatever the image's type or autocast say."""
        image, mask = batch["image"], batch.get("mask")
        self._check(image, mask, plans)
        if not any(plans):
            return dict(batch)
        result = {key: torch.empty_like(batch[key]) for key in ("image", "mask") if batch.get(key) is not None}
        with torch.autocast(image.device.type, enabled=False):
            flat = self.patch[2] == 1
            work = torch.empty(self.patch[:2], dtype=torch.complex64, device=image.device) if flat else None
            for b, plan in enumerate(plans):  # written at once: the memory of one sample serves the next
                done = self._apply_sample(image[b], None if mask is None else mask[b], plan, work)
                for whole, one in zip(result.values(), done):
                    whole[b] = one
        return {**batch, **result}

    def _check(self, image, mask, plans):
        if image.ndim != 5 or tuple(image.shape[2:]) != self.patch or not image.is_floating_point():
            wanted = f"floating point of shape (B, C, {', '.join(map(str, self.patch))})"
            raise ValueError(f"image: got {image.dtype} of shape {tuple(image.shape)}, wanted {wanted}")
        if mask is not None and (mask.shape != image[:, 0].shape or mask.is_floating_point()):
            wanted = f"integers of shape {tuple(image[:, 0].shape)}"
            raise ValueError(f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, wanted {wanted}")
        if len(plans) != len(image):
            raise ValueError(f"plans: got {len(plans)}, wanted one for each of {len(image)} samples")

    def _apply_sample(self, image, mask, plan, work):
        """(C, X, Y, Z) and (X, Y, Z) or None -> the same."""
        values = image
        if "spatial" in plan:
            values, mask = resampling.resample(values, mask, plan["spatial"], self.parameters["resample"], work)
        if plan.keys() - {"spatial"}:
            values = values.to(torch.float32, copy=values is image)
            for c, one in enumerate(values):
                own = [(self.intensity[name], plan[name][c]) for name in self.intensity if c in plan.get(name, ())]
                intensity.change_(one, own, plan.get("absent", {}).get(c))
        if values.dtype != image.dtype:
            limit = min(torch.finfo(image.dtype).max, torch.finfo(torch.float32).max)
            values = values.clamp_(-limit, limit).to(image.dtype)
        return values, mask


def _missing(outside):
    """What a channel that is not there holds, by what those that are there have outside the volume."""
    return float(np.mean(outside))
