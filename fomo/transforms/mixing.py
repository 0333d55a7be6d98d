"""CutMix and MixUp: samples of one batch are combined, and their targets with the same weights.

    plans = draw("cutmix", generators, samples, patch, p=0.5, alpha=1.0)
    batch, targets = mix(batch, plans), mix_targets(targets, plans, classes=18)

A plan is None (the sample stays) or a dict: `partner`, the index of the other sample; `weight`, the sample's own share;
for CutMix also `box`, the three (start, stop) of the partner's voxels. Sources: CutMix, Yun et al., ICCV 2019; MixUp,
Zhang et al., ICLR 2018.
"""

import numpy as np
import torch

from .generators import per_sample

KINDS = ("cutmix", "mixup")


def draw(kind, generator, samples, patch, p=0.5, alpha=1.0):
    """One plan per sample; the share is drawn from Beta(alpha, alpha). A batch of one sample has no partners: all None.

    The partners are those of the batch, so mixed batches depend on how the samples are divided over ranks. Raises
    ValueError for an impossible argument.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(KINDS)}")
    if not 0 <= p <= 1:
        raise ValueError(f"p: got {p!r}, wanted 0 to 1")
    if not alpha > 0:
        raise ValueError(f"alpha: got {alpha!r}, wanted more than 0")
    plans = []
    for index, one in enumerate(per_sample(generator, samples)):
        if samples == 1 or one.random() >= p:
            plans.append(None)
            continue
        partner = (index + int(one.integers(1, samples))) % samples
        weight = float(one.beta(alpha, alpha))
        plan = dict(partner=partner, weight=weight)
        if kind == "cutmix":
            plan["box"] = box = _draw_box(one, patch, 1 - weight)
            # The box is cut off at the border of the patch: the share that counts is the one that is left.
            plan["weight"] = 1 - float(np.prod([(stop - start) / size for (start, stop), size in zip(box, patch)]))
        plans.append(plan)
    return plans


def _draw_box(generator, patch, share):
    side = share ** (1 / max(1, sum(size > 1 for size in patch)))
    box = []
    for size in patch:
        length = round(side * size) if size > 1 else 1
        start = int(generator.integers(size)) - length // 2 if size > 1 else 0
        box.append((max(0, start), min(size, start + length)))
    return tuple(box)


def mix(batch, plans):
    """The batch with `image` (B, C, X, Y, Z) mixed; CutMix pastes `mask` (B, X, Y, Z) too. The input is left as it was.

    Raises ValueError for MixUp of a batch with a mask: the mean of two label maps is no label map.
    """
    image, mask = batch["image"], batch.get("mask")
    if len(plans) != len(image):
        raise ValueError(f"plans: got {len(plans)}, wanted one for each of {len(image)} samples")
    if not any(plans):
        return dict(batch)
    mixed, mixed_mask = image.clone(), None if mask is None else mask.clone()
    for index, plan in enumerate(plans):
        if plan is None:
            continue
        partner = plan["partner"]
        if "box" in plan:
            where = tuple(slice(*ends) for ends in plan["box"])
            mixed[(index, slice(None), *where)] = image[(partner, slice(None), *where)]
            if mask is not None:
                mixed_mask[(index, *where)] = mask[(partner, *where)]
        elif mask is not None:
            raise ValueError("mask: got one with mixup, wanted none: mixed label maps are not defined (use cutmix)")
        else:
            mixed[index] = torch.lerp(image[partner], image[index], plan["weight"])
    return dict(batch, image=mixed) if mask is None else dict(batch, image=mixed, mask=mixed_mask)


def mix_targets(targets, plans, classes=None):
    """Floating-point targets with the weights of the plans.

    Single-label: (B,) integers and classes=K -> (B, K) probabilities. Multi-label (B, K) and regression (B,) or (B, K):
    numbers -> the same shape.
    """
    if classes is not None:
        targets = torch.nn.functional.one_hot(targets.long(), classes)
    targets = targets if targets.is_floating_point() else targets.float()
    mixed = targets.clone()
    for index, plan in enumerate(plans):
        if plan is not None:
            mixed[index] = plan["weight"] * targets[index] + (1 - plan["weight"]) * targets[plan["partner"]]
    return mixed
