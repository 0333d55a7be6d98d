import pytest
import torch

from fomo import kinds, nets, tasks
from fomo.nets.rare import begin_rare

SEGMENTING = [name for name, one in nets.NETWORKS.items() if "segmentation" in one.modes]


@pytest.mark.parametrize("name", SEGMENTING)
def test_foreground_begins_at_one_percent_and_the_rest_of_the_network_as_it_was(name):
    torch.manual_seed(0)
    network = nets.build(name, 1, 3, width=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    begin_rare(network, slice(1, None))
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(network.head_prefixes) and key.endswith("bias") for key in changed)
    for key in changed:
        foreground = network.state_dict()[key].softmax(0)[1:]
        torch.testing.assert_close(foreground, torch.full((2,), 0.0101 / 1.0202), atol=2e-4, rtol=0)


def test_each_output_of_deep_supervision_begins_so():
    network = nets.build("unet_b", 1, 2, width=4, deep_supervision=True)
    begin_rare(network, slice(1, None))
    with torch.enable_grad():
        outputs = network(torch.randn(1, 1, 32, 32, 32))
    assert len(outputs) == 5 and all(output.softmax(1)[:, 1].mean() < 0.1 for output in outputs)


@pytest.mark.parametrize(
    "task, keys, begins",
    [
        ("segmentation", {}, [0.99, 0.01]),
        ("segmentation", {"activation": "sigmoid"}, [0.01]),
        ("classification", {"evidence": "mask"}, [0.99, 0.01]),
        ("mae", {}, None),
    ],
)
def test_tasks_that_mark_voxels_begin_so(tiny_config, task, keys, begins):
    sections = {"model": {"name": "unet_b_lw_dec"}} if task == "mae" else {}
    config = kinds.load(tiny_config(task, task=keys, **sections))
    bias = tasks.build_network(config, tasks.build(config)).state_dict()["decoder.out_conv.bias"]
    if begins is None:
        assert bias.abs().max() < 1  # as it was drawn
        return
    probabilities = bias.softmax(0) if len(bias) > 1 else bias.sigmoid()
    torch.testing.assert_close(probabilities, torch.tensor(begins), atol=1e-3, rtol=0)
