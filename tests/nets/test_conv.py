"""A convolution in bfloat16 on the CPU, where torch's own reads memory that nothing has written."""

import pytest
import torch

from fomo.nets.conv import Conv3d

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
