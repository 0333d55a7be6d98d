"""The residual-encoder U-Nets: the numbers and names of the originals (../shared), and what is promised beside them."""

import json

import pytest
import torch
from conftest import ROOT

from fomo import checkpoint, nets
from fomo.nets import checks

torch.set_num_threads(1)
REFERENCE = ROOT.parent / "shared" / "data" / "reference"
CASES = (
    "segmentation",
    "segmentation_deep_supervision",
    "pretraining_without_skips",
    "classification_early",
    "classification_late",
)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Two voxels at the bottleneck of the references make instance norms that magnify the rounding of oneDNN."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture
def reference(shared_data):
    return torch.load(REFERENCE / "resenc_unet.pt", weights_only=True)


def small(mode="segmentation", channels=1, out=2, name="resenc_unet_s", **options):
    torch.manual_seed(0)
    return nets.build(name, channels, out, mode=mode, width=2, **options)


def filled(case, mode, channels, **options):
    """The network of a reference case with the original's weights, loaded strictly by the canonical names."""
    layer = case["state"]["decoder.fc.weight" if mode == "classification" else "decoder.out_conv.weight"]
    network = nets.build(case["name"], channels, len(layer), mode=mode, width=1, **options)
    network.load_state_dict(case["state"])
    return network


@pytest.mark.parametrize("name", CASES[:3])
def test_dense_outputs_equal_the_original(reference, name):
    case = reference[name]
    options = {"skips": "without" not in name, "deep_supervision": "deep" in name}
    network = filled(case, "segmentation", case["x"].shape[1], **options)
    torch.testing.assert_close(network(case["x"]), case["y"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        finest = case["y"][0] if "deep" in name else case["y"]
        torch.testing.assert_close(network(case["x"]), finest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling, wanted", [("average", "y_average_pooling"), ("maximum", "y")])
def test_classifiers_equal_the_original_with_either_pooling(reference, pooling, wanted):
    """The original pools its skips by the maximum, though its encoder was pretrained with the average."""
    case = reference["classification_early"]
    network = filled(case, "classification", 4, skip_pooling=pooling)
    torch.testing.assert_close(network(case["x"]), case[wanted], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling, wanted", [("average", "y_average_pooling"), ("maximum", "y")])
def test_features_of_each_channel_give_the_original_s_late_fusion(reference, pooling, wanted):
    case = reference["classification_late"]
    state = {name: value for name, value in case["state"].items() if name.startswith("encoder.")}
    network = nets.build(case["name"], 1, 2, mode="classification", width=1, skip_pooling=pooling)
    network.load_state_dict(state, strict=False)
    features = torch.cat([network.features(case["x"][:, i : i + 1]) for i in range(2)], dim=1)
    weight, bias = (case["state"][f"decoder.fc.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(features @ weight.T + bias, case[wanted], rtol=1e-4, atol=1e-4)


def test_names_shapes_and_counts_equal_the_originals_at_full_size(shared_data):
    found = json.loads((REFERENCE / "resenc_unet_names.json").read_text())
    assert len(found) == 6
    for said, wanted in found.items():
        name, purpose, channels = said.split()[:3]
        mode = "classification" if purpose == "classification" else "segmentation"
        options = {"skips": False} if "without skips" in said else {}
        with torch.device("meta"):
            network = nets.build(name, *map(int, channels.split("->")), mode=mode, **options)
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == wanted["shapes"]
        assert sum(parameter.numel() for parameter in network.parameters()) == wanted["parameters"]


def test_the_large_one_has_620_channels_at_the_bottleneck():
    with torch.device("meta"):
        network = nets.build("resenc_unet_l", 1, 1)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes[network.stem] == (64, 1, 3, 3, 3)
    assert shapes["encoder.stages.3.blocks.5.conv2.conv.weight"][0] == 512
    assert shapes["encoder.stages.5.blocks.5.conv2.conv.weight"] == (620, 620, 3, 3, 3)
    assert shapes["decoder.upsample_layers.1.weight"] == (620, 512, 2, 2, 2)


MADE = [
    ("segmentation", {}),
    ("segmentation", {"deep_supervision": True}),
    ("segmentation", {"skips": False}),
    ("segmentation", {"skips": False, "deep_supervision": True}),
    ("classification", {}),
    ("regression", {"skip_pooling": "maximum"}),
]


@pytest.mark.parametrize("mode, options", MADE)
def test_stages_name_every_parameter_once_and_every_parameter_learns(mode, options):
    network = small(mode, **options)
    names = [name for name, _ in network.named_parameters()]
    stages = [[i for i, prefixes in enumerate(network.stages) if name.startswith(prefixes)] for name in names]
    assert all(len(found) == 1 for found in stages)
    assert {found[0] for found in stages} == set(range(len(network.stages)))
    assert all(name.startswith(network.encoder_prefixes) == (found[0] < 6) for name, found in zip(names, stages))
    outputs = network(torch.randn(2, 1, 64, 64, 32))
    sum((out**2).mean() for out in (outputs if isinstance(outputs, list) else [outputs])).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in still if not name.endswith("conv.bias")]  # a norm follows it


@pytest.mark.parametrize("mode, options", MADE[:3] + MADE[4:5])
def test_checkpointed_activations_give_the_same_gradients_with_less_memory(mode, options):
    network = small(mode, **options)
    image, kept, gradients = torch.randn(2, 1, 64, 64, 32), [], []
    for wanted in (False, True):
        network.checkpoint_activations(wanted)
        network.zero_grad()
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: numbers.append(t.numel()) or t, lambda t: t):
            outputs = network(image)
        sum(out.square().mean() for out in (outputs if isinstance(outputs, list) else [outputs])).backward()
        kept.append(sum(numbers))
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))
    assert kept[1] < 0.35 * kept[0]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"skips": False}, "skips: got False for mode 'classification'"),
        ({"deep_supervision": True}, "deep_supervision: got True"),
        ({"skip_pooling": "median"}, "skip_pooling: got 'median', wanted one of average, maximum"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small("classification", **options)


@pytest.mark.parametrize(
    "size, wanted",
    [
        ((32, 32, 16), (64, 32, 32)),
        ((256, 200, 5), (256, 224, 32)),
        ((1, 1, 1), (64, 32, 32)),
        ((5, 32, 31), (32, 64, 32)),
        ((64, 32, 32), (64, 32, 32)),
        ((33, 20, 20), (64, 32, 32)),
    ],
)
def test_a_small_volume_is_told_the_size_that_fits(size, wanted):
    """The bottleneck then has two voxels or more, so that its norm is defined."""
    assert checks.fitting(size, 32) == wanted
    network = small("regression").eval()
    with torch.no_grad():
        if size != wanted:
            with pytest.raises(ValueError, match=rf"for example to \({', '.join(map(str, wanted))}\)"):
                network(torch.zeros(1, 1, *size))
        if max(wanted) < 100:
            assert torch.isfinite(network(torch.randn(1, 1, *wanted))).all()


def test_a_decoder_without_skips_is_not_forced_into_one_with_skips(tmp_path):
    pretrained = small(skips=False, out=1)
    path = tmp_path / "w.pt"
    torch.save(pretrained.state_dict(), path)
    network = small(out=3, channels=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = checkpoint.load_weights(network, path)
    after = network.state_dict()
    assert set(report.new) == {name for name in after if name.startswith("decoder.")}
    assert all(torch.equal(after[name], before[name]) for name in report.new)
    encoder = [name for name in after if name.startswith("encoder.")]
    assert {*report.loaded, *report.adapted} == set(encoder) and report.adapted == (network.stem,)
    with pytest.raises(Exception, match="misshapen: decoder.decoder_convs.0"):
        checkpoint.load_weights(network, path, allow_new=network.head_prefixes)
    same = small(skips=False, out=1)
    assert checkpoint.load_weights(same, path).new == ()
