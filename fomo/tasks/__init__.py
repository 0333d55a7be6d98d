"""One file per task. A task says what the network is trained on and what its outputs are worth.

Every task has
- `mode`, `out_channels`: what `nets.build` needs; `select`, `higher_is_better`: the validation metric that picks the
  best epoch (ties go to the lower val_loss);
- `state`: plain values fitted on training or validation cases, stored with the checkpoint;
- `fit(cases)`: statistics of the training cases into `state`;
- `stratum_kind`: how folds are stratified by the cases' targets, "class", "continuous" or "multilabel";
- `loss(outputs, batch)`: (B,) float32, one per sample, so that accumulation and ranks average exactly;
- `predict(network, case, options, folder=None)`: one row (dict of plain values) for one whole case; with `folder` the
  final evaluation, in native space;
- `calibrate(evaluate)`: what is fitted on the rows of the inner validation cases, which `evaluate()` gives, into
  `state`; `finish(rows)` applies it to rows;
- `infer(network, image, background, options)`: what one network says about one case that has no label, to be averaged;
  `answer(tasks, parts, geometry)`: (row, {name: volume in native space}) from what the networks of `tasks`, one or more,
  said. With one network the row has the same numbers as `predict` and `finish` give;
- `score(rows)`: {metric: value} over all rows; `intervals(rows, resamples, seed)`: {metric: (low, high)}. Keys of a row
  that start with "_" are not stored.

and, where it needs them,
- `draw(generators, batch)`: {name: value} that is merged into a training batch, in the loader, with each sample's own
  numpy generator: what else is random about it;
- `prepare(batch)`: the batch as the network gets it, on its device, after augmentation;
- `after_step(network, step, last_step)`: called on all ranks after each optimizer step (steps from 1);
- `frozen(network, epoch)`: prefixes that are not trained in an epoch (from 0), besides what fine-tuning freezes;
- `watch()`: {name: number} for the `train` line, about the steps since the last call;
- `inspect(cases)`: called with all labelled cases before the network is built: how many classes there are, say;
- `predict_batch(outputs, cases)`: the rows of cases of one window each, from the network's outputs (B, K) float32; without
  it cases are predicted one by one;
- `volumes(rows)`: the rows of whole scans from those of their slices; `score`, `intervals` and `tables` then also take
  these as `volumes`, where they are at hand;
- `tables(rows)`: {name: rows}, tables besides the metrics, written as NAME.csv for each fold and for all together;
- `warnings(row)`: messages about an epoch, from its row of the history;
- `is_best(row, history)`: whether an epoch is the one to keep so far, instead of by `select`;
- `wrap(network)`: the network that is trained, around the one that the config names.
"""

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
    return task.wrap(network) if hasattr(task, "wrap") else network


def restore(content, path, config=None, needs=()):
    """(config, task, network), on the CPU, of what the checkpoint `path` holds.

    config: instead of the checkpoint's own. needs: what else it must hold. UserError where something is not there, or the
    weights do not fit the config.
    """
    lacking = [name for name in ("model", "config", "task", *needs) if name not in content]
    if lacking:
        raise UserError(f"{path}: no {', '.join(lacking)} in it, wanted a checkpoint that train.py or cv.py wrote (best.pt)")
    config = from_dict(content["config"], path) if config is None else config
    task = build(config)
    task.state = content["task"]
    network = build_network(config, task)
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit the config: {' '.join(str(error).split())[:300]}") from error
    return config, task, network
