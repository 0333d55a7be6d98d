"""Instance norm that keeps a whole GPU at work.

torch's instance norm, in half precision, gives each channel of each sample to one block of threads: 64 blocks in the
first level of a U-Net with two samples, on a chip that runs hundreds. Here torch's general reductions, which share a
channel among blocks, make the statistics. Batch norm does the rest; for it each channel is cut into parts that count as
channels. That this is faster is concluded from the sizes of torch's launches (ATen/native/cuda/Normalization.cuh) and
not yet measured: `tools/benchmark gpu` compares it with torch's own (`fomo_torch_norm`).
"""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LARGE = 2**16  # voxels per channel; below, a dozen small kernels take longer than torch's few
_BLOCKS = 4096  # parts of all channels together; each part is the work of one block


class InstanceNorm(nn.InstanceNorm3d):
    """nn.InstanceNorm3d (affine, no running statistics) that uses `Split` for large half-precision volumes on a GPU."""

    def forward(self, x):
        if not torch.compiler.is_compiling() and _pays(x):  # a compiler makes its own kernels
            return Split.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class Split(torch.autograd.Function):
    """x (B, C, X, Y, Z), weight (C), bias (C), eps -> weight (x - mean) / sqrt(var + eps) + bias, contiguous, x's type.

    mean and var are over X, Y, Z, summed in float32. var is the mean square minus the squared mean. This loses digits
    of a standard deviation far below the mean, which half precision has already lost.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        planes = x.contiguous().flatten(2).flatten(0, 1)
        mean = planes.sum(1, dtype=torch.float32) / planes.shape[1]
        square = torch.linalg.vector_norm(planes, dim=1, dtype=torch.float32) ** 2 / planes.shape[1]
        var = (square - mean**2).clamp_min_(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        y = _affine(planes, mean, var, weight.repeat(len(x)), bias.repeat(len(x)), eps)
        return torch.ops.aten._unsafe_view(y, x.shape)  # the activation, in place, refuses a plain view

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, var = ctx.saved_tensors
        planes, gradient = (tensor.contiguous().flatten(2).flatten(0, 1) for tensor in (x, gradient))
        scale = weight.repeat(len(x))
        by_weight, by_bias = _sums(gradient, planes, mean, var, scale, ctx.eps)
        slope = scale * torch.rsqrt(var + ctx.eps)
        # by x: slope (gradient - its mean - normalised x times the mean of gradient times normalised x)
        voxels = planes.shape[1]
        by_x = _affine(planes, mean, var, -slope * by_weight / voxels, -slope * by_bias / voxels, ctx.eps)
        by_x.addcmul_(gradient, slope[:, None])
        by_weight, by_bias = (sums.view(len(x), -1).sum(0) for sums in (by_weight, by_bias))
        return by_x.view(x.shape), by_weight, by_bias, None


def _pays(x):
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and math.prod(x.shape[2:]) >= _LARGE


def _affine(planes, mean, var, weight, bias, eps):
    """weight (planes - mean) / sqrt(var + eps) + bias. planes: (P, N); all others: (P)."""
    parts, (mean, var, weight, bias) = _cut(planes, mean, var, weight, bias)
    return functional.batch_norm(parts, mean, var, weight, bias, eps=eps).view(planes.shape)


def _sums(gradient, planes, mean, var, weight, eps):
    """For each plane (P), two sums over its voxels: of gradient times normalised value, and of the gradient."""
    parts, (mean, var, weight) = _cut(planes, mean, var, weight)
    statistics = mean, var, mean, torch.rsqrt(var + eps)
    backward = torch.ops.aten.native_batch_norm_backward
    sums = backward(gradient.view(parts.shape), parts, weight, *statistics, False, eps, [False, True, True])
    return (each.view(len(planes), -1).sum(1) for each in sums[1:])


def _cut(planes, *values):
    """(planes (P, N) as one sample, each plane cut into equal channels; values (P), repeated for each channel)."""
    parts = math.gcd(planes.shape[1], max(1, _BLOCKS // len(planes)))
    return planes.view(1, len(planes) * parts, -1), [value.repeat_interleave(parts) for value in values]
