"""3D convolution and pooling that are right on the CPU in bfloat16, and fast on a GPU in half precision."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_LEAST = 3  # voxels along each axis; with fewer torch 2.13 (oneDNN, AVX512-BF16) reads memory that nothing has written
_TOGETHER = 8  # channels that tensor cores read at once; with others cuDNN takes a kernel that is 5 times slower


class Conv3d(nn.Conv3d):
    """nn.Conv3d that takes float32 where torch's bfloat16 gradient of its weight is undefined, and sometimes NaN."""

    def forward(self, x, with_bias=True):
        bias = self.bias if with_bias else None
        if x.is_cpu and min(x.shape[2:]) < _LEAST and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(x.float(), self.weight, bias)
        if x.is_cuda and torch.is_autocast_enabled("cuda") and self.in_channels % _TOGETHER:
            return self._conv_forward(*self._with_empty_channels(x), bias)
        return self._conv_forward(x, self.weight, bias)

    def _with_empty_channels(self, x):
        """x and the weight with so many channels of zeros that tensor cores can read them."""
        dtype, missing = torch.get_autocast_dtype("cuda"), -self.in_channels % _TOGETHER
        return [nn.functional.pad(each.to(dtype), (0, 0, 0, 0, 0, 0, 0, missing)) for each in (x, self.weight)]


class AvgPool3d(nn.Module):
    """nn.AvgPool3d(2) of even axes that keeps channels last, which torch's turns into contiguous tensors and back."""

    def forward(self, x):
        last = x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d)
        return _MeanOfCubes.apply(x) if last else nn.functional.avg_pool3d(x, 2)


class _MeanOfCubes(torch.autograd.Function):
    """x (B, C, X, Y, Z) -> means over cubes of 2 voxels; both are channels last."""

    @staticmethod
    def forward(ctx, x):
        planes = nn.functional.avg_pool2d(x.permute(0, 2, 1, 3, 4).flatten(0, 1), 2)  # (B X, C, Y / 2, Z / 2)
        voxels = planes.permute(0, 2, 3, 1).unflatten(0, (len(x), -1, 2)).mean(2)  # (B, X / 2, Y / 2, Z / 2, C)
        return voxels.permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        voxels = (gradient / 8).permute(0, 2, 3, 4, 1)
        for axis in (1, 2, 3):
            voxels = voxels.unsqueeze(2 * axis)
        batch, x, _, y, _, z, _, channels = voxels.shape
        whole = voxels.expand(batch, x, 2, y, 2, z, 2, channels).reshape(batch, 2 * x, 2 * y, 2 * z, channels)
        return whole.permute(0, 4, 1, 2, 3)
