"""Dropout of whole feature maps in the deeper levels of the U-Nets."""

import pytest
import torch

from fomo import kinds, nets, tasks
from fomo.config import UserError
from fomo.training import optimization

torch.set_num_threads(1)
LEVELS = {  # those that drop maps, and the others
    "unet_b": (
        ["encoder.encoder_conv2", "encoder.encoder_conv3", "encoder.encoder_conv4"],
        ["decoder.decoder_conv1", "decoder.decoder_conv2"],
        ["encoder.in_conv", "encoder.encoder_conv1", "decoder.decoder_conv3", "decoder.decoder_conv4"],
    ),
    "resenc_unet_s": (
        ["encoder.stages.3", "encoder.stages.4", "encoder.stages.5"],
        ["decoder.decoder_convs.0", "decoder.decoder_convs.1"],
        ["encoder.stem", "encoder.stages.0", "encoder.stages.2", "decoder.decoder_convs.2", "decoder.decoder_convs.4"],
    ),
}


def build(name, share, mode="segmentation"):
    torch.manual_seed(0)
    return nets.build(name, 1, 2, mode=mode, width=8, channel_dropout=share)


def image(name):
    stride = nets.NETWORKS[name].stride
    return torch.randn(2, 1, 2 * stride, stride, stride, generator=torch.Generator().manual_seed(1))


def dropped_shares(network, x, names):
    """Of each level the share of its maps (B, C) that are 0 in each voxel."""
    found = {}
    modules = dict(network.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda _, __, y, name=name: found.update({name: (y.flatten(2) == 0).all(2).float().mean().item()})
        )
        for name in names
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", LEVELS)
def test_whole_maps_of_the_coarse_levels_are_dropped_in_training_only(name):
    of_encoder, of_decoder, others = LEVELS[name]
    network, plain = build(name, 0.5), build(name, 0.0)
    assert network.state_dict().keys() == plain.state_dict().keys()
    x = image(name)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), plain.eval()(x))
    shares = dropped_shares(network.train(), x, of_encoder + of_decoder + others)
    assert all(0.2 < shares[level] < 0.8 for level in of_encoder + of_decoder), shares
    assert not any(shares[level] for level in others), shares
    optimization.freeze(network, network.encoder_prefixes)
    shares = dropped_shares(network, x, of_encoder + of_decoder)
    assert not any(shares[level] for level in of_encoder), "what is frozen drops nothing"
    assert all(shares[level] for level in of_decoder)


@pytest.mark.parametrize("name", LEVELS)
def test_what_is_kept_is_scaled_so_that_the_mean_stays(name):
    plain, network, last = build(name, 0.0), build(name, 0.25), LEVELS[name][0][0]
    found = []
    for one in (plain, network):
        hook = dict(one.named_modules())[last].register_forward_hook(lambda _, __, y: found.append(y))
        with torch.no_grad():
            one.train()(image(name))
        hook.remove()
    kept = (found[1].flatten(2) != 0).any(2)
    torch.testing.assert_close(found[1][kept], found[0][kept] / 0.75)


def test_a_config_says_the_share_and_where_it_cannot_be(tiny_config):
    config = kinds.load(tiny_config("segmentation", model={"channel_dropout": 0.3}))
    assert tasks.build_network(config, tasks.build(config)).encoder.encoder_conv4.dropped == 0.3
    with pytest.raises(UserError, match=r"model.channel_dropout: got 0.3, wanted 0 for model.head=multistage"):
        kinds.load(tiny_config("regression", model={"channel_dropout": 0.3}))
    assert kinds.load(tiny_config("regression", model={"channel_dropout": 0.3, "head": "linear"}))
    with pytest.raises(UserError, match="model.channel_dropout: got 0.3, wanted 0 for task.type=dino"):
        kinds.load(tiny_config("regression", task={"type": "dino"}, model={"channel_dropout": 0.3}))
    with pytest.raises(ValueError, match="channel_dropout: got 0.3 for head 'multistage'"):
        nets.build("unet_b", 1, 1, mode="regression", width=4, head="multistage", channel_dropout=0.3)
    other = {"model": {"channel_dropout": 0.3, "name": "suprem_unet3d"}, "eval": {"windows": 1}}
    with pytest.raises(UserError, match="model.channel_dropout: got 0.3, wanted 0 for model.name=suprem_unet3d"):
        kinds.load(tiny_config("segmentation", **other))
