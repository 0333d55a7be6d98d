"""Whole-case classification into two classes, from the softmax of the network's two outputs."""

import numpy as np

from .. import metrics
from ..runtime.lazy import torch
from . import categories
from .evidence import Evidence
from .multitarget import Multitarget
from .results import Answer, Results
from .task import Task
from .two_classes import TwoClasses
from .views import classification as view


class Classification(TwoClasses, Task):
    mode = "classification"
    losses = categories.SOFTMAX_LOSSES
    stratum_kind = "class"
    keys = ("eval.pool_windows", "eval.threshold", "data.crop_position")
    options = (*Multitarget.options, "eval.calibrate")
    if_constant = (
        f"{Task.if_constant}; where cases have masks of the finding, let it learn from them: task.evidence=auto"
    )
    view = view.VIEW
    variants = (Multitarget, Evidence)

    @classmethod
    def variant(cls, section):
        """Several targets, or one of more than two classes, have a softmax each; masks make it a segmentation."""
        if len(section.targets) > 1 or section.classes > 2:
            return Multitarget
        return cls if section.evidence == "none" else Evidence

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = config.task.classes
        self.state = {**self.begin_state(), "temperature": 1.0, "moved": 0.5}  # moved: the probability that becomes 0.5

    @classmethod
    def check(cls, config, refuse):
        if config.eval.calibrate == "half" and config.eval.threshold == "half":
            refuse(
                "eval.threshold", "half", "youden or f1 for eval.calibrate=half, which moves what they choose to 0.5"
            )

    def strata(self, cases):
        return [categories.class_of(case)[1] for case in cases]

    def head_targets(self, cases):
        return np.eye(self.out_channels)[[int(case.target) for case in cases]]

    def loss(self, outputs, batch):
        return self._loss(outputs, batch["target"].long(), self.config.task.label_smoothing)

    def _loss(self, logits, target, smoothing=0.0):
        return categories.softmax_loss(self.config.task, logits, target, self.state["class_weights"], smoothing)

    def infer(self, network, image, background, windows):
        """Probability of class 1: the mean or the maximum over the windows that cover the case."""
        return float(self.pooled(windows.each(network, image, background).softmax(1)[:, 1]))

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probability, and the decision at the mean of the thresholds."""
        return TwoClasses.together(tasks, [task.tempered(part) for task, part in zip(tasks, parts)]), {}

    def predict(self, network, case, windows, fold=None):
        probability = self.infer(network, case.image(), case.background, windows)
        target = categories.known_class(case, "class", self.state["classes"])
        log_p = torch.tensor([[1 - probability, probability]]).clamp(min=1e-12).log()
        loss = float(self._loss(log_p, torch.tensor([target])))
        return Answer.of(case, target=target, probability=probability, loss=loss)

    def tempered(self, probability):
        """A network's probability after temperature scaling, and moved, where that was fitted."""
        found = float(metrics.tempered(probability, self.state.get("temperature", 1.0)))
        moved = self.state.get("moved", 0.5)
        return found if moved == 0.5 else float(metrics.shifted(found, moved))

    def finish(self, answers, fold=None):
        rows = [{**answer.row, "probability": self.tempered(answer.row["probability"])} for answer in answers]
        return Results(self.decided(rows))

    def calibrate(self, evaluate):
        """Fit the temperature, then choose the decision threshold, on the inner validation cases."""
        wanted = self.config.eval
        self.state |= {"temperature": 1.0, "moved": 0.5}
        if wanted.calibrate == "none" and wanted.threshold == "half":
            return ()
        results = evaluate()
        if wanted.calibrate == "temperature":
            self.state["temperature"] = metrics.fit_temperature(*results.arrays("target", "probability"))
        rows = [{**row, "probability": self.tempered(row["probability"])} for row in results.rows]
        self.choose_thresholds(rows)
        if wanted.calibrate == "half":
            self.state |= {"moved": self.state["threshold"], "threshold": 0.5}
        return ()

    @staticmethod
    def merge(states):
        """The mean threshold and, of the temperatures, the geometric mean; the mean of what is moved to 0.5."""
        temperatures = [state.get("temperature", 1.0) for state in states]
        temperature = float(np.exp(np.mean(np.log(temperatures))))
        moved = {"moved": float(np.mean([state.get("moved", 0.5) for state in states]))}
        return {
            "threshold": float(np.mean([state["threshold"] for state in states])),
            "temperature": temperature,
            **moved,
        }
