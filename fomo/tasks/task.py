"""What a task is: what the network is trained on, and what its outputs are worth.

A new task is a subclass of Task in a file of its own, and a line in TASKS. Nothing else asks which task it is. A
subclass that lacks one of `_DECLARED`, `_METHODS` or (unless it pretrains) `_PREDICTING` is refused at its definition.
"""

import math
from typing import NamedTuple

import numpy as np

from .. import nets
from ..config import check_declared
from ..data import order
from ..data.cases import Wanted
from ..metrics import Interval
from ..runtime import lazy
from .results import Results
from .views.view import View

checkpoint = lazy.Module("..checkpoint", __package__)
loader = lazy.Module("..data.loader", __package__)

_DECLARED = ("mode", "losses", "reads", "columns", "select", "higher_is_better", "stratum_kind")
_METHODS, _PREDICTING = ("loss", "predict", "score", "intervals"), ("infer", "answer")
_CHOICES = {
    "mode": ("segmentation", "classification", "regression"),
    "reads": ("class", "number", "flags", "mask", "several", "nothing"),
    "higher_is_better": (True, False),
    "stratum_kind": ("class", "class_and_number", "continuous", "multilabel"),
}
_NAMES = ("losses", "keys", "options", "volumes", "optional_volumes", "scored", "training_state")


# keys of the tasks that have an audit: what a run of theirs is compared with
AUDIT = ("audit.rivals", "audit.columns", "audit.shuffled", "audit.other_folds")
_TESTING = ("cv.kind", "cv.folds", "cv.stratify")  # keys of all tasks whose runs have a test part


class Columns(NamedTuple):
    """How many columns of a table a task learns (task.targets), and how an error says so."""

    least: int
    most: float
    text: str


class Rates(NamedTuple):
    """The peak learning rates of AdamW that optim.lr=auto is, of a network of width 32; see configs/README.md.

    adapted: from weights of another number of channels, whose first layer has much to learn; None: as pretrained.
    """

    scratch: float
    pretrained: float
    adapted: float | None = None


_WIDTH, _HIGHEST = 32, 1e-2  # a network of half the width learns best at twice the rate
_OF_FITTED_HEAD = Rates(0.03, 0.1, 0.1)  # times the rate: more would undo what the first fit knows
_OF_OPTIMIZER = {"adamw": 1, "sgd": 4}  # times the rate of AdamW


# options of the tasks that have `head_targets`
HEAD = ("model.head", "model.fusion", "model.dropout", "model.channel_dropout")
ONE_OR_MORE = Columns(1, math.inf, "at least one column")


