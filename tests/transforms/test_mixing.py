"""fomo.transforms.mixing: images are mixed with the shares that are said."""

import numpy as np
import pytest
import torch

from fomo.transforms import mixing

PATCH = (8, 6, 10)


def images(values, patch=PATCH):
    """Sample b is values[b] everywhere, so that the mean of a mixed image tells the shares."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 2, *patch).clone()


def drawn(kind, **options):
    return [mixing.draw(kind, np.random.default_rng([0, b]), b, 4, PATCH, p=1.0, **options) for b in range(4)]


def test_cutmix_share_is_that_of_the_voxels_that_stay():
    own, plans = images([1.0, 2, 3, 4]), drawn("cutmix")
    before, others = own.clone(), images([-1.0, -2, -3, -4])
    mixed = mixing.mix(own, others, plans)
    assert torch.equal(own, before)
    for b, plan in enumerate(plans):
        assert plan["partner"] != b and 0 <= plan["partner"] < 4
        assert float((mixed[b] == b + 1).float().mean()) == pytest.approx(plan["share"])
        assert float((mixed[b] == -b - 1).float().mean()) == pytest.approx(1 - plan["share"])
        where = tuple(slice(*ends) for ends in plan["box"])
        assert (mixed[b][(slice(None), *where)] == -b - 1).all()


def test_cutmix_boxes_have_the_drawn_volume_on_average_and_stay_inside():
    rng = np.random.default_rng(0)
    plans = [mixing.draw("cutmix", rng, 0, 9, (40, 40, 1), p=1.0) for _ in range(2000)]
    shares = np.array([plan["share"] for plan in plans])
    assert shares.min() >= 0 and shares.max() <= 1
    assert 0.5 < shares.mean() < 0.75  # uniform shares, less what the border cuts off
    assert all(0 <= start <= stop <= size for plan in plans for (start, stop), size in zip(plan["box"], (40, 40, 1)))
    assert {plan["partner"] for plan in plans} == set(range(1, 9))


def test_mixup_is_the_weighted_mean_and_near_one_of_the_two():
    plans = drawn("mixup")
    mixed = mixing.mix(images([1.0, 2, 3, 4]), images([10.0, 20, 30, 40]), plans)
    for b, plan in enumerate(plans):
        assert torch.allclose(mixed[b], torch.tensor((b + 1) * (plan["share"] + 10 * (1 - plan["share"]))))
    rng = np.random.default_rng(0)
    shares = np.array([mixing.draw("mixup", rng, 0, 2, PATCH, p=1.0)["share"] for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / (2 * 0.4 + 1), abs=0.01)  # of Beta(0.4, 0.4)


def test_only_the_samples_with_a_plan_take_a_partner():
    plans = [None, dict(partner=3, share=0.25), None, dict(partner=0, share=0.5)]
    mixed = mixing.mix(images([1.0, 2, 3, 4]), images([6.0, 8.0]), plans)
    assert mixed[:, 0, 0, 0, 0].tolist() == [1, 5, 3, 6]
    own = images([1.0])
    assert mixing.mix(own, own[:0], [None]) is own


def test_probability_is_a_samples_own():
    plans = [mixing.draw("mixup", np.random.default_rng([0, b]), b, 2000, PATCH, p=0.3) for b in range(2000)]
    assert np.mean([plan is not None for plan in plans]) == pytest.approx(0.3, abs=0.03)


def test_errors():
    good = dict(kind="cutmix", generator=np.random.default_rng(0), place=0, samples=2, patch=PATCH)
    for bad, named in (
        (dict(kind="cut"), "kind"),
        (dict(p=2), "p"),
        (dict(alpha=0), "alpha"),
        (dict(samples=1), "samples"),
    ):
        with pytest.raises(ValueError, match=f"^{named}: "):
            mixing.draw(**{**good, **bad})
    with pytest.raises(ValueError, match="^plans: "):
        mixing.mix(images([1.0, 2]), images([1.0]), [None])
    with pytest.raises(ValueError, match="^plans: "):
        mixing.mix(images([1.0]), images([1.0]), [None])
