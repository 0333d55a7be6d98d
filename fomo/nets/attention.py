"""Attention on feature maps (B, C, X, Y): which channels count (SE), and which channels and which places (CBAM).

The last layer of each gate starts at zero, and the gate at 1/2 everywhere: until something was learned SE lets a map pass at
half its size and CBAM, with two gates, at a quarter. Sources: Hu et al. 2018 (squeeze-and-excitation); Woo et al. 2018 (CBAM).
"""

import torch
from torch import nn

from . import checks

_REDUCTION, _NARROWEST = 16, 4  # the gate's hidden layer: channels / 16, at least 4


class SE(nn.Module):
    """Each channel times a gate in (0, 1), from the means of all channels."""

    def __init__(self, channels):
        super().__init__()
        self.channel = _gate(channels)

    def forward(self, x):
        return x * torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True)))


class CBAM(nn.Module):
    """Channel gate from the means and the maxima of the channels, then one gate per place, from a 7x7 surrounding."""

    def __init__(self, channels):
        super().__init__()
        self.channel = _gate(channels)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        _zero(self.spatial)

    def forward(self, x):
        x = x * torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True)) + self.channel(x.amax((2, 3), keepdim=True)))
        return x * self.places(x)

    def places(self, x):
        """(B, 1, X, Y) in (0, 1): the weight of each place, of a map x that has passed the channel gate."""
        return torch.sigmoid(self.spatial(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)))


def build(kind, channels):
    """kind: "none" (the map as it is), "se" or "cbam"."""
    kinds = {"none": lambda channels: nn.Identity(), "se": SE, "cbam": CBAM}
    checks.choice("attention", kind, kinds)
    return kinds[kind](channels)


def _gate(channels):
    hidden = max(_NARROWEST, channels // _REDUCTION)
    layers = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))
    _zero(layers[-1])
    return layers


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
