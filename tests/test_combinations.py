"""What the config accepts can be built and run: whatever dies in a fold has passed the checks before the data."""

import itertools

import pytest
import torch

from fomo import kinds, tasks
from fomo.config import UserError
from fomo.data.cases import Case, Volume
from fomo.nets import NETWORKS

SLICES = {"source": "slices", "csv": "x", "patch": [64, 64, 1], "normalize": "none"}
VIEWS = {"global_size": [32, 32, 32], "local_size": [32, 16, 16], "out_dim": 16, "head_width": 8}
TASKS = {
    "classification": {"data": {"source": "fomo1", "root": "x"}},
    "targets": {"task": {"type": "classification", "targets": ["p", "q"]}, "data": {"source": "table", "csv": "x"}},
    "segmentation": {"data": {"source": "fomo2", "root": "x"}},
    "regression": {"data": {"source": "fomo3", "root": "x"}},
    "multilabel": {"task": {"targets": ["p", "q"]}, "data": SLICES},
    "mae": {"data": {"source": "volumes", "root": "x"}},
    "dino": {"task": VIEWS, "data": {"source": "volumes", "root": "x"}},
    "dino_slices": {
        "task": {**VIEWS, "type": "dino", "global_size": [64, 64, 1], "local_size": [64, 64, 1]},
        "data": SLICES,
    },
}
OPTIONS = [
    {},
    {"model": {"deep_supervision": True}},
    {"model": {"dropout": 0.5, "attention": "cbam", "multiscale": True, "pooling": "max"}},
    {"train": {"checkpoint_activations": True}},
    {"train": {"batch_size": 1}},
    {"data": {"channels": ["a", "b", "c"]}},
    {"task": {"activation": "sigmoid"}},
    {"augment": {"preset": "strong"}},
    {"augment": {"preset": "slices"}},
    *({"data": {"patch": patch}} for patch in ([16, 16, 16], [32, 16, 16], [8, 8, 8], [16, 8, 8], [64, 32, 1])),
]


def config_of(kind, network, option):
    """The Config, or None where it is refused."""
    values = {"data": {"channels": ["a"], "patch": [32, 32, 32]}, "train": {"patience": None}, "eval": {"windows": 1}}
    own = {"task": {"type": kind}, "model": {"name": network}}
    if NETWORKS[network].sees == "volume":
        own["model"]["width"] = 2
    for part in (own, TASKS[kind], option):
        for section, keys in part.items():
            values[section] = {**values.get(section, {}), **keys}
    try:
        return kinds.from_dict(values, "here")
    except UserError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_accepted_can_be_built_and_run(kind):
    several = kind in ("targets", "multilabel")
    accepted = set()
    for network, option in itertools.product(NETWORKS, OPTIONS):
        config = config_of(kind, network, option)
        if config is None:
            continue
        accepted.add(network)
        targets = [(float(i % 2),) * 2 if several else float(i % 2) for i in range(4)]
        names = [(str(i % 2),) * 2 if kind == "targets" else () for i in range(4)]
        cases = [
            Case(f"c{i}", f"s{i}", (Volume("x.nii"),), target=target, labels=labels)
            for i, (target, labels) in enumerate(zip(targets, names))
        ]
        task = tasks.build(config)
        task.inspect(cases)
        task.augmentation()
        channels, patch, size = len(config.data.channels), config.data.patch, config.train.batch_size
        with torch.device("meta"):
            image = torch.empty(size, channels, *patch)
            if config.task.type == "dino":
                image = [torch.empty(2 * size, channels, *config.task.global_size)]
            outputs = tasks.build_network(config, task)(image)
        if kind == "segmentation":
            deep = config.model.deep_supervision is True
            assert isinstance(outputs, list) == deep, (network, option)
    assert accepted, "something is"


def test_deep_supervision_is_refused_before_the_data_where_a_network_has_none():
    wanted = "model.deep_supervision: got true, wanted false for model.name=suprem_unet3d: of unet_b, unet_xl"
    values = {"task": {"type": "segmentation"}, "model": {"name": "suprem_unet3d", "deep_supervision": True}}
    values |= {"data": {"source": "fomo2", "root": "x", "channels": ["a"]}, "eval": {"windows": 1}}
    with pytest.raises(UserError, match=wanted):
        kinds.from_dict(values, "here")
