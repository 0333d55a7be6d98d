"""One file per task, and what all of them have in task.py."""

from .. import nets
from ..config import UserError, from_dict
from .classification import Classification
from .dino import Dino
from .mae import MaskedAutoencoder
from .multilabel import Multilabel
from .multitarget import Multitarget
from .regression import Regression
from .segmentation import Segmentation

TASKS = {
    "classification": Classification,
    "multilabel": Multilabel,
    "segmentation": Segmentation,
    "regression": Regression,
    "mae": MaskedAutoencoder,
    "dino": Dino,
}


def kind(config):
    """The class of a config's task; classification is Multitarget for several targets, or one with more than two classes."""
    task = config.task
    several = task.type == "classification" and (len(task.targets) > 1 or task.classes > 2)
    return Multitarget if several else TASKS[task.type]


def build(config):
    return kind(config)(config)


def build_network(config, task):
    """The network of a config, as its task needs it."""
    model = config.model
    network = nets.build(
        model.name,
        len(config.data.channels),
        task.out_channels,
        mode=task.mode,
        width=model.width,
        deep_supervision=model.deep_supervision,
        dropout=model.dropout,
        attention=model.attention,
        multiscale=model.multiscale,
        pooling=model.pooling,
    )
    return task.wrap(network)


def restore(content, path, config=None, needs=()):
    """(config, task, network), on the CPU, of what the checkpoint `path` holds.

    config: instead of the checkpoint's own. needs: what else it must hold. UserError where something is not there, where
    training has not come to what is fitted on validation cases (thresholds, corrections), where the config prepares images
    in another way or asks something else, or the weights do not fit it.
    """
    lacking = [name for name in ("model", "config", "task", *needs) if name not in content]
    if lacking:
        raise UserError(
            f"{path}: no {', '.join(lacking)} in it, wanted a checkpoint that train.py or cv.py wrote (best.pt)"
        )
    if not content.get("calibrated"):
        raise UserError(
            f"{path}: nothing was fitted on validation cases for it yet, wanted best.pt of a fold that is trained to its end"
        )
    own = from_dict(content["config"], path)
    config = config or own
    for name, trained in meaning(own, content["task"]).items():
        asked = meaning(config, content["task"])[name]
        if asked != trained:
            raise UserError(
                f"{path}: was trained with {name}={trained}, and the config has {asked}: restore it, or take another checkpoint"
            )
    task = build(config)
    task.state = content["task"]
    network = build_network(config, task)
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit the config: {' '.join(str(error).split())[:300]}") from error
    return config, task, network


def meaning(config, state):
    """{key: value} of what a network's inputs and outputs mean, which whatever is used together or continued must share."""
    task, data = config.task, config.data
    limits = {"percentile": data.percentiles, "window": data.window}.get(data.normalize)
    asked = {
        "task.type": task.type,
        "task.targets": task.targets,
        "task.classes": state.get("classes", task.classes),
        "task.activation": task.activation,
    }
    prepared = {"data.channels": data.channels, "data.normalize": (data.normalize, limits)}
    if data.source == "slices":
        return {
            "data.source": "slices",
            **asked,
            **prepared,
            "data.patch": data.patch,
            "data.neighbours": data.neighbours,
        }
    return {
        **asked,
        **prepared,
        "data.spacing_mm": data.spacing_mm,
        "data.crop": data.crop,
        "data.cache_dtype": data.cache_dtype,
    }
