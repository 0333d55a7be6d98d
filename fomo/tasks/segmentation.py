"""Voxel-wise segmentation; the final evaluation is in the space of the input file.

Outputs are a softmax over the classes, or a sigmoid for each foreground class by itself. With sigmoids the probability
of the background is 1 less the largest of them, so that a voxel is foreground if one of them is above 0.5.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..config import UserError
from ..data.cases import read_volume, rounded
from ..metrics import (
    CHALLENGES,
    COUNTS,
    dice,
    over_classes,
    overlap_from_counts,
    range_of,
    segmentation_metrics_per_class,
    summarize,
)
from ..runtime import lazy
from ..runtime.lazy import torch
from ..space import postprocess, volume
from . import categories, disagreement
from .results import Answer, Results
from .task import Columns, Rates, Task
from .views import segmentation as view

losses = lazy.Module("..losses", __package__)
nifti = lazy.Module("..space.nifti", __package__)

_NO_METRICS = ("id", "subject", "fold", "missing", "loss", "predicted_voxels", "reference_voxels")  # of a row
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")  # it becomes a part of columns
_GAIN = "postprocess_gain"  # a column of rows, where post-processing is chosen
_UNWEIGHTED = ("generalized_dice", "tversky")  # losses without class weights
_VOXELS, _VECTOR = 2**16, 64  # whose probabilities are computed at once: about so many, a multiple of the second


class Segmentation(Task):
    mode = "segmentation"
    losses = ("dice_focal", "dice_ce", "generalized_dice", "tversky", "cross_entropy")
    reads, columns = "mask", Columns(0, 0, "none: the mask is learned")
    rates = Rates(1.25e-3, 6.25e-4, 1.25e-3)
    select, higher_is_better = "dice", True
    stratum_kind = "class_and_number"
    training_state = ("class_weights",)
    keys = ("data.mask_column", "data.foreground_fraction", "eval.surface_tolerance_mm", "eval.challenge")
    options = (
        "task.classes",
        "task.class_names",
        "task.class_weights",
        "task.activation",
        "model.deep_supervision",
        "model.channel_dropout",
        "eval.postprocess",
    )
    if_constant = f"{Task.if_constant}; raise data.foreground_fraction where lesions are small"
    view = view.VIEW
    volumes, optional_volumes = ("mask",), ("probabilities", disagreement.NAME)
    single = "mask"

    @classmethod
    def check(cls, config, refuse):
        task = config.task
        if task.class_weights != "none" and (task.activation == "sigmoid" or task.loss in _UNWEIGHTED):
            wanted = f"none for task.activation=sigmoid and for task.loss={'|'.join(_UNWEIGHTED)}"
            refuse("task.class_weights", task.class_weights, wanted)
        names = task.class_names
        distinct = len({name.lower() for name in names}) == len(names) and all(map(_NAME.fullmatch, names))
        if names and not (distinct and len(names) == task.classes - 1):
            wanted = f"{task.classes - 1} different words for task.classes={task.classes}: the background has no name"
            refuse("task.class_names", names, f"none, or {wanted}")

    def __init__(self, config):
        super().__init__(config)
        self.sigmoid = config.task.activation == "sigmoid"
        self.out_channels = config.task.classes - self.sigmoid
        self.state = {"class_weights": [1.0] * config.task.classes, "postprocess": dict(postprocess.NONE)}
        self._candidates = ()  # of post-processing, while it is chosen
        self._challenge = CHALLENGES.get(config.eval.challenge)
        if self._challenge:
            self.view = view.with_challenge(config.eval.challenge)

    @property
    def rare(self):
        return slice(1 - self.sigmoid, None)

    def strata(self, cases):
        """Whether there is foreground, and how much, on a scale on which large masks are not all that counts.

        Empty masks are not spread over the parts if fewer subjects have one.
        """
        few = len({case.subject for case in cases if not case.target}) < max(4, self.config.cv.folds)
        present = ["with foreground" if case.target or few else "without foreground" for case in cases]
        return [(one, math.log1p(case.foreground_mm3 or 0.0)) for one, case in zip(present, cases)]

    def inspect(self, cases):
        if not any(case.target for case in cases):
            got = f"got no voxel of the foreground in the masks of all {len(cases)} cases"
            raise UserError(f"mask: {got}, wanted some with")

    def fit(self, train, val):
        """Fit inverse-frequency class weights over the voxels of the training masks, with mean 1 over their classes."""
        of_train, of_val = (np.sum([case.class_voxels for case in cases], axis=0) for cases in (train, val))
        for part, cases, voxels in (("training", train, of_train), ("validation", val, of_val)):
            if not voxels[1:].any():
                categories.refuse(self.config, part, cases, "without a voxel of the foreground, wanted some with")
        if self.config.task.class_weights == "inverse_frequency":
            weights, present = categories.inverse_frequency(of_train), of_train > 0  # a class without a voxel gets 1
            self.state["class_weights"] = np.where(present, weights / weights[present].mean(), 1.0).tolist()
        return list(categories.lacking("masks", range(self.config.task.classes), of_train, of_val))

    def loss(self, outputs, batch):
        return losses.deep_supervision(self._loss, outputs, batch["mask"])

    def _loss(self, logits, mask):
        task = self.config.task
        if task.loss == "generalized_dice":
            return losses.generalized_dice(logits, mask, task.activation)
        if task.loss == "tversky":
            return losses.tversky(logits, mask, task.tversky_alpha, task.tversky_beta, activation=task.activation)
        weights = None if self.sigmoid else self.state["class_weights"]
        if task.loss == "dice_ce":
            return losses.dice_ce(logits, mask, weights, activation=task.activation)
        if task.loss != "cross_entropy":
            return losses.dice_focal(logits, mask, weights, task.focal_gamma, activation=task.activation)
        if self.sigmoid:
            return losses.sigmoid_cross_entropy(logits, mask)
        return losses.cross_entropy(logits, mask, weights)

    def _probabilities(self, logits):
        """(K, n, Y, Z) in the place of the logits: of all classes or, with sigmoid, of the foreground classes."""
        for some in logits.split(max(1, _VOXELS // logits[0, 0].numel()), dim=1):
            voxels = some[0].numel()
            # torch rounds those behind the last full vector otherwise: none are, whatever planes are given
            own = torch.nn.functional.pad(some.flatten(1), (0, -voxels % _VECTOR))
            own = own.sigmoid() if self.sigmoid else own.softmax(0)
            some.copy_(own[:, :voxels].view(some.shape))
        return logits.cpu().numpy()

    def infer(self, network, image, background, windows):
        """A _Run, which asks the network when `gather` comes to it."""
        return _Run(self, network, image, background, windows)

    @staticmethod
    def gather(parts):
        """The mean (K, X, Y, Z) of several _Runs: beside it only the planes of a window are held, of however many."""
        mean, count = next(parts).whole(), 1
        for part in parts:
            for place, planes in part.planes():
                mean[place] += planes
            count, planes = count + 1, None  # before the next network makes its own
        mean /= np.float32(count)
        return [mean]

    @staticmethod
    def answer(tasks, parts, geometry):
        """The post-processed mask of the likeliest class by the mean probabilities (see `gather`) in native space.

        One class after another decides, and of the probabilities one is made after another, so that not all classes are
        in native space at once. Asked for the mutual information, the row has its mean over the mask, NaN of none.
        """
        [mean] = parts
        mean, apart = np.split(mean, [tasks[0].out_channels])
        chosen = postprocess.merge([task.state["postprocess"] for task in tasks])
        likeliest = _most_probable(mean, tasks[0].sigmoid, geometry)
        mask = postprocess.apply(likeliest, volume.spacing(geometry.native_affine), **chosen)
        row = {"predicted_voxels": int(np.count_nonzero(mask))}
        volumes = {"mask": mask, "probabilities": _Probabilities(mean, tasks[0].sigmoid, geometry)}
        if len(apart):
            found = volume.to_native(disagreement.information(apart, tasks[0].sigmoid), geometry, order=1)
            row[disagreement.NAME] = float(found[mask > 0].mean()) if mask.any() else math.nan
            volumes[disagreement.NAME] = found
        return row, volumes

    def predict(self, network, case, windows, fold=None):
        """Dice on the cached grid or, with `fold`, all metrics in native space; then the mask is written.

        While post-processing is chosen: the Dice in native space that each candidate would give.
        """
        logits = windows.blend(network, case.image(), case.background)
        mask = torch.from_numpy(np.require(case.mask(), requirements="CW"))  # a copy of what cannot be written
        mask = mask.to(logits.device, non_blocking=True).long()
        loss = float(self._loss(logits[None], mask[None]))
        if fold is None and not self._candidates:
            return Answer.of(case, loss=loss, **self._on_grid(logits, mask))
        return functools.partial(self._in_native_space, case, loss, self._probabilities(logits), fold)

    def _in_native_space(self, case, loss, probabilities, fold):
        """The Answer in the space of the case's file, by the `probabilities` on the network's grid."""
        _, volumes = self.answer([self], [probabilities], case.geometry)
        prediction = volumes["mask"]
        reference, affine = read_volume(case.native_mask, like=np.array(case.geometry.native_affine))
        reference = rounded(reference).astype(np.int32)  # as in the cache
        if self._candidates:
            found = [self._dice_after(candidate, reference, prediction, affine) for candidate in self._candidates]
            return Answer.of(case, found, loss=loss)
        nifti.write_nifti(fold.mask(case.id, new=True), prediction, affine)
        found = self._compared(reference, prediction, volume.spacing(affine))
        if self.config.eval.postprocess == "auto":
            found[_GAIN] = self._gain(probabilities, case.geometry, reference, prediction, affine)
        return Answer.of(case, loss=loss, **found)

    def _on_grid(self, logits, reference):
        """Dice by the logits (K, X, Y, Z) and the classes (X, Y, Z) of the reference, counted where they are."""
        if self.sigmoid:
            logits = torch.cat([torch.zeros_like(logits[:1]), logits])  # background where all are below 0.5
        classes = self.config.task.classes
        pairs = torch.bincount((reference * classes + logits.argmax(0)).flatten(), minlength=classes**2)
        pairs = pairs.view(classes, classes).cpu().numpy()  # voxels by class of the reference, and of the prediction
        both, in_reference, in_prediction = (found.tolist() for found in (pairs.diagonal(), pairs.sum(1), pairs.sum(0)))
        counts = {c: (both[c], in_reference[c], in_prediction[c], reference.numel()) for c in range(classes)}
        voxels = {
            "predicted_voxels": counts[0][3] - in_prediction[0],
            "reference_voxels": counts[0][3] - in_reference[0],
        }
        found = {c: {"dice": overlap_from_counts(*counts[c])["dice"]} for c in range(1, classes)}
        return {**voxels, **_with_mean(found, self.config.task.class_names)}

    def _compared(self, reference, prediction, spacing_mm):
        options = self.config.task.classes, self.config.eval.surface_tolerance_mm
        found = segmentation_metrics_per_class(reference, prediction, spacing_mm, *options)
        for label, own in found.items() if self._challenge else ():
            own |= self._challenge(reference == label, prediction == label, spacing_mm)
        return {
            "predicted_voxels": int(np.count_nonzero(prediction)),
            "reference_voxels": int(np.count_nonzero(reference)),
            **_with_mean(found, self.config.task.class_names),
        }

    def _gain(self, probabilities, geometry, reference, prediction, affine):
        """What post-processing has gained of the mean Dice by which it was chosen."""
        if self.state["postprocess"] == postprocess.NONE:
            return 0.0
        before = _most_probable(probabilities, self.sigmoid, geometry)
        after, before = (self._dice_after(postprocess.NONE, reference, one, affine) for one in (prediction, before))
        return after - before

    def _dice_after(self, candidate, reference, prediction, affine):
        """Mean Dice over the classes after one kind of post-processing; 1 for a class that is rightly absent."""
        cleaned = postprocess.apply(prediction, volume.spacing(affine), **candidate)
        values = [dice(reference == c, cleaned == c) for c in range(1, self.config.task.classes)]
        return float(np.mean([1.0 if np.isnan(value) else value for value in values]))

    def spread(self, results):
        return tuple(float(voxels.std()) for voxels in results.arrays("predicted_voxels", "reference_voxels"))

    def calibrate(self, evaluate):
        """Choose the post-processing with the best mean Dice on the inner validation cases; of equals the lesser."""
        if self.config.eval.postprocess == "auto":
            self.state["postprocess"] = dict(postprocess.NONE)
            self._candidates = postprocess.CANDIDATES
            means, self._candidates = np.mean(evaluate().kept, axis=0), ()
            self.state["postprocess"] = dict(postprocess.CANDIDATES[int(np.argmax(means))])
        return ()

    def score(self, results):
        """The mean of each metric over the cases where it is finite, and the counts of undefined and infinite ones."""
        scores, rows = {}, results.rows
        for name in _metric_names(rows):
            summary = summarize(*results.arrays(name))
            scores[name] = summary["mean"]
            scores.update({name + end: summary[end[1:]] for end in COUNTS if summary[end[1:]]})
        scores["empty_predictions"] = sum(row["predicted_voxels"] == 0 for row in rows)
        return scores

    def intervals(self, results, resamples, seed):
        """Of each metric's mean over the cases where it is finite."""
        found = {}
        for name in _metric_names(results.rows):
            finite = Results([row for row in results.rows if np.isfinite(row[name])])
            if finite.rows:
                values, interval = finite.arrays(name)[0], finite.bootstrap(resamples, seed)
                found[name] = interval(np.mean, values, bounds=range_of(name, values))
        return found

    def doubts(self, scores, rows):
        if scores["empty_predictions"]:
            yield "predicted masks are empty", scores["empty_predictions"]
        for name, count in view.never_predicted(rows).items():
            yield f"class {name} is never predicted, though cases have it", count

    def learned(self):
        names = self.config.task.class_names
        return {"classes": self.config.task.classes, **({"class_names": list(names)} if names else {})}

    @staticmethod
    def merge(states):
        return {"postprocess": postprocess.merge([state["postprocess"] for state in states])}


