"""Multi-crop views of volumes and slices for self-supervised learning (Caron et al. 2020, SwAV; in 3D, too).

Each patch gives two large (global) views and some small (local) ones. A view is a box at a random place and scale with
the patch's proportions, resized trilinearly (a slice: bilinearly) and augmented on its own. `Pairs` are two views of
the whole patch.
"""

import torch
import torch.nn.functional as F

from .generators import per_sample

GLOBAL_VIEWS = 2


class Pairs:
    """Two views of each patch, augmented each on its own.

    augment: the Augmentation of both; the arguments of the methods are those of Augmentation.
    """

    def __init__(self, augment):
        self.augment = augment

    def draw(self, generator, samples, channels, outside=None):
        """A pair of plans per sample."""
        generators = per_sample(generator, samples)
        return list(zip(*(self.augment.draw(generators, samples, channels, outside) for _ in range(2))))

    @torch.no_grad()
    def apply(self, batch, plans):
        """The batch with `image` and `mask`, where there is one, of all views: view v of sample b is at v * B + b."""
        doubled = {name: torch.cat([batch[name]] * 2) for name in ("image", "mask") if name in batch}
        return {**batch, **self.augment.apply(doubled, [pair[view] for view in range(2) for pair in plans])}


class Views:
    """views(batch, generator) = views.apply(batch, views.draw(generator, batch size, channels, outside)).

    The arguments are those of Augmentation.

    patch: voxels (x, y, z) of the batch's images.
    augment: {"global": Augmentation, "local": Augmentation}, each for the size of its views.
    scale: {"global": (low, high), "local": (low, high)}, the share of the patch's volume that a view shows;
        of a patch of one slice that of its area.
    local_views: number of local views, 0 or more.
    """

    def __init__(self, patch, augment, scale, local_views):
        for name, (low, high) in scale.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} scale: got ({low}, {high}), wanted 0 < low <= high <= 1")
        self.patch, self.augment, self.scale = tuple(patch), augment, scale
        self._axes = 2 if self.patch[2] == 1 else 3
        self.kinds = ["global"] * GLOBAL_VIEWS + ["local"] * local_views

    def __call__(self, batch, generator):
        return self.apply(batch, self.draw(generator, *batch["image"].shape[:2], batch.get("outside")))

    def draw(self, generator, samples, channels, outside=None):
        """One plan per sample: for each view its box, as (start, size) per axis, and its augmentation's plan."""
        outside = [(0.0,) * channels] * samples if outside is None else outside
        pairs = zip(per_sample(generator, samples), outside, strict=True)
        return [[self._draw_view(kind, one, values) for kind in self.kinds] for one, values in pairs]

    def _draw_view(self, kind, generator, outside):
        share = generator.uniform(*self.scale[kind]) ** (1 / self._axes)  # of each axis
        box = []
        for length in self.patch:
            size = max(1, round(share * length))
            box.append((int(generator.integers(length - size + 1)), size))
        return {"box": box, "plan": self.augment[kind].draw(generator, 1, len(outside), [outside])[0]}

    @torch.no_grad()
    def apply(self, batch, plans):
        """The batch with `image` (G * B, C, X, Y, Z) and, where there are any, `local` (L * B, C, x, y, z).

        View v of sample b is at v * B + b. Computes in float32. Raises ValueError for images that are not of `patch`.
        """
        image = batch["image"]
        if image.ndim != 5 or tuple(image.shape[2:]) != self.patch or len(plans) != len(image):
            wanted = f"(B, C, {', '.join(map(str, self.patch))}) and {len(plans)} plans"
            raise ValueError(f"image: got shape {tuple(image.shape)}, wanted {wanted}")
        result = dict(batch)
        for kind, name in (("global", "image"), ("local", "local")):
            drawn = [plan[v] for v, one in enumerate(self.kinds) if one == kind for plan in plans]
            if drawn:
                views = [self._resized(image[i % len(image)], kind, one["box"]) for i, one in enumerate(drawn)]
                stacked = {"image": torch.stack(views)}
                result[name] = self.augment[kind].apply(stacked, [one["plan"] for one in drawn])["image"]
        return result

    def _resized(self, image, kind, box):
        crop = image[(slice(None), *(slice(start, start + size) for start, size in box))]
        size = self.augment[kind].patch
        with torch.autocast(image.device.type, enabled=False):
            return F.interpolate(crop[None].float(), size=size, mode="trilinear", align_corners=False)[0]
