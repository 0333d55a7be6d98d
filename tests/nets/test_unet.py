import pytest
import torch

from fomo import nets

torch.set_num_threads(1)


def shapes(*args, **kwargs):
    with torch.device("meta"):  # the big ones without their memory
        return {name: tuple(tensor.shape) for name, tensor in nets.build(*args, **kwargs).state_dict().items()}


@pytest.mark.parametrize(
    "args, kwargs, parameters, tensors",
    [
        (("unet_b", 3, 2), {}, 22_582_978, 82),
        (("unet_b", 4, 2), {"mode": "classification"}, 14_138_562, 42),
        (("unet_b", 2, 1), {"mode": "regression"}, 14_136_321, 42),
        (("unet_b_lw_dec", 1, 1), {}, 20_229_697, 66),
        (("unet_xl", 1, 2), {}, 90_304_514, 82),
        (("unet_xl_lw_dec", 1, 1), {}, 80_901_249, 66),
    ],
)
def test_counts_equal_the_baseline(args, kwargs, parameters, tensors):
    state = shapes(*args, **kwargs)
    assert sum(torch.Size(shape).numel() for shape in state.values()) == parameters
    assert len(state) == tensors


def test_names_and_shapes_equal_the_baseline():
    state = shapes("unet_b", 3, 2, deep_supervision=True)
    expected = {}
    widths = (32, 64, 128, 256, 512)

    def level(name, channels_in, channels_out, convolutions=2):
        for i in range(1, convolutions + 1):
            block = f"{name}.conv{i}"
            expected[f"{block}.conv.weight"] = (channels_out, channels_in, 3, 3, 3)
            for tail in ("conv.bias", "norm.weight", "norm.bias"):
                expected[f"{block}.{tail}"] = (channels_out,)
            channels_in = channels_out

    level("encoder.in_conv", 3, 32)
    for i in range(1, 5):
        level(f"encoder.encoder_conv{i}", widths[i - 1], widths[i])
        below, here = widths[5 - i], widths[4 - i]
        expected[f"decoder.upsample{i}.weight"] = (below, here, 2, 2, 2)
        expected[f"decoder.upsample{i}.bias"] = (here,)
        level(f"decoder.decoder_conv{i}", below, here)
    expected |= {"decoder.out_conv.weight": (2, 32, 1, 1, 1), "decoder.out_conv.bias": (2,)}
    for i, channels in enumerate((512, 256, 128, 64)):
        expected |= {f"decoder.ds_out_conv{i}.weight": (2, channels, 1, 1, 1), f"decoder.ds_out_conv{i}.bias": (2,)}
    assert state == expected
    light = shapes("unet_b_lw_dec", 3, 2)
    assert set(expected) - set(light) == {
        n for n in expected if n.startswith("decoder") and (".conv2." in n or ".ds_" in n)
    }
    assert all(expected[n] == shape for n, shape in light.items())
    head = shapes("unet_b", 3, 7, mode="classification")
    assert head["decoder.fc.weight"] == (7, 512) and head["decoder.fc.bias"] == (7,)
    assert {n: s for n, s in head.items() if "fc" not in n} == {
        n: s for n, s in expected.items() if n.startswith("encoder")
    }


def test_forward_equals_the_definition_written_out():
    torch.manual_seed(0)
    net = nets.build("unet_b", 2, 3, width=2)
    x = torch.randn(2, 2, 32, 16, 16)
    p = net.state_dict()
    F = torch.nn.functional

    def level(name, h):
        for i in (1, 2):
            h = F.conv3d(h, p[f"{name}.conv{i}.conv.weight"], p[f"{name}.conv{i}.conv.bias"], padding=1)
            mean, var = h.mean((2, 3, 4), keepdim=True), h.var((2, 3, 4), keepdim=True, correction=0)
            scale, shift = (p[f"{name}.conv{i}.norm.{t}"].view(1, -1, 1, 1, 1) for t in ("weight", "bias"))
            h = (h - mean) / (var + 1e-5).sqrt() * scale + shift
            h = torch.where(h > 0, h, 0.01 * h)
        return h

    skips = [level("encoder.in_conv", x)]
    for i in range(1, 5):
        skips.append(level(f"encoder.encoder_conv{i}", F.max_pool3d(skips[-1], 2)))
    h = skips[-1]
    for i in range(1, 5):
        up = F.conv_transpose3d(h, p[f"decoder.upsample{i}.weight"], p[f"decoder.upsample{i}.bias"], stride=2)
        h = level(f"decoder.decoder_conv{i}", torch.cat((up, skips[4 - i]), 1))
    h = F.conv3d(h, p["decoder.out_conv.weight"], p["decoder.out_conv.bias"])
    torch.testing.assert_close(net(x), h, rtol=1e-4, atol=1e-4)

    classifier = nets.build("unet_b", 2, 3, mode="classification", width=2)
    classifier.load_state_dict(
        {
            **{k: v for k, v in p.items() if k.startswith("encoder")},
            "decoder.fc.weight": torch.eye(3, 32),
            "decoder.fc.bias": torch.zeros(3),
        }
    )
    torch.testing.assert_close(classifier(x), skips[-1].mean((2, 3, 4))[:, :3], rtol=1e-4, atol=1e-4)


