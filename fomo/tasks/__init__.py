"""One file per task. A task says what the network is trained on and what its outputs are worth.

Every task has
- `mode`, `out_channels`: what `nets.build` needs; `select`, `higher_is_better`: the validation metric that picks the
  best epoch (ties go to the lower val_loss);
- `state`: plain values fitted on training or validation cases, stored with the checkpoint;
- `fit(cases)`: statistics of the training cases into `state`;
- `stratum_kind`: how folds are stratified by the cases' targets, "class" or "continuous";
- `loss(outputs, batch)`: (B,) float32, one per sample, so that accumulation and ranks average exactly;
- `predict(network, case, options, folder=None)`: one row (dict of plain values) for one whole case; with `folder` the
  final evaluation, in native space;
- `calibrate(evaluate)`: what is fitted on the rows of the inner validation cases, which `evaluate()` gives, into
  `state`; `finish(rows)` applies it to rows;
- `infer(network, image, background, options)`: what one network says about one case that has no label, to be averaged;
  `answer(tasks, parts, geometry)`: (row, {name: volume in native space}) from what the networks of `tasks`, one or more,
  said. With one network the row has the same numbers as `predict` and `finish` give;
- `score(rows)`: {metric: value} over all rows; `intervals(rows, resamples, seed)`: {metric: (low, high)}.
"""

from .. import nets
from .classification import Classification
from .regression import Regression
from .segmentation import Segmentation

TASKS = {"classification": Classification, "segmentation": Segmentation, "regression": Regression}


def build(config):
    return TASKS[config.task.type](config)


def build_network(config, task):
    """The network of a config, as its task needs it."""
    model = config.model
    return nets.build(
        model.name,
        len(config.data.channels),
        task.out_channels,
        mode=task.mode,
        width=model.width,
        deep_supervision=model.deep_supervision,
    )
