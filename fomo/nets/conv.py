"""3D convolution whose gradients can be trusted on the CPU in bfloat16."""

import torch
from torch import nn

_LEAST = 3  # voxels along each axis; with fewer torch 2.13 (oneDNN, AVX512-BF16) reads memory that nothing has written


class Conv3d(nn.Conv3d):
    """nn.Conv3d that takes float32 where torch's bfloat16 gradient of its weight is undefined, and sometimes NaN."""

    def forward(self, x):
        if x.is_cpu and min(x.shape[2:]) < _LEAST and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)
