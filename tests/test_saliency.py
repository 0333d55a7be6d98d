"""Where a network looks: maps that are known by construction, and nothing that is left behind."""

import pytest
import torch

from fomo import nets
from fomo.inference import saliency

torch.set_num_threads(1)
NETWORKS = {  # name of the case: (options, shape of the image)
    "resnet50": ({"width": 4, "attention": "cbam"}, (2, 96, 64)),
    "efficientnet_b0": ({"width": 4, "multiscale": True, "pooling": "mean_max"}, (2, 64, 64, 1)),
    "unet_b": ({"width": 2}, (2, 48, 32, 32)),
    "suprem_unet3d": ({"width": 2}, (2, 32, 16, 16)),
    "unet_b late": ({"width": 2, "fusion": "late"}, (2, 48, 32, 32)),  # one map of all channels
}


def build(name, options, noise=None):
    """An untrained network; with noise, so that no attention is neutral and no signal dies on the way."""
    noise = noise if noise is not None else 0.01 if name == "resnet50" else 0.1
    torch.manual_seed(0)
    network = nets.build(name.split()[0], 2, 3, mode="classification", **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_have_the_images_shape_and_nothing_is_left_behind(name):
    options, shape = NETWORKS[name]
    network = build(name, options)
    network.train()
    network.get_submodule(network.saliency_layer).eval()  # a frozen part
    frozen = next(network.parameters()).requires_grad_(False)
    modes = [module.training for module in network.modules()]
    before = {n: value.clone() for n, value in network.state_dict().items()}
    image = torch.randn(shape)
    with torch.no_grad():
        maps = [saliency.grad_cam(network, image, index) for index in range(3)]
        assert not torch.is_grad_enabled()
    for found in maps:
        assert found.shape == shape[1:] and found.dtype == torch.float32 and not found.requires_grad
        assert found.min() >= 0 and found.max() in (0, 1)
    assert any(found.max() == 1 for found in maps) and not torch.equal(maps[0], maps[1])
    assert torch.equal(saliency.grad_cam(network, image.numpy(), 1), maps[1])
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters()) and not frozen.requires_grad
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())
    with pytest.raises(ValueError, match="target_index: got 3"):
        saliency.grad_cam(network, image, 3)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    "name, head", [("resnet50", "fc"), ("efficientnet_b0", "classifier.1"), ("unet_b", "decoder.fc")]
)
def test_with_mean_pooling_the_map_is_the_output_layer_at_each_place(name, head):
    network = build(name, {"width": 4}).eval()
    image = torch.randn(2, 128, 96) if name != "unet_b" else torch.randn(2, 64, 32, 48)
    seen = []
    network.get_submodule(network.saliency_layer).register_forward_hook(
        lambda module, inputs, output: seen.append(output[0])
    )
    with torch.no_grad():
        network(image[None])
        per_place = torch.einsum("kc,c...->k...", network.get_submodule(head).weight, seen[0]).clamp(min=0)
        for index in range(3):
            mode = "trilinear" if name == "unet_b" else "bilinear"
            wanted = torch.nn.functional.interpolate(
                per_place[None, index : index + 1], size=image.shape[1:], mode=mode
            )[0, 0]
            wanted = wanted / wanted.max() if wanted.max() > 0 else wanted
            torch.testing.assert_close(saliency.grad_cam(network, image, index), wanted, rtol=1e-3, atol=1e-4)


def carries_brightness(network):
    """Every kernel passes channel 0 on, from its middle; branches beside an identity give nothing."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 2:
                parameter.zero_()
                parameter[(0, 0, *(size // 2 for size in parameter.shape[2:]))] = 1
            elif "bn3.weight" in name:
                parameter.zero_()
        head = network.fc if hasattr(network, "fc") else network.decoder.fc
        head.weight.zero_()
        head.weight[1, 0], head.weight[2, 0] = 1, -1
    return network


@pytest.mark.parametrize("corner", [(0, 0), (-1, 0), (-1, -1)])
@pytest.mark.parametrize("name", ["resnet50", "unet_b"])
def test_a_class_that_depends_on_one_corner_gives_a_map_there(name, corner):
    network = carries_brightness(build(name, {"width": 4}, noise=0.0))
    cell = 32 if name == "resnet50" else 16
    image = torch.zeros((2, 4 * cell, 4 * cell) if name == "resnet50" else (2, 4 * cell, 4 * cell, 2 * cell))
    box = tuple(slice(0, cell) if place == 0 else slice(-cell, None) for place in corner)
    image[(0, *box)] = 1.0
    if name == "resnet50":  # its max pooling sees a little beyond each cell
        image[:, cell - 8 : cell] = image[:, :, cell - 8 : cell] = 0.0
    found = saliency.grad_cam(network, image, 1)
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[box] = True
    assert found.max() == 1 and inside[(found == 1)].all()
    assert found[inside].mean() > 0.7 and found[~inside].mean() < 0.05
    assert (saliency.grad_cam(network, image, 0) == 0).all()  # the class that depends on nothing
    if name == "resnet50":
        assert (saliency.grad_cam(network, image, 2) == 0).all()  # against it, only: a map that is zero stays zero
        finer = saliency.grad_cam(network, image, 1, layer="layer3")
        assert finer[~inside].sum() < found[~inside].sum()


def test_the_map_of_cbam_is_what_multiplies_the_features():
    network = build("resnet50", {"width": 4, "attention": "cbam", "multiscale": True})
    network.train()
    image = torch.randn(2, 128, 96, 1)
    seen = []
    block = network.readout.attention[0]
    block.spatial.register_forward_hook(lambda module, inputs, output: seen.append(torch.sigmoid(output[0, 0])))
    found = [saliency.attention_map(network, image, scale) for scale in range(3)]
    assert all(values.shape == (128, 96, 1) for values in found) and network.training and block.training
    assert all(0 < values.min() < values.max() < 1 for values in found)
    # in the middle between the four middle pixels of a cell lies its centre
    centres = found[0][:, :, 0].reshape(16, 8, 12, 8)[:, 3:5, :, 3:5].mean((1, 3))
    torch.testing.assert_close(
        centres[1:-1, 1:-1], seen[0][1:-1, 1:-1], rtol=0, atol=0.2 * float(seen[0].max() - seen[0].min())
    )
    assert torch.corrcoef(torch.stack((centres.flatten(), seen[0].flatten())))[0, 1] > 0.98
    assert torch.equal(saliency.attention_map(network, image), found[0])
    with pytest.raises(ValueError, match="model.attention=cbam"):
        saliency.attention_map(build("resnet50", {"width": 4, "attention": "se"}), image)
