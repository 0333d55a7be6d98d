"""How the 3D U-Nets come from the features of their encoder to one output per case.

linear      the bottleneck's mean over all voxels, and a linear layer: the head of the FOMO baselines
mlp         the same with one hidden layer
multistage  statistics of the input and of every stage, and a linear layer. An instance norm gives each channel of each
            volume the mean 0 and the deviation 1, and so takes away how bright, wide or rough the volume is. Therefore
            mean and logarithm of the deviation are read in front of the norms; mean and generalised mean are read
            behind the activations. Of the input the darkest and brightest parts are read: a small lesion is lost in
            any mean. These numbers differ little between brains: they are standardised by the training cases, before
            training, by a linear fit that also gives the layer its first weights (`adopt`).

Needs torch only.
"""

import torch
from torch import nn

from . import checks

_POWER = 3  # of the generalised mean: between the mean (1) and the maximum
_TAILS = (0.001, 0.005, 0.02, 0.1)  # shares of the head whose mean is read: of 1.4 litres, .1% is a ball 14 mm wide
_FAINT = 0.1  # of a channel's range: where all channels are darker, there is air
BESIDE = ("heads.", "log_variances")  # of a `multihead.MultiHead`: all other networks leave them unused
BOUND = 4.0  # standard deviations beyond which a statistic counts no more


def moments(x, bias=None):
    """(2, B, C) float32: mean and logarithm of the deviation over the voxels of x (B, C, X, Y, Z).

    bias: (C,), added to x first.
    """
    planes = x.flatten(2)
    mean = planes.sum(2, dtype=torch.float32) / planes.shape[2]
    square = torch.linalg.vector_norm(planes, dim=2, dtype=torch.float32).square() / planes.shape[2]
    deviation = 0.5 * torch.log((square - mean.square()).clamp(min=0) + 1e-6)
    return torch.stack([mean if bias is None else mean + bias, deviation])


def means(x):
    """(2, B, C) float32: mean and generalised mean of the positive values over the voxels of x (B, C, X, Y, Z)."""
    planes, voxels = x.flatten(2), x[0, 0].numel()
    power = torch.linalg.vector_norm(planes.clamp(min=0), _POWER, dim=2, dtype=torch.float32) / voxels ** (1 / _POWER)
    return torch.stack([planes.sum(2, dtype=torch.float32) / voxels, power])


def bottleneck(maps):
    """(B, C): the coarsest stage's mean over all voxels. maps: of the stages, finest first."""
    return maps[-1].mean(dim=(2, 3, 4))


def multistage(maps):
    """(B, F): generalised means of all stages but the finest, each stage's brought to mean 0 and deviation 1.

    maps: of the stages, finest first, (B, C, X, Y, Z) each. Of `resenc_unet_b` these are 1,088 numbers.
    """
    return torch.cat([nn.functional.layer_norm(found := means(x)[1], found.shape[1:]) for x in maps[1:]], dim=1)


def of_stages(maps, before_norm):
    """(B, F) float32: what a multistage head reads of the stages, without the input.

    maps: of the stages, finest first. before_norm: of each stage a list of `moments`.
    """
    found = [value for stage in zip(before_norm, maps, strict=True) for value in (*stage[0], means(stage[1]))]
    return torch.cat([pair.transpose(0, 1).flatten(1) for pair in found], dim=1)


def intensities(x):
    """(10, B, C) float32: mean, logarithm of the deviation, and for each of _TAILS the darkest and the brightest part.

    x: (B, C, X, Y, Z), averaged over cubes of 2 voxels first. Air does not count, nor does the skin of the head, where
    air and tissue mix: a voxel counts where some channel, there and all around, is brighter than the faintest. In a
    window of air alone, as at the edge of a large scan, all voxels count.
    """
    x = nn.functional.avg_pool3d(x.float(), 2)
    low, high = x.amin(dim=(2, 3, 4), keepdim=True), x.amax(dim=(2, 3, 4), keepdim=True)
    inside = (x - low > _FAINT * (high - low)).any(1, keepdim=True).float()
    core = -nn.functional.max_pool3d(-inside, 3, stride=1, padding=1)
    inside = torch.where(core.sum(dim=(2, 3, 4), keepdim=True) > 0, core, torch.ones_like(core)).flatten(2)
    count, planes = inside.sum(2, keepdim=True), x.flatten(2)
    mean = (planes * inside).sum(2, keepdim=True) / count
    square = ((planes - mean).square() * inside).sum(2) / count[..., 0]
    found = [mean[..., 0], 0.5 * torch.log(square + 1e-6)]
    ordered = planes.masked_fill(inside == 0, torch.inf).sort(2).values.nan_to_num(posinf=0.0)  # those outside last
    rank = torch.arange(ordered.shape[2], device=x.device)
    for share in _TAILS:
        size = (share * count).clamp(min=1)
        for before in (rank, count - 1 - rank):  # how many voxels are darker, or brighter
            weight = (size - before).clamp(0, 1) * (before >= 0)
            found.append((ordered * weight).sum(2) / size[..., 0])
    return torch.stack(found)