class _Run(NamedTuple):
    """A network that is to be asked about one case; it gives probabilities on its grid, see `Task.infer`."""

    task: Segmentation
    network: object
    image: object
    background: tuple
    windows: object

    @property
    def is_apart(self):
        return disagreement.NAME in self.task.asked

    def apart(self):
        """(2 K + 1, X, Y, Z): behind the probabilities what `disagreement.information` reads, the means over views."""
        views, outputs = disagreement.views_of(self.network), self.task.out_channels
        total = np.zeros((2 * outputs + 1, *self.image.shape[1:]), np.float32)
        for one in views:
            for place, logits in self.windows.blend_planes(one, self.image, self.background, axis=0):
                own = total[place]
                own[:outputs] += logits.cpu().numpy()  # of whose mean the mask is made
                probabilities = self.task._probabilities(logits)
                own[outputs:-1] += probabilities
                own[-1] += disagreement.entropy(probabilities, self.task.sigmoid)
        total /= np.float32(len(views))
        self.task._probabilities(torch.from_numpy(total[:outputs]))
        return total

    def whole(self):
        """(K, X, Y, Z), or `apart`; a GPU has a window's planes of them at a time."""
        if self.is_apart:
            return self.apart()
        if self.windows.device.type == "cpu":
            return self.task._probabilities(self.windows.blend(self.network, self.image, self.background))
        found = None
        for place, planes in self.planes(axis=0):
            found = np.empty((len(planes), *self.image.shape[1:]), np.float32) if found is None else found
            found[place] = planes
        return found

    def planes(self, axis=None):
        """Yield (place, planes of these), see `blend_planes`; axis: None for that with the fewest planes at a time."""
        if self.is_apart:
            yield ..., self.apart()
            return
        if axis is None:
            axis = int(np.argmin(np.divide(self.windows.patch, self.image.shape[1:])))
        for place, logits in self.windows.blend_planes(self.network, self.image, self.background, axis):
            yield place, self.task._probabilities(logits)


