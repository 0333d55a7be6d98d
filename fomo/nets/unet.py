"""The 3D UNet-B and UNet-XL of the FOMO25 baseline, with its parameter names, and its light pretraining decoder.

Five levels have two [3x3x3 convolution, instance norm, leaky ReLU] each; the light decoder has one per level. The
baseline's `*_lw_dec` networks have skip connections, although their arguments say otherwise: those were trained.
Source: github.com/fomo25/baseline-codebase, src/models/networks/unet.py (Ronneberger et al. 2015; Cicek et al. 2016).
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import checks
from .conv import Conv3d
from .image_head import BESIDE, ImageHead, WithImageHead
from .norm import normalised

_STRIDE = 16  # the encoder halves each axis four times


class UNet(WithImageHead, nn.Module):
    """(B, in_channels, X, Y, Z) -> logits (B, out_channels, X, Y, Z), or (B, out_channels) for a whole-volume mode.

    X, Y and Z must be multiples of 16, and not all be 16: the instance norm of a one-voxel bottleneck is undefined.
    width: channels of the first level; each further level has twice as many.
    light_decoder: segmentation with one convolution per decoder level instead of two.
    deep_supervision: while gradients are enabled, segmentation gives a list, from full to 1/16 resolution.
    head, dropout: of a whole-volume mode, see `image_head`.
    channel_dropout: share of whole feature maps that each level of the three coarsest resolutions, of encoder and
        decoder, drops in training (as the deeper half of Kendall et al. 2015).
    fusion: "late", of a whole-volume mode: the encoder has one channel, and sees those of a case one by one.
    """

    stem = "encoder.in_conv.conv1.conv.weight"
    encoder_prefixes = ("encoder.",)
    saliency_layer = "encoder.encoder_conv4"

    def __init__(
        self,
        in_channels,
        out_channels,
        mode="segmentation",
        width=32,
        light_decoder=False,
        deep_supervision=False,
        head="linear",
        dropout=0.0,
        fusion="early",
        channel_dropout=0.0,
    ):
        super().__init__()
        checks.choice("mode", mode, checks.MODES)
        checks.counts(in_channels=in_channels, out_channels=out_channels, width=width)
        if mode != "segmentation" and deep_supervision:
            raise ValueError(f"deep_supervision: got True for mode {mode!r}, wanted False: it has one output only")
        checks.image_head(mode, head, dropout, fusion, channel_dropout)
        copies = in_channels if fusion == "late" else 1
        self.encoder = _Encoder(in_channels // copies, width, copies)
        self.read = [((2**i * width,) * 2, 2**i * width) for i in range(5)]  # by heads, see `image_head.ImageHead`
        stages = [("encoder.in_conv",), *((f"encoder.encoder_conv{i}",) for i in range(1, 5))]
        self.segments = mode == "segmentation"
        if self.segments:
            self.decoder = _Decoder(out_channels, width, 1 if light_decoder else 2, deep_supervision)
            self.head_prefixes = ("decoder.out_conv", "decoder.ds_out_conv")
            self.decoder_prefixes = ("decoder.",)
            second = () if light_decoder else tuple(f"decoder.decoder_conv{i}.conv2" for i in range(1, 5))
            self.new_prefixes = self.head_prefixes + second  # a light pretraining decoder has no conv2
            self.unused_prefixes = (*BESIDE, *(() if deep_supervision else ("decoder.ds_out_conv",)))
            stages += [(f"decoder.upsample{i}", f"decoder.decoder_conv{i}") for i in range(1, 5)]
        else:
            self.decoder = ImageHead(head, in_channels, self.read, out_channels, copies, dropout)
            self.head_prefixes, self.new_prefixes = self.decoder.prefixes("decoder")
            self.unused_prefixes = (*BESIDE, "decoder.")
        self.stages = (*stages, self.head_prefixes)
        for name in ("encoder_conv2", "encoder_conv3", "encoder_conv4"):
            getattr(self.encoder, name).dropped = channel_dropout
        if self.segments:
            self.decoder.decoder_conv1.dropped = self.decoder.decoder_conv2.dropped = channel_dropout

    def checkpoint_activations(self, wanted):
        """Trade time for memory: keep only input and output of each level, and compute the rest again for gradients."""
        for module in self.modules():
            if isinstance(module, _Level):
                module.recompute = wanted


class _Level(nn.Sequential):
    """conv1 (and conv2), each [conv, norm, activation]; `recompute`: the backward pass computes them again.

    dropped: the share of its maps that it drops in training.
    """

    recompute, dropped = False, 0.0

    def __init__(self, channels_in, channels_out, convolutions=2):
        super().__init__()
        for i in range(1, convolutions + 1):
            block = nn.Sequential()
            block.add_module("conv", Conv3d(channels_in, channels_out, 3, padding=1))
            block.add_module("norm", nn.InstanceNorm3d(channels_out, eps=1e-5, affine=True))
            block.add_module("activation", nn.LeakyReLU(0.01, inplace=True))
            self.add_module(f"conv{i}", block)
            channels_in = channels_out

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of each convolution's output are added."""
        wanted = moments_of is not None
        if self.recompute and torch.is_grad_enabled():
            x, found = checkpoint(self._run, x, wanted, use_reentrant=False)
        else:
            x, found = self._run(x, wanted)
        if wanted:
            moments_of.append(found)
        return nn.functional.dropout3d(x, self.dropped, self.training)

    def _run(self, x, wanted):
        found = [] if wanted else None
        for block in self:
            x = normalised(block.conv, block.norm, block.activation, x, found)
        return x, found


