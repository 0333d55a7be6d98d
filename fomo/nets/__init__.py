"""Networks by name.

Every network is a plain `nn.Module` and says about itself what the rest of the house must know, as attributes:

stem            name of the first convolution's weight, whose input-channel axis may be adapted on loading
head_prefixes   parameters that are the task's own output layer
encoder_prefixes  parameters that fine-tuning freezes first
new_prefixes    parameters that may be new when weights are transferred, each prefix as a whole
unused_prefixes   tensors of a file that this network may leave unused
stages          prefixes in order from input to output, one tuple per stage; together they name every parameter once
"""

from .unet import UNet

_NETWORKS = {
    "unet_b": (UNet, dict(width=32)),
    "unet_xl": (UNet, dict(width=64)),
    "unet_b_lw_dec": (UNet, dict(width=32, light_decoder=True)),
    "unet_xl_lw_dec": (UNet, dict(width=64, light_decoder=True)),
}


def build(name, in_channels, out_channels, mode="segmentation", width=None, deep_supervision=False):
    """The network `name`, randomly initialised from torch's global generator, on the CPU.

    in_channels, out_channels: image channels in; classes or target values out. mode: "segmentation" gives logits
    (B, out_channels, X, Y, Z), "classification" and "regression" give (B, out_channels). width: channels of the first
    level (None: the network's own). deep_supervision: segmentation also returns coarser logits while gradients are on.
    Raises ValueError for an unknown name or mode and for a combination that does not exist.
    """
    if name not in _NETWORKS:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(_NETWORKS)}")
    network, own = _NETWORKS[name]
    if width is not None:
        own = {**own, "width": width}
    return network(in_channels, out_channels, mode=mode, deep_supervision=deep_supervision, **own)
