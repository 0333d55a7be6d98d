"""Attention on feature maps (B, C, X, Y): SE weighs the channels, CBAM the channels and the places.

The last layer of each gate starts at zero, so every gate starts at 1/2: before anything is learned, SE halves a map and
CBAM, which has two gates, quarters it. Sources: Hu et al. 2018 (squeeze-and-excitation); Woo et al. 2018 (CBAM).
"""

import torch
from torch import nn

from . import checks

_REDUCTION, _NARROWEST = 16, 4  # the gate's hidden layer: channels / 16, at least 4


class SE(nn.Module):
    """Multiplies each channel by a gate in (0, 1), made from the means of all channels."""

    def __init__(self, channels):
        super().__init__()
        self.channel = _gate(channels)

    def forward(self, x):
        return x * torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True)))


class CBAM(nn.Module):
    """Multiplies by a gate per channel, from its mean and maximum, and one per place, from the 7x7 places around it."""

    def __init__(self, channels):
        super().__init__()
        self.channel = _gate(channels)
        self.spatial = _zero(nn.Conv2d(2, 1, 7, padding=3))

    def forward(self, x):
        x = x * torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True)) + self.channel(x.amax((2, 3), keepdim=True)))
        return x * self.places(x)

    def places(self, x):
        """The weight of each place, (B, 1, X, Y) in (0, 1), for a map x that has passed the channel gate."""
        return torch.sigmoid(self.spatial(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)))


_KINDS = {"none": nn.Identity, "se": SE, "cbam": CBAM}


def build(kind, channels):
    """kind: "none" (the map as it is), "se" or "cbam"."""
    checks.choice("attention", kind, _KINDS)
    return _KINDS[kind](channels)


def _gate(channels):
    hidden = max(_NARROWEST, channels // _REDUCTION)
    first, last = nn.Conv2d(channels, hidden, 1), _zero(nn.Conv2d(hidden, channels, 1))
    return nn.Sequential(first, nn.ReLU(inplace=True), last)


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
