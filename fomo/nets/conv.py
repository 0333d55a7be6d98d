"""3D convolution and pooling that are right on the CPU in bfloat16, and fast on a GPU in half precision."""

import torch
from torch import nn

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
        if not x.is_cuda or x.is_contiguous():
            return nn.functional.avg_pool3d(x, 2)
        planes = nn.functional.avg_pool2d(x.permute(0, 2, 1, 3, 4).flatten(0, 1), 2)  # (B X, C, Y / 2, Z / 2)
        voxels = planes.permute(0, 2, 3, 1).unflatten(0, (len(x), -1, 2)).mean(2)  # (B, X / 2, Y / 2, Z / 2, C)
        return voxels.permute(0, 4, 1, 2, 3)
