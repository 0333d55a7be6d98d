"""Convolutions in bfloat16 on the CPU, where torch's read memory that nothing has written, and what a GPU needs."""

import pytest
import torch

from fomo.nets.conv import Conv3d, _MeanOfCubes

torch.set_num_threads(1)


def gradients(layer, x, dtype):
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return layer.weight.grad.clone()


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 1, 1), (2, 4, 4), (4, 2, 2)])
def test_gradients_of_few_voxels_do_not_depend_on_what_memory_held(size):
    torch.manual_seed(0)
    layer, x = Conv3d(16, 16, 3, padding=1), torch.randn(2, 16, *size)
    expected = gradients(layer, x, torch.float32)
    for _ in range(20):
        freed = [torch.full((n,), float("nan")) for n in (100, 1000, 10_000, 100_000)]
        del freed
        assert torch.equal(gradients(layer, x, torch.bfloat16), expected)


def test_more_voxels_are_convolved_in_bfloat16():
    layer = Conv3d(4, 4, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 4, 3, 3, 3)).dtype == torch.bfloat16
    assert layer(torch.randn(1, 4, 2, 2, 2)).dtype == torch.float32


def test_empty_channels_change_nothing():
    torch.manual_seed(0)
    convolution, x = Conv3d(3, 5, 3), torch.randn(2, 3, 6, 5, 4)
    image, weight = (tensor.float() for tensor in convolution._with_empty_channels(x))
    assert image.shape[1] == weight.shape[1] == 8
    own = torch.nn.functional.conv3d(image, weight, convolution.bias)
    assert (own - convolution(x)).abs().max() < 0.02  # of half precision


def test_means_of_cubes_are_torchs_and_stay_channels_last():
    x = torch.randn(2, 8, 8, 6, 4).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    own, true = _MeanOfCubes.apply(x), torch.nn.functional.avg_pool3d(x, 2)
    gradient = torch.randn_like(true)
    (by_own,), (by_true,) = (torch.autograd.grad(y, x, gradient) for y in (own, true))
    torch.testing.assert_close(own, true)
    torch.testing.assert_close(by_own, by_true)
    assert own.is_contiguous(memory_format=torch.channels_last_3d) and by_own.is_contiguous(
        memory_format=torch.channels_last_3d
    )
