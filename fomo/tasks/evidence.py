"""Classification into two classes that learns from masks: a segmentation of the finding, of which class 1 is made.

The network marks the finding, voxel by voxel. The score of a case is the mean probability of its `top` most probable
voxels, as log odds, and a line turns it into the probability of class 1; `top` and the line are fitted on validation
cases. What is learned of a training case depends on what is known of it:

    a mask                  the segmentation's loss
    class 0, no mask        the same, with an empty mask: there is nothing to find
    class 1, no mask        -log of the probability of its most probable voxels: it is somewhere, nobody says where
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy

from ..config import UserError
from ..data import sources
from ..metrics import auroc, fit_logistic
from ..runtime import lazy
from ..runtime.lazy import torch
from ..space import volume
from . import categories
from .results import Answer, Results, averaged
from .segmentation import Segmentation
from .task import Task
from .two_classes import TwoClasses
from .views import evidence as view

loader = lazy.Module("..data.loader", __package__)

TOPS = (1, 3, 10, 30, 100, 300, 1000)  # voxels, from which `top` is chosen
_FEWEST = 3  # cases of class 1 with a mask: one may be tested and one validated; or as many as there are folds
_MIDDLE = len(TOPS) // 2
_PICTURES = 100  # cases whose evidence each process keeps


class Part(NamedTuple):
    """What one network says about one case."""

    odds: list  # of each of TOPS, the log odds of the mean probability of so many voxels
    finding: np.ndarray  # (X, Y, Z) its probability in each voxel


class Evidence(TwoClasses, Task):
    mode = "segmentation"
    out_channels, rare = 2, slice(1, None)
    losses = Segmentation.losses
    rates = Segmentation.rates
    stratum_kind = "class_and_number"
    keys = ("eval.threshold", "data.mask_column", "data.foreground_fraction")
    options = (
        "task.class_weights",
        "task.evidence",
        "train.balanced",
        "model.deep_supervision",
        "model.channel_dropout",
    )
    optional_volumes = ("probabilities",)
    view = view.VIEW

    @classmethod
    def wanted(cls, section):
        return super().wanted(section)._replace(finding=True)

    @classmethod
    def settle(cls, config, why_not=None):
        """task.evidence=auto becomes mask where enough cases of class 1 have one for each fold, and else none."""
        if config.task.evidence != "auto":
            return config, {}
        cases = sources.list_cases(config.data, cls.wanted(config.task))
        positives = [case for case in cases if case.target == 1]
        masked = sum(case.mask is not None for case in positives)
        found = {"positives": len(positives), "with_mask": masked, "negatives": len(cases) - len(positives)}
        by_mask, by_label = (
            dataclasses.replace(config, task=dataclasses.replace(config.task, evidence=evidence))
            for evidence in ("mask", "none")
        )
        fewest = max(_FEWEST, config.cv.folds)
        problem = f"wanted {fewest}" if masked < fewest else why_not and why_not(by_mask, cases)
        if problem and masked:
            said = f"task.evidence=auto: {masked} of {len(positives)} cases of class 1 have a mask, which are too few"
            return by_label, {"warn": {"message": f"{said} ({problem}): labels only", "evidence": "none", **found}}
        if problem:
            return by_label, {"data": {"evidence": "none", **found, "meant": "no masks to learn from: labels only"}}
        return by_mask, {"data": {"evidence": "mask", **found, "meant": "negatives count as empty masks"}}

    def __init__(self, config):
        super().__init__(config)
        self.state = {**self.begin_state(), "top": TOPS[_MIDDLE], "line": [1.0, 0.0]}
        self._segmentation = Segmentation(dataclasses.replace(config, task=_plain(config.task)))
        self._pictures = 0

    def strata(self, cases):
        """The class, and in each class the size of the finding where a mask shows it."""
        return [(categories.class_of(case)[1], math.log1p(case.foreground_mm3 or 0.0)) for case in cases]

    def check_parts(self, train, val):
        super().check_parts(train, val)
        positives = [getattr(case, "case", case) for case in train if case.target == 1]  # listed, or prepared
        _refuse_without_masks(positives, [case for case in positives if case.mask is None])

    def fit(self, train, val):
        """Fit inverse-frequency weights of the cases by their class, whose mean over the training cases is 1."""
        messages = list(super().fit(train, val))
        positives = [case for case in train if case.target == 1]
        unknown = [case for case in positives if not case.class_voxels]
        _refuse_without_masks(positives, unknown)
        if not all(loader.in_one_window(case, self.config.data.patch) for case in unknown):
            said = f"{len(unknown)} of {len(positives)} training cases of class 1 have no mask"
            messages.append(f"{said}, and data.patch may not show what makes them so: let it hold a whole case")
        return messages

    def loss(self, outputs, batch):
        """(B,) by what is known of each sample, times the weight of its class."""
        by_voxel = self._segmentation.loss(outputs, batch)
        finest = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        weights = torch.tensor(self.state["class_weights"], device=by_voxel.device)[batch["target"].long()]
        return torch.where(batch["known"], by_voxel, _somewhere(finest)) * weights

    def _odds(self, network, image, background, windows):
        """(logits (2, X, Y, Z), the Part of its network)."""
        logits = windows.blend(network, image, background)
        odds = logits[1] - logits[0]
        return logits, Part(_of_tops(odds), odds.sigmoid().cpu().numpy())

    def infer(self, network, image, background, windows):
        """The Part of a network, on its own grid."""
        return self._odds(network, image, background, windows)[1]

    def probability(self, odds):
        """Of class 1, from the log odds of all TOPS."""
        slope, intercept = self.state["line"]
        return float(scipy.special.expit(slope * odds[TOPS.index(self.state["top"])] + intercept))

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probability and its decision; the mean probabilities of finding and background, in native space."""
        row = TwoClasses.decided_together(tasks, [task.probability(part.odds) for task, part in zip(tasks, parts)])
        finding = averaged(tasks, [part.finding for part in parts]).astype(np.float32)
        native = volume.to_native(finding, geometry, order=1)  # 0 where the network has seen nothing
        return row, {"probabilities": [1 - native, native]}

    def predict(self, network, case, windows, fold=None):
        """`located`: whether the most probable voxel is in the mask, NaN of a case with nothing to find there.

        With `fold` the planes through that voxel are written to its `evidence`: image_0..2, evidence_0..2 and, of a
        case with a mask, reference_0..2, across the axes 0, 1 and 2.
        """
        logits, part = self._odds(network, case.image(), case.background, windows)
        target = categories.known_class(case, "class", self.state["classes"])
        mask = np.array(case.mask()) if case.class_voxels else np.zeros(part.finding.shape, np.uint8)
        sample = {"mask": torch.from_numpy(mask)[None].long(), "target": torch.tensor([target])}
        sample["known"] = torch.tensor([bool(case.class_voxels) or target == 0])
        loss = float(self.loss(logits[None].cpu(), sample))
        peak = np.unravel_index(part.finding.argmax(), part.finding.shape)
        located = float(mask[peak] > 0) if mask.any() else np.nan
        if fold is not None and self._pictures < _PICTURES:
            self._pictures += 1
            reference = mask if case.class_voxels else None
            np.savez_compressed(
                fold.evidence(case.id, new=True), **_planes(case.image(), part.finding, reference, peak)
            )
        return Answer.of(case, part.odds, target=target, located=located, loss=loss)

    def finish(self, answers, fold=None):
        rows = [{**answer.row, "probability": self.probability(answer.kept)} for answer in answers]
        return Results([self.decided(row) for row in rows], kept=[answer.kept for answer in answers])

    def calibrate(self, evaluate):
        """Choose `top`, then the line and the decision threshold, on the inner validation cases."""
        results = evaluate()
        labels, odds = results.arrays("target")[0], np.array(results.kept)
        place = _choose(labels, odds)
        self.state["top"], self.state["line"] = TOPS[place], list(fit_logistic(labels, odds[:, place]))
        rows = [{**row, "probability": self.probability(own)} for row, own in zip(results.rows, odds)]
        self.choose_threshold(Results(rows))
        return ()

    def score(self, results):
        """Of two classes; `located` is the share of the cases whose most probable voxel is in their mask."""
        located = np.array([row.get("located", np.nan) for row in results.rows], float)
        known = located[~np.isnan(located)]
        return {**super().score(results), **({"located": float(known.mean())} if len(known) else {})}

    @staticmethod
    def merge(states):
        """The median of `top`, of an even number the lower one, and the mean of the lines and thresholds."""
        tops = sorted(state["top"] for state in states)
        line = np.mean([state["line"] for state in states], axis=0).tolist()
        threshold = float(np.mean([state["threshold"] for state in states]))
        return {"top": tops[(len(tops) - 1) // 2], "line": line, "threshold": threshold}


def _refuse_without_masks(positives, unknown):
    """UserError where all training cases of class 1 are `unknown`: nothing shows what makes them so."""
    if len(unknown) == len(positives):
        wanted = "masks of some of them (labels/SUB/SES/seg.nii.gz, or data.mask_column), or task.evidence=none"
        got = f"task.evidence: got {len(positives)} training cases of class 1 without a mask"
        raise UserError(f"{got}, wanted {wanted}")


def _plain(section):
    """The section `task` of the segmentation inside: its voxels are not weighted, the cases are."""
    return dataclasses.replace(section, class_weights="none", classes=2, activation="softmax")


def _somewhere(logits):
    """(B,) -log of the probability of the most probable voxels, by their mean log odds; logits: (B, 2, X, Y, Z)."""
    odds = (logits[:, 1] - logits[:, 0]).float().flatten(1)
    return torch.nn.functional.softplus(-odds.topk(min(TOPS[_MIDDLE], odds.shape[1])).values.mean(1))


def _of_tops(odds):
    """[of each of TOPS, the log odds of the mean probability of so many voxels], from log odds (X, Y, Z)."""
    highest = odds.double().flatten().topk(min(TOPS[-1], odds.numel())).values
    found = []
    for top in TOPS:  # logarithms: probabilities near 1 would all be 1
        yes, no = (torch.nn.functional.logsigmoid(sign * highest[:top]).logsumexp(0) for sign in (1, -1))
        found.append(float(yes - no))
    return found


def _choose(labels, odds):
    """The place in TOPS with the best AUROC; of those that are worse by one pair of cases at most, the middle one.

    labels (n,) 0/1, odds (n, TOPS).
    """
    found = np.array([auroc(labels, column) for column in odds.T])
    pair = 1 / max(1, np.count_nonzero(labels == 1) * np.count_nonzero(labels == 0))
    good = np.flatnonzero(found >= found.max() - pair - 1e-9)
    return int(min(good, key=lambda place: (abs(place - _MIDDLE), -found[place])))


def _planes(image, finding, reference, peak):
    """The planes through the voxel `peak`, of the channel in which the most probable voxels stand out most."""
    chosen = finding >= np.sort(finding, axis=None)[-TOPS[_MIDDLE] :][0]
    contrast = [abs(channel[chosen].mean() - channel.mean()) / max(channel.std(), 1e-6) for channel in image]
    arrays = {"image": image[int(np.argmax(contrast))].astype(np.float16), "evidence": finding.astype(np.float16)}
    if reference is not None:
        arrays["reference"] = reference > 0
    return {f"{name}_{axis}": array.take(peak[axis], axis) for name, array in arrays.items() for axis in range(3)}
