"""Whole-case classification into two classes, from the softmax of the network's two outputs."""

import numpy as np
import torch

from .. import inference, losses
from ..config import UserError
from ..metrics import auroc, average_precision, binary_metrics, bootstrap_ci, choose_threshold
from . import coverage
from .task import Task


class Classification(Task):
    mode = "classification"
    select, higher_is_better = "auroc", True
    stratum_kind = "class"

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = config.task.classes
        self.state = {"classes": ["0", "1"], "class_weights": [1.0] * config.task.classes, "threshold": 0.5}

    def strata(self, cases):
        return [coverage.class_of(case)[1] for case in cases]

    def inspect(self, cases):
        unknown = sorted({case.target for case in cases} - {0, 1})
        if unknown:
            raise UserError(
                f"target: got {unknown[0] + 1:g} classes or more, wanted 2: set task.classes to their number"
            )
        found = dict(map(coverage.class_of, cases))
        if len(found) < 2:
            raise UserError(
                f"target: got the class {', '.join(found.values())} in all {len(cases)} labelled cases, wanted two classes"
            )
        self.state["classes"] = [found.get(number, str(number)) for number in (0, 1)]

    def fit(self, train, val):
        """Inverse-frequency class weights, scaled so that their mean over the training cases is 1.

        UserError for a part with one class only.
        """
        for part, cases in (("training", train), ("validation", val)):
            if not _counts(cases).all():
                coverage.refuse(part, cases, f"of class {cases[0].case.target:g} only, wanted both classes")
        if self.config.task.class_weights == "inverse_frequency":
            self.state["class_weights"] = coverage.inverse_frequency(_counts(train)).tolist()
        return ()

    def loss(self, outputs, batch):
        return self._loss(outputs, batch["target"].long())

    def _loss(self, logits, target):
        return softmax_loss(self.config.task, logits, target, self.state["class_weights"])

    def infer(self, network, image, background, options):
        """Probability of class 1: the mean or the maximum over the windows that cover the case."""
        logits = inference.window_outputs(network, image, background=background, **options)
        positive = logits.softmax(1)[:, 1]
        return float(positive.max() if self.config.eval.pool_windows == "max" else positive.mean())

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probability, and the decision at the mean of the thresholds."""
        probability = float(np.mean(parts))
        return {
            "probability": probability,
            "decision": int(probability >= np.mean([t.state["threshold"] for t in tasks])),
        }, {}

    def predict(self, network, case, options, folder=None):
        probability = self.infer(network, case.image(), case.background, options)
        target = coverage.known_class(case.case, "class", self.state["classes"])
        log_p = torch.tensor([[1 - probability, probability]]).clamp(min=1e-12).log()
        return {
            "id": case.case.id,
            "subject": case.case.subject,
            "target": target,
            "probability": probability,
            "loss": float(self._loss(log_p, torch.tensor([target]))),
        }

    def calibrate(self, evaluate):
        """The decision threshold, from the inner validation cases."""
        if self.config.eval.threshold != "half":
            labels, scores = _columns(evaluate())
            self.state["threshold"] = choose_threshold(labels, scores, self.config.eval.threshold)
        return ()

    def finish(self, rows):
        return [{**row, "decision": int(row["probability"] >= self.state["threshold"])} for row in rows]

    def score(self, rows):
        labels, scores = _columns(rows)
        return binary_metrics(labels, scores, decisions=[row["decision"] for row in rows])

    def intervals(self, rows, resamples, seed):
        """Of the ranking metrics, and of the shares of right decisions: of all cases, of class 1, of class 0."""
        labels, scores = _columns(rows)
        subjects = np.array([row["subject"] for row in rows])
        right = np.array([row["decision"] == row["target"] for row in rows], float)
        result = {
            metric.__name__: bootstrap_ci(metric, labels, scores, resamples, seed, groups=subjects)
            for metric in (auroc, average_precision)
        }
        for name, chosen in (("accuracy", labels >= 0), ("recall", labels == 1), ("specificity", labels == 0)):
            if chosen.any():
                result[name] = bootstrap_ci(
                    np.mean, right[chosen], resamples=resamples, seed=seed, groups=subjects[chosen]
                )
        return result


def softmax_loss(task, logits, target, class_weights):
    """(B,): the loss `task.loss` (a config section) of one softmax."""
    if task.loss == "focal":
        return losses.focal(logits, target, alpha=class_weights, gamma=task.focal_gamma)
    return losses.cross_entropy(logits, target, class_weights=class_weights)


def _counts(cases):
    """(2,) cases of class 0 and of class 1."""
    return np.bincount([int(case.case.target) for case in cases], minlength=2)


def _columns(rows):
    return np.array([row["target"] for row in rows]), np.array([row["probability"] for row in rows])
