"""Multi-crop views: where they are read, that they are the same however they are batched, and what is refused."""

import numpy as np
import pytest
import torch

from fomo import transforms

PATCH = (48, 32, 16)
SIZES = dict(global_size=(32, 32, 16), local_size=(32, 16, 16))
SCALES = dict(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4))


def make(preset="none", parameters=None, **changes):
    chosen = {"local_views": 3, **SIZES, **SCALES, **changes}
    return transforms.build_views(preset, PATCH, {"mirror": {"p": 0.0}} if parameters is None else parameters, **chosen)


def ramp(samples=2):
    """(samples, 3, X, Y, Z): channel a holds the voxel's position on axis a, plus 100 times the sample."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in PATCH), indexing="ij"))
    return torch.stack([grid + 100 * i for i in range(samples)])


def generators(count, first=0):
    return [np.random.default_rng([7, first + i]) for i in range(count)]


def test_a_view_is_its_box_resized():
    views, image = make(), ramp()
    plans = views.draw(generators(2), 2, 3)
    batch = views.apply({"image": image, "id": ["a", "b"]}, plans)
    assert batch["image"].shape == (4, 3, 32, 32, 16) and batch["local"].shape == (6, 3, 32, 16, 16)
    assert batch["id"] == ["a", "b"]
    for sample in range(2):
        for v in range(5):
            kind, place = ("image", v) if v < 2 else ("local", v - 2)
            view, size = batch[kind][place * 2 + sample], (SIZES["global_size"], SIZES["local_size"])[v >= 2]
            for axis, (start, length) in enumerate(plans[sample][v]["box"]):
                # voxel i of the view is centred at (i + 1/2) length / size of the box; a ramp stays a ramp
                wanted = start + (np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5
                wanted = wanted.clip(start, start + length - 1) + 100 * sample
                found = view[axis].movedim(axis, 0).flatten(1)
                np.testing.assert_allclose(found, np.broadcast_to(wanted[:, None], found.shape), atol=1e-4)


def test_boxes_keep_the_proportions_of_the_patch_and_the_range_of_scales():
    views = make(global_scale=(0.5, 1.0), local_scale=(0.1, 0.3))
    plans = views.draw(np.random.default_rng(0), 400, 1)
    shares = {"global": [], "local": []}
    for plan in plans:
        for v, one in enumerate(plan):
            edges = [length / n for (_, length), n in zip(one["box"], PATCH)]
            assert max(edges) - min(edges) <= 1 / 16 + 1e-9, "of the shortest axis, half a voxel either way"
            assert all(0 <= start <= n - length for (start, length), n in zip(one["box"], PATCH))
            shares["local" if v > 1 else "global"].append(
                np.prod([length for _, length in one["box"]]) / np.prod(PATCH)
            )
    for kind, (low, high) in {"global": (0.5, 1.0), "local": (0.1, 0.3)}.items():
        assert low * 0.85 < min(shares[kind]) < low * 1.2 and high * 0.9 < max(shares[kind]) < high * 1.1
        assert np.mean(shares[kind]) == pytest.approx((low + high) / 2, rel=0.05)
    starts = {plan[2]["box"][0][0] for plan in plans}
    assert 0 in starts and max(starts) > 15, "local views are read everywhere"


def test_a_sample_has_the_same_views_in_any_batch():
    views, image = make("strong", {}), torch.randn(4, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    whole = views({"image": image}, generators(4))
    for first in (0, 2):
        part = views({"image": image[first : first + 2]}, generators(2, first))
        for name, count in (("image", 2), ("local", 3)):
            by_view = whole[name].unflatten(0, (count, 4))[:, first : first + 2]
            assert torch.equal(part[name].unflatten(0, (count, 2)), by_view)


def test_views_are_mirrored_left_right_unless_told_otherwise():
    image = ramp(1)
    for parameters, wanted in (({}, {False, True}), ({"mirror": {"p": 0.0}}, {False})):
        views = make(parameters=parameters)
        found = set()
        for seed in range(12):
            batch = views({"image": image}, [np.random.default_rng(seed)])
            for view in batch["image"]:
                assert (view[1].diff(dim=1) >= 0).all(), "front stays in front"
                found.add(bool((view[0].diff(dim=0) <= 0).all()))
        assert found == wanted


def test_views_are_augmented_each_on_its_own():
    views = make("none", {"noise": {"p": 1.0, "sigma": (0.1, 0.1)}}, global_scale=(1.0, 1.0), global_size=PATCH)
    image = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    batch = views({"image": image}, [np.random.default_rng(0)])
    first, second = batch["image"]
    for view in (first, second):
        assert 0.05 < float(min((view - image[0]).std(), (view.flip(1) - image[0]).std())) < 0.2
    assert not torch.equal(first, second) and not torch.equal(first, second.flip(1))


def test_the_spacing_of_a_view_is_that_of_its_stretched_voxels():
    views = make(parameters={"resample": {"spacing_mm": (3.0, 1.0, 1.0)}}, global_size=(48, 16, 16))
    assert views.augment["global"].parameters["resample"]["spacing_mm"] == (3.0, 2.0, 1.0)
    assert views.augment["local"].parameters["resample"]["spacing_mm"] == (4.5, 2.0, 1.0)


def test_without_local_views_there_are_none():
    views = make(local_views=0)
    assert "local" not in views({"image": ramp()}, generators(2))


def test_what_is_refused():
    with pytest.raises(ValueError, match="global scale: got"):
        make(global_scale=(0.9, 0.4))
    with pytest.raises(ValueError, match="image: got shape"):
        make().apply({"image": torch.zeros(1, 1, 16, 16, 16)}, [[]])
    with pytest.raises(ValueError, match="rotate.angle: unknown key"):
        make(parameters={"rotate": {"angle": 3}})
    with pytest.raises(ValueError, match="mirror: got 3"):
        make(parameters={"mirror": 3})
