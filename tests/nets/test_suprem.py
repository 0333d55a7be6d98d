"""suprem_unet3d against the published network (ModelsGenesis/pytorch/unet3d.py): its names, shapes and numbers."""

import math

import pytest
import torch

from fomo import checkpoint, nets
from fomo.config import UserError

torch.set_num_threads(1)


def fill(network):
    """Weights by a formula, so that another implementation can have the same."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(network.named_parameters())):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + number).reshape(
                parameter.shape
            )
            parameter.copy_(1 + 0.1 * wave if name.endswith("bn1.weight") else wave / math.sqrt(parameter[0].numel()))
    return network


def image():
    return torch.cos(torch.arange(2 * 16 * 8 * 16, dtype=torch.float64) ** 1.1).reshape(2, 1, 16, 8, 16).float()


def test_numbers_of_the_published_network_in_training_and_evaluation():
    network = fill(nets.build("suprem_unet3d", 1, 2))  # the stored numbers: the original code with these weights
    for mode in (True, False):
        network.train(mode)
        with torch.no_grad():
            logits, features = network(image()), network.features(image())
        assert logits.shape == (2, 2, 16, 8, 16) and features.shape == (2, 512)
        assert logits.mean().item() == pytest.approx(2.523316555, rel=1e-4)
        assert logits.std().item() == pytest.approx(0.242184097, rel=1e-4)
        assert logits[0, 0, 3, 4, 5].item() == pytest.approx(2.654809451, rel=1e-4)
        assert logits[1, 1, 15, 7, 0].item() == pytest.approx(2.242783911, rel=1e-4)
        assert features.sum(1).tolist() == pytest.approx([282.926025, 232.298370], rel=1e-4)
        assert features[1, :3].tolist() == pytest.approx([0.55537426, 0.29247862, 0.0], abs=1e-4)


def test_names_and_shapes_of_the_published_network():
    state = nets.build("suprem_unet3d", 1, 3).state_dict()
    assert (
        len(state) == 106
        and sum(v.numel() for n, v in state.items() if n.split(".")[-1] in ("weight", "bias")) == 19_073_795
    )
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    first = ["conv1.weight", "conv1.bias", *(f"bn1.{name}" for name in norm)]
    assert list(state)[:7] == [f"down_tr64.ops.0.{name}" for name in first]
    shapes = {name: tuple(state[name].shape) for name in state}
    assert shapes["down_tr512.ops.1.conv1.weight"] == (512, 256, 3, 3, 3)
    assert shapes["up_tr256.up_conv.weight"] == (512, 512, 2, 2, 2)
    assert shapes["up_tr256.ops.0.conv1.weight"] == (256, 768, 3, 3, 3)
    assert shapes["up_tr64.ops.1.bn1.running_var"] == (64,)
    assert shapes["out_tr.final_conv.weight"] == (3, 64, 1, 1, 1)


def published_file(path, width=64, decoder_output=False):
    """A file as SuPreM's: the network in a wrapper, with the tensors that turn its features into organs beside it."""
    state = nets.build("suprem_unet3d", 1, 1, width=width).state_dict()
    tensors = {f"module.backbone.{n}": v for n, v in state.items() if decoder_output or not n.startswith("out_tr")}
    others = {
        "module.organ_embedding": torch.randn(32, 512),
        "module.precls_conv.0.weight": torch.ones(64),
        "module.controller.bias": torch.ones(153),
    }
    torch.save({"net": {**tensors, **others}, "optimizer": {}, "epoch": 3}, path)
    return state


@pytest.mark.parametrize("decoder_output", [False, True])
@pytest.mark.parametrize("mode", ["segmentation", "classification", "regression"])
def test_a_published_file_loads_with_everything_but_the_head(tmp_path, mode, decoder_output):
    state = published_file(tmp_path / "suprem.pth", 8, decoder_output)
    network = nets.build("suprem_unet3d", 1, 2, mode=mode, width=8)
    report = checkpoint.load_weights(network, tmp_path / "suprem.pth")
    encoder = [name for name in state if name.startswith("down_tr")]
    used = encoder if mode != "segmentation" else [name for name in state if not name.startswith("out_tr")]
    assert set(report.loaded) == set(used) and len(encoder) == 56
    assert all(name.startswith(network.head_prefixes) for name in report.new) and len(report.new) == 2
    assert len(report.ignored) == 3 + len(state) - len(used) - 2 * (not decoder_output)
    own = network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in used)


def test_one_channel_becomes_several_and_wrong_files_are_refused(tmp_path):
    state = published_file(tmp_path / "suprem.pth", 8)
    network = nets.build("suprem_unet3d", 3, 2, mode="regression", width=8)
    report = checkpoint.load_weights(network, tmp_path / "suprem.pth")
    assert report.adapted == ("down_tr64.ops.0.conv1.weight",)
    torch.testing.assert_close(network.state_dict()[network.stem], state[network.stem].expand(-1, 3, -1, -1, -1) / 3)
    with pytest.raises(UserError, match="weights of a network 2 times as wide"):
        checkpoint.load_weights(nets.build("suprem_unet3d", 1, 2, width=4), tmp_path / "suprem.pth")


def test_attributes_cover_the_network_and_frozen_statistics_stay():
    for mode in ("segmentation", "classification"):
        network = nets.build("suprem_unet3d", 1, 2, mode=mode, width=4)
        names = [name for name, _ in network.named_parameters()]
        for name in names:
            assert sum(name.startswith(prefix) for stage in network.stages for prefix in stage) == 1
        assert network.stem in names and dict(network.named_modules())[network.saliency_layer] is network.down_tr512
        before = {n: b.clone() for n, b in network.named_buffers()}
        assert all(
            module.track_running_stats is False for module in network.modules() if hasattr(module, "running_mean")
        )
        network.eval()(image())
        assert all(torch.equal(b, before[n]) for n, b in network.named_buffers())


@pytest.mark.parametrize(
    "size, message", [((12, 16, 16), "multiples of 8"), ((8, 8, 8), "one voxel"), ((16, 16, 0), "multiples of 8")]
)
def test_impossible_sizes_and_widths_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        nets.build("suprem_unet3d", 1, 2, width=2)(torch.zeros(1, 1, *size))
    with pytest.raises(ValueError, match="even number"):
        nets.build("suprem_unet3d", 1, 2, width=3)