def test_deep_supervision_is_finest_first_and_only_with_gradients():
    net = nets.build("unet_b", 1, 2, width=2, deep_supervision=True)
    x = torch.randn(1, 1, 32, 16, 48)
    outputs = net(x)
    assert [tuple(o.shape) for o in outputs] == [(1, 2, 32 // f, 16 // f, 48 // f) for f in (1, 2, 4, 8, 16)]
    with torch.no_grad():
        torch.testing.assert_close(net(x), outputs[0])


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("unet_b", {}),
        ("unet_b", {"deep_supervision": True}),
        ("unet_b_lw_dec", {}),
        ("unet_b_lw_dec", {"deep_supervision": True}),
        ("unet_b", {"mode": "classification"}),
        ("unet_b", {"mode": "regression"}),
    ],
)
def test_stages_name_every_parameter_once_and_end_with_the_head(name, kwargs):
    net = nets.build(name, 1, 2, width=2, **kwargs)
    names = [n for n, _ in net.named_parameters()]
    stage = [[i for i, prefixes in enumerate(net.stages) if n.startswith(prefixes)] for n in names]
    assert all(len(hits) == 1 for hits in stage)
    assert {hits[0] for hits in stage} == set(range(len(net.stages)))
    assert net.stages[-1] == net.head_prefixes and net.stages[0] == ("encoder.in_conv",)
    assert net.stem in names
    assert all(n.startswith(net.encoder_prefixes) == (hits[0] < 5) for n, hits in zip(names, stage))


@pytest.mark.parametrize(
    "missing, stages",
    [
        (".conv2.", 10),  # the light pretraining decoder, and half of the encoder
        ("decoder.", 6),  # a file with an encoder only
        ("encoder.in_conv.conv1.conv.weight", 10),  # the first convolution alone
    ],
)
def test_what_was_not_loaded_belongs_to_the_head(missing, stages):
    net = nets.build("unet_b", 1, 2, width=2)
    names = [n for n, _ in net.named_parameters()]
    head, encoder = net.head_prefixes, net.encoder_prefixes
    new = {n for n in names if missing in n}
    nets.add_to_head(net, [*new, "no.parameter"])
    assert len(net.stages) == stages and net.stages[-1] == net.head_prefixes and all(net.stages)
    for n in names:
        assert sum(n.startswith(prefixes) for prefixes in net.stages) == 1
        assert n.startswith(net.head_prefixes) == (n in new or n.startswith(head))
        assert n.startswith(net.encoder_prefixes) == (n.startswith(encoder) and n not in new)
    if missing == ".conv2.":
        assert net.stages[0] == ("encoder.in_conv.conv1.",) and net.stages[5] == (
            "decoder.upsample1",
            "decoder.decoder_conv1.conv1.",
        )


def test_every_parameter_gets_a_gradient():
    for kwargs in ({"deep_supervision": True}, {"mode": "regression"}):
        net = nets.build("unet_b", 1, 2, width=2, **kwargs)
        outputs = net(torch.randn(2, 1, 32, 32, 16))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        sum((o**2).mean() for o in outputs).backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "conv.bias" not in n
        )


def test_samples_of_a_batch_do_not_influence_each_other():
    torch.manual_seed(0)
    net = nets.build("unet_b", 1, 2, width=2)
    x = torch.randn(3, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_is_close_to_float32():
    torch.manual_seed(0)
    net = nets.build("unet_b", 1, 2, mode="classification", width=4)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), net(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "args, kwargs, words",
    [
        (("unet_c", 1, 1), {}, "unet_xl_lw_dec"),
        (("unet_b", 1, 1), {"mode": "mae"}, "'mae'"),
        (("unet_b_lw_dec", 1, 2), {"mode": "classification"}, "use unet_b"),
        (("unet_b", 1, 2), {"mode": "regression", "deep_supervision": True}, "deep_supervision"),
        (("unet_b", 0, 2), {}, "in_channels: got 0"),
        (("unet_b", 1, 2), {"width": 0}, "width: got 0"),
    ],
)
def test_what_cannot_be_built_is_refused(args, kwargs, words):
    with pytest.raises(ValueError, match=words):
        nets.build(*args, **kwargs)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((1, 2, 32, 32, 30), r"pad or crop, for example to \(32, 32, 32\)"),
        ((1, 2, 16, 16, 16), "one voxel"),
        ((1, 1, 32, 32, 32), r"wanted \(B, 2, X, Y, Z\)"),
        ((2, 32, 32, 32), r"wanted \(B, 2, X, Y, Z\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(shape, words):
    net = nets.build("unet_b", 2, 1, mode="regression", width=1)
    with pytest.raises(ValueError, match=words):
        net(torch.zeros(shape))


@pytest.mark.parametrize("mode, supervised", [("segmentation", True), ("classification", False)])
def test_checkpointed_activations_give_the_same_gradients_with_a_third_of_the_memory(mode, supervised):
    torch.manual_seed(0)
    net = nets.build("unet_b", 2, 2, mode=mode, width=4, deep_supervision=supervised)
    image, kept, gradients = torch.randn(2, 2, 32, 32, 32), [], []
    for wanted in (False, True):
        net.checkpoint_activations(wanted)
        net.zero_grad()
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: numbers.append(t.numel()) or t, lambda t: t):
            outputs = net(image)
        sum(out.square().mean() for out in (outputs if supervised else [outputs])).backward()
        kept.append(sum(numbers))
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))
    assert kept[1] < 0.35 * kept[0]


def test_features_are_what_goes_into_the_output_layer():
    net = nets.build("unet_b", 1, 3, mode="classification", width=2)
    x = torch.randn(2, 1, 32, 16, 16)
    assert net.features(x).shape == (2, 32)
    assert torch.equal(net.decoder.fc(net.features(x)), net(x))
    with pytest.raises(ValueError, match=r"wanted \(B, 1, X, Y, Z\)"):
        net.features(torch.zeros(2, 2, 32, 16, 16))
