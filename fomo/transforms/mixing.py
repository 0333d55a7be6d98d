"""CutMix and MixUp: a sample is combined with another one of its batch, and so are their losses.

    plan = draw("cutmix", generator, place=3, samples=32, patch=(224, 224, 1), p=0.5)
    image = mix(images, partners, plans)
    loss = plan["share"] * loss(output, target) + (1 - plan["share"]) * loss(output, target of the partner)

A plan is None (the sample stays) or a dict: `partner`, the place of the other sample in the batch; `share`, the
sample's own share of the image; for CutMix `box`, the three (start, stop) of the partner's voxels. Where a loss is
linear in its target, as cross entropy is, this is the loss of the mixed target.
Sources: CutMix, Yun et al., ICCV 2019; MixUp, Zhang et al., ICLR 2018.
"""

import numpy as np
import torch

KINDS = {"cutmix": 1.0, "mixup": 0.4}  # with the alpha of their papers


def draw(kind, generator, place, samples, patch, p=0.5, alpha=None):
    """The plan of the sample at `place` of a batch of `samples`; its own share is drawn from Beta(alpha, alpha).

    generator: this sample's own, so that its plan does not depend on how the batch is divided over ranks.
    alpha: None for that of the kind.
    Raises ValueError for an impossible argument, such as a batch of one sample, which has no partners.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(KINDS)}")
    if not 0 <= p <= 1:
        raise ValueError(f"p: got {p!r}, wanted 0 to 1")
    alpha = KINDS[kind] if alpha is None else alpha
    if not alpha > 0:
        raise ValueError(f"alpha: got {alpha!r}, wanted more than 0")
    if samples < 2:
        raise ValueError(f"samples: got {samples}, wanted at least 2")
    if generator.random() >= p:
        return None
    partner = (place + int(generator.integers(1, samples))) % samples
    share = float(generator.beta(alpha, alpha))
    if kind == "mixup":
        return dict(partner=partner, share=share)
    box = _draw_box(generator, patch, 1 - share)
    # The box is cut off at the border of the patch: the share that counts is the one that is left.
    share = 1 - float(np.prod([(stop - start) / size for (start, stop), size in zip(box, patch)]))
    return dict(partner=partner, share=share, box=box)


def _draw_box(generator, patch, share):
    side = share ** (1 / max(1, sum(size > 1 for size in patch)))
    box = []
    for size in patch:
        length = round(side * size) if size > 1 else 1
        start = int(generator.integers(size)) - length // 2 if size > 1 else 0
        box.append((max(0, start), min(size, start + length)))
    return tuple(box)


def mix(image, partners, plans):
    """Images (B, C, X, Y, Z), copied, mixed with `partners`: one for each plan that is not None, in their order."""
    mixed = [index for index, plan in enumerate(plans) if plan is not None]
    if len(plans) != len(image) or len(partners) != len(mixed):
        given = f"{len(image)} images and {len(partners)} partners"
        raise ValueError(f"plans: got {len(plans)}, {len(mixed)} of them with a partner, for {given}")
    if not mixed:
        return image
    result = image.clone()
    for index, partner in zip(mixed, partners):
        plan = plans[index]
        if "box" in plan:
            where = (slice(None), *(slice(*ends) for ends in plan["box"]))
            result[index][where] = partner[where]
        else:
            result[index] = torch.lerp(partner, image[index], plan["share"])
    return result
