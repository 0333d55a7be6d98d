"""Several findings that may occur together, one logit each: on slices of scans, or on whole volumes.

The probabilities of a scan's slices are pooled by `eval.pool_slices`; if that is auto, calibration chooses (until then
it is the mean).
"""

import numpy as np

from ..data import sources
from ..metrics import macro_auroc
from ..runtime import lazy
from ..runtime.lazy import torch
from . import pooling
from .evidence import LabelEvidence
from .labels import Labels, differs, positives_of
from .results import Answer, Results
from .task import HEAD, Rates, Task
from .views import multilabel as view

losses = lazy.Module("..losses", __package__)

_EVAL_KEYS = ("eval.pool_windows", "eval.threshold", "eval.pool_slices", "eval.top_slices")


class Multilabel(Labels, Task):
    mode = "classification"
    losses = ("bce", "focal", "asymmetric")
    rates = Rates(3e-4, 1e-4)
    training_state = ("pos_weight",)
    keys = ("task.focal_alpha", "data.crop_position", *_EVAL_KEYS)
    options = (
        *("task.class_weights", "task.label_smoothing", "task.evidence", "train.balanced", "augment.mix"),
        *("eval.saliency", "eval.calibrate", *HEAD),
    )
    view = view.VIEW
    variants = (LabelEvidence,)

    @classmethod
    def variant(cls, section):
        """Masks make it a segmentation of the findings."""
        return cls if section.evidence == "none" else LabelEvidence

    @classmethod
    def check(cls, config, refuse):
        task = config.task
        cls.check_labels(config, refuse)
        if task.class_weights != "none" and task.loss == "asymmetric":
            wanted = "none for task.loss=asymmetric, which weighs positives and negatives itself"
            refuse("task.class_weights", task.class_weights, wanted)
        if config.eval.calibrate == "temperature":
            refuse("eval.calibrate", "temperature", "none or half for task.type=multilabel")
        if config.eval.calibrate == "half" and config.eval.threshold == "half":
            refuse(
                "eval.threshold", "half", "youden or f1 for eval.calibrate=half, which moves what they choose to 0.5"
            )

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = len(self.names)
        pooled = "mean" if config.eval.pool_slices == "auto" else config.eval.pool_slices
        self.state = {**self.begin_state(), "pos_weight": None, "pooling": pooled, "extraction": None}

    def fit(self, train, val):
        """Fit the weight of each label's positives: negatives / positives in training, 1 where either is missing."""
        self.check_parts(train, val)
        self.state.update(sources.of(self.config.data).record(self.config.data))  # for prediction
        positives = positives_of(train)
        varies = differs(positives, len(train))
        if self.config.task.class_weights == "inverse_frequency":
            weights = np.ones(self.out_channels)
            weights[varies] = (len(train) - positives[varies]) / positives[varies]
            self.state["pos_weight"] = weights.tolist()
        return self.alike("training", positives, len(train), "not learned, and their positives not weighed")

    def head_targets(self, cases):
        return [case.target for case in cases]

    def loss(self, outputs, batch):
        return self._loss(outputs, batch["target"], self.config.task.label_smoothing)

    def _loss(self, logits, target, smoothing=0.0):
        """(B,): the loss; in the focal loss the weight w of the positives becomes alpha = w / (1 + w)."""
        task, weights = self.config.task, self.state["pos_weight"]
        if task.loss == "focal":
            alpha = task.focal_alpha if weights is None else [weight / (1 + weight) for weight in weights]
            return losses.focal_multilabel(logits, target, alpha, task.focal_gamma, smoothing)
        if task.loss == "asymmetric":
            return losses.asymmetric(logits, target, task.gamma_neg, task.gamma_pos, task.clip, smoothing)
        return losses.bce(logits, target, weights, smoothing)

    def _probabilities(self, network, image, background, windows):
        """(labels,) float64: the mean or the maximum over the windows that cover the case."""
        return self.pooled(windows.each(network, image, background).double().sigmoid())

    def _answers(self, probabilities, cases):
        targets = torch.tensor([case.target for case in cases])
        loss = self._loss(probabilities.logit(eps=1e-15).float(), targets.to(probabilities.device)).tolist()
        columns = self.names_of("target") + self.names_of("probability")
        return [
            Answer.of(case, scan=case.scan, loss=one, **dict(zip(columns, [*map(int, case.target), *row])))
            for case, one, row in zip(cases, loss, probabilities.tolist())
        ]

    def predict(self, network, case, windows, fold=None):
        return self._answers(self._probabilities(network, case.image(), case.background, windows)[None], [case])[0]

    def predict_batch(self, outputs, cases):
        return self._answers(outputs.double().sigmoid(), cases)

    def infer(self, network, image, background, windows):
        """(labels,) probabilities."""
        return self._probabilities(network, image, background, windows).cpu().numpy()

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probabilities, and the decisions at the means of the thresholds."""
        return Labels.together(tasks, parts), {}

    def calibrate(self, evaluate):
        """Choose the pooling with the best macro AUROC of the scans, and the thresholds, on inner validation cases."""
        rows = evaluate().rows
        self.state["moved"], scans = False, None
        if _has_scans(rows):
            if self.config.eval.pool_slices == "auto":
                (_, first, scan), (labels, scores) = _scans(rows), self.labels_and_scores(rows)
                macro = {kind: macro_auroc(labels[first], self.pool(scores, scan, kind)) for kind in pooling.KINDS}
                self.state["pooling"] = max(macro, key=macro.get)  # of equals the first
            scans = self._scans_of(rows)
        return self.choose_thresholds(rows, scans)

    def pool(self, probabilities, scan, kind=None):
        """(scans, labels) from (slices, labels); scan: of each slice, 0 .. scans - 1; kind None: the calibrated one."""
        return pooling.pool(probabilities, scan, kind or self.state["pooling"], self.config.eval.top_slices)

    def finish(self, answers, fold=None):
        rows = [answer.row for answer in answers]
        if not _has_scans(rows):
            return Results(self.decided(rows))
        return Results(self.decided(rows, "slice"), self._scans_of(rows))

    def _scans_of(self, rows):
        """One row per scan, sorted by id, from those of its slices; the same columns, `id` is the scan's name."""
        names, first, scan = _scans(rows)
        loss = np.bincount(scan, [row["loss"] for row in rows]) / np.bincount(scan)
        columns, pooled = self.names_of("probability"), self.pool(self.matrix(rows, "probability"), scan)
        made = [
            {**rows[place], "id": str(name), "loss": value, **dict(zip(columns, probabilities))}
            for name, place, value, probabilities in zip(names, first, loss.tolist(), pooled.tolist())
        ]
        return self.decided(made)

    @staticmethod
    def merge(states):
        chosen = [state["pooling"] for state in states]
        return {"pooling": max(chosen, key=chosen.count), **Labels.merged_thresholds(states)}  # of equals the first


def _has_scans(rows):
    return bool(rows[0]["scan"])  # empty in a table that was written without


def _scans(rows):
    """(names, place of each one's first row, scan of each row)."""
    return np.unique([row["scan"] for row in rows], return_index=True, return_inverse=True)
