"""Tasks: one file each, and a line in TASKS; what all of them have stands in task.py."""

from .. import nets
from ..data import sources
from ..runtime import lazy
from .classification import Classification
from .dino import Dino
from .mae import MaskedAutoencoder
from .multilabel import Multilabel
from .multitask import Multitask
from .regression import Regression
from .results import Answer, Output, Results
from .segmentation import Segmentation

checkpoint = lazy.Module("..checkpoint", __package__)
rare = lazy.Module("..nets.rare", __package__)

TASKS = {
    "classification": Classification,
    "multilabel": Multilabel,
    "segmentation": Segmentation,
    "regression": Regression,
    "multitask": Multitask,
    "mae": MaskedAutoencoder,
    "dino": Dino,
}


def kind(config):
    """The class of a config's task."""
    return TASKS[config.task.type].variant(config.task)


def build(config):
    """The task of a config."""
    return kind(config)(config)


def wanted(config):
    """What the task of a config reads of each case, see `data.cases.Wanted`."""
    return kind(config).wanted(config.task)


def build_network(config, task):
    """The network of a config, as its task needs it."""
    model, channels = config.model, (len(config.data.channels), task.out_channels)
    options = {option: getattr(model, option) for option in ("width", *nets.PLAIN)}
    options["head"] = task.head_of(model)
    if model.fusion == "auto":
        options["fusion"] = "early"
    if model.deep_supervision == "auto":
        options["deep_supervision"] = False
    network = nets.build(model.name, *channels, mode=task.mode, **options)
    if task.rare is not None:
        rare.begin_rare(network, task.rare)
    return task.wrap(network)


def best_fusion(config):
    """The model.fusion that auto is: "late" for weights of one channel, which know no other one to mix it with.

    UserError for a file that cannot be read, or that has no such network.
    """
    task, network = kind(config), nets.NETWORKS[config.model.name]
    possible = task.head_targets and "fusion" in network.options and len(config.data.channels) > 1
    if not possible or config.weights.path is None:
        return "early"
    return "late" if task.channels_of_weights(config) == 1 else "early"


def best_scaling(config):
    """The data.normalize that auto is: what the weights were trained on, which is zscore where their file says nothing.

    For masks, from random weights, a skull-stripped scan is scaled by what is in it. The air is then as bright as the
    mean, and the first instance norms see the contrast of tissues, which is small against that of head and air. A head
    that reads intensities takes the darkest part for air, so that other tasks have zscore.
    UserError for a file that cannot be read.
    """
    if config.weights.path is None:
        return "zscore_nonzero" if kind(config).reads == "mask" else "zscore"
    own = checkpoint.read(config.weights.path).get("config")
    return own["data"]["normalize"] if isinstance(own, dict) and "data" in own else "zscore"


def meaning(config, task):
    """{key: value} of what inputs and outputs of a network mean; networks that are used together must share it."""
    data = config.data
    limits = {"percentile": data.percentiles, "window": data.window}.get(data.normalize)
    channels = {"data.channels": data.channels, "data.optional_channels": sorted(data.optional_channels)}
    prepared = {**channels, "data.normalize": (data.normalize, limits)}
    return {**task.meaning(), **prepared, **sources.of(data).meaning(data)}
