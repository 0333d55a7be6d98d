"""The residual-encoder U-Net of the FOMO26 baseline, which is nnU-Net's ResEnc-L, with the baseline's parameter names.

A stem and six stages of residual blocks, each [3x3x3 convolution, instance norm, leaky ReLU, convolution, instance
norm, sum with the skip, leaky ReLU]; stages 2 to 6 halve each axis. The decoder has one convolution per stage. For
pretraining it may have no skip connections: the baseline's masked autoencoder is such a network.
Source: gardening_tools (FOMO26 baseline) and github.com/MIC-DKFZ/dynamic-network-architectures, building_blocks/
residual.py (He et al. 2016; Isensee et al. 2024).
"""

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import checks
from .conv import AvgPool3d, Conv3d
from .image_head import BESIDE, ImageHead, WithImageHead
from .norm import normalised

_STRIDE = 32  # the encoder halves each axis five times
_STAGES = 6


class ResEncUNet(WithImageHead, nn.Module):
    """(B, in_channels, X, Y, Z) -> logits (B, out_channels, X, Y, Z), or (B, out_channels) for a whole-volume mode.

    X, Y and Z must be multiples of 32, and not all be 32: the instance norm of a one-voxel bottleneck is undefined.
    width: channels of the first stage; the next three have 2, 4 and 8 times as many, the last two `deepest` times.
    blocks: residual blocks of each stage.
    skips: segmentation has skip connections.
    skip_pooling: how a residual block that halves the axes pools what it skips, "average" or "maximum".
    deep_supervision: while gradients are enabled, segmentation gives a list, from full to 1/32 resolution.
    head, dropout: of a whole-volume mode, see `image_head`.
    channel_dropout: share of whole feature maps that each level of the three coarsest resolutions, of encoder and
        decoder, drops in training (as the deeper half of Kendall et al. 2015).
    fusion: "late", of a whole-volume mode: the encoder has one channel, and sees those of a case one by one.
    """

    stem = "encoder.stem.conv1.conv.weight"
    encoder_prefixes = ("encoder.",)
    saliency_layer = f"encoder.stages.{_STAGES - 1}"

    def __init__(
        self,
        in_channels,
        out_channels,
        mode="segmentation",
        width=32,
        blocks=(1, 3, 4, 6, 6, 6),
        deepest=10,
        skips=True,
        skip_pooling="average",
        deep_supervision=False,
        head="linear",
        dropout=0.0,
        fusion="early",
        channel_dropout=0.0,
    ):
        super().__init__()
        self.skip_pooling = skip_pooling
        checks.choice("mode", mode, checks.MODES)
        checks.choice("skip_pooling", skip_pooling, _POOLING)
        checks.counts(in_channels=in_channels, out_channels=out_channels, width=width)
        for option, value, plain in (("deep_supervision", deep_supervision, False), ("skips", skips, True)):
            if mode != "segmentation" and value != plain:
                raise ValueError(f"{option}: got {value} for mode {mode!r}, wanted {plain}: it has no decoder")
        widths = [factor * width for factor in (1, 2, 4, 8)] + [int(deepest * width)] * 2
        checks.image_head(mode, head, dropout, fusion, channel_dropout)
        copies = in_channels if fusion == "late" else 1
        self.encoder = _Encoder(in_channels // copies, widths, blocks, skip_pooling, copies)
        stages = [(f"encoder.stages.{i}.",) for i in range(_STAGES)]
        stages[0] = ("encoder.stem.", *stages[0])
        self.read = [((count, count), count) for count in widths]  # by heads, see `image_head.ImageHead`
        self.read[0] = (widths[:1] * 3, widths[0])  # and the stem
        self.segments = mode == "segmentation"
        if self.segments:
            self.decoder = _Decoder(out_channels, widths, skips, deep_supervision)
            coarse = tuple(f"decoder.ds_out_convs.{i}." for i in range(_STAGES - 1))
            self.head_prefixes = ("decoder.out_conv.", "decoder.ds_out_convs.")
            self.new_prefixes = ("decoder.out_conv.", *coarse)  # nnU-Net has no output at the bottleneck
            self.decoder_prefixes = ("decoder.",)
            self.unused_prefixes = (*BESIDE, *(() if deep_supervision else ("decoder.ds_out_convs.",)))
            stages += [(f"decoder.upsample_layers.{i}.", f"decoder.decoder_convs.{i}.") for i in range(_STAGES - 1)]
        else:
            self.decoder = ImageHead(head, in_channels, self.read, out_channels, copies, dropout)
            self.head_prefixes, self.new_prefixes = self.decoder.prefixes("decoder")
            self.unused_prefixes = (*BESIDE, "decoder.")
        self.stages = (*stages, self.head_prefixes)
        for level in (*self.encoder.stages[-3:], *(self.decoder.decoder_convs[:2] if self.segments else ())):
            level.dropped = channel_dropout

    def checkpoint_activations(self, wanted):
        """Trade time for memory: keep only input and output of each block, and compute the rest again for gradients."""
        for module in self.modules():
            if isinstance(module, (_Single, _Residual)):
                module.recompute = wanted


class _Convolution(nn.Module):
    """Convolution, instance norm and, if `activated`, leaky ReLU."""

    def __init__(self, channels_in, channels_out, size=3, stride=1, activated=True):
        super().__init__()
        self.conv = Conv3d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=size > 1)
        self.norm_op = nn.InstanceNorm3d(channels_out, eps=1e-5, affine=True)
        self.activation = nn.LeakyReLU(0.01, inplace=True) if activated else nn.Identity()

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of the convolution's output are added."""
        return normalised(self.conv, self.norm_op, self.activation, x, moments_of)


