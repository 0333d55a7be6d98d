"""EfficientNet-B0 for images, or volumes of one slice, with torchvision's parameter names.

Sources: Tan and Le 2019; torchvision.models.efficientnet.
"""

import torch
from torch import nn

from . import checks, heads

# each of the seven stages: expansion, kernel, stride, channels out, blocks; for 32 channels of the first convolution
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_LAST, _WIDTH = 1280, 32
_MULTISCALE = (3, 5, 8)  # the children of `features` whose maps are 1/8, 1/16 and 1/32 of the image
_SKIPPED = 0.2  # stochastic depth: the probability grows linearly, block by block, from 0 towards this


class EfficientNet(nn.Module):
    """(B, in_channels, X, Y) or (B, in_channels, X, Y, 1) -> (B, out_channels); any X and Y.

    width: channels of the first convolution; all others are in proportion.
    dropout (published: 0.2), multiscale, readout: as for `resnet.ResNet`.

    The module `features` turns a batch into (B, features): torchvision's convolutions under their names `features.0` to
    `features.8`, and behind them `features.readout`.
    """

    stem = "features.0.0.weight"
    encoder_prefixes = tuple(f"features.{i}." for i in range(9))
    head_prefixes = new_prefixes = ("features.readout.", "classifier.")
    unused_prefixes = ()
    stages = (*((prefix,) for prefix in encoder_prefixes), head_prefixes)

    def __init__(self, in_channels, out_channels, mode, width=_WIDTH, dropout=0.0, multiscale=False, **readout):
        super().__init__()
        checks.choice("mode", mode, checks.WHOLE_CASE)
        checks.counts(in_channels=in_channels, out_channels=out_channels, width=width)
        self.features = _Features(in_channels, width, multiscale, **readout)
        self.saliency_layer = f"features.{self.features.read[0]}"
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.features.readout.features, out_channels))
        nn.init.uniform_(self.classifier[1].weight, -(out_channels**-0.5), out_channels**-0.5)
        nn.init.zeros_(self.classifier[1].bias)

    def forward(self, x):
        return self.classifier(self.features(x))


class _Features(nn.Module):
    """Children 0 (stem), 1 to 7 (stages), 8 (1x1 convolution) and readout."""

    def __init__(self, in_channels, width, multiscale, **readout):
        super().__init__()
        self.in_channels = in_channels

        def scaled(channels):
            return max(1, round(channels * width / _WIDTH))

        self.add_module("0", _convolution(in_channels, width, 3, stride=2))
        outputs = [width, *(scaled(stage[3]) for stage in _STAGES), scaled(_LAST)]
        channels, count, total = width, 0, sum(stage[-1] for stage in _STAGES)
        for i, (expansion, kernel, stride, _, blocks) in enumerate(_STAGES, start=1):
            stage = nn.Sequential()
            for k in range(blocks):
                skipped = _SKIPPED * count / total
                stage.append(_Block(channels, expansion, kernel, stride if k == 0 else 1, outputs[i], skipped))
                channels, count = outputs[i], count + 1
            self.add_module(str(i), stage)
        self.add_module("8", _convolution(channels, outputs[8], 1))
        heads.draw_convolutions(self)
        self.read = _MULTISCALE if multiscale else _MULTISCALE[-1:]
        self.readout = heads.Readout([outputs[i] for i in self.read], **readout)

    def forward(self, x):
        x = heads.as_images(x, self.in_channels)
        maps = []
        for i in range(9):
            x = getattr(self, str(i))(x)
            if i in self.read:
                maps.append(x)
        return self.readout(maps)


class _Block(nn.Module):
    """1x1 convolution up, one kernel per channel, squeeze-and-excitation, 1x1 down; added to the input if it fits.

    skipped: probability that training leaves out this branch for a sample (stochastic depth, Huang et al. 2016), drawn
    from torch's global generator.
    """

    def __init__(self, channels_in, expansion, kernel, stride, channels_out, skipped):
        super().__init__()
        wide = expansion * channels_in
        layers = [] if expansion == 1 else [_convolution(channels_in, wide, 1)]
        layers += [
            _convolution(wide, wide, kernel, stride=stride, groups=wide),
            _Squeeze(wide, max(1, channels_in // 4)),
            _convolution(wide, channels_out, 1, activation=False),
        ]
        self.block, self.skipped = nn.Sequential(*layers), skipped
        self.beside = stride == 1 and channels_in == channels_out

    def forward(self, x):
        y = self.block(x)
        if not self.beside:
            return y
        if self.training and self.skipped:
            kept = torch.empty(len(y), 1, 1, 1, dtype=y.dtype, device=y.device).bernoulli_(1 - self.skipped)
            y = y * (kept / (1 - self.skipped))
        return x + y


class _Squeeze(nn.Module):
    """Squeeze-and-excitation, with torchvision's names."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.activation = nn.SiLU(inplace=True)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))


def _convolution(channels_in, channels_out, kernel, stride=1, groups=1, activation=True):
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    last = (nn.SiLU(inplace=True),) if activation else ()
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), *last)
