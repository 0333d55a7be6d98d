"""Networks by name.

Every network is a plain `nn.Module` and says about itself what the rest of the house must know, as attributes:

stem            name of the first convolution's weight, whose input-channel axis may be adapted on loading
head_prefixes   parameters that are the task's own: the output layer, attention and fusion in front of it
encoder_prefixes  parameters that fine-tuning freezes first
new_prefixes    parameters that may be new when weights are transferred, each prefix as a whole
decoder_prefixes  in segmentation: what may be new beside these where the file has an encoder only
unused_prefixes   tensors of a file that this network may leave unused
stages          prefixes in order from input to output, one tuple per stage; together they name every parameter once
saliency_layer  name of the module with the feature map (B, c, x, y[, z]) that Grad-CAM reads: the last one of the encoder
                or, where several are fused, the finest of them
options         what it takes of the options of `build`

and, with one output per case, features(x) -> (B, F): what goes into the output layer. The U-Nets of the FOMO25 baseline have
checkpoint_activations(wanted), which trades time for memory. `add_to_head` moves parameters that no file brought.
"""

from . import checks
from .efficientnet import EfficientNet
from .resnet import ResNet
from .suprem import SuPreM
from .unet import UNet

_NETWORKS = {
    "unet_b": (UNet, dict(width=32)),
    "unet_xl": (UNet, dict(width=64)),
    "unet_b_lw_dec": (UNet, dict(width=32, light_decoder=True)),
    "unet_xl_lw_dec": (UNet, dict(width=64, light_decoder=True)),
    "suprem_unet3d": (SuPreM, dict(width=64)),
    "resnet50": (ResNet, dict(blocks=(3, 4, 6, 3))),
    "resnet101": (ResNet, dict(blocks=(3, 4, 23, 3))),
    "efficientnet_b0": (EfficientNet, {}),
}

_PLAIN = {  # the value of each option that leaves a network as it is
    "deep_supervision": False,
    "dropout": 0.0,
    "attention": "none",
    "multiscale": False,
    "pooling": "mean",
}


def build(
    name,
    in_channels,
    out_channels,
    mode="segmentation",
    width=None,
    deep_supervision=False,
    dropout=0.0,
    attention="none",
    multiscale=False,
    pooling="mean",
):
    """The network `name`, randomly initialised from torch's global generator, on the CPU.

    in_channels, out_channels: image channels in; classes or target values out. mode: "segmentation" gives logits
    (B, out_channels, X, Y, Z), "classification" and "regression" give (B, out_channels). width: channels of the first
    level (None: the network's own). deep_supervision: segmentation also returns coarser logits while gradients are on.
    dropout (of the features), attention ("se", "cbam"), multiscale, pooling ("max", "mean_max"): of the 2D networks, see
    `heads.Readout`.
    Raises ValueError for an unknown name or mode and for a combination that does not exist.
    """
    checks.choice("name", name, _NETWORKS)
    network, own = _NETWORKS[name]
    if width is not None:
        own = {**own, "width": width}
    options = dict(
        deep_supervision=deep_supervision, dropout=dropout, attention=attention, multiscale=multiscale, pooling=pooling
    )
    chosen = {option: value for option, value in options.items() if value != _PLAIN[option]}
    for option, value in chosen.items():
        if option not in network.options:
            raise ValueError(f"{option}: got {value!r} for {name}, wanted {_PLAIN[option]!r}")
    return network(in_channels, out_channels, mode=mode, **own, **chosen)


def add_to_head(network, names):
    """Make the parameters `names` part of the network's head, for all that asks which its head and its stages are.

    For those that pretrained weights have not brought: they are then trained from the first epoch, at the head's rate,
    and nothing is frozen at random values. Names that are no parameters are left alone.
    """
    own = [name for name, _ in network.named_parameters()]
    new = {name for name in set(names).intersection(own) if not name.startswith(tuple(network.head_prefixes))}

    def kept(prefixes):
        return tuple(prefix for wide in prefixes for prefix in _without(wide, own, new))

    head = (*network.head_prefixes, *(name for name in own if name in new))
    stages = [kept(stage) for stage in network.stages[:-1]]
    network.encoder_prefixes = kept(network.encoder_prefixes)
    network.stages, network.head_prefixes = (*filter(None, stages), head), head


def _without(prefix, names, left_out):
    """The shortest prefixes, from `prefix` on, of the `names` below it that are not in `left_out`."""
    below = [name for name in names if name.startswith(prefix)]
    if not left_out.intersection(below):
        return [prefix]
    ends = [name.find(".", len(prefix)) + 1 or len(name) for name in below]
    narrower = dict.fromkeys(name[:end] for name, end in zip(below, ends))
    return [found for one in narrower if one not in left_out for found in _without(one, names, left_out)]
