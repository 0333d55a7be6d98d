"""Classification of several targets at once, or of one with more than two classes: a softmax for each target.

The network's outputs are the classes of the first target, then those of the second, and so on. Classes are known by
their names in the table, so that a checkpoint can be tested on another table.
"""

import numpy as np
import scipy

from ..config import UserError
from ..metrics import WITHIN, auroc, confusion_matrix, macro_auroc, multiclass_metrics, within_folds
from ..metrics.checks import mean_of_defined
from ..runtime.lazy import torch
from . import categories
from .results import Answer, Output
from .task import HEAD, ONE_OR_MORE, Task
from .two_classes import rival_probability
from .views import multitarget as view

_OF_EACH_TARGET = ("accuracy", "balanced_accuracy", "mcc", "log_loss", "ece")
_AUROC = {"bounds": (0, 1), "chance": 0.5}


class Multitarget(Task):
    mode = "classification"
    losses = categories.SOFTMAX_LOSSES
    reads, columns = "class", ONE_OR_MORE
    select, higher_is_better = "auroc_macro", True
    stratum_kind = "multilabel"  # of one target "class"
    training_state = ("class_weights",)
    keys = ("eval.pool_windows", "data.crop_position")
    options = (
        "task.classes",
        "task.class_weights",
        "task.label_smoothing",
        "task.evidence",
        "train.balanced",
        "augment.mix",
        "eval.saliency",
        *HEAD,
    )
    view = view.VIEW

    @classmethod
    def check(cls, config, refuse):
        task = config.task
        if task.evidence != "none":
            wanted = "none: one target of two classes learns from masks, or several as task.type=multilabel (0 and 1)"
            refuse("task.evidence", task.evidence, wanted)
        if task.classes != 2 and len(task.targets) != 1:
            wanted = "2 (the default): other numbers are for segmentation and for classification of one of task.targets"
            refuse("task.classes", task.classes, wanted)
        if config.train.balanced and len(task.targets) > 1:
            wanted = "false with several task.targets: their classes cannot all be drawn equally often"
            refuse("train.balanced", True, wanted)

    def __init__(self, config):
        super().__init__(config)
        self.names = [name.replace(" ", "_") for name in config.task.targets]
        if len(self.names) == 1:
            self.stratum_kind = "class"
        self.state = {"classes": None, "class_weights": None}  # a list per target; names of classes in their order

    def strata(self, cases):
        """Of one target the name of the class; of several a 0 or 1 for each class of each target."""
        if self.stratum_kind == "class":
            return [categories.class_of(case)[1] for case in cases]
        targets = np.array([case.target for case in cases]).T
        return np.column_stack([target[:, None] == np.unique(target) for target in targets]).astype(int).tolist()

    @property
    def out_channels(self):
        return sum(map(len, self.state["classes"]))

    def inspect(self, cases):
        """Note the classes of each target in all labelled cases; a number without a case is called `class_K`."""
        self.state["classes"] = []
        several, classes = len(self.names) > 1, self.config.task.classes
        for place, name in enumerate(self.config.task.targets):
            found = dict(categories.class_of(case, place) for case in cases)
            count = max(found) + 1 if several else classes
            if len(found) < 2 or max(found) >= count:
                wanted = "at least 2" if several else f"task.classes={classes}"
                raise UserError(f"target {name}: got the classes {', '.join(found.values())}, wanted {wanted}")
            self.state["classes"].append([found.get(k, f"class_{k}") for k in range(count)])

    def check_parts(self, train, val):
        for part, cases in (("training", train), ("validation", val)):
            if max(map(np.count_nonzero, self._all_counts(cases))) < 2:
                lack = "of one class of each of task.targets, wanted several classes"
                categories.refuse(self.config, part, cases, lack)

    def fit(self, train, val):
        """Fit inverse-frequency class weights of each target, whose mean over the training cases is 1."""
        self.check_parts(train, val)
        of_train, of_val = self._all_counts(train), self._all_counts(val)
        weighted = self.config.task.class_weights == "inverse_frequency"
        weights = [categories.inverse_frequency(counts) if weighted else np.ones(len(counts)) for counts in of_train]
        self.state["class_weights"] = [of_target.tolist() for of_target in weights]
        by_target = zip(self.config.task.targets, self.state["classes"], of_train, of_val)
        return [message for target in by_target for message in categories.lacking(*target)]

    def _all_counts(self, cases):
        return [self._counts(cases, place) for place in range(len(self.names))]

    def _counts(self, cases, place):
        """(classes,) how many cases are of each class of a target."""
        return np.bincount([self._class_of(case, place) for case in cases], minlength=len(self.state["classes"][place]))

    def head_targets(self, cases):
        targets = np.array([np.atleast_1d(case.target) for case in cases], int)
        each = (np.eye(len(classes))[column] for classes, column in zip(self.state["classes"], targets.T))
        return np.concatenate(list(each), axis=1)

    def rival_targets(self, cases):
        return self.head_targets(cases)[:, [output.index for output in self.rival_outputs()]]

    def rival_row(self, row, said):
        found, said = dict(row), iter(said)
        for place, classes in enumerate(self.state["classes"]):
            own = [next(said) for _ in classes[len(classes) < 3 :]]
            positive = rival_probability(own[0])
            found |= self._decided(
                place, scipy.special.softmax(4 * np.array(own)) if len(own) > 1 else np.array([1 - positive, positive])
            )
        return found

    def rival_outputs(self):
        """All, but of a target with two classes the second one only."""
        two = {f"target_{name}" for name, classes in zip(self.names, self.state["classes"]) if len(classes) < 3}
        return [output for output in self.outputs() if output.value or output.target not in two]

    def loss(self, outputs, batch):
        targets = batch["target"].long().reshape(len(outputs), -1)
        return self._mean_loss(outputs, targets, self.config.task.label_smoothing)

    def _mean_loss(self, logits, targets, smoothing=0.0):
        """(B,) over the targets; logits: (B, outputs), targets: (B, targets)."""
        each = zip(self._split(logits), targets.unbind(1), self.state["class_weights"])
        return sum(categories.softmax_loss(self.config.task, *one, smoothing) for one in each) / len(self.names)

    def _split(self, values):
        """Of each target its columns (B, classes)."""
        return torch.split(values, [len(classes) for classes in self.state["classes"]], dim=1)

    def _probabilities(self, outputs):
        """(B, outputs) float64 that sum to 1 over the classes of each target."""
        return torch.cat([logits.double().softmax(1) for logits in self._split(outputs)], dim=1)

    def _class_of(self, case, place):
        return categories.known_class(case, self.config.task.targets[place], self.state["classes"][place], place)

    def _answers(self, probabilities, cases):
        probabilities = probabilities.cpu()
        targets = [[self._class_of(case, place) for place in range(len(self.names))] for case in cases]
        loss = self._mean_loss(probabilities.clamp(min=1e-12).log(), torch.tensor(targets)).tolist()
        split = [part.numpy() for part in self._split(probabilities)]
        answers = []
        for i, case in enumerate(cases):
            row = {"loss": loss[i]}
            for place, name in enumerate(self.names):
                row.update({f"target_{name}": targets[i][place], **self._decided(place, split[place][i])})
            answers.append(Answer.of(case, **row))
        return answers

    def _decided(self, place, probabilities):
        name = self.names[place]
        columns = [f"probability_{name}_{text}" for text in self.state["classes"][place]]
        return {f"decision_{name}": int(probabilities.argmax()), **dict(zip(columns, probabilities.tolist()))}

    def predict(self, network, case, windows, fold=None):
        return self._answers(self.infer(network, case.image(), case.background, windows), [case])[0]

    def predict_batch(self, outputs, cases):
        return self._answers(self._probabilities(outputs), cases)

    def infer(self, network, image, background, windows):
        """(1, outputs) probabilities: the mean over the windows that cover the case, or their scaled maximum."""
        found = self._probabilities(windows.each(network, image, background))
        pooled = self.pooled(found)[None]
        if self.config.eval.pool_windows == "max":
            pooled = torch.cat([part / part.sum(1, keepdim=True) for part in self._split(pooled)], dim=1)
        return pooled.cpu()

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probabilities, and of each target the most probable class."""
        first, mean = tasks[0], sum(parts) / len(parts)
        row = {}
        for place, part in enumerate(first._split(mean)):
            row.update(first._decided(place, part[0].numpy()))
        return row, {}

    def score(self, results):
        """Metrics `T_...` of each target T, and `auroc_macro`, the mean of `T_auroc` over the targets that have one.

        `T_auroc` is the mean of each class against the rest; with more than two classes each stands as `T_auroc_CLASS`.
        """
        result, aurocs, of_folds = {}, [], []
        for name in self.names:
            labels, _, probabilities, classes = categories.arrays_of(results, name)
            found = multiclass_metrics(labels, probabilities)
            aurocs.append(found["macro_auroc"])
            if results.folds is not None:
                one_hot = np.eye(len(classes))[labels]
                of_folds.append(within_folds(macro_auroc, one_hot, probabilities, results.folds))
            result[f"{name}_auroc"] = found["macro_auroc"]
            each = zip(classes, found["auroc_per_class"].tolist()) if len(classes) > 2 else ()
            result.update({f"{name}_auroc_{text}": value for text, value in each})
            result.update({f"{name}_{metric}": found[metric] for metric in _OF_EACH_TARGET})
        undefined = int(np.isnan(aurocs).sum())
        macro = {"auroc_macro": mean_of_defined(aurocs), **({"targets_undefined": undefined} if undefined else {})}
        macro |= {f"auroc_macro{WITHIN}": mean_of_defined(of_folds)} if of_folds else {}
        return {**macro, **result}

    def intervals(self, results, resamples, seed):
        """Of the AUROCs and of the shares of right decisions."""
        interval, result, of_targets = results.bootstrap(resamples, seed), {}, []
        for name in self.names:
            labels, decisions, probabilities, classes = categories.arrays_of(results, name)
            one_hot = np.eye(len(classes))[labels]
            of_targets.append((one_hot, probabilities))
            if len(classes) == 2:
                result[f"{name}_auroc"] = interval(auroc, labels, probabilities[:, 1])
            else:
                result[f"{name}_auroc"] = interval(macro_auroc, one_hot, probabilities, stratify=False)
            result[f"{name}_accuracy"] = interval(np.mean, (decisions == labels).astype(float))
        if len(self.names) == 1:
            found = {"auroc_macro": result[f"{self.names[0]}_auroc"]}
            if results.folds is not None:
                found[f"auroc_macro{WITHIN}"] = interval(macro_auroc, *of_targets[0], within=True)
            return {**found, **result}
        labels, scores = map(np.hstack, zip(*of_targets))
        ends = np.cumsum([one_hot.shape[1] for one_hot, _ in of_targets])[:-1]
        found = {"auroc_macro": interval(MeanOverTargets(ends), labels, scores, stratify=False, **_AUROC)}
        if results.folds is not None:
            codes = np.unique(results.folds, return_inverse=True)[1]
            metric, labels = MeanOverTargets(ends, within=True), np.column_stack([codes, labels])
            found[f"auroc_macro{WITHIN}"] = interval(metric, labels, scores, **_AUROC)
        return {**found, **result}

    def tables(self, results):
        """{"confusion": ...}: how many cases of which class were decided to be of which, a line per target and pair."""
        lines = []
        for name, column in zip(self.config.task.targets, self.names):
            labels, decisions, _, classes = categories.arrays_of(results, column)
            counts = confusion_matrix(labels, decisions, len(classes)).tolist()
            lines += [
                {"target": name, "class": true, "decided": decided, "cases": count}
                for true, of_class in zip(classes, counts)
                for decided, count in zip(classes, of_class)
            ]
        return {"confusion": lines}

    def outputs(self):
        found = [
            (f"probability_{name}_{text}", f"target_{name}", k, f"{name} {text}")
            for name, texts in zip(self.names, self.state["classes"])
            for k, text in enumerate(texts)
        ]
        return [Output(index, *output) for index, output in enumerate(found)]

    def learned(self):
        return {"class_names": self.state["classes"]}


class MeanOverTargets:
    """The mean over targets of macro AUROCs, as a metric of their one-hot labels and scores side by side.

    ends: the columns at which the targets after the first begin. within: the first column of the labels is the fold,
    and the cases of one fold only are compared.
    """

    def __init__(self, ends, within=False):
        self.ends, self.within, self.__name__ = ends, within, "auroc_macro"

    def __call__(self, labels, scores):
        folds, labels = (labels[:, 0], labels[:, 1:]) if self.within else (None, labels)
        pairs = zip(np.split(labels, self.ends, axis=1), np.split(scores, self.ends, axis=1))
        if self.within:
            return mean_of_defined([within_folds(macro_auroc, *pair, folds) for pair in pairs])
        return mean_of_defined([macro_auroc(*pair) for pair in pairs])
