"""The split instance norm against float64 and against torch's; `tools/benchmark gpu` measures its speed."""

import pytest
import torch

from fomo import nets
from fomo.nets import norm

torch.set_num_threads(1)


def run(function, x, weight, bias, gradient):
    """Output and the gradients of x, weight and bias, in float64."""
    x, weight, bias = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
    y = function(x, weight, bias, 1e-5)
    y.backward(gradient.to(y.dtype))
    return [tensor.detach().double() for tensor in (y, x.grad, weight.grad, bias.grad)]


def torch_norm(x, weight, bias, eps):
    return torch.nn.functional.instance_norm(x, None, None, weight, bias, True, 0.0, eps)


def defined(x, weight, bias, eps):
    mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)


def case(shape, dtype, mean=1.0):
    draw = torch.Generator().manual_seed(0)
    channels = (1, shape[1], 1, 1, 1)
    x = torch.randn(shape, generator=draw) * (1 + torch.arange(shape[1]).view(channels)) + mean
    weight, bias = torch.randn(shape[1], generator=draw), torch.randn(shape[1], generator=draw)
    return x.to(dtype), weight, bias, torch.randn(shape, generator=draw).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16, 16), (1, 5, 7, 6, 10), (3, 1, 32, 4, 1), (2, 4, 5, 3, 7)])
def test_as_exact_as_torchs(shape, dtype):
    given = case(shape, dtype)
    expected = run(defined, *(tensor.double() for tensor in given))
    for name, own, torchs, true in zip(
        ("y", "x", "weight", "bias"), run(norm.Split.apply, *given), run(torch_norm, *given), expected
    ):
        scale = true.abs().max()
        bound = (torchs - true).abs().max() + (2e-6 if dtype == torch.float32 else 1e-3) * scale
        assert (own - true).abs().max() <= bound, name


def test_far_from_zero_and_constant():
    x, weight, bias, gradient = case((2, 3, 16, 16, 16), torch.bfloat16, mean=40.0)
    x[:, 1] = 300.0
    own, torchs = (run(function, x, weight, bias, gradient) for function in (norm.Split.apply, torch_norm))
    true = run(defined, *(tensor.double() for tensor in (x, weight, bias, gradient)))
    for each in (own, torchs):
        assert all(tensor.isfinite().all() for tensor in each)
    assert (own[0] - true[0]).abs().max() < 0.03  # of values up to 5 in bf16
    assert (own[0][:, 1] - bias[1]).abs().max() < 0.01


def test_the_input_is_left_alone_and_any_layout_is_read():
    x, weight, bias, gradient = case((2, 4, 16, 8, 8), torch.bfloat16)
    kept = x.clone()
    plain = run(norm.Split.apply, x, weight, bias, gradient)
    layout = dict(memory_format=torch.channels_last_3d)
    other = run(norm.Split.apply, x.contiguous(**layout), weight, bias, gradient.contiguous(**layout))
    assert torch.equal(x, kept) and all(torch.equal(a, b) for a, b in zip(plain, other))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_learns_the_same_with_it(monkeypatch, recompute):
    def losses(pays):
        monkeypatch.setattr(norm, "_pays", lambda x: pays)
        torch.manual_seed(0)
        network = nets.build("unet_b", 1, 2, width=4)
        network.checkpoint_activations(recompute)
        image = torch.randn(2, 1, 32, 16, 16)
        optimizer, target = torch.optim.AdamW(network.parameters(), lr=1e-3), (image[:, 0] > 0.5).long()
        found = []
        for _ in range(12):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(image)
            assert logits.dtype == torch.bfloat16
            loss = torch.nn.functional.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        with torch.no_grad():
            assert network(image).isfinite().all()
        return found

    own, torchs = losses(True), losses(False)
    assert own != torchs  # both ways were taken
    assert max(abs(a - b) for a, b in zip(own, torchs)) < 0.01 and own[-1] < 0.85 * own[0]


def test_on_the_cpu_it_is_torchs():
    x, weight, bias, _ = case((2, 3, 48, 48, 32), torch.bfloat16)
    module = norm.InstanceNorm(3, affine=True)
    module.weight.data, module.bias.data = weight, bias
    assert x[0, 0].numel() >= norm._LARGE
    assert torch.equal(module(x), torch_norm(x, weight, bias, 1e-5))
