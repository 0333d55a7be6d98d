"""The 3D U-Net of SuPreM and Models Genesis, with its parameter names.

Four levels have two [3x3x3 convolution, batch norm, ReLU] each. The first level makes width / 2 and width channels; in
each other level the second convolution doubles them, up to 8 width. Batch norm uses the statistics of the batch, in
evaluation too: an output depends on the other samples of the forward pass and, in training, on how ranks and
micro-batches divide the batch.
Source: github.com/MrGiovanni/ModelsGenesis, pytorch/unet3d.py, and github.com/MrGiovanni/SuPreM, backbone/unet.py (Zhou
et al. 2021; Li et al. 2024). Here the output layer always gives logits.
"""

from collections import OrderedDict

import torch
from torch import nn

from . import checks
from .conv import Conv3d

_STRIDE = 8  # the encoder halves each axis three times


class SuPreM(nn.Module):
    """(B, in_channels, X, Y, Z) -> logits (B, out_channels, X, Y, Z), or (B, out_channels) for a whole-volume mode.

    X, Y and Z must be multiples of 8, and not all be 8: the statistics of a one-voxel bottleneck are undefined.
    Published weights have `width` 64 and one input channel. The whole-volume modes have no decoder.
    """

    stem = "down_tr64.ops.0.conv1.weight"
    encoder_prefixes = ("down_tr",)
    saliency_layer = "down_tr512"

    def __init__(self, in_channels, out_channels, mode="segmentation", width=64):
        super().__init__()
        checks.choice("mode", mode, checks.MODES)
        checks.counts(in_channels=in_channels, out_channels=out_channels, width=width)
        if width % 2:
            raise ValueError(f"width: got {width!r}, wanted an even number")
        self.in_channels = in_channels
        self.pool = nn.MaxPool3d(2)
        self.down_tr64 = _level(in_channels, width // 2, width)
        self.down_tr128 = _level(width, width, 2 * width)
        self.down_tr256 = _level(2 * width, 2 * width, 4 * width)
        self.down_tr512 = _level(4 * width, 4 * width, 8 * width)
        stages = [("down_tr64",), ("down_tr128",), ("down_tr256",), ("down_tr512",)]
        self.segments = mode == "segmentation"
        if self.segments:
            self.up_tr256 = _Up(8 * width, 4 * width)
            self.up_tr128 = _Up(4 * width, 2 * width)
            self.up_tr64 = _Up(2 * width, width)
            self.out_tr = nn.Sequential(OrderedDict(final_conv=nn.Conv3d(width, out_channels, 1)))
            self.head_prefixes = self.new_prefixes = ("out_tr",)
            self.decoder_prefixes = ("up_tr", "out_tr")
            self.unused_prefixes = ("fc",)
            stages += [("up_tr256",), ("up_tr128",), ("up_tr64",)]
        else:
            self.fc = nn.Linear(8 * width, out_channels)
            self.head_prefixes = self.new_prefixes = ("fc",)
            self.unused_prefixes = ("up_tr", "out_tr")
        self.stages = (*stages, self.head_prefixes)

    def forward(self, x):
        if not self.segments:
            return self.fc(self.features(x))
        x0, x1, x2, x3 = self.maps(x)
        return self.out_tr(self.up_tr64(self.up_tr128(self.up_tr256(x3, x2), x1), x0))

    def features(self, x):
        """(B, 8 width), the bottleneck's mean over all voxels: the output layer's input in a whole-volume mode."""
        return self.maps(x)[-1].mean(dim=(2, 3, 4))

    def maps(self, x):
        """The feature maps of the four levels, finest first."""
        checks.volumes(x, self.in_channels, _STRIDE)
        x0 = self.down_tr64(x)
        x1 = self.down_tr128(self.pool(x0))
        x2 = self.down_tr256(self.pool(x1))
        return x0, x1, x2, self.down_tr512(self.pool(x2))


class _BatchNorm(nn.BatchNorm3d):
    """Always uses the statistics of the batch. The running ones are never read; they are part of the file format."""

    def __init__(self, channels):
        super().__init__(channels)
        self.track_running_stats = False  # says that samples depend on each other in evaluation

    def forward(self, x):
        kept = (self.running_mean, self.running_var) if self.training else (None, None)
        return nn.functional.batch_norm(x, *kept, self.weight, self.bias, True, self.momentum, self.eps)


def _level(channels_in, between, channels_out):
    convolutions = nn.Sequential(_convolution(channels_in, between), _convolution(between, channels_out))
    return nn.Sequential(OrderedDict(ops=convolutions))


class _Up(nn.Module):
    """Doubles the resolution and appends the skip connection: `below` and `here` channels become `here`."""

    def __init__(self, below, here):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(below, below, 2, stride=2)
        self.ops = nn.Sequential(_convolution(below + here, here), _convolution(here, here))

    def forward(self, x, skip):
        return self.ops(torch.cat((self.up_conv(x), skip), dim=1))


def _convolution(channels_in, channels_out):
    layers = OrderedDict(conv1=Conv3d(channels_in, channels_out, 3, padding=1), bn1=_BatchNorm(channels_out))
    return nn.Sequential(layers | {"activation": nn.ReLU(inplace=True)})
