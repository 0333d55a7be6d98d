"""A U-Net that restores a masked volume, and says as a vector what it has seen of it, for two views to be compared.

The vector is a linear projection of the statistics that a multistage head reads of the encoder: what fine-tuning reads
by a linear layer is what is trained. They differ little between brains (by 1 to 3% of their size), so they are
standardised first. A step sees four scans, which say nothing about the covariances of 32 numbers: the statistics of the
last MEMORY scans are kept, and projected anew in each step. (Moving averages of the covariances themselves lag behind
the projection, and the terms grew without bound in 100 steps.) How scans differ is taken from each step about its own
mean, since means move with the weights by more than scans differ; the mean is of the last MEAN_MEMORY scans. All this
is in buffers, so that a run continues exactly; they are thrown away, with the projection, when the network is used.
"""

import torch
from torch import nn

from .image_head import BOUND

OUTPUTS, MEMORY, MEAN_MEMORY = 32, 128, 16
_SMALL = 1e-3  # lowest standard deviation of a statistic


class TwoViews(nn.Module):
    """(B, C, X, Y, Z) -> in training (restored, statistics (B, F), vectors, the same vectors, covariance of vectors).

    Otherwise what the network gives. vectors: (B, OUTPUTS); the second ones give the projection no gradient.
    covariance (OUTPUTS, OUTPUTS): of the vectors of the scans that are remembered, about the mean 0; it gives the
    projection its gradient. (From the few scans of a step, whose mean is not known well, the projection does not learn
    to keep its numbers apart: their covariances were 100 times as large.)
    network: for segmentation, with the method `with_statistics`. patch: a size that it takes. scans: of a step, on all
    ranks, 2 or more.
    """

    def __init__(self, network, patch, scans):
        super().__init__()
        if not hasattr(network, "with_statistics"):
            raise ValueError(f"network: got {type(network).__name__}, wanted one with the method with_statistics")
        if scans < 2:
            raise ValueError(f"scans: got {scans}, wanted 2 or more: one does not differ")
        features, steps = _statistics(network, patch), max(1, MEMORY // scans)
        self.network, self.scans = network, scans
        self.projection = nn.Linear(features, OUTPUTS, bias=False)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("differences", torch.zeros(steps, 2 * scans, features))  # from the mean of their step
        self.register_buffer("filled", torch.zeros(()))  # steps of them that are known
        self.stem = f"network.{network.stem}"
        for name in ("encoder_prefixes", "new_prefixes", "unused_prefixes"):
            setattr(self, name, _below(getattr(network, name)))
        self.head_prefixes = (*_below(network.head_prefixes), "projection.")
        self.stages = (*map(_below, network.stages[:-1]), self.head_prefixes)

    def checkpoint_activations(self, wanted):
        self.network.checkpoint_activations(wanted)

    def forward(self, x):
        if not self.training:
            return self.network(x)
        restored, statistics = self.network.with_statistics(x)
        with torch.autocast(x.device.type, enabled=False):
            known = (self.filled * 2 * self.scans).clamp(min=1)
            deviation = (self.differences.square().sum((0, 1)) / known).sqrt()
            deviation = torch.where(self.filled > 0, deviation.clamp(min=_SMALL), 1.0)
            seen, earlier = (
                BOUND * torch.tanh(z / deviation / BOUND)
                for z in (statistics - self.mean, self.differences.flatten(0, 1))
            )
            vectors, earlier = self.projection(seen), self.projection(earlier)
            same = nn.functional.linear(seen, self.projection.weight.detach())
            covariance = earlier.T @ earlier / known + torch.eye(OUTPUTS, device=x.device) * (self.filled == 0)
        return restored, statistics, vectors, same, covariance

    @torch.no_grad()
    def remember(self, statistics, step):
        """Keep the statistics (2, scans, F) of step `step` (from 1), of all ranks, in the place of the oldest."""
        seen, count = statistics.flatten(0, 1), len(self.differences)
        mean = seen.mean(0)
        momentum = min(max(0.0, 1 - self.scans / MEAN_MEMORY), 1 - 1 / step)
        self.mean.lerp_(mean, 1 - momentum)
        correction = (self.scans / (self.scans - 1)) ** 0.5  # the mean is of few scans; views of one are alike
        self.differences[(step - 1) % count] = (seen - mean) * correction
        self.filled.fill_(min(step, count))


def _below(prefixes):
    return tuple(f"network.{prefix}" for prefix in prefixes)


@torch.no_grad()
def _statistics(network, patch):
    """How many statistics there are."""
    weight = network.get_parameter(network.stem)
    return network.with_statistics(weight.new_zeros(1, weight.shape[1], *patch))[1].shape[1]