class ImageHead(nn.Module):
    """Features of an encoder -> outputs (B, out_channels).

    in_channels: of the input. stages: of each stage, finest first, the channels of what is read: (of the convolutions
        in front of a norm, of the stage's own map).
    copies: how many channels of a case went through the encoder one by one; their features stand side by side.
    """

    def __init__(self, kind, in_channels, stages, out_channels, copies=1, dropout=0.0):
        super().__init__()
        checks.choice("head", kind, checks.HEADS)
        self.kind, self.copies, self.reads_moments = kind, copies, kind == "multistage"
        self.dropout = nn.Dropout(dropout)
        width = copies * stages[-1][1]
        if kind == "mlp":
            self.hidden = nn.Linear(width, width)
        if kind == "multistage":
            self.groups, self.depths, self.kinds = _layout(in_channels, stages, copies)
            width = len(self.groups)
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))
            self.register_buffer("share", torch.full((width,), width**-0.5))
        self.fc = nn.Linear(width, out_channels)

    def prefixes(self, name):
        """(of its parameters, of all that may be new) in a network that calls it `name`, each on its own."""
        layers = tuple(f"{name}.{layer}" for layer in ("hidden", "fc") if hasattr(self, layer))
        return layers, (*layers, *(f"{name}.{buffer}" for buffer, _ in self.named_buffers()))

    def forward(self, x, maps, before_norm, stays=None):
        """(B, out_channels); stays: (out_channels,), of which outputs no gradient goes on to the features."""
        features = self.dropout(self.features(x, maps, before_norm))
        outputs = self.fc(features)
        return outputs if stays is None else torch.where(stays, self.fc(features.detach()), outputs)

    def features(self, x, maps, before_norm):
        """(B, F), the input of the linear layer; see `statistics`."""
        if self.kind == "multistage":
            z = (self.statistics(x, maps, before_norm) - self.mean) / self.deviation
            return BOUND * torch.tanh(z / BOUND) * self.share
        pooled = self._side_by_side(bottleneck(maps))
        return nn.functional.gelu(self.hidden(pooled)) if self.kind == "mlp" else pooled

    def statistics(self, x, maps, before_norm):
        """(B, F) float32: what `features` standardises.

        x: the input (B, in_channels, X, Y, Z). maps: of the stages, finest first. before_norm: of each stage a list
            of `moments`.
        """
        deep = self._side_by_side(of_stages(maps, before_norm))
        return torch.cat([intensities(x).transpose(0, 1).flatten(1), deep], dim=1)

    def _side_by_side(self, features):
        return features.unflatten(0, (-1, self.copies)).flatten(1)

    @torch.no_grad()
    def adopt(self, fit, weight, bias):
        """Take over how a linear fit standardises, and its weight (K, F) and bias (K,).

        fit: has mean, deviation and share (F,) of the `statistics`, each limited to BOUND standard deviations.
        """
        for name in ("mean", "deviation", "share"):
            getattr(self, name).copy_(torch.as_tensor(getattr(fit, name)))
        self.fc.weight.copy_(torch.as_tensor(weight))
        self.fc.bias.copy_(torch.as_tensor(bias))


class WithImageHead:
    """A part of a U-Net, before `nn.Module`: from its `encoder` to the `decoder`, an ImageHead unless it `segments`."""

    def forward(self, x):
        return self.decoder(self.encoder(x)) if self.segments else self.decoder(*self._read(x))

    def features(self, x):
        """(B, F): the output layer's input in a whole-volume mode."""
        return self.decoder.features(*self._read(x))

    def statistics(self, x):
        """(B, F): what a multistage head standardises."""
        return self.decoder.statistics(*self._read(x))

    def maps(self, x):
        """The feature maps of the stages, finest first."""
        return self.encoder(x)

    def with_statistics(self, x):
        """(what a segmentation gives, (B, F) statistics of the encoder's stages, see `of_stages`)."""
        found = []
        maps = self.encoder(x, found)
        return self.decoder(maps), of_stages(maps, found)

    def _read(self, x):
        """(x, maps of the stages, of each the `moments` in front of its norms if the head reads them)."""
        found = [] if self.decoder.reads_moments else None
        return x, self.encoder(x, found), found


def scaled_alike(models, head):
    """State dicts whose multistage heads, with the linear layer `head`, all standardise by the mean of how they did.

    Each says what it said, except far from the mean, where statistics are limited. Other heads are left as they are.
    """
    parent = head.rpartition(".")[0]
    names = [f"{parent}.{name}" for name in ("mean", "deviation", "share")]
    if names[0] not in models[0]:
        return models
    mean, deviation, share = (torch.stack([model[name] for model in models]).mean(0) for name in names)
    return [{**model, **_rescaled(model, head, names, (mean, deviation, share))} for model in models]


def _rescaled(model, head, names, wanted):
    (own_mean, own_deviation, own_share), (mean, deviation, share) = (model[name] for name in names), wanted
    slope = model[f"{head}.weight"] * own_share / own_deviation
    weight = torch.where(share > 0, slope * deviation / share.clamp(min=1e-30), 0)
    bias = model[f"{head}.bias"] + slope @ (mean - own_mean)
    return {f"{head}.weight": weight, f"{head}.bias": bias, **dict(zip(names, wanted))}


def _layout(in_channels, stages, copies):
    """(groups, depths, kinds): of each statistic the number of its group, its depth (0: the input) and what it is."""
    tails = [f"{part} {100 * share:g}%" for share in _TAILS for part in ("darkest", "brightest")]
    found = [(in_channels, 0, kind) for kind in ("mean", "deviation", *tails)]
    for _ in range(copies):
        for depth, (convolutions, channels) in enumerate(stages, start=1):
            found += [(size, depth, f"{name} before norm") for size in convolutions for name in ("mean", "deviation")]
            found += [(channels, depth, kind) for kind in ("mean", "generalised mean")]
    spread = [(group, depth, kind) for group, (size, depth, kind) in enumerate(found) for _ in range(size)]
    return tuple(zip(*spread, strict=True))