class _Single(nn.Module):
    """One convolution of all that is given, one after the other; `recompute`: the backward pass computes it again.

    dropped: the share of its maps that it drops in training.
    """

    recompute, dropped = False, 0.0

    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv1 = _Convolution(channels_in, channels_out)

    def forward(self, *parts, moments_of=None):
        x, found = _maybe_again(self.recompute, self._together, moments_of is not None, *parts)
        if moments_of is not None:
            moments_of += found
        return nn.functional.dropout3d(x, self.dropped, self.training)

    def _together(self, wanted, *parts):
        found = [] if wanted else None
        return self.conv1(torch.cat(parts, dim=1), found), found


class _Residual(nn.Module):
    """Two convolutions, the first with the stride, and the input added; `recompute` as in `_Single`."""

    recompute = False

    def __init__(self, channels_in, channels_out, stride, pooling):
        super().__init__()
        self.conv1 = _Convolution(channels_in, channels_out, stride=stride)
        self.conv2 = _Convolution(channels_out, channels_out, activated=False)
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.append(_POOLING[pooling]())
        if channels_in != channels_out:
            self.skip.append(_Convolution(channels_in, channels_out, size=1, activated=False))
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of both convolutions' outputs are added."""
        x, found = _maybe_again(self.recompute, self._block, moments_of is not None, x)
        if moments_of is not None:
            moments_of += found
        return x

    def _block(self, wanted, x):
        found = [] if wanted else None
        return self.activation(self.conv2(self.conv1(x, found), found) + self.skip(x)), found


class _Stage(nn.Module):
    """Residual blocks, of which the first one has the stride and changes the number of channels.

    dropped: the share of its maps that it drops in training.
    """

    dropped = 0.0

    def __init__(self, channels_in, channels_out, blocks, stride, pooling):
        super().__init__()
        first = _Residual(channels_in, channels_out, stride, pooling)
        rest = (_Residual(channels_out, channels_out, 1, pooling) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of the last block are added."""
        for block in self.blocks[:-1]:
            x = block(x)
        return nn.functional.dropout3d(self.blocks[-1](x, moments_of), self.dropped, self.training)


class _Encoder(nn.Module):
    """Features of the six stages, finest first. copies: so many channels of a case go through it one by one."""

    def __init__(self, in_channels, widths, blocks, pooling, copies=1):
        super().__init__()
        self.in_channels, self.copies = in_channels, copies
        self.stem = _Single(in_channels, widths[0])
        sizes = zip((widths[0], *widths[:-1]), widths, blocks, (1, *[2] * (_STAGES - 1)), strict=True)
        self.stages = nn.ModuleList(_Stage(*size, pooling) for size in sizes)

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of each stage, a list of its last block's, are added; the stem's first."""
        checks.volumes(x, self.in_channels * self.copies, _STRIDE)
        if self.copies > 1:
            x = x.flatten(0, 1)[:, None]
        found = [[] if moments_of is not None else None for _ in self.stages]
        features = [self.stem(x, moments_of=found[0])]
        for stage, of_stage in zip(self.stages, found):
            features.append(stage(features[-1], of_stage))
        if moments_of is not None:
            moments_of += found
        return features[1:]


class _Decoder(nn.Module):
    """Back to full resolution, with or without skip connections."""

    def __init__(self, out_channels, widths, skips, deep_supervision):
        super().__init__()
        self.skips, self.deep_supervision = skips, deep_supervision
        below, here = widths[:0:-1], widths[-2::-1]  # channels, from the coarsest level
        self.upsample_layers = nn.ModuleList(nn.ConvTranspose3d(*pair, 2, stride=2) for pair in zip(below, here))
        self.decoder_convs = nn.ModuleList(_Single(2 * count if skips else count, count) for count in here)
        self.out_conv = nn.Conv3d(widths[0], out_channels, 1)
        if deep_supervision:
            self.ds_out_convs = nn.ModuleList(nn.Conv3d(count, out_channels, 1) for count in below)

    def forward(self, features):
        levels = [features[-1]]
        for upsample, convolution, skip in zip(self.upsample_layers, self.decoder_convs, features[-2::-1]):
            upsampled = upsample(levels[-1])
            levels.append(convolution(upsampled, skip) if self.skips else convolution(upsampled))
        logits = self.out_conv(levels[-1])
        if not (self.deep_supervision and torch.is_grad_enabled()):
            return logits
        coarse = [layer(level) for layer, level in zip(self.ds_out_convs, levels)]
        return [logits, *reversed(coarse)]


_POOLING = {"average": AvgPool3d, "maximum": functools.partial(nn.MaxPool3d, 2)}


def _maybe_again(recompute, function, *inputs):
    """function(*inputs); if `recompute` says so, the backward pass computes it again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
