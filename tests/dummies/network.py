"""A network that fomo does not know: stride 4, an output layer named `head`, and a bottleneck that may be one voxel.

`register` adds it to the networks; nothing else of fomo is touched.
"""

import torch
from torch import nn

from fomo.nets.network import Network


class Tiny(nn.Module):
    """(B, in_channels, X, Y, Z) -> logits (B, out_channels, X, Y, Z), or (B, out_channels) with one output per case."""

    stem = "level0.0.weight"
    encoder_prefixes = ("level",)
    decoder_prefixes = ("up", "join", "output")
    saliency_layer = "level2"

    def __init__(self, in_channels, out_channels, mode="segmentation", width=4):
        super().__init__()
        self.level0 = block(in_channels, width)
        self.level1 = block(width, 2 * width)
        self.level2 = block(2 * width, 4 * width)
        stages = [("level0",), ("level1",), ("level2",)]
        self.segments = mode == "segmentation"
        if self.segments:
            self.up1, self.join1 = nn.ConvTranspose3d(4 * width, 2 * width, 2, 2), block(4 * width, 2 * width)
            self.up0, self.join0 = nn.ConvTranspose3d(2 * width, width, 2, 2), block(2 * width, width)
            self.output = nn.Conv3d(width, out_channels, 1)
            self.head_prefixes, self.unused_prefixes = ("output",), ("head",)
            stages += [("up1", "join1"), ("up0", "join0")]
        else:
            self.head = nn.Linear(4 * width, out_channels)
            self.head_prefixes, self.unused_prefixes = ("head",), self.decoder_prefixes
        self.new_prefixes = self.head_prefixes
        self.stages = (*stages, self.head_prefixes)

    def forward(self, x):
        if not self.segments:
            return self.head(self.features(x))
        x0, x1, x2 = self.encode(x)
        x1 = self.join1(torch.cat((self.up1(x2), x1), dim=1))
        return self.output(self.join0(torch.cat((self.up0(x1), x0), dim=1)))

    def features(self, x):
        return self.encode(x)[-1].mean(dim=(2, 3, 4))

    def encode(self, x):
        x0 = self.level0(x)
        x1 = self.level1(nn.functional.max_pool3d(x0, 2))
        return x0, x1, self.level2(nn.functional.max_pool3d(x1, 2))


def block(channels_in, channels_out):
    return nn.Sequential(nn.Conv3d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(1, channels_out), nn.ReLU())


NETWORK = Network(
    Tiny,
    sees="volume",
    stride=4,
    modes=("segmentation", "classification", "regression"),
    head="head",
    one_voxel=True,
    mixes_batch=False,
)


def register(monkeypatch):
    from fomo.nets import NETWORKS

    monkeypatch.setitem(NETWORKS, "tiny", NETWORK)
