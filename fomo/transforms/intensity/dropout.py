"""Channel dropout: a missing sequence."""

import torch

from ..transform import Transform, probability


def draw(generator, keys, grid, hit):
    return {}


_CHANNEL_DROPOUT = {
    "p": probability(0.1, "probability; at least one channel stays"),
    "channel_p": probability(0.33, "probability of each channel, once applied; a dropped channel is 0 everywhere"),
}
CHANNEL_DROPOUT = Transform("replacement", draw, torch.Tensor.zero_, _CHANNEL_DROPOUT)
