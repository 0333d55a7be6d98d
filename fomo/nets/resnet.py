"""ResNet-50 and ResNet-101 for images, or volumes of one slice, with torchvision's parameter names.

Sources: He et al. 2016; torchvision.models.resnet, whose variant ("v1.5") has the stride in the 3x3 convolution.
"""

from torch import nn

from . import checks, heads

_EXPANSION = 4  # a block returns four times as many channels as its 3x3 convolution has


class ResNet(nn.Module):
    """(B, in_channels, X, Y) or (B, in_channels, X, Y, 1) -> (B, out_channels); any X and Y.

    blocks: how many each of the four stages has.
    width: channels of the first convolution.
    dropout: of the features, in front of the output layer.
    multiscale: reads the maps at 1/8, 1/16 and 1/32 of the image, instead of the last only.
    readout: attention and pooling, see `heads.Readout`.
    """

    stem = "conv1.weight"
    encoder_prefixes = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
    head_prefixes = new_prefixes = ("readout.", "fc.")
    unused_prefixes = ()
    stages = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",), head_prefixes)

    def __init__(self, in_channels, out_channels, mode, blocks, width=64, dropout=0.0, multiscale=False, **readout):
        super().__init__()
        checks.choice("mode", mode, checks.WHOLE_CASE)
        checks.counts(in_channels=in_channels, out_channels=out_channels, width=width)
        self.in_channels, self.multiscale = in_channels, multiscale
        self.saliency_layer = "layer2" if multiscale else "layer4"
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, outputs = width, []
        for i, count in enumerate(blocks):
            stage = nn.Sequential()
            for k in range(count):
                stage.append(_Bottleneck(channels, width * 2**i, stride=2 if i > 0 and k == 0 else 1))
                channels = _EXPANSION * width * 2**i
            self.add_module(f"layer{i + 1}", stage)
            outputs.append(channels)
        heads.draw_convolutions(self)
        self.readout = heads.Readout(outputs[1:] if multiscale else outputs[-1:], **readout)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.readout.features, out_channels)

    def forward(self, x):
        return self.fc(self.dropout(self.features(x)))

    def features(self, x):
        """(B, features), the input of the output layer."""
        x = heads.as_images(x, self.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return self.readout(maps[1:] if self.multiscale else maps[-1:])


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, added to the input; a projection of the input where the shape changes."""

    def __init__(self, channels_in, planes, stride):
        super().__init__()
        channels_out = _EXPANSION * planes
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))
