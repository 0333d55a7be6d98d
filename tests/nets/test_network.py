"""What the networks declare is true of them, is said in errors, and is known without torch."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from dummies import network as dummy

from fomo import nets

torch.set_num_threads(1)
NAMES = [*nets.NETWORKS, "tiny"]
OTHER = {
    "deep_supervision": True,
    "skips": False,
    "skip_pooling": "maximum",
    "dropout": 0.5,
    "channel_dropout": 0.3,
    "attention": "se",
    "multiscale": True,
    "pooling": "max",
    "head": "mlp",
    "fusion": "late",
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    dummy.register(monkeypatch)


def build(name, mode=None, **options):
    torch.manual_seed(0)
    return nets.build(name, 1, 3, mode=mode or nets.NETWORKS[name].modes[-1], width=4, **options)


def image(name, length, batch=2):
    return torch.randn(batch, 1, *(3 * [length] if nets.NETWORKS[name].sees == "volume" else [length, length, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_declared_modes_options_and_width(name):
    network = nets.NETWORKS[name]
    for mode in ("segmentation", "classification", "regression"):
        if mode in network.modes:
            shape = build(name, mode).eval()(image(name, 2 * network.stride)).shape
            assert tuple(shape[:2]) == (2, 3) and (len(shape) == 2) == (mode != "segmentation")
        else:
            with pytest.raises(ValueError, match=f"mode: got '{mode}', wanted one of {network.modes[0]}"):
                build(name, mode)
    for option, value in OTHER.items():
        if option in network.options:
            mode = network.modes[-1 if option in ("head", "fusion", "dropout") else 0]
            assert build(name, mode, **{option: value}) is not None
        else:
            with pytest.raises(ValueError, match=f"{option}: got {value!r} for {name}, wanted"):
                build(name, **{option: value})
    assert network.recomputes == hasattr(build(name), "checkpoint_activations")
    if network.even_width:
        with pytest.raises(ValueError, match="even"):
            nets.build(name, 1, 2, width=3)
    else:
        assert nets.build(name, 1, 2, mode=network.modes[0], width=3) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_linear_layer_on_the_features(name):
    network = nets.NETWORKS[name]
    assert (network.head is None) == (network.modes == ("segmentation",))
    if network.head:
        built = build(name).eval()
        layer, x = built.get_submodule(network.head), image(name, 2 * network.stride)
        assert isinstance(layer, torch.nn.Linear) and network.head.startswith(
            tuple(p[:-1] for p in built.head_prefixes)
        )
        with torch.no_grad():
            torch.testing.assert_close(layer(built.features(x)), built(x))
        built.get_submodule(built.saliency_layer)


@pytest.mark.parametrize("name", NAMES)
def test_the_stride_and_what_a_pass_mixes_are_as_declared(name):
    network, built = nets.NETWORKS[name], build(name)
    seen = []
    built.get_submodule(built.saliency_layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = image(name, 2 * network.stride)
    with torch.no_grad():
        together = built.eval()(x)
        assert tuple(seen[0].shape[2:4]) == (2, 2)
        alone = torch.cat([built(sample[None]) for sample in x])
        assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4) != network.mixes_batch
    one = image(name, network.stride, batch=1)
    if network.one_voxel:
        assert torch.isfinite(built.train()(one)).all()
    else:
        with pytest.raises(ValueError, match="one voxel|more than 1 value"):
            built.train()(one)


@pytest.mark.parametrize(
    "name, patch, wanted",
    [
        ("unet_b", (32, 32, 16), None),
        ("unet_b", (64, 64, 1), "multiples of 16 for model.name=unet_b (it halves each axis four times)"),
        ("unet_b", (0, 16, 32), "multiples of 16 for model.name=unet_b (it halves each axis four times)"),
        ("unet_xl", (16, 16, 16), "at least one axis of 32: one voxel at the bottleneck cannot be normalised"),
        ("resenc_unet_b", (64, 32, 32), None),
        (
            "resenc_unet_b",
            (96, 96, 80),
            "multiples of 32 for model.name=resenc_unet_b (it halves each axis five times)",
        ),
        ("resenc_unet_s", (32, 32, 32), "at least one axis of 64: one voxel at the bottleneck cannot be normalised"),
        ("suprem_unet3d", (8, 8, 16), None),
        ("suprem_unet3d", (8, 8, 8), "at least one axis of 16: one voxel at the bottleneck cannot be normalised"),
        ("suprem_unet3d", (8, 8, 20), "multiples of 8 for model.name=suprem_unet3d (it halves each axis three times)"),
        ("resnet50", (64, 65, 1), None),
        ("resnet50", (63, 64, 1), "[x, y, 1] with x and y of at least 64 for model.name=resnet50: it sees slices"),
        ("resnet101", (64, 64, 64), "[x, y, 1] with x and y of at least 64 for model.name=resnet101: it sees slices"),
        ("tiny", (20, 20, 20), None),
        ("tiny", (4, 4, 4), None),
        ("tiny", (20, 20, 22), "multiples of 4 for model.name=tiny (it halves each axis two times)"),
    ],
)
def test_a_patch_that_does_not_fit_is_told_what_would(name, patch, wanted):
    assert nets.NETWORKS[name].patch_problem(name, patch) == wanted


@pytest.mark.parametrize(
    "name, patch, half",
    [
        ("unet_b", (160, 96, 48), (80, 48, 48)),
        ("suprem_unet3d", (64, 63, 96), (32, 63, 48)),
        ("resenc_unet_b", (160, 128, 96), (64, 64, 96)),
        ("resnet50", (224, 224, 1), (112, 112, 1)),
    ],
)
def test_half_a_patch_is_one_that_fits(name, patch, half):
    assert nets.NETWORKS[name].halved(patch) == half


@pytest.mark.parametrize(
    "name, patch, shape, wanted",
    [
        ("unet_b", (160, 192, 160), (64, 72, 65), (64, 80, 80)),
        ("unet_b", (96, 96, 96), (200, 90, 10), (96, 96, 16)),
        ("unet_b", (96, 96, 96), (9, 9, 9), (32, 32, 32)),  # (16, 16, 16) is one voxel at the bottleneck
        ("resenc_unet_b", (96, 96, 96), (64, 65, 9), (64, 96, 32)),
        ("resnet50", (224, 224, 1), (70, 70, 1), (224, 224, 1)),
    ],
)
def test_a_patch_is_no_larger_than_what_it_shall_hold(name, patch, shape, wanted):
    assert nets.NETWORKS[name].no_larger(patch, shape) == wanted
    assert nets.NETWORKS[name].patch_problem(name, wanted) is None


@pytest.mark.parametrize(
    "stride, words",
    [(2, "halves each axis once"), (12, "divides each axis by 12"), (32, "halves each axis five times")],
)
def test_a_stride_in_words(stride, words):
    assert dataclasses.replace(dummy.NETWORK, stride=stride).narrows == words


def test_other_problems_are_told_what_would_fit():
    networks = nets.NETWORKS
    assert networks["suprem_unet3d"].width_problem("suprem_unet3d", 7) == "an even number for model.name=suprem_unet3d"
    assert not networks["suprem_unet3d"].width_problem("suprem_unet3d", None) and not networks["tiny"].width_problem(
        "tiny", 7
    )
    words = "1 for model.name=suprem_unet3d: it normalises by all windows of a pass together"
    assert networks["suprem_unet3d"].windows_problem("suprem_unet3d", 2) == words
    assert not networks["suprem_unet3d"].windows_problem("suprem_unet3d", 1) and not networks["tiny"].windows_problem(
        "tiny", 2
    )
    asked = "task.type=regression"
    assert networks["unet_b"].mode_problem("regression", asked, nets.NETWORKS) is None
    assert (
        networks["unet_b_lw_dec"].mode_problem("regression", asked, nets.NETWORKS)
        == "unet_b or unet_xl for task.type=regression (the light decoder has no head)"
    )
    assert (
        networks["resnet50"].mode_problem("segmentation", "task.type=mae", nets.NETWORKS)
        == "a U-Net for task.type=mae: a 2D network has one output per slice"
    )
    alone = dataclasses.replace(dummy.NETWORK, modes=("segmentation",), head=None)
    assert (
        alone.mode_problem("regression", asked, nets.NETWORKS)
        == "tiny for task.type=regression (it has no such output)"
    )


def test_options_that_a_network_does_not_take_are_told_where_they_are():
    images = "resnet50, resnet101, efficientnet_b0"
    residual = "resenc_unet_s, resenc_unet_b, resenc_unet_l"
    unets, heads = f"unet_b, unet_xl, unet_b_lw_dec, unet_xl_lw_dec, {residual}", f"unet_b, unet_xl, {residual}"
    assert not list(nets.NETWORKS["tiny"].option_problems("tiny", nets.PLAIN, nets.NETWORKS))
    assert list(nets.NETWORKS["tiny"].option_problems("tiny", OTHER, nets.NETWORKS)) == [
        ("deep_supervision", f"false for model.name=tiny: of {unets} only"),
        ("skips", f"true for model.name=tiny: of {residual} only"),
        ("skip_pooling", f"average for model.name=tiny: of {residual} only"),
        ("dropout", f"0 for model.name=tiny: of {heads}, {images} only"),
        ("channel_dropout", f"0 for model.name=tiny: of {unets} only"),
        ("attention", f"none for model.name=tiny: of {images} only"),
        ("multiscale", f"false for model.name=tiny: of {images} only"),
        ("pooling", f"mean for model.name=tiny: of {images} only"),
        ("head", f"linear for model.name=tiny: of {heads} only"),
        ("fusion", f"early for model.name=tiny: of {heads} only"),
    ]
    refused = [option for option, _ in nets.NETWORKS["resnet50"].option_problems("resnet50", OTHER, nets.NETWORKS)]
    assert refused == ["deep_supervision", "skips", "skip_pooling", "channel_dropout", "head", "fusion"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sees": "image"}, "sees: got 'image', wanted one of volume, slice"),
        ({"stride": 0}, "stride: got 0"),
        ({"modes": ("segmentation", "mae")}, "modes: got 'mae'"),
        ({"options": ("droput",)}, "options: got 'droput', wanted one of deep_supervision, skips"),
        ({"head": None}, "head: got None for modes segmentation, classification, regression"),
        ({"modes": ("segmentation",)}, "head: got 'head' for modes segmentation, wanted .* or None"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_an_error_at_once(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(dummy.NETWORK, **change)


def test_a_declaration_that_is_missing_is_an_error_at_once():
    told = {field.name: getattr(dummy.NETWORK, field.name) for field in dataclasses.fields(nets.Network)}
    for name in ("source", "sees", "stride", "modes", "head", "one_voxel", "mixes_batch"):
        with pytest.raises(TypeError, match=name):
            nets.Network(**{other: value for other, value in told.items() if other != name})


def test_names_and_declarations_are_read_without_torch():
    script = """
