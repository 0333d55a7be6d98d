"""A U-Net that restores a masked volume, and says as a vector what it has seen of it, for two views to be compared.

The vector is a linear projection of the statistics that a multistage head reads of the encoder: what fine-tuning reads
by a linear layer is what is trained. They differ little between brains (by 1 to 3% of their size), so moving averages
of their mean and deviation standardise them first. Mean and covariance of the vectors are moving averages,
too: a step sees four scans, which say nothing about the covariances of 32 numbers. How scans differ is taken from each
step about its own mean, and averaged over some SPREAD_MEMORY scans; the means are averaged over MEAN_MEMORY scans only,
since they move with the weights by more than scans differ. All of these are buffers, so that a run continues exactly;
they are thrown away, with the projection, when the network is used.
"""

import torch
from torch import nn

from .image_head import BOUND

OUTPUTS, SPREAD_MEMORY, MEAN_MEMORY = 32, 128, 16
_SMALL = 1e-3  # lowest standard deviation of a statistic


class TwoViews(nn.Module):
    """(B, C, X, Y, Z) -> in training (restored, statistics (B, F), vectors (B, OUTPUTS), mean, covariance).

    Otherwise what the network gives. mean (OUTPUTS,) and covariance (OUTPUTS, OUTPUTS): of the vectors of steps before.
    network: for segmentation, with the method `with_statistics`. patch: a size that it takes.
    """

    def __init__(self, network, patch):
        super().__init__()
        if not hasattr(network, "with_statistics"):
            raise ValueError(f"network: got {type(network).__name__}, wanted one with the method with_statistics")
        self.network = network
        self.projection = nn.Linear(_statistics(network, patch), OUTPUTS, bias=False)
        features = self.projection.in_features
        for name, start in (
            ("feature_mean", torch.zeros(features)),
            ("feature_variance", torch.ones(features)),
            ("mean", torch.zeros(OUTPUTS)),
            ("covariance", torch.eye(OUTPUTS)),
        ):
            self.register_buffer(name, start)
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
            vectors = self._vectors(statistics)
        return restored, statistics, vectors, self.mean.clone(), self.covariance.clone()

    def _vectors(self, statistics):
        deviation = self.feature_variance.clamp(min=_SMALL**2).sqrt()
        return self.projection(BOUND * torch.tanh((statistics - self.feature_mean) / deviation / BOUND))

    @torch.no_grad()
    def move(self, moments, step, scans):
        """Move the averages towards those of step `step` (from 1) over its `scans`, 2 or more, the same on all ranks.

        moments: of the statistics, of their squares, of the vectors (OUTPUTS,) and of their products with each other.
        The vectors of the first step were made before anything was known of the statistics, and do not count.
        """
        independent = scans / (scans - 1)  # views of one scan are alike
        mean, vectors = moments["feature_mean"], moments["mean"]
        variance = (moments["feature_square"] - mean.square()) * independent
        covariance = (moments["square"] - torch.outer(vectors, vectors)) * independent
        for name, own, memory, begun in (
            ("feature_mean", mean, MEAN_MEMORY, step),
            ("feature_variance", variance, SPREAD_MEMORY, step),
            ("mean", vectors, MEAN_MEMORY, step - 1),
            ("covariance", covariance, SPREAD_MEMORY, step - 1),
        ):
            if begun:
                momentum = min(max(0.0, 1 - scans / memory), 1 - 1 / begun)
                average = getattr(self, name)
                average.lerp_(own.to(average), 1 - momentum)


def moments(statistics, vectors):
    """{name: mean over the samples} in float64, for `TwoViews.move`; statistics (B, F), vectors (B, OUTPUTS)."""
    statistics, vectors = statistics.detach().double(), vectors.detach().double()
    means = {"feature_mean": statistics.mean(0), "feature_square": statistics.square().mean(0)}
    return {**means, "mean": vectors.mean(0), "square": vectors.T @ vectors / len(vectors)}


def _below(prefixes):
    return tuple(f"network.{prefix}" for prefix in prefixes)


@torch.no_grad()
def _statistics(network, patch):
    """How many statistics there are."""
    weight = network.get_parameter(network.stem)
    return network.with_statistics(weight.new_zeros(1, weight.shape[1], *patch))[1].shape[1]
