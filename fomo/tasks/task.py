"""What a task is: what the network is trained on, and what its outputs are worth.

A new task is a subclass in a file of its own, in TASKS. It has, besides what is below,
- `mode`, `out_channels`: what `nets.build` needs; `select`, `higher_is_better`: the validation metric that picks the
  best epoch (ties go to the lower val_loss); `stratum_kind`: how folds are stratified by `strata`, "class", "continuous"
  or "multilabel";
- `state`: plain values fitted on training or validation cases, stored with the checkpoint;
- `loss(outputs, batch)`: (B,) float32, one per sample, so that accumulation and ranks average exactly;
- `predict(network, case, options, folder=None)`: one row (dict of plain values with `id`, `subject` and `loss`) for one
  whole case, a `cache.CachedCase`; with `folder` the final evaluation, in native space. options: keyword arguments of
  `inference.sliding_window`. Keys of a row that start with "_" are not stored;
- `score(rows)`: {metric: value} over all rows, NaN where undefined; `intervals(rows, resamples, seed)`: {metric:
  metrics.Interval} of some of them;
- unless it pretrains, `infer(network, image, background, options)`: what one network says about one case that has no
  label, to be averaged; image: (C, X, Y, Z), background: a value per channel; and `answer(tasks, parts, geometry)`: (row,
  {name: volume in native space}) from what the networks of `tasks`, one or more, said. With one network the row has the
  same numbers as `predict` and `finish` give.
"""


class Task:
    draw = None  # (generators, batch) -> {name: value} merged into a training batch, in the loader, by each sample's own numpy generator
    predict_batch = (
        None  # (outputs (B, K) float32, cases) -> rows of cases of one window each; None: they are predicted one by one
    )
    is_best = None  # (row, history) -> whether an epoch is the one to keep so far; None: `select` says it

    def __init__(self, config):
        self.config = config
        self.state = {}

    def strata(self, cases):
        """What the parts of a split shall have equal shares of: of each case a class's name, a number, or a row of 0/1."""
        return [case.target for case in cases]

    # ---------------------------------------------------------------------------------------- training

    def inspect(self, cases):
        """Called with all labelled cases before `fit` and before the network is built: how many classes there are, say."""

    def fit(self, train, val):
        """Statistics of the training cases into `state`, and none of the validation cases: it only looks at what they have.

        UserError for a part from which nothing can be learned or chosen. Returns messages: what a part lacks, and what was
        done instead. Each becomes a `warn` line.
        """
        return ()

    def wrap(self, network):
        """The network that is trained, around the one that the config names."""
        return network

    def load(self, network, load):
        """Pretrained weights into the network; load(part) fills a part of it and gives the `checkpoint.LoadReport`, returned."""
        return load(network)

    def prepare(self, batch):
        """The batch as the network gets it, on its device, after augmentation."""
        return batch

    def frozen(self, network, epoch):
        """Prefixes that are not trained in an epoch (from 0), besides what fine-tuning freezes."""
        return ()

    def after_step(self, network, step, last_step):
        """Called on all ranks after each optimizer step (steps from 1)."""

    def watch(self):
        """{name: number} for the `train` line, about the steps since the last call."""
        return {}

    # -------------------------------------------------------------------------------------- evaluation

    def warnings(self, row):
        """Messages about an epoch, from its row of the history."""
        return ()

    def calibrate(self, evaluate):
        """Fit what is fitted on the rows of the inner validation cases, which `evaluate()` gives; returns messages like `fit`."""
        return ()

    def finish(self, rows):
        """The rows with what was fitted applied to them."""
        return rows

    def volumes(self, rows):
        """The rows of whole scans from those of their slices; `score`, `intervals` and `tables` then take these as `volumes`."""
        return ()

    def tables(self, rows):
        """{name: rows}: tables besides the metrics, written as NAME.csv for each fold and for all together."""
        return {}
