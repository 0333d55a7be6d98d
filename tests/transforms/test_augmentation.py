"""The whole of fomo.transforms: contract of `build`, presets, draw and apply."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo.transforms import PRESETS, build, resolve
from fomo.transforms.registry import TRANSFORMS

PATCH = (16, 12, 20)
EVERYTHING = {name: {"p": 1.0} for name in TRANSFORMS if name not in ("resample", "channel_dropout")}


def batch_of(samples, patch=PATCH, channels=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, channels, *patch, generator=generator).to(dtype)
    mask = torch.randint(0, 4, (samples, *patch), generator=generator)
    return {"image": image, "mask": mask, "id": ["case"] * samples}


def generators(samples, seed=0):
    return [np.random.default_rng([seed, slot]) for slot in range(samples)]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_keeps_shapes_types_other_keys_and_the_input(name):
    batch = batch_of(3)
    before = copy.deepcopy(batch)
    result = build(name, PATCH)(batch, generators(3))
    assert result is not batch and list(result) == list(batch) and result["id"] is batch["id"]
    for key in ("image", "mask"):
        assert result[key].shape == batch[key].shape and result[key].dtype == batch[key].dtype
        assert torch.equal(batch[key], before[key])
    assert torch.isfinite(result["image"]).all()


def test_an_augmentation_travels_to_worker_processes():
    augment, batch = build("strong", PATCH, EVERYTHING), batch_of(1)
    copied = pickle.loads(pickle.dumps(augment))
    assert torch.equal(copied(batch, generators(1))["image"], augment(batch, generators(1))["image"])


def test_none_changes_nothing_and_copies_nothing():
    batch = batch_of(2)
    assert build("none", PATCH)(batch, generators(2))["image"] is batch["image"]


def test_everything_at_once_leaves_the_input_alone():
    batch = batch_of(2)
    before = batch["image"].clone()
    result = build("none", PATCH, EVERYTHING)(batch, generators(2))
    assert torch.equal(batch["image"], before) and not torch.equal(result["image"], before)


def test_batch_of_four_equals_four_batches_of_one():
    augment, batch = build("strong", PATCH, EVERYTHING), batch_of(4)
    together = augment(batch, generators(4))
    for b in range(4):
        alone = augment({key: batch[key][b : b + 1] for key in ("image", "mask")}, generators(4)[b : b + 1])
        assert torch.equal(alone["image"][0], together["image"][b])
        assert torch.equal(alone["mask"][0], together["mask"][b])


def test_same_generators_same_result_and_apply_is_deterministic():
    augment, batch = build("none", PATCH, EVERYTHING), batch_of(2)
    plans = augment.draw(generators(2), 2, 2)
    first, second = augment.apply(batch, plans), augment.apply(batch, plans)
    third, other = augment(batch, generators(2)), augment(batch, generators(2, seed=1))
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["image"], third["image"])
    assert not torch.equal(first["image"], other["image"])


def test_one_generator_serves_a_batch_in_order():
    augment, batch = build("all", PATCH, EVERYTHING), batch_of(2)
    one = augment(batch, np.random.default_rng(3))
    shared = np.random.default_rng(3)
    assert torch.equal(one["image"], augment(batch, [shared, shared])["image"])


def test_drawing_ignores_torch_and_numpy_global_state():
    augment, batch = build("none", PATCH, EVERYTHING), batch_of(1)
    torch.manual_seed(0), np.random.seed(0)
    first = augment(batch, generators(1))["image"]
    state = torch.get_rng_state()
    assert torch.equal(augment(batch, generators(1))["image"], first) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("patch", [(16, 16, 1), (1, 16, 16), (16, 1, 16), (16, 1, 1), (1, 1, 1), (2, 3, 16)])
@pytest.mark.parametrize("border", ["min", "zero", "edge", "reflect"])
def test_thin_patches_stay_finite_and_keep_their_labels(patch, border):
    augment = build("none", patch, {**EVERYTHING, "resample": {"border": border}})
    batch = batch_of(2, patch)
    result = augment(batch, generators(2))
    assert torch.isfinite(result["image"]).all()
    assert set(result["mask"].unique().tolist()) <= set(batch["mask"].unique().tolist()) | {0}


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30, 1e38])
def test_constant_images_stay_constant_under_everything_but_brightness(value):
    parameters = {**EVERYTHING, "brightness": {"p": 0.0}}
    batch = {"image": torch.full((1, 2, *PATCH), value)}
    result = build("none", PATCH, parameters)(batch, generators(1))["image"]
    assert torch.allclose(result, batch["image"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e30, 1e37])
def test_huge_and_tiny_values_stay_finite_and_scale_along(factor):
    batch = batch_of(1)
    augment = build("none", PATCH, {**EVERYTHING, "resample": {"image": "linear"}})
    plain = augment(batch, generators(1))["image"]
    scaled = augment({"image": batch["image"] * factor}, generators(1))["image"]
    assert torch.isfinite(scaled).all()
    assert torch.allclose(scaled / factor, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types_are_close_to_float32_and_finite(dtype):
    batch = batch_of(1)
    augment = build("none", PATCH, EVERYTHING)
    expected = augment({"image": batch["image"].to(dtype).float()}, generators(1))["image"]
    result = augment({"image": batch["image"].to(dtype)}, generators(1))["image"]
    assert result.dtype == dtype
    assert torch.allclose(result.float(), expected, rtol=1e-2, atol=2e-2)
    large = {"image": torch.where(batch["image"] > 0, 65000.0, -65000.0).to(dtype)}
    assert torch.isfinite(augment(large, generators(1))["image"]).all()


def test_autocast_has_no_influence():
    augment, batch = build("none", PATCH, EVERYTHING), batch_of(1)
    plain = augment(batch, generators(1))["image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(batch, generators(1))["image"], plain)


def test_probability_is_the_share_of_samples():
    augment = build("none", (4, 4, 4), {"blur": {"p": 0.3, "channel_p": 0.5}, "rotate": {"p": 0.2, "axis_p": 1.0}})
    plans = augment.draw(np.random.default_rng(0), 4000, 3)
    assert np.mean(["spatial" in plan for plan in plans]) == pytest.approx(0.2, abs=0.02)
    # three channels, each with probability 1/2: some channel in 7 of 8 samples, 1.5 channels on average
    assert np.mean(["blur" in plan for plan in plans]) == pytest.approx(0.3 * 7 / 8, abs=0.02)
    assert np.mean([len(plan.get("blur", ())) for plan in plans]) == pytest.approx(0.3 * 1.5, abs=0.05)


def test_presets_have_the_promised_probabilities_and_ranges():
    basic, everything, strong = resolve("basic"), resolve("all"), resolve("strong")
    assert {name for name, keys in basic.items() if keys.get("p")} == {"rotate", "scale"}
    fifth = "rotate scale noise blur multiplicative_noise ghosting gibbs low_resolution gamma".split()
    promised = dict(elastic=0.33, bias_field=0.33, **dict.fromkeys(fifth, 0.2))
    assert {name: keys["p"] for name, keys in everything.items() if keys.get("p")} == promised
    assert everything["rotate"]["degrees"] == (-30, 30) and everything["rotate"]["axis_p"] == 0.66
    assert everything["scale"]["factor"] == (0.9, 1.1) and everything["gamma"]["gamma"] == (0.5, 2.0)
    assert everything["blur"]["sigma"] == (0, 1) and everything["blur"]["channel_p"] == 0.5
    assert everything["ghosting"]["copies"] == (2, 11) and everything["low_resolution"]["zoom"] == (0.5, 1)
    assert all(strong[name]["p"] >= p for name, p in promised.items())


def test_overrides_change_only_their_key_and_not_the_preset():
    changed = resolve("all", {"rotate": {"degrees": [-5, 5]}})
    assert changed["rotate"]["degrees"] == (-5.0, 5.0) and changed["rotate"]["p"] == 0.2
    changed["scale"]["p"] = 9
    assert resolve("all")["scale"]["p"] == 0.2


@pytest.mark.parametrize(
    "overrides, named",
    [
        ({"rotat": {"p": 1.0}}, "rotat"),
        ({"rotate": {"angle": 3}}, "rotate.angle"),
        ({"rotate": 3}, "rotate"),
        ({"rotate": {"p": 1.5}}, "rotate.p"),
        ({"rotate": {"p": True}}, "rotate.p"),
        ({"rotate": {"p": float("nan")}}, "rotate.p"),
        ({"rotate": {"degrees": (30, -30)}}, "rotate.degrees"),
        ({"rotate": {"degrees": (-200, 30)}}, "rotate.degrees"),
        ({"rotate": {"degrees": (1, 2, 3)}}, "rotate.degrees"),
        ({"rotate": {"degrees": 30}}, "rotate.degrees"),
        ({"scale": {"factor": (0.0, 1.0)}}, "scale.factor"),
        ({"scale": {"per_axis": 1}}, "scale.per_axis"),
        ({"gamma": {"gamma": (0, 1)}}, "gamma.gamma"),
        ({"gibbs": {"cutoff": (0.5, 1.5)}}, "gibbs.cutoff"),
        ({"ghosting": {"copies": (1.5, 4)}}, "ghosting.copies"),
        ({"mirror": {"axes": (True, 0, 1)}}, "mirror.axes"),
        ({"resample": {"border": "wrap"}}, "resample.border"),
        ({"resample": {"spacing_mm": (1, 0, 1)}}, "resample.spacing_mm"),
    ],
)
def test_wrong_parameters_are_errors_that_name_the_key(overrides, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        build("all", PATCH, overrides)


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="^preset: got 'al'"):
        build("al", PATCH)
    with pytest.raises(ValueError, match="^patch: "):
        build("all", (16, 16))
    augment, batch = build("all", PATCH), batch_of(2)
    with pytest.raises(ValueError, match="^image: "):
        augment({"image": batch["image"][:, :, 1:]}, generators(2))
    with pytest.raises(ValueError, match="^image: "):
        augment({"image": batch["image"].long()}, generators(2))
    with pytest.raises(ValueError, match="^mask: "):
        augment({"image": batch["image"], "mask": batch["mask"].float()}, generators(2))
    with pytest.raises(ValueError, match="^generator: "):
        augment(batch, generators(3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["basic", "all", "strong"]), st.tuples(*[st.integers(1, 9)] * 3))
def test_any_draw_on_any_patch_is_finite_and_keeps_the_label_values(seed, name, patch):
    batch = batch_of(1, patch, seed=seed)
    result = build(name, patch)(batch, np.random.default_rng(seed))
    assert torch.isfinite(result["image"]).all()
    assert set(result["mask"].unique().tolist()) <= set(batch["mask"].unique().tolist()) | {0}
