"""fomo.transforms.mixing: images and targets are mixed with the same weights."""

import numpy as np
import pytest
import torch

from fomo.transforms import mixing

PATCH = (8, 6, 10)


def labelled_batch(samples=4, patch=PATCH):
    """Sample b is b + 1 everywhere, so that the mean of a mixed image tells the weights."""
    values = torch.arange(1.0, samples + 1).view(-1, 1, 1, 1, 1)
    return {
        "image": values.expand(samples, 2, *patch).clone(),
        "mask": values[:, 0].long().expand(samples, *patch).clone(),
    }


def test_cutmix_weight_is_the_share_of_voxels_that_stay():
    batch = labelled_batch()
    before = batch["image"].clone()
    plans = mixing.draw("cutmix", np.random.default_rng(0), 4, PATCH, p=1.0)
    mixed = mixing.mix(batch, plans)
    assert torch.equal(batch["image"], before)
    for b, plan in enumerate(plans):
        assert plan["partner"] != b
        assert float((mixed["image"][b] == b + 1).float().mean()) == pytest.approx(plan["weight"])
        assert torch.equal(mixed["mask"][b], mixed["image"][b, 0].long())
    targets = mixing.mix_targets(torch.arange(1.0, 5), plans)
    assert torch.allclose(targets, mixed["image"].mean((1, 2, 3, 4)))


def test_cutmix_boxes_have_the_drawn_volume_on_average_and_stay_inside():
    rng = np.random.default_rng(0)
    plans = mixing.draw("cutmix", [rng] * 2000, 2000, (40, 40, 1), p=1.0, alpha=1.0)
    shares = np.array([plan["weight"] for plan in plans])
    assert shares.min() >= 0 and shares.max() <= 1
    assert 0.5 < shares.mean() < 0.75  # uniform shares, less what the border cuts off
    assert all(0 <= start <= stop <= size for plan in plans for (start, stop), size in zip(plan["box"], (40, 40, 1)))


def test_mixup_is_the_weighted_mean_of_images_and_targets():
    batch = {"image": labelled_batch()["image"]}
    plans = mixing.draw("mixup", np.random.default_rng(0), 4, PATCH, p=1.0, alpha=0.4)
    mixed = mixing.mix(batch, plans)["image"]
    targets = mixing.mix_targets(torch.arange(1.0, 5), plans)
    assert torch.allclose(mixed, targets.view(-1, 1, 1, 1, 1).expand_as(mixed))


def test_targets_of_every_kind_by_hand():
    plans = [dict(partner=1, weight=0.75), None]
    assert mixing.mix_targets(torch.tensor([2, 0]), plans, classes=3).tolist() == [[0.25, 0, 0.75], [1, 0, 0]]
    assert mixing.mix_targets(torch.tensor([[1, 1, 0], [0, 1, 0]]), plans).tolist() == [[0.75, 1, 0], [0, 1, 0]]
    assert mixing.mix_targets(torch.tensor([60.0, 20.0]), plans).tolist() == [50, 20]


def test_probability_and_single_samples():
    plans = mixing.draw("mixup", [np.random.default_rng([0, b]) for b in range(2000)], 2000, PATCH, p=0.3)
    assert np.mean([plan is not None for plan in plans]) == pytest.approx(0.3, abs=0.03)
    assert mixing.draw("mixup", np.random.default_rng(0), 1, PATCH, p=1.0) == [None]
    batch = labelled_batch()
    assert mixing.mix(batch, [None] * 4)["image"] is batch["image"]


def test_errors():
    rng = np.random.default_rng(0)
    for bad, named in ((dict(kind="cut"), "kind"), (dict(p=2), "p"), (dict(alpha=0), "alpha")):
        with pytest.raises(ValueError, match=f"^{named}: "):
            mixing.draw(**{"kind": "cutmix", "generator": rng, "samples": 2, "patch": PATCH, **bad})
    with pytest.raises(ValueError, match="^mask: "):
        mixing.mix(labelled_batch(2), mixing.draw("mixup", rng, 2, PATCH, p=1.0))
    with pytest.raises(ValueError, match="^plans: "):
        mixing.mix(labelled_batch(2), [None])
