"""Convolution, norm and activation in one call against torch's, and the kernels of a GPU against float64.

The kernels are tested where there is a GPU, or with Triton's interpreter (TRITON_INTERPRET=1, numpy below 2.3).
`tools/benchmark gpu` measures their speed.
"""

import importlib.util
import os

import pytest
import torch

from fomo.nets import image_head, norm
from fomo.nets.conv import Conv3d

torch.set_num_threads(1)
LAST = torch.channels_last_3d
DEVICE = "cuda" if torch.cuda.is_available() else "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else None
needs_triton = pytest.mark.skipif(
    DEVICE is None or importlib.util.find_spec("triton") is None, reason="no GPU and no interpreter for its kernels"
)


def run(function, x, weight, bias, gradient):
    """Output and the gradients of x, weight and bias, in float64 on the CPU."""
    x, weight, bias = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
    y = function(x, weight, bias)
    y.backward(gradient.to(y.dtype))
    return [tensor.detach().double().cpu() for tensor in (y, x.grad, weight.grad, bias.grad)]


def kernels(slope):
    from fomo.nets.norm_kernels import InstanceNormLeakyReLU

    return lambda x, weight, bias: InstanceNormLeakyReLU.apply(x, weight, bias, None, 1e-5, slope)


def torchs(slope):
    def function(x, weight, bias):
        return torch.nn.functional.leaky_relu(torch.nn.functional.instance_norm(x, None, None, weight, bias), slope)

    return function


def case(shape, dtype=torch.float32, mean=1.0):
    draw = torch.Generator().manual_seed(0)
    channels = (1, shape[1], 1, 1, 1)
    x = torch.randn(shape, generator=draw) * (1 + torch.arange(shape[1]).view(channels)) + mean
    weight, bias = torch.randn(shape[1], generator=draw), torch.randn(shape[1], generator=draw)
    gradient = torch.randn(shape, generator=draw)
    return [tensor.to(DEVICE or "cpu") for tensor in (x.to(dtype), weight, bias, gradient.to(dtype))]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16, 16), (1, 20, 7, 6, 10), (3, 1, 32, 4, 1), (1, 320, 2, 2, 3)])
def test_the_kernels_are_as_exact_as_torch(shape, slope, dtype):
    given = case(shape, dtype)
    true = run(torchs(slope), *(tensor.double().cpu() for tensor in given))
    own, theirs = run(kernels(slope), *given), run(torchs(slope), *given)
    for name, own, theirs, true in zip(("y", "x", "weight", "bias"), own, theirs, true):
        allowed = 1e-5 if dtype == torch.float32 else 2e-3
        error = (own - true).norm() / true.norm()
        assert error <= (theirs - true).norm() / true.norm() + allowed, name


@needs_triton
def test_far_from_zero_and_constant():
    x, weight, bias, gradient = case((2, 3, 16, 16, 16), mean=10_000.0)
    x[:, 1] = 300.0
    own = run(kernels(1.0), x, weight, bias, gradient)
    true = run(torchs(1.0), *(tensor.double().cpu() for tensor in (x, weight, bias, gradient)))
    assert all(tensor.isfinite().all() for tensor in own)
    assert (own[0] - true[0]).abs().max() < 0.01  # the deviation is 1/10,000 of the mean, in numbers of 7 digits


@needs_triton
def test_any_layout_is_read_the_input_is_left_alone_and_equal_inputs_give_equal_bits():
    x, weight, bias, gradient = case((2, 4, 16, 8, 8), torch.bfloat16)
    kept = x.clone()
    plain = run(kernels(0.01), x, weight, bias, gradient)
    other = run(kernels(0.01), x.contiguous(memory_format=LAST), weight, bias, gradient.contiguous(memory_format=LAST))
    assert torch.equal(x, kept) and all(torch.equal(a, b) for a, b in zip(plain, other))
    assert kernels(0.01)(x, weight, bias).is_contiguous(memory_format=LAST)


@needs_triton
def test_what_the_result_does_not_depend_on_has_a_gradient_of_zero():
    from fomo.nets.norm_kernels import InstanceNormLeakyReLU

    x, weight, bias, gradient = case((1, 8, 4, 4, 4))
    unused = torch.ones_like(bias, requires_grad=True)
    InstanceNormLeakyReLU.apply(x, weight, bias, unused, 1e-5, 0.01).backward(gradient)
    assert torch.equal(unused.grad, torch.zeros_like(unused))


@pytest.mark.parametrize("wanted", [False, True])
def test_on_the_cpu_it_is_torchs(wanted):
    torch.manual_seed(0)
    block = Conv3d(3, 5, 3, padding=1), torch.nn.InstanceNorm3d(5, affine=True), torch.nn.LeakyReLU(0.01)
    x, found = torch.randn(2, 3, 6, 5, 4), [] if wanted else None
    convolved = block[0](x)
    assert torch.equal(norm.normalised(*block, x, found), block[2](block[1](convolved)))
    assert not wanted or torch.equal(found[0], image_head.moments(convolved))
    assert "GPU" in norm.problem(torch.device("cpu"))


def test_moments_count_a_bias_that_was_left_out():
    torch.manual_seed(0)
    convolution, x = Conv3d(3, 5, 3), torch.randn(2, 3, 6, 5, 4)
    own = image_head.moments(convolution(x, with_bias=False), convolution.bias)
    torch.testing.assert_close(own, image_head.moments(convolution(x)), atol=1e-5, rtol=1e-5)