import sys
from fomo import nets
assert nets.NETWORKS["unet_b"].patch_problem("unet_b", (20, 20, 20))
assert "torch" not in sys.modules
nets.build("resnet50", 1, 2, mode="regression", width=2)
assert "fomo.nets.resnet" in sys.modules and "fomo.nets.unet" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_dummy_says_all_that_the_house_asks():
    for mode in nets.NETWORKS["tiny"].modes:
        network = build("tiny", mode)
        names = [name for name, _ in network.named_parameters()]
        assert all(sum(name.startswith(stage) for stage in network.stages) == 1 for name in names)
        assert network.stem in names and network.stages[-1] == network.head_prefixes == network.new_prefixes
        assert any(name.startswith(network.encoder_prefixes) for name in names)
        assert network.features(torch.zeros(1, 1, 20, 20, 20)).shape == (1, 16)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("head", "level2.0", "head: got 'level2.0', wanted a layer in head_prefixes whose weight has 3 rows"),
        ("stem", "level9.weight", "stem: got 'level9.weight'"),
        ("encoder_prefixes", ("levle",), r"encoder_prefixes: no parameter begins with 'levle'"),
        ("stages", (("level",),), "stages: head.weight is in 0 of them, wanted one"),
        ("stages", ("level", "head"), r"stages.0.: got 'level', wanted a tuple of prefixes"),
        ("head_prefixes", ("level2.",), "level2.0.weight is in one of head and last stage"),
        ("saliency_layer", "level7", "saliency_layer: got 'level7'"),
        ("recomputes", True, "no checkpoint_activations"),
    ],
)
def test_a_network_that_is_not_as_declared_is_an_error_when_it_is_built(monkeypatch, name, value, words):
    class Other(dummy.Tiny):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            if name not in changed:
                setattr(self, name, value)

    changed = {name: value} if name in ("head", "recomputes") else {}
    monkeypatch.setitem(nets.NETWORKS, "tiny", dataclasses.replace(dummy.NETWORK, source=Other, **changed))
    with pytest.raises(ValueError, match=words):
        build("tiny", "regression")


def test_a_network_that_lacks_an_attribute_is_an_error_when_it_is_built(monkeypatch):
    monkeypatch.delattr(dummy.Tiny, "saliency_layer")
    with pytest.raises(ValueError, match="it has no saliency_layer"):
        build("tiny")
