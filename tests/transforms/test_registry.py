"""fomo.transforms.transform and .registry: a transform is one file and one line."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from dummies import transform as dummy

from fomo.transforms import PRESETS, Key, Transform, build, resolve
from fomo.transforms.registry import TRANSFORMS
from fomo.transforms.spatial import Move
from fomo.transforms.transform import INTENSITY, Grid, chances, probability

PATCH = (12, 10, 8)


def image_of(samples=2, channels=2):
    return torch.randn(samples, channels, *PATCH, generator=torch.Generator().manual_seed(0))


def generators(samples=2):
    return [np.random.default_rng([5, slot]) for slot in range(samples)]


def test_a_new_transform_is_drawn_and_applied(monkeypatch):
    dummy.register(monkeypatch)
    augment, image = build("none", PATCH, {dummy.NAME: {"p": 1.0, "share": (0.2, 0.4)}}), image_of()
    plans = augment.draw(generators(), 2, 2)
    shares = [plan[dummy.NAME][c]["share"] for plan in plans for c in range(2)]
    assert len(set(shares)) == 4 and all(0.2 <= share <= 0.4 for share in shares)
    assert plans == augment.draw(generators(), 2, 2), "by the sample's own generator"
    assert [plans[1]] == augment.draw(generators()[1:], 1, 2)
    result = augment.apply({"image": image}, plans)["image"]
    for before, after, share in zip(image.flatten(0, 1), result.flatten(0, 1), shares):
        highest = before.min() + (1 - share) * (before.max() - before.min())
        torch.testing.assert_close(after, before.clamp(max=float(highest)))
    copied = pickle.loads(pickle.dumps(augment))
    assert torch.equal(copied({"image": image}, generators())["image"], result), "also in a worker process"


def test_the_keys_of_a_new_transform_are_checked_and_off_in_all_presets(monkeypatch):
    with pytest.raises(ValueError, match=f"^{dummy.NAME}: unknown transform"):
        build("all", PATCH, {dummy.NAME: {"p": 1.0}})
    plain = {preset: build(preset, PATCH).draw(generators(9), 9, 2) for preset in ("all", "slices")}
    dummy.register(monkeypatch)
    for keys, named in (
        ({"p": 2}, "p: got 2"),
        ({"shade": 1}, "shade: unknown key"),
        ({"share": (0.4, 0.6)}, "share: "),
    ):
        with pytest.raises(ValueError, match=f"^{dummy.NAME}.{named}"):
            build("all", PATCH, {dummy.NAME: keys})
    for preset in PRESETS:
        assert resolve(preset)[dummy.NAME] == {"p": 0.0, "channel_p": 1.0, "share": (0.1, 0.3)}
    for preset, plans in plain.items():
        drawn = build(preset, PATCH).draw(generators(9), 9, 2)
        assert pickle.dumps(drawn) == pickle.dumps(plans), "what is off costs no draw"


def draw_shear(generator, keys, grid, hit):
    return [np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])] if hit(keys["p"]) else None


def test_a_new_spatial_transform_joins_the_one_resampling(monkeypatch):
    monkeypatch.setitem(TRANSFORMS, "lean", Transform("spatial", draw_shear, Move.turned, {"p": probability(0.2)}))
    augment = build("none", (9, 9, 1), {"lean": {"p": 1.0}, "resample": {"border": "zero"}})
    image = torch.zeros(1, 1, 9, 9, 1)
    image[0, 0, 4] = 1  # a line along y
    sheared = augment({"image": image}, np.random.default_rng(0))["image"][0, 0, :, :, 0]
    assert sheared.argmax(0)[::2].tolist() == [2, 3, 4, 5, 6], "moves along x by half of y"


GOOD = {"stage": "voxelwise", "draw": dummy.draw, "apply": dummy.saturate_, "keys": chances(0.2)}


@pytest.mark.parametrize("wrong, named", [
    ({"stage": "late"}, "stage: got 'late'"), ({"draw": None}, "draw: "), ({"apply": "clamp"}, "apply: "),
    ({"keys": {"p": probability(0.2)}}, "keys: .*channel_p"), ({"keys": {}, "stage": "spatial"}, "keys: "),
    ({"keys": {**chances(0.2), "share": (0.1, 0.3)}}, "keys: "), ({"stage": "setting"}, "draw: "),
])  # fmt: skip
def test_what_a_transform_does_not_declare_is_an_error(wrong, named):
    Transform(**GOOD)
    with pytest.raises(TypeError, match=f"^{named}"):
        Transform(**{**GOOD, **wrong})


@pytest.mark.parametrize("key, words", [
    (Key((0.3, 0.1), (0.0, 0.5), "reversed"), "lower end of the range"), (Key(2.0, (0.0, 1.0), "out"), "0.0 to 1"),
    (Key(2.0, None, "no limits"), "got no limits"), (Key("a", ("b", "c"), "no choice"), "one of b, c"),
])  # fmt: skip
def test_a_key_whose_own_value_makes_no_sense_is_an_error(key, words):
    with pytest.raises((TypeError, ValueError), match=f"^share: .*{words}"):
        Transform(**{**GOOD, "keys": {**chances(0.2), "share": key}})


@pytest.mark.parametrize("lacking", GOOD)
def test_a_declaration_that_lacks_something_is_an_error(lacking):
    with pytest.raises(TypeError, match=lacking):
        Transform(**{name: value for name, value in GOOD.items() if name != lacking})
    with pytest.raises(dataclasses.FrozenInstanceError):
        dummy.SATURATE.stage = "noise"


def test_all_values_of_all_presets_are_within_their_limits_and_all_keys_explained():
    for preset in PRESETS:
        values = resolve(preset)
        assert resolve(preset, values) == values
    for name, transform in TRANSFORMS.items():
        assert all(isinstance(key, Key) and key.help for key in transform.keys.values()), name


def test_what_a_channel_draws_is_what_apply_takes():
    for name, transform in TRANSFORMS.items():
        if transform.stage in INTENSITY:
            keys = {key: one.value for key, one in transform.keys.items()}
            drawn = transform.draw(np.random.default_rng(0), keys, Grid(PATCH), lambda p: False)
            if transform.stage == "linear":
                assert transform.apply(7, 1, **drawn).shape == (7, 7), name
            else:
                channel = torch.rand(PATCH, generator=torch.Generator().manual_seed(0))
                before = channel.clone()
                transform.apply(channel, *([0.5] if transform.stage == "replacement" else []), **drawn)
                assert not torch.equal(channel, before), f"{name} works in place"
