"""The 2D networks: equal to torchvision's; attention, fusion and pooling by hand; what they say about themselves."""

import json
import pathlib

import make_torchvision_oracle as formula
import pytest
import torch

from fomo import checkpoint, nets
from fomo.nets import attention, heads

torch.set_num_threads(1)
ORACLE = json.loads((pathlib.Path(__file__).parent / "torchvision_oracle.json").read_text())
SMALL = {"resnet50": 4, "efficientnet_b0": 8}  # widths; resnet101 is resnet50 with more blocks


def small(name="resnet50", channels=2, classes=3, seed=0, mode="classification", **options):
    torch.manual_seed(seed)
    return nets.build(name, channels, classes, mode=mode, width=SMALL[name], **options)


def randomized(network, seed=0):
    """Other numbers in every parameter, also where they start at zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", formula.GAIN)
def test_names_shapes_and_counts_are_torchvisions(name):
    with torch.device("meta"):
        network = nets.build(name, 3, 1000, mode="classification")
    assert formula.names_and_shapes(network) == (ORACLE[name]["tensors"], ORACLE[name]["sha256"])
    assert sum(p.numel() for p in network.parameters()) == ORACLE[name]["parameters"]


@pytest.mark.parametrize("name", formula.GAIN)
def test_outputs_are_torchvisions(name):
    network = nets.build(name, 3, formula.CLASSES, mode="classification")
    formula.fill(network, formula.GAIN[name]).eval()
    logits, features = (torch.tensor(ORACLE[name][key], dtype=torch.float64) for key in ("logits", "features"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        network, image = network.to(dtype), formula.image().to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(network(image).double(), logits, rtol=0, atol=tolerance)
            torch.testing.assert_close(network.features(image)[:, ::97].double(), features, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_slices_and_images_of_any_channels_and_size(name, channels):
    network = small(name, channels).eval()
    image = torch.randn(2, channels, 70, 40)
    with torch.no_grad():
        logits, features = network(image), network.features(image)
        assert torch.equal(network(image[..., None]), logits) and logits.shape == (2, 3)
        assert torch.equal(network.features(image[..., None]), features) and features.ndim == 2
        assert not torch.equal(logits[0], logits[1])
    for wrong in ((2, channels + 1, 64, 64), (2, channels, 64, 64, 2), (channels, 64, 64)):
        with pytest.raises(ValueError, match=rf"wanted \(B, {channels}, X, Y\) or \(B, {channels}, X, Y, 1\)"):
            network(torch.zeros(wrong))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "options", [{}, {"attention": "se"}, {"attention": "cbam", "multiscale": True, "pooling": "mean_max"}]
)
def test_every_parameter_has_one_stage_and_a_gradient(name, options):
    network = small(name, mode="regression", dropout=0.1, **options)
    names = [n for n, _ in network.named_parameters()]
    hits = [[i for i, prefixes in enumerate(network.stages) if n.startswith(prefixes)] for n in names]
    assert all(len(found) == 1 for found in hits) and {found[0] for found in hits} == set(range(len(network.stages)))
    encoder = [found[0] for found in hits if found[0] < len(network.stages) - 1]
    assert encoder == sorted(encoder)  # from input to output
    assert network.stages[0][0] in network.stem and network.stem in names
    assert network.stages[-1] == network.head_prefixes
    assert all(n.startswith(network.encoder_prefixes) == (not n.startswith(network.head_prefixes)) for n in names)
    randomized(network)(torch.randn(4, 2, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_squeeze_and_excitation_by_hand():
    torch.manual_seed(0)
    gate = randomized(attention.build("se", 32))
    x = torch.randn(2, 32, 3, 5)
    first, second = gate.channel[0], gate.channel[2]
    assert first.out_channels == 4  # 32 / 16, but at least 4
    hidden = (x.mean((2, 3)) @ first.weight[:, :, 0, 0].T + first.bias).clamp(min=0)
    weight = 1 / (1 + torch.exp(-(hidden @ second.weight[:, :, 0, 0].T + second.bias)))
    torch.testing.assert_close(gate(x), x * weight[:, :, None, None])


def test_cbam_by_hand():
    torch.manual_seed(0)
    block = randomized(attention.build("cbam", 8))
    x = torch.randn(2, 8, 6, 5)
    channels = torch.sigmoid(
        sum(block.channel(pooled[:, :, None, None]) for pooled in (x.mean((2, 3)), x.amax((2, 3))))
    )
    x1 = x * channels
    padded = torch.nn.functional.pad(torch.stack((x1.mean(1), x1.amax(1)), 1), (3, 3, 3, 3))
    places = torch.zeros(2, 6, 5)
    for i in range(6):
        for j in range(5):
            places[:, i, j] = (padded[:, :, i : i + 7, j : j + 7] * block.spatial.weight).sum(
                (1, 2, 3)
            ) + block.spatial.bias
    torch.testing.assert_close(block.places(x1)[:, 0], torch.sigmoid(places))
    torch.testing.assert_close(block(x), x1 * torch.sigmoid(places)[:, None])


@pytest.mark.parametrize("kind, share", [("none", 1.0), ("se", 0.5), ("cbam", 0.25)])
def test_attention_starts_neutral(kind, share):
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(attention.build(kind, 16)(x), share * x)


@pytest.mark.parametrize("name", SMALL)
def test_attention_sees_the_map_before_it_is_pooled(name):
    network = randomized(small(name, attention="cbam")).eval()
    seen = []
    block = next(module for module in network.modules() if isinstance(module, attention.CBAM))
    block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        features = network.features(torch.randn(1, 2, 96, 128))
    assert seen[0][0].shape[2:] == (3, 4)
    torch.testing.assert_close(features, seen[0][1].mean((2, 3)))


def test_readout_by_hand():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2)]
    mean, high = maps[1].mean((2, 3)), maps[1].amax((2, 3))
    torch.testing.assert_close(heads.Readout([6])(maps[1:]), mean)
    torch.testing.assert_close(heads.Readout([6], pooling="max")(maps[1:]), high)
    torch.testing.assert_close(heads.Readout([6], pooling="mean_max")(maps[1:]), torch.cat((mean, high), 1))
    fused = randomized(heads.Readout([3, 6]))
    parts = []
    for x, norm in zip((maps[0].mean((2, 3)), mean), fused.norms):
        scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        parts.append(scaled * norm.weight + norm.bias)
    linear = fused.fusion[0]
    torch.testing.assert_close(fused(maps), (torch.cat(parts, 1) @ linear.weight.T + linear.bias).clamp(min=0))
    with pytest.raises(ValueError, match="pooling: got 'gem'"):
        heads.Readout([6], pooling="gem")


@pytest.mark.parametrize("name", SMALL)
def test_multiscale_reads_maps_of_three_sizes(name):
    network = small(name, multiscale=True).eval()
    seen = []
    network.get_submodule("features.readout" if "efficient" in name else "readout").register_forward_pre_hook(
        lambda module, inputs: seen.extend(inputs[0])
    )
    finest = []
    network.get_submodule(network.saliency_layer).register_forward_hook(lambda module, inputs, x: finest.append(x))
    network(torch.zeros(1, 2, 64, 96))
    assert [tuple(x.shape[2:]) for x in seen] == [(8, 12), (4, 6), (2, 3)]
    assert finest[0] is seen[0]


def test_dropout_is_of_the_features_and_off_in_evaluation():
    network = small(dropout=0.5).eval()
    image = torch.randn(2, 2, 64, 64)
    seen = []
    network.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert torch.equal(network(image), network(image)) and (seen[0] != 0).float().mean() > 0.8
    network.dropout.train()
    network(image)
    assert 0.4 < (seen[-1] == 0)[seen[0] != 0].float().mean() < 0.6


def test_blocks_are_skipped_in_training_only():
    network = small("efficientnet_b0")
    blocks = [module for module in network.modules() if getattr(module, "beside", False)]
    assert [round(block.skipped * 80) for block in blocks] == [2, 4, 6, 7, 9, 10, 12, 13, 14]  # .2 i / 16, i from 0
    block = blocks[-1]
    x = torch.randn(400, block.block[0][0].in_channels, 1, 1)
    branch = block.eval()(x) - x
    block.block.eval()
    block.training = True
    ratio = ((block(x) - x) / branch).flatten(1).median(1).values
    kept = ratio[ratio.abs() >= 1e-3]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - block.skipped)), rtol=1e-3, atol=0)
    assert abs(1 - len(kept) / len(ratio) - block.skipped) < 0.08


# ------------------------------------------------------------------------------------------------ weights of files


def write(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize("name", SMALL)
def test_a_file_with_another_head_loads_all_but_the_head(tmp_path, name):
    state = randomized(small(name, channels=3, classes=10)).state_dict()
    head = [n for n in state if n.startswith(("fc.", "classifier."))]
    model = small(name, channels=3, seed=1, attention="cbam")
    report = checkpoint.load_weights(model, write(tmp_path, state))
    assert list(report.ignored) == head and len(report.loaded) == len(state) - 2 and report.adapted == ()
    assert set(head) < set(report.new) and all(n.startswith(model.head_prefixes) for n in report.new)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items() if n not in report.new)
    assert checkpoint.load_weights(small(name, channels=3, classes=10), write(tmp_path, state)).new == ()


def test_old_files_have_no_counters(tmp_path):
    state = {n: t for n, t in randomized(small()).state_dict().items() if "num_batches" not in n}
    report = checkpoint.load_weights(small(seed=1), write(tmp_path, state))
    assert len(report.loaded) == len(state) and all(n.endswith("num_batches_tracked") for n in report.new)
    state["bn1.num_batches_tracked"] = torch.tensor(3)  # a file that has some has lost others
    with pytest.raises(ValueError, match="52 missing: layer1.0.bn1.num_batches_tracked"):
        checkpoint.load_weights(small(), write(tmp_path, state))


@pytest.mark.parametrize(
    "prefix", ["visual.", "module.visual.", "image_encoder.model.", "model.visual_transformer.backbone."]
)
def test_the_image_half_of_a_model_of_images_and_text_loads(tmp_path, prefix):
    state = randomized(small()).state_dict()
    outer = next((wrapper for wrapper in ("module.", "model.") if prefix.startswith(wrapper)), "")
    content = {f"{prefix}{n}": t for n, t in state.items()}
    content |= {f"{outer}text_transformer.weight": torch.ones(3), f"{outer}logit_scale": torch.ones(())}
    model = small(seed=1)
    report = checkpoint.load_weights(model, write(tmp_path, content))
    assert report.counts() == {"loaded": len(state), "new": 0, "adapted": 0, "ignored": 2, "aliases": 0}
    assert sorted(n.removeprefix(outer) for n in report.ignored) == ["logit_scale", "text_transformer.weight"]
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="none of its"):
        checkpoint.load_weights(small("efficientnet_b0"), write(tmp_path, content))


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_grey_image_activates_the_same_whatever_the_channels(tmp_path, channels):
    three = randomized(small(channels=3)).eval()
    other = small(channels=channels, seed=1).eval()
    report = checkpoint.load_weights(other, write(tmp_path, three.state_dict()))
    assert report.adapted == (() if channels == 3 else ("conv1.weight",))
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        other(grey.expand(-1, channels, -1, -1)), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("resnet50", {"mode": "segmentation"}, "mode: got 'segmentation'"),
        ("resnet50", {"attention": "eca"}, "attention: got 'eca', wanted one of none, se, cbam"),
        ("efficientnet_b0", {"deep_supervision": True}, "deep_supervision: got True for efficientnet_b0"),
        ("efficientnet_b0", {"classes": 0}, "out_channels: got 0"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        small(name, **options)
    with pytest.raises(ValueError, match="attention: got 'se' for unet_b, wanted 'none'"):
        nets.build("unet_b", 1, 2, mode="classification", width=2, attention="se")