class Task:
    """The contract; what stands here is what most tasks leave as it is.

    A subclass declares
    - mode: what `nets.build` builds, "segmentation", "classification" or "regression"; and `out_channels`, of the
      object, which may depend on `state`;
    - losses: the values of task.loss that it has, besides auto, which is the first of them; () for one loss of its own;
    - reads: the kind of label that it reads, see `data.cases.Wanted`;
    - columns: how many columns of a table it learns;
    - select, higher_is_better: the validation metric that chooses the epoch (ties go to the lower val_loss), which is
      also the headline of a report;
    - stratum_kind: how folds are stratified by `strata`, "class", "class_and_number", "continuous" or "multilabel";
    and has
    - state: plain values fitted on training or validation cases, stored with the checkpoint;
    - loss(outputs, batch): (B,) float32, one per sample, so that accumulation and ranks average exactly;
    - predict(network, case, windows, fold=None): the Answer for one whole case, a `data.cases.Prepared`, or a function
      that gives it and needs neither network nor GPU: it is called in a thread. windows: the
      `inference.WindowOptions`. With `fold`, the run_folder.FoldFolder, it is the final evaluation, in native space,
      and files are written to the places that `fold` names;
    - score(results): {metric: value} over all rows, NaN where undefined;
    - intervals(results, resamples, seed): {metric: metrics.Interval} of some of them;
    and, unless it pretrains,
    - infer(network, image, background, windows): what one network says about one case that has no label, to be
      averaged. image: (C, X, Y, Z). background: a value per channel;
    - answer(tasks, parts, geometry): (row, {name: volume in native space}) from what the networks of `tasks`, one or
      more, said, or what `gather` has made of that. A volume is an array (X, Y, Z), or a sequence of those of all
      classes, which may be made as they are asked for. With one network the row has the same numbers as `predict` and
      `finish` give.
    """

    pretrains = False  # whether it learns without labels: its runs have one split, without a test part
    keys = ()  # keys of the config that only such tasks read; elsewhere they are warned of
    options = ()  # keys of the config that only some tasks take; elsewhere another value than the default is an error
    instead = {}  # {key that it does not take: what to do instead, to end the error with}
    view = View()  # what the report shows of its runs
    volumes = ()  # names of the volumes that `answer` gives and prediction always writes
    optional_volumes = ()  # those that it writes when asked
    single = None  # the column or volume that is the one answer of a case; None: it has several
    scored = ()  # columns of a row that `score` reads of files, the first always; (): all numbers
    binary = False  # whether its one number is the probability of class 1, and `decision` the class
    predict_batch = None  # (outputs (B, K) float32, cases) -> Answers of cases of one window each; None: one by one
    head_targets = None  # cases -> (n, out_channels): what a linear fit should say of them, to start a multistage head:
    # of a regression the scaled number, of classes 1 for the right one; None: the head of its networks is linear
    rival_targets = None  # cases -> (n, K): what a linear fit on facts from outside the images should say of them;
    # None: the audit fits none. With it, rival_row(row, (K,) what such a fit says) is the row with that as the answer,
    # and rival_outputs() the K Outputs that say the same
    draw = None  # (generators, batch) -> {name: value} merged into a training batch, in the loader
    rare = None  # a slice of the output channels: what they mark is in few voxels; None: no output marks voxels
    weight = 1.0  # of what its network says, in an ensemble; of an object, see `blend`
    blend = None  # the Blend of an ensemble's networks; None: all count equally
    training_state = ()  # keys of `state` that only training, or `units`, reads: of a soup, those of its first network
    rates = Rates(2.5e-4, 2.5e-4)
    flat = 0.05  # the outputs' spread over the targets' below which nothing is learned
    if_constant = "raise optim.lr, train longer, or start from weights.path"
    variants = ()  # the neighbours that `variant` may choose instead
    is_best = None  # (row, history) -> whether an epoch is the one to keep so far; None: `select` says it

    def __init_subclass__(cls):
        methods = (*_METHODS, *(() if cls.pretrains else _PREDICTING))
        lacking = [name for name in _DECLARED if not hasattr(cls, name)]
        lacking += [name for name in methods if not callable(getattr(cls, name, None))]
        if lacking:
            raise TypeError(f"{cls.__name__}: declares no {', '.join(lacking)}: see fomo/tasks/task.py")
        if "model.head" in cls.options and not callable(cls.head_targets):
            raise TypeError(f"{cls.__name__}.head_targets: got none, wanted a method for the option model.head")
        for name, fits, wanted in (
            *((name, getattr(cls, name) in choices, f"one of {choices}") for name, choices in _CHOICES.items()),
            *((name, isinstance(getattr(cls, name), tuple), "a tuple of names") for name in _NAMES),
            ("columns", isinstance(cls.columns, Columns), "Columns(least, most, text)"),
            ("reads", cls.reads != "nothing" or cls.pretrains, "a kind of label, as it does not pretrain"),
            ("select", isinstance(cls.select, str), "the name of a score"),
            ("view", isinstance(cls.view, View), "a View"),
        ):
            if not fits:
                raise TypeError(f"{cls.__name__}.{name}: got {getattr(cls, name)!r}, wanted {wanted}")
        check_declared(cls.__name__, cls.keys + cls.options)

    def __init__(self, config):
        self.config = config
        self.state = {}
        self.asked = ()

    def ask(self, volumes):
        """Say, before `infer`, which of its `optional_volumes` are wanted of `answer`: some need more to be kept."""
        self.asked = tuple(volumes)

    @classmethod
    def own_keys(cls):
        """Every key of the config that it reads and that some other task does not."""
        return cls.keys + (() if cls.pretrains else _TESTING) + (AUDIT if cls.is_audited() else ())

    @classmethod
    def is_audited(cls):
        """Whether something of what it says is compared with rivals."""
        return cls.rival_targets is not None

    def audited(self, cases, results):
        """[(name, task, cases, Results)] of what is compared with rivals: itself without a name, or its parts."""
        return [("", self, cases, results)] if self.is_audited() else []

    def rival_outputs(self):
        return self.outputs()

    @staticmethod
    def gather(parts):
        """What is kept of the parts of several networks, an iterator to be used once, whose parts may be changed."""
        return list(parts)

    @classmethod
    def variant(cls, section):
        """The class for a config's section `task`: this one, or a neighbour that shares its task.type."""
        return cls

    @classmethod
    def rate(cls, config):
        """(the peak learning rate that is recommended for a config, what it depends on, in words)."""
        start, optim = "scratch" if config.weights.path is None else "pretrained", config.optim.name
        if start == "pretrained" and cls.rates.adapted is not None:
            start = start if cls.channels_of_weights(config) == len(config.data.channels) else "adapted"
        own_width = nets.NETWORKS[config.model.name].arguments.get("width", _WIDTH)
        rate, width = getattr(cls.rates, start), config.model.width or own_width
        if cls.head_of(config.model) == "multistage":
            rate *= getattr(_OF_FITTED_HEAD, start)
        lr = min(_HIGHEST, rate * _WIDTH / width)
        return lr * _OF_OPTIMIZER[optim], f"{config.task.type}, {start}, {optim}"

    @classmethod
    def channels_of_weights(cls, config):
        """How many input channels the weights of weights.path have; None where they have no first layer.

        UserError for a file that cannot be read, or that has no such network.
        """
        plain = nets.build(config.model.name, 1, 1, mode=cls.mode, width=config.model.width)
        return checkpoint.channels_of(config.weights.path, plain, config.weights.part)

    @classmethod
    def head_of(cls, model):
        """The head of a network; model: the config's section, whose `auto` is the network's best if the task has it."""
        if model.head != "auto":
            return model.head
        return nets.NETWORKS[model.name].best_head if cls.head_targets else "linear"

    @classmethod
    def settle(cls, config, why_not=None):
        """(the config in which the cases have decided what is `auto`, {event of the log: what was decided}).

        why_not: (config, cases) -> why the folds of such a config cannot be learned from, or None; None: none are made.
        """
        return config, {}

    @classmethod
    def check(cls, config, refuse):
        """Rules of its own about the config; refuse(key, got, wanted) raises the user's error."""

    @classmethod
    def wanted(cls, section):
        """What it reads of each case, by the config's section `task`."""
        return Wanted(cls.reads, section.targets, section.classes, cls.pretrains)

    @classmethod
    def tested_part(cls):
        """The part of a split that results are of: of a pretraining the one that is held back to select on."""
        return "val" if cls.pretrains else "test"

    @classmethod
    def class_names(cls, recorded):
        """Names of the two classes that it tells apart, by the cases in splits.json; [] if it has none."""
        return []

    def strata(self, cases):
        """What the parts of a split shall have equal shares of: a class, a number, both, or a row of 0/1."""
        return [case.target for case in cases]

    def augmentation(self):
        """The augmentation of training batches, see `transforms`."""
        return loader.augmentation(self.config)

    def sample_voxels(self, augmented):
        """Voxels of one channel of a training sample as the loader hands it over, augmented or not yet."""
        return math.prod(self.config.data.patch)

    def inspect(self, cases):
        """Look at all labelled cases, before `fit` and before the network is built: how many classes there are, say."""

    def balance(self, cases):
        """Groups of the places of training cases, for the `data.order.Order` of train.balanced: by class."""
        return order.by_class([int(case.target) for case in cases])

    def head_parts(self, cases):
        """[(task, slice of the outputs that are its own, cases as it knows them)] of `head_targets`."""
        return [(self, slice(None), cases)]

    def check_parts(self, train, val):
        """Raise UserError for a part from whose labels nothing can be learned or chosen; images are not needed yet."""

    def fit(self, train, val):
        """Put statistics of the training cases into `state`; the validation cases are only looked at.

        Raises UserError as `check_parts`, and for what only prepared images show. Returns messages about what a part
        lacks and what was done instead; each becomes a `warn` line.
        """
        return ()

    def pooled(self, values):
        """(...), as eval.pool_windows says, of the values (N, ...) of the N windows that cover a case."""
        return values.amax(0) if self.config.eval.pool_windows == "max" else values.mean(0)

    def wrap(self, network):
        """The network that is trained, around the one that the config names."""
        return network

    def load(self, network, load):
        """Fill the network with pretrained weights; load(part) fills a part and returns the LoadReport."""
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

    def spread(self, results):
        """(of the outputs, of the targets): standard deviations over some cases, in one unit; None: it cannot be said.

        A network whose outputs hardly vary has learned a constant; `if_constant` says what to do then.
        """
        outputs = self.outputs()
        if not outputs:
            return None
        said = [results.arrays(output.column)[0].std() for output in outputs]
        true = [(results.arrays(output.target)[0] == output.value).std() for output in outputs]
        return float(np.mean(said)), float(np.mean(true))

    def warnings(self, row):
        """Messages about an epoch, from its row of the history."""
        return ()

    def calibrate(self, evaluate):
        """Fit what is fitted on inner validation cases; evaluate() gives their Results. Returns messages like `fit`."""
        return ()

    def finish(self, answers, fold=None):
        """The Results of some Answers, with what was fitted applied; `fold` as in `predict`, on all ranks."""
        return Results([answer.row for answer in answers], kept=[answer.kept for answer in answers])

    def intervals_of(self, scores, results, resamples, seed):
        """The `intervals` of some of its `scores`; none without resamples."""
        found = self.intervals(results, resamples, seed) if resamples else {}
        if not all(name in scores and isinstance(interval, Interval) for name, interval in found.items()):
            wanted = f"{{metric: metrics.Interval}} of {', '.join(scores)}"
            raise TypeError(f"{type(self).__name__}.intervals: got {found!r}, wanted {wanted}")
        return found

    def shifts(self, results, seed):
        """Messages: where the models of several folds do not score on one scale."""
        return ()

    def doubts(self, scores, rows):
        """(message, number of cases) of what the scores and rows of a test part show to be wrong."""
        return ()

    def tables(self, results):
        """{name: rows}: tables besides the metrics, written as NAME.csv for each fold and for all together."""
        return {}

    def outputs(self):
        """The Outputs of a network that tells classes apart, for pictures of where it looks."""
        return []

    def meaning(self):
        """{key: value} of what its outputs mean, which all that is used together or continued must share."""
        names = ("type", "targets", "classes", "activation", "evidence")
        found = {f"task.{name}": getattr(self.config.task, name) for name in names}
        return {**found, "task.classes": self.state.get("classes", found["task.classes"])}

    def learned(self):
        """{key: value} for settings.json beside predictions: by what references of them are read."""
        return {}

    @staticmethod
    def merge(states):
        """{key: value} of what was fitted on validation cases, for the mean of several networks' weights.

        A key in which the states differ, and that stands neither here nor in `training_state`, is an error.
        """
        return {}

    @staticmethod
    def units(state):
        """(mean, scale) of the target in one unit of the output, or of each; None where outputs have no unit."""
        return None
