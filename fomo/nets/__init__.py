"""Networks by name.

An entry of `registry.NETWORKS` says what must be known of a network before it is built. The network takes in_channels,
out_channels, mode, width and the options of `build` that its entry names. It is a plain `nn.Module`, and says the rest
itself, as attributes:

stem            name of the first convolution's weight, whose input channels may be adapted on loading
head_prefixes   parameters that belong to the task: the output layer, with attention and fusion in front of it
encoder_prefixes  parameters that fine-tuning freezes first
new_prefixes    parameters that may be new when weights are transferred, each prefix as a whole
decoder_prefixes  (segmentation) parameters that may be new as well, if the file has an encoder only
unused_prefixes   tensors of a file that this network may leave unused
stages          prefixes in order from input to output, one tuple per stage; together they name every parameter once
saliency_layer  name of the module whose feature map (B, c, x, y[, z]) Grad-CAM reads: the last one of the encoder or,
                where several are fused, the finest of them

In the modes with one output per case it also has features(x) -> (B, F), the input of the output layer; where it sees
volumes also maps(x), the feature maps (B, C, X, Y, Z) of its stages, finest first. A multistage
head is an `image_head.ImageHead`, and its network has statistics(x) -> (B, F), which the head standardises. A network
that `recomputes` has checkpoint_activations(wanted), which trades time for memory.
"""

from . import checks
from .network import PLAIN, Network
from .registry import NETWORKS


def build(name, in_channels, out_channels, mode="segmentation", width=None, **options):
    """The network `name`, on the CPU, with random weights from torch's global generator.

    out_channels: classes, or values that are predicted.
    mode: "segmentation" gives logits (B, out_channels, X, Y, Z), "classification" and "regression" (B, out_channels).
    width: channels of the first level; None: the network's own.
    options: `network.PLAIN` has their names and defaults.
        deep_supervision: segmentation also returns coarser logits while gradients are on.
        skips, skip_pooling ("average", "maximum"): of the residual-encoder U-Nets, see `resenc.ResEncUNet`.
        head ("linear", "mlp", "multistage"), fusion ("early", "late"): of the U-Nets with one output per case, see
        `image_head`.
        dropout: in front of the output layer of one output per case.
        channel_dropout: of whole feature maps in the deeper levels of the U-Nets, see `unet.UNet`.
        attention ("none", "se", "cbam"), multiscale, pooling ("mean", "max", "mean_max"): of the 2D networks, see
        `resnet.ResNet`.

    Raises ValueError for an unknown name, mode or option, and for a combination that does not exist.
    """
    checks.choice("name", name, NETWORKS)
    network = NETWORKS[name]
    for option, value in options.items():
        checks.choice("options", option, PLAIN)
        if network.refuses(option, value):
            raise ValueError(f"{option}: got {value!r} for {name}, wanted {PLAIN[option]!r}")
    if mode not in network.modes:
        siblings = network.siblings(mode, NETWORKS)
        use = f": use {' or '.join(siblings)}" if siblings else ""
        raise ValueError(f"mode: got {mode!r}, wanted one of {', '.join(network.modes)}{use}")
    taken = {option: value for option, value in options.items() if option in network.options}
    if width is not None:
        taken["width"] = width
    return network.build(in_channels, out_channels, mode, **taken)


def add_to_head(network, names):
    """Make the parameters `names` part of the network's head and of its last stage; other names are left alone.

    These are the parameters that no file has brought. As part of the head they are trained from the first epoch, at the
    head's rate, so that nothing is frozen at random values.
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
    """The shortest prefixes, from `prefix` on, of those `names` below it that are not in `left_out`."""
    below = [name for name in names if name.startswith(prefix)]
    if not left_out.intersection(below):
        return [prefix]
    ends = [name.find(".", len(prefix)) + 1 or len(name) for name in below]
    narrower = dict.fromkeys(name[:end] for name, end in zip(below, ends))
    return [found for one in narrower if one not in left_out for found in _without(one, names, left_out)]
