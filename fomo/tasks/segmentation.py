"""Voxel-wise segmentation; the final evaluation is in the space of the input file.

By softmax over the classes, or by sigmoid: one output for each foreground class, independent of the others. A voxel then
is of the most probable class, if that has a probability above 0.5: that of the background is 1 less the largest.
"""

import os

import numpy as np
import torch

from .. import inference, losses
from ..data.cases import read_volume, rounded
from ..metrics import bootstrap_ci, dice, over_classes, segmentation_metrics_per_class, summarize
from ..space import postprocess, volume
from . import coverage
from .task import Task


class Segmentation(Task):
    mode = "segmentation"
    select, higher_is_better = "dice", True
    stratum_kind = "class"

    def __init__(self, config):
        super().__init__(config)
        self.sigmoid = config.task.activation == "sigmoid"
        self.out_channels = config.task.classes - self.sigmoid
        self.state = {"class_weights": [1.0] * config.task.classes, "postprocess": dict(postprocess.NONE)}
        self._candidates = ()  # of post-processing, while it is chosen

    def strata(self, cases):
        """Whether there is foreground; empty masks of fewer subjects than there are parts lie where they come to lie."""
        few = len({case.subject for case in cases if not case.target}) < max(4, self.config.cv.folds)
        return ["with foreground" if case.target or few else "without foreground" for case in cases]

    def fit(self, train, val):
        """Inverse-frequency class weights over the voxels of the training masks, with mean 1 over the classes that they have.

        A class that they don't have gets the weight 1. UserError for a part without foreground.
        """
        of_train, of_val = _voxels(train), _voxels(val)
        for part, cases, voxels in (("training", train, of_train), ("validation", val, of_val)):
            if not voxels[1:].any():
                coverage.refuse(part, cases, "without a voxel of the foreground, wanted some with")
        if self.config.task.class_weights == "inverse_frequency":
            weights, present = coverage.inverse_frequency(of_train), of_train > 0
            self.state["class_weights"] = np.where(present, weights / weights[present].mean(), 1.0).tolist()
        return list(coverage.lacking("masks", range(self.config.task.classes), of_train, of_val))

    def loss(self, outputs, batch):
        return losses.deep_supervision(self._loss, outputs, batch["mask"])

    def _loss(self, logits, mask):
        task = self.config.task
        if task.loss == "generalized_dice":
            return losses.generalized_dice(logits, mask, task.activation)
        if self.sigmoid:
            return (losses.sigmoid_cross_entropy if task.loss == "cross_entropy" else _dice_bce)(logits, mask)
        loss = losses.cross_entropy if task.loss == "cross_entropy" else losses.dice_ce
        return loss(logits, mask, class_weights=self.state["class_weights"])

    def _probabilities(self, logits):
        """(K, X, Y, Z) of (K, X, Y, Z): of all classes or, with sigmoid, of the foreground classes."""
        return (logits.sigmoid() if self.sigmoid else logits.softmax(0)).cpu().numpy()

    def infer(self, network, image, background, options):
        """Probabilities on the network's grid."""
        return self._probabilities(inference.sliding_window(network, image, background=background, **options))

    @staticmethod
    def answer(tasks, parts, geometry):
        """The mean probabilities, brought to native space, and the mask of the most probable class, post-processed."""
        native = volume.to_native(sum(parts[1:], parts[0]) / np.float32(len(parts)), geometry, order=1)
        if tasks[0].sigmoid:
            native = np.concatenate([1 - native.max(0, keepdims=True), native])
        outside = np.ones(native.shape[1:], bool)
        outside[geometry.native_box] = False
        native[0][outside] = 1  # the network has seen nothing there: background
        chosen = postprocess.merge([task.state["postprocess"] for task in tasks])
        mask = postprocess.apply(native.argmax(0).astype(np.uint8), volume.spacing(geometry.native_affine), **chosen)
        return {"predicted_voxels": int(np.count_nonzero(mask))}, {"mask": mask, "probabilities": native}

    def predict(self, network, case, options, folder=None):
        """Dice on the cached grid or, with `folder`, all metrics in native space, the mask written to folder/masks.

        While post-processing is chosen: the Dice in native space that each candidate would give.
        """
        logits = inference.sliding_window(network, case.image(), background=case.background, **options)
        mask = torch.from_numpy(np.array(case.mask())).long().to(logits.device)
        row = {"id": case.case.id, "subject": case.case.subject, "loss": float(self._loss(logits[None], mask[None]))}
        if folder is None and not self._candidates:
            if self.sigmoid:
                logits = torch.cat([torch.zeros_like(logits[:1]), logits])  # background where all are below 0.5
            reference, prediction = mask.cpu().numpy(), logits.argmax(0).cpu().numpy()
            row["predicted_voxels"] = int(np.count_nonzero(prediction))
            row.update(
                _with_mean(
                    {c: {"dice": dice(reference == c, prediction == c)} for c in range(1, self.config.task.classes)}
                )
            )
            return row
        _, volumes = self.answer([self], [self._probabilities(logits)], case.geometry)
        prediction = volumes["mask"]
        reference, affine = read_volume(case.case.mask, like=np.array(case.geometry.native_affine))
        reference = rounded(reference).astype(np.int32)  # as in the cache
        if self._candidates:
            row["candidates"] = [
                self._dice_after(candidate, reference, prediction, affine) for candidate in self._candidates
            ]
            return row
        os.makedirs(os.path.join(folder, "masks"), exist_ok=True)
        volume.write_nifti(os.path.join(folder, "masks", f"{case.case.id}.nii.gz"), prediction, affine)
        spacing_mm, tolerance_mm = volume.spacing(affine), self.config.eval.surface_tolerance_mm
        row["predicted_voxels"] = int(np.count_nonzero(prediction))
        row["reference_voxels"] = int(np.count_nonzero(reference))
        row.update(
            _with_mean(
                segmentation_metrics_per_class(
                    reference, prediction, spacing_mm, self.config.task.classes, tolerance_mm
                )
            )
        )
        return row

    def _dice_after(self, candidate, reference, prediction, affine):
        """Mean Dice over the classes after one kind of post-processing; 1 for a class that is rightly absent."""
        cleaned = postprocess.apply(prediction, volume.spacing(affine), **candidate)
        values = [dice(reference == c, cleaned == c) for c in range(1, self.config.task.classes)]
        return float(np.mean([1.0 if np.isnan(value) else value for value in values]))

    def calibrate(self, evaluate):
        """The post-processing with the best mean Dice over the inner validation cases, if it is to be chosen; ties: less."""
        if self.config.eval.postprocess == "auto":
            self.state["postprocess"] = dict(postprocess.NONE)
            self._candidates = postprocess.CANDIDATES
            means = np.mean([row["candidates"] for row in evaluate()], axis=0)
            self.state["postprocess"] = dict(self._candidates[int(np.argmax(means))])
            self._candidates = ()
        return ()

    def score(self, rows):
        """Mean of each metric over the cases where it is finite; how many are undefined or infinite stands beside it."""
        scores = {}
        for name in _metric_names(rows):
            summary = summarize([row[name] for row in rows])
            scores[name] = summary["mean"]
            for kind in ("undefined", "infinite"):
                if summary[kind]:
                    scores[f"{name}_{kind}"] = summary[kind]
        scores["empty_predictions"] = sum(row["predicted_voxels"] == 0 for row in rows)
        return scores

    def intervals(self, rows, resamples, seed):
        """Of each metric's mean over the cases where it is finite."""
        result = {}
        for name in _metric_names(rows):
            finite = [row for row in rows if np.isfinite(row[name])]
            if finite:
                values, subjects = np.array([row[name] for row in finite]), [row["subject"] for row in finite]
                result[name] = bootstrap_ci(np.mean, values, resamples=resamples, seed=seed, groups=subjects)
        return result


def _with_mean(rows):
    """Of the metrics {class: {metric: value}} those of class 1; of more classes their `over_classes` and each, `dice_1 ...`."""
    if len(rows) == 1:
        return rows[1]
    result = {name: over_classes([row[name] for row in rows.values()]) for name in rows[1]}
    return {**result, **{f"{name}_{c}": value for c, row in rows.items() for name, value in row.items()}}


def _voxels(cases):
    """(classes,) voxels of each class in the masks of cases, on the network's grid."""
    return np.sum([case.class_voxels for case in cases], axis=0)


def _dice_bce(logits, mask):
    return losses.dice_ce(logits, mask, activation="sigmoid")


def _metric_names(rows):
    return [
        name
        for name in rows[0]
        if name not in ("id", "subject", "fold", "loss", "predicted_voxels", "reference_voxels")
    ]
