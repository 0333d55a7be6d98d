"""Where a network looks: Grad-CAM of an output, and the weights of places in a network with CBAM attention.

A map is as coarse as the feature map that it is made from: 1/32 of the image in 2D networks, 1/8 in multiscale ones
(whose coarser maps point at nothing small), 1/16 in U-Nets.
"""

import contextlib

import torch
import torch.nn.functional as F

from ..nets.attention import CBAM


def grad_cam(network, image, target_index, layer=None):
    """How much each place of an image speaks for an output, from 0 to 1 (Grad-CAM, Selvaraju et al. 2017).

    network: one with outputs (B, K); its gradients and its mode stay as they were.
    image: (C, X, Y) or (C, X, Y, 1) for a 2D network, or (C, X, Y, Z), of a size that the network takes.
    target_index: of the output.
    layer: name of the module whose feature map is read; None: network.saliency_layer. In a ResNet "layer3" is finer
        than the last one, "layer4".

    Returns float32 of the image's shape without channels, on the network's device: 1 at the strongest place, or 0
    everywhere.
    """
    module = network.get_submodule(layer or network.saliency_layer)
    batch, kept = _batch(network, image), []

    def keep(module, inputs, output):
        torch.set_grad_enabled(True)  # only from here on: in front of the layer nothing is kept for gradients
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # the next layer may change it in place

    with _evaluated(network), module.register_forward_hook(keep), torch.no_grad():
        outputs = network(batch)
        if outputs.ndim != 2 or not 0 <= target_index < outputs.shape[1]:
            got = f"{target_index} for outputs {tuple(outputs.shape)}"
            raise ValueError(f"target_index: got {got}, wanted one of (1, outputs)")
        (gradient,) = torch.autograd.grad(outputs[0, target_index], kept[-1])
        features, gradient = kept[-1].detach().float(), gradient.float()
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    found = _resized((weights * features).sum((0, 1), keepdim=True).clamp(min=0), image)
    highest = found.max()
    return found / highest if highest > 0 else found


@torch.no_grad()
def attention_map(network, image, scale=0):
    """The weights, in (0, 1), that the CBAM attention of a 2D network gives to the places of an image.

    image: (C, X, Y) or (C, X, Y, 1).
    scale: which map of a multiscale network, 0 for the finest.

    Returns float32 of the image's shape without channels; ValueError for a network without CBAM. Its mode stays.
    """
    blocks = [module for module in network.modules() if isinstance(module, CBAM)]
    if not blocks:
        raise ValueError("network: got one without CBAM attention, wanted model.attention=cbam")
    seen = []
    keep = blocks[scale].spatial.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with _evaluated(network), keep:
        network(_batch(network, image))
    return _resized(torch.sigmoid(seen[-1].float()), image)


def _batch(network, image):
    parameter = next(network.parameters())
    return torch.as_tensor(image)[None].to(parameter.device, parameter.dtype)


def _resized(values, image):
    """A map (1, 1, x, y[, z]) at the resolution of an image (C, X, Y[, Z]), without batch and channels."""
    axes = values.ndim - 2  # a volume of one slice has a map of two
    size, mode = tuple(image.shape[1:]), "bilinear" if axes == 2 else "trilinear"
    return F.interpolate(values, size=size[:axes], mode=mode, align_corners=False).reshape(size)


@contextlib.contextmanager
def _evaluated(network):
    """Evaluation mode, and afterwards the mode that each module had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
