"""Convolution, instance norm and activation as one call, which on a GPU is a convolution and one pass behind it.

torch's instance norm gives contiguous tensors, which cuDNN's convolutions in half precision turn into channels last and
back: half of a step's time at 96^3 on an H200. The kernels of `norm_kernels` keep channels last, join norm and
activation, and read and write at the rate of a copy. They need Triton, which comes with torch for CUDA on Linux.
"""

import functools

import torch

from .image_head import moments

_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def normalised(convolution, norm, activation, x, moments_of=None):
    """activation(norm(convolution(x))). x: (B, C, X, Y, Z); activation: LeakyReLU or Identity.

    An instance norm takes away what the bias of the convolution, a conv.Conv3d, adds: on a GPU it is left out, and its
    gradient is zero.
    moments_of: a list to which those of the convolution's output are added.
    """
    fused = x.is_cuda and not torch.compiler.is_compiling() and problem(x.device) is None
    bias = convolution.bias if fused else None
    x = convolution(x, with_bias=bias is None)
    if moments_of is not None:
        moments_of.append(moments(x, bias))
    if not fused or x.dtype not in _TYPES:
        return activation(norm(x if bias is None else x + bias[:, None, None, None]))
    from . import norm_kernels

    slope = getattr(activation, "negative_slope", 1.0)
    return norm_kernels.InstanceNormLeakyReLU.apply(x, norm.weight, norm.bias, bias, norm.eps, slope)


@functools.cache
def problem(device):
    """Why the kernels do not run on a device, in a line; None where they do."""
    if device.type != "cuda":
        return "there is no GPU"
    try:
        from . import norm_kernels

        x, weight = torch.ones(1, 8, 4, 4, 4, device=device), torch.ones(8, device=device)
        norm_kernels.InstanceNormLeakyReLU.apply(x, weight, weight, None, 1e-5, 0.01)
    except Exception as error:  # no Triton, no C compiler for it, no place to write, a GPU that is too old
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return None