@dataclass(frozen=True)
class _Probabilities:
    """The sequence of each class's probabilities (X, Y, Z) in native space, made anew whenever one is asked for."""

    mean: np.ndarray  # (K, x, y, z) on the network's grid
    sigmoid: bool  # whether the background is not among them
    geometry: volume.Geometry

    def __len__(self):
        return len(self.mean) + self.sigmoid

    def __getitem__(self, label):
        if not 0 <= label < len(self):
            raise IndexError(label)
        if label or not self.sigmoid:
            found = volume.to_native(self.mean[label - self.sigmoid], self.geometry, order=1)
        else:
            found = 1 - functools.reduce(np.maximum, (self[other] for other in range(1, len(self))))
        if label == 0:
            found[_outside(self.geometry)] = 1
        return found


def _most_probable(mean, sigmoid, geometry):
    """(X, Y, Z) uint8 in native space of (K, x, y, z): the first of the most probable classes."""
    best = volume.to_native(mean[0], geometry, order=1)
    found = np.full(best.shape, int(sigmoid), np.uint8)
    for label, own in enumerate(mean[1:], start=1 + sigmoid):
        own = volume.to_native(own, geometry, order=1)
        found[own > best] = label
        np.maximum(best, own, out=best)
    if sigmoid:
        found[best <= 1 - best] = 0  # the background, whose probability is the rest
    found[_outside(geometry)] = 0
    return found


def _outside(geometry):
    """(X, Y, Z) of the file: where the network has seen nothing, so that it is background."""
    outside = np.ones(geometry.native_shape, bool)
    outside[geometry.native_box] = False
    return outside


def _with_mean(rows, names=()):
    """Of {class: {metric: value}} those of one class, or over all classes and of each, `dice_1` or `dice_NAME`."""
    if len(rows) == 1:
        return rows[1]
    result, names = {name: over_classes([row[name] for row in rows.values()]) for name in rows[1]}, names or rows
    return {**result, **{f"{key}_{name}": row[key] for name, row in zip(names, rows.values()) for key in row}}


def _metric_names(rows):
    return [name for name in rows[0] if name not in _NO_METRICS]
