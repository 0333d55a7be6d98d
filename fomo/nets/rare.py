"""Outputs that begin with little foreground. Needs torch only."""

import math

import torch
from torch import nn

_PROBABILITY = 0.01  # as published


def begin_rare(network, channels):
    """Set the biases of the output layers so that what `channels` stand for begins at a probability of about 1%.

    Otherwise about half of all voxels begin as foreground, where few are. The first steps then teach that there is
    nothing but background, and with few steps a network may stay with that (Lin et al. 2017, section 3.3).

    channels: a slice of the outputs; the logits of the others, with a softmax, begin about 0.
    """
    for name, module in network.named_modules():
        if f"{name}.".startswith(tuple(network.head_prefixes)) and isinstance(module, nn.Conv3d):
            with torch.no_grad():
                module.bias.zero_()[channels] = math.log(_PROBABILITY / (1 - _PROBABILITY))
