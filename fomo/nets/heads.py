"""What the 2D networks share: how a batch of slices comes in, and how feature maps become one vector per image."""

import torch
from torch import nn

from . import attention as attentions
from . import checks


def as_images(x, channels):
    """(B, C, X, Y) of a batch (B, C, X, Y), or of volumes of one slice (B, C, X, Y, 1)."""
    if x.ndim == 5 and x.shape[-1] == 1:
        x = x.squeeze(-1)
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"input: got shape {tuple(x.shape)}, wanted (B, {channels}, X, Y) or (B, {channels}, X, Y, 1)")
    return x


def draw_convolutions(network):
    """Start the convolutions of a network for ReLU, by their outputs (He et al. 2015), without biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Readout(nn.Module):
    """Feature maps [(B, c, x, y), ...], finest first -> (B, features), by attention on each map, pooling and fusion.

    channels: c of each map. pooling: "mean", "max" or "mean_max" (both, one after the other) over the places of a map.
    One map: the features are its pooled channels. Several maps: a layer norm for each brings them to one scale, and a
    linear layer with ReLU fuses them into as many features as the last map alone would have given.
    """

    def __init__(self, channels, attention="none", pooling="mean"):
        super().__init__()
        checks.choice("pooling", pooling, ("mean", "max", "mean_max"))
        self.pooling = pooling
        self.attention = nn.ModuleList(attentions.build(attention, c) for c in channels)
        pooled = [2 * c if pooling == "mean_max" else c for c in channels]
        self.features = pooled[-1]
        if len(channels) > 1:
            self.norms = nn.ModuleList(nn.LayerNorm(c) for c in pooled)
            self.fusion = nn.Sequential(nn.Linear(sum(pooled), pooled[-1]), nn.ReLU(inplace=True))

    def forward(self, maps):
        pooled = [self.pool(attend(x)) for attend, x in zip(self.attention, maps, strict=True)]
        if len(pooled) == 1:
            return pooled[0]
        return self.fusion(torch.cat([norm(x) for norm, x in zip(self.norms, pooled)], dim=1))

    def pool(self, x):
        """(B, c, x, y) -> (B, c), or (B, 2 c) for mean_max."""
        if self.pooling == "mean":
            return x.mean((2, 3))
        return x.amax((2, 3)) if self.pooling == "max" else torch.cat((x.mean((2, 3)), x.amax((2, 3))), dim=1)