class _Encoder(nn.Module):
    """Features of the five levels, finest first. copies: so many channels of a case go through it one by one."""

    def __init__(self, in_channels, width, copies=1):
        super().__init__()
        self.in_channels, self.copies, self.pool = in_channels, copies, nn.MaxPool3d(2)
        self.in_conv = _Level(in_channels, width)
        for i in range(1, 5):
            self.add_module(f"encoder_conv{i}", _Level(2 ** (i - 1) * width, 2**i * width))

    def forward(self, x, moments_of=None):
        """moments_of: a list to which those of each level, a list of its convolutions', are added."""
        checks.volumes(x, self.in_channels * self.copies, _STRIDE)
        if self.copies > 1:
            x = x.flatten(0, 1)[:, None]
        features = [self.in_conv(x, moments_of)]
        for i in range(1, 5):
            features.append(getattr(self, f"encoder_conv{i}")(self.pool(features[-1]), moments_of))
        return features


class _Decoder(nn.Module):
    """Back to full resolution with skip connections."""

    def __init__(self, out_channels, width, convolutions, deep_supervision):
        super().__init__()
        self.deep_supervision = deep_supervision
        for i, factor in zip(range(1, 5), (8, 4, 2, 1)):
            below, here = 2 * factor * width, factor * width
            self.add_module(f"upsample{i}", nn.ConvTranspose3d(below, here, 2, stride=2))
            self.add_module(f"decoder_conv{i}", _Level(below, here, convolutions))
        self.out_conv = nn.Conv3d(width, out_channels, 1)
        if deep_supervision:
            for i, factor in enumerate((16, 8, 4, 2)):
                self.add_module(f"ds_out_conv{i}", nn.Conv3d(factor * width, out_channels, 1))

    def forward(self, features):
        x0, x1, x2, x3, x4 = features
        y1 = self.decoder_conv1(torch.cat((self.upsample1(x4), x3), dim=1))
        y2 = self.decoder_conv2(torch.cat((self.upsample2(y1), x2), dim=1))
        y3 = self.decoder_conv3(torch.cat((self.upsample3(y2), x1), dim=1))
        y4 = self.decoder_conv4(torch.cat((self.upsample4(y3), x0), dim=1))
        logits = self.out_conv(y4)
        if not (self.deep_supervision and torch.is_grad_enabled()):
            return logits
        return [logits, self.ds_out_conv3(y3), self.ds_out_conv2(y2), self.ds_out_conv1(y1), self.ds_out_conv0(x4)]
