"""One encoder of a U-Net for several tasks at once: its decoder for a mask, and a head for what is said of the case.

Needs torch only.
"""

import torch
from torch import nn

from .image_head import ImageHead

HEAD = "heads.fc"  # the last layer of what is said of the case


class MultiHead(nn.Module):
    """(B, C, X, Y, Z) -> (dense, whole, log_variances) of a U-Net in its segmentation mode.

    dense: what the U-Net gives, None unless `masked`. whole: (B, outputs), None without outputs. log_variances:
    (weights,), one per task, None without weights.

    network: has `encoder`, `decoder` and `read`, the stages as `ImageHead` wants them.
    kind: of the head, see `image_head`.
    weights: how many tasks learn their weight in the loss (Kendall et al. 2018); 0: none.
    apart: the outputs whose gradients stay in the head's last layer: all else learns as if they were not there.
    """

    def __init__(self, network, in_channels, outputs, kind="linear", masked=True, weights=0, apart=()):
        super().__init__()
        self.encoder, self.stem, self.saliency_layer = network.encoder, network.stem, network.saliency_layer
        self.encoder_prefixes = network.encoder_prefixes
        stages, own_head, new, unused = network.stages[:-1], network.head_prefixes, network.new_prefixes, ()
        self.decoder = network.decoder if masked else None
        if masked:
            self.decoder_prefixes, unused = network.decoder_prefixes, network.unused_prefixes
        else:
            stages = [stage for stage in stages if all(name.startswith(self.encoder_prefixes) for name in stage)]
            own_head, new, unused = (), (), ("decoder.",)
        self.heads = ImageHead(kind, in_channels, network.read, outputs) if outputs else None
        stays = torch.tensor([output in apart for output in range(outputs)])
        self.register_buffer("stays", stays if apart else None, persistent=False)
        layers, read = self.heads.prefixes("heads") if outputs else ((), ())
        self.log_variances = nn.Parameter(torch.zeros(weights)) if weights else None
        learned = ("log_variances",) * bool(weights)
        self.head_prefixes = (*own_head, *layers, *learned)
        self.new_prefixes, self.unused_prefixes = (*new, *read, *learned), unused
        self.stages = (*stages, self.head_prefixes)

    def forward(self, x):
        found = [] if self.heads is not None and self.heads.reads_moments else None
        maps = self.encoder(x, found)
        dense = None if self.decoder is None else self.decoder(maps)
        whole = None if self.heads is None else self.heads(x, maps, found, self.stays)
        return dense, whole, self.log_variances

    def dense(self, x):
        """(B, K, X, Y, Z): of the mask alone."""
        return self.decoder(self.encoder(x))

    def whole(self, x):
        """(B, outputs): of the whole case alone."""
        found = [] if self.heads.reads_moments else None
        maps = self.encoder(x, found)
        return self.heads(x, maps, found)

    def statistics(self, x):
        """(B, F): what a multistage head standardises."""
        found = []
        maps = self.encoder(x, found)
        return self.heads.statistics(x, maps, found)

    def checkpoint_activations(self, wanted):
        """As that of the U-Net: its levels know how."""
        for module in self.modules():
            if hasattr(module, "recompute"):
                module.recompute = wanted


def one_task(network, outputs):
    """The `OneTask` of a MultiHead; of one that is seen from several sides, as `inference.Mirrored`, that of each."""
    around = getattr(network, "around", None)
    return OneTask(network, outputs) if around is None else around(one_task(network.network, outputs))


class OneTask(nn.Module):
    """What a MultiHead says of one task: its mask, or some of the outputs for the whole case.

    outputs: a slice of them; None: the mask.
    """

    def __init__(self, network, outputs):
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, x):
        return self.network.dense(x) if self.outputs is None else self.network.whole(x)[:, self.outputs]
