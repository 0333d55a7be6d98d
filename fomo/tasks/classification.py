"""Whole-case classification into two classes, from the softmax of the network's two outputs."""

import numpy as np
import torch

from ..config import UserError
from ..metrics import auroc, average_precision, binary_metrics, choose_threshold
from . import categories
from .multitarget import Multitarget
from .results import Answer, Output, Results
from .task import HEAD, ONE_OR_MORE, Task
from .views import classification as view


class Classification(Task):
    mode = "classification"
    losses = categories.SOFTMAX_LOSSES
    reads, columns = "class", ONE_OR_MORE
    select, higher_is_better = "auroc", True
    stratum_kind = "class"
    training_state = ("class_weights",)
    binary = True
    keys = ("eval.pool_windows", "eval.threshold", "data.crop_position")
    options = ("task.classes", "task.class_weights", "train.balanced", "augment.mix", "eval.saliency", *HEAD)
    view = view.VIEW
    single = "probability"
    scored = ("probability", "decision")

    @classmethod
    def variant(cls, section):
        """Several targets, or one of more than two classes, have a softmax each."""
        return Multitarget if len(section.targets) > 1 or section.classes > 2 else cls

    @classmethod
    def class_names(cls, recorded):
        return categories.class_names(recorded)

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = config.task.classes
        self.state = {"classes": ["0", "1"], "class_weights": [1.0] * config.task.classes, "threshold": 0.5}

    def strata(self, cases):
        return [categories.class_of(case)[1] for case in cases]

    def inspect(self, cases):
        unknown = sorted({case.target for case in cases} - {0, 1})
        if unknown:
            wanted = "wanted 2: set task.classes to their number"
            raise UserError(f"target: got {unknown[0] + 1:g} classes or more, {wanted}")
        found = dict(map(categories.class_of, cases))
        if len(found) < 2:
            got = f"got the class {', '.join(found.values())} in all {len(cases)} labelled cases"
            raise UserError(f"target: {got}, wanted two classes")
        self.state["classes"] = [found.get(number, str(number)) for number in (0, 1)]

    def fit(self, train, val):
        """Fit inverse-frequency class weights, whose mean over the training cases is 1."""
        of_train, of_val = (np.bincount([int(case.target) for case in cases], minlength=2) for cases in (train, val))
        for part, cases, counts in (("training", train, of_train), ("validation", val, of_val)):
            if not counts.all():
                categories.refuse(part, cases, f"of class {cases[0].target:g} only, wanted both classes")
        if self.config.task.class_weights == "inverse_frequency":
            self.state["class_weights"] = categories.inverse_frequency(of_train).tolist()
        return ()

    def head_targets(self, cases):
        return np.eye(self.out_channels)[[int(case.target) for case in cases]]

    def loss(self, outputs, batch):
        return self._loss(outputs, batch["target"].long())

    def _loss(self, logits, target):
        return categories.softmax_loss(self.config.task, logits, target, self.state["class_weights"])

    def infer(self, network, image, background, windows):
        """Probability of class 1: the mean or the maximum over the windows that cover the case."""
        return float(self.pooled(windows.each(network, image, background).softmax(1)[:, 1]))

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probability, and the decision at the mean of the thresholds."""
        probability, threshold = float(np.mean(parts)), np.mean([task.state["threshold"] for task in tasks])
        return {"probability": probability, "decision": int(probability >= threshold)}, {}

    def predict(self, network, case, windows, fold=None):
        probability = self.infer(network, case.image(), case.background, windows)
        target = categories.known_class(case, "class", self.state["classes"])
        log_p = torch.tensor([[1 - probability, probability]]).clamp(min=1e-12).log()
        loss = float(self._loss(log_p, torch.tensor([target])))
        return Answer.of(case, target=target, probability=probability, loss=loss)

    def calibrate(self, evaluate):
        """Choose the decision threshold on the inner validation cases."""
        if self.config.eval.threshold != "half":
            labels, scores = evaluate().arrays("target", "probability")
            self.state["threshold"] = choose_threshold(labels, scores, self.config.eval.threshold)
        return ()

    def finish(self, answers, fold=None):
        rows, threshold = [answer.row for answer in answers], self.state["threshold"]
        return Results([{**row, "decision": int(row["probability"] >= threshold)} for row in rows])

    def score(self, results):
        labels, scores, decisions = results.arrays("target", "probability", "decision")
        return binary_metrics(labels, scores, decisions=decisions)

    def intervals(self, results, resamples, seed):
        """Of the ranking metrics, and of the shares of right decisions among all cases, class 1 and class 0."""
        interval = results.bootstrap(resamples, seed)
        labels, scores, decisions, subjects = results.arrays("target", "probability", "decision", "subject")
        right = (decisions == labels).astype(float)
        result = {metric.__name__: interval(metric, labels, scores) for metric in (auroc, average_precision)}
        for name, chosen in (("accuracy", labels >= 0), ("recall", labels == 1), ("specificity", labels == 0)):
            if chosen.any():
                result[name] = interval(np.mean, right[chosen], groups=subjects[chosen])
        return result

    def outputs(self):
        return [Output(1, "probability", "target", 1, "class 1")]

    def learned(self):
        return {"class_names": self.state["classes"]}

    @staticmethod
    def merge(states):
        return {"threshold": float(np.mean([state["threshold"] for state in states]))}
