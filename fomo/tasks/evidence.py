"""Classes and labels that are learned from masks: a segmentation of each finding, of which its label is made.

The network marks the finding of each label, voxel by voxel. The score of a case is the mean probability of its `top`
most probable voxels, as log odds. Beside the decoder a head on the encoder learns all labels from the whole case
(nets/multihead). A line of both, the score and the head's logit, is the log odds of the label; `top` and the line are
fitted on validation cases. A label that too few masks show has the head alone. What is learned of a label of a training
case is the head's cross-entropy and, of its finding, what is known of it:

    a mask               the segmentation's loss
    0, no mask           the same, with an empty mask: there is nothing to find
    1, no mask           -log of the probability of its most probable voxels: it is somewhere, nobody says where
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy

from ..config import UserError
from ..data import sources
from ..data.cases import known
from ..metrics import auroc, fit_logistic
from ..nets import NETWORKS
from ..runtime import lazy
from ..runtime.lazy import torch
from ..space import volume
from . import categories
from .labels import Labels, positives_of
from .results import Answer, Results, averaged
from .segmentation import Segmentation
from .task import Task
from .two_classes import TwoClasses
from .views import evidence as view

loader = lazy.Module("..data.loader", __package__)
multihead = lazy.Module("..nets.multihead", __package__)

TOPS = (1, 3, 10, 30, 100, 300, 1000)  # voxels, from which `top` is chosen
_KEYS = ("eval.threshold", "eval.pool_windows", "data.mask_column", "data.foreground_fraction")
_FEWEST = 3  # positive cases with a mask: one may be tested and one validated; or as many as there are folds
_MIDDLE = len(TOPS) // 2
_PICTURES = 100  # cases whose evidence each process keeps
_SHOWN = 2  # labels of a case whose evidence is kept


class Part(NamedTuple):
    """What one network says about one case."""

    odds: list  # of each label with masks and each of TOPS, the log odds of the mean probability of so many voxels
    finding: np.ndarray  # (labels with masks, X, Y, Z) the probability of each finding in each voxel
    whole: np.ndarray  # (labels,) the head's log odds


class FromMasks:
    """A part of such a task, in front of `TwoClasses` or `Labels` and of `Task`.

    `state` has, of each label, top and line; `masked`, the places of those that are learned from masks; and
    class_weights, of 0 and 1, of each label.
    """

    mode = "segmentation"
    rare = slice(1, None, 2)  # the findings, behind what is no finding
    losses = Segmentation.losses
    rates = Segmentation.rates
    optional_volumes = ("probabilities",)
    training_state = ("class_weights",)

    @classmethod
    def wanted(cls, section):
        return super().wanted(section)._replace(finding=True)

    @classmethod
    def settle(cls, config, why_not=None):
        """task.evidence=auto becomes mask where enough positive cases of a label have one for each fold, or none."""
        if config.task.evidence != "auto":
            return config, {}
        cases = sources.list_cases(config.data, cls.wanted(config.task))
        by_mask, by_label = (
            dataclasses.replace(config, task=dataclasses.replace(config.task, evidence=evidence))
            for evidence in ("mask", "none")
        )
        counts = counted(cases)
        enough = _enough(config, counts)
        problem = (why_not and why_not(by_mask, cases)) if any(enough) else f"wanted {_fewest(config)}"
        found = cls.found(config, cases, counts, [is_enough and not problem for is_enough in enough])
        if problem and any(masked for _, masked in counts):
            said = f"task.evidence=auto: {cls.masks(config, counts)} have a mask, which are too few"
            return by_label, {"warn": {"message": f"{said} ({problem}): labels only", "evidence": "none", **found}}
        if problem:
            return by_label, {"data": {"evidence": "none", **found, "meant": "no masks to learn from: labels only"}}
        return by_mask, {"data": {"evidence": "mask", **found, "meant": "negatives count as empty masks"}}

    def __init__(self, config):
        super().__init__(config)
        count = len(self.names_of("target"))
        self.state = {
            **self.begin_state(),
            "masked": [0],
            "top": [TOPS[_MIDDLE]] * count,
            "line": [[1.0, 0.0, 0.0]] * count,
        }
        self._segmentation = Segmentation(dataclasses.replace(config, task=_plain(config.task)))
        self._pictures = 0

    @property
    def out_channels(self):
        """Of each label that is learned from masks a softmax over no finding and the finding."""
        return 2 * len(self.state["masked"])

    @classmethod
    def head_of(cls, model):
        """Of the U-Net inside, which has none: the head is that of `wrap`."""
        return "linear"

    @classmethod
    def check(cls, config, refuse):
        fit = [name for name, one in NETWORKS.items() if {"head", "deep_supervision"} <= set(one.options)]
        if config.model.name not in fit:
            wanted = f"one of {', '.join(fit)} for task.evidence={config.task.evidence}, which needs their head"
            refuse("model.name", config.model.name, wanted)

    def wrap(self, network):
        """With a head for all labels. What it learns of those that have maps must not hold up the maps."""
        head, labels = NETWORKS[self.config.model.name].best_head, len(self.state["top"])
        return multihead.MultiHead(network, len(self.config.data.channels), labels, head, apart=self.state["masked"])

    def head_targets(self, cases):
        return np.array([np.atleast_1d(case.target) for case in cases], float)

    def head_parts(self, cases):
        return [(_Head(self), slice(None), cases)]

    def check_parts(self, train, val):
        super().check_parts(train, val)
        counts = counted(train)
        for place in self.state["masked"]:
            positives, masked = counts[place]
            if positives and not masked:
                got = f"task.evidence: got {positives} training cases {self.said(place)} without a mask"
                raise UserError(f"{got}, wanted masks of some of them ({self.where(place)}), or task.evidence=none")

    def doubts_of_patch(self, train):
        """Messages about labels of which a training patch may not show what makes them so."""
        for place in self.state["masked"]:
            positives = [case for case in train if np.atleast_1d(case.target)[place] == 1]
            unknown = [case for case in positives if case.findings[place] is None]
            if not all(loader.in_one_window(case, self.config.data.patch) for case in unknown):
                said = f"{len(unknown)} of {len(positives)} training cases {self.said(place)} have no mask"
                yield f"{said}, and data.patch may not show what makes them so: let it hold a whole case"

    def loss(self, outputs, batch):
        """(B,): the mean over the labels of the head's loss and, by what is known of each finding, that of its map."""
        dense, whole, _ = outputs
        labels = batch["target"].reshape(len(batch["target"]), -1)
        weights = torch.tensor(self.state["class_weights"], device=labels.device).reshape(-1, 2)
        total = self.loss_of_head(whole, labels)
        for number, place in enumerate(self.state["masked"]):
            own = [level[:, 2 * number : 2 * number + 2] for level in ([dense] if torch.is_tensor(dense) else dense)]
            mask = {"mask": batch["mask"] >> place & 1}
            by_voxel = self._segmentation.loss(own[0] if torch.is_tensor(dense) else own, mask)
            value = torch.where(batch["known"][:, place], by_voxel, _somewhere(own[0]))
            total = total + value * weights[place][labels[:, place].long()] / labels.shape[1]
        return total

    def loss_of_head(self, logits, labels):
        """(B,): the mean over the labels of the cross-entropy, times the weight of 0 or 1; both (B, labels)."""
        weights = torch.tensor(self.state["class_weights"], device=labels.device).reshape(-1, 2)
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return (each * torch.where(labels > 0, weights[:, 1], weights[:, 0])).mean(1)

    def _said(self, network, image, background, windows):
        """(logits (2 masked, X, Y, Z), the Part of its network)."""
        logits = windows.blend(multihead.one_task(network, None), image, background)
        odds = logits[1::2] - logits[::2]
        each = windows.each(multihead.one_task(network, slice(None)), image, background)
        whole = self.pooled(each.double().sigmoid()).logit(eps=1e-15).cpu().numpy()
        return logits, Part([_of_tops(own) for own in odds], odds.sigmoid().cpu().numpy(), whole)

    def infer(self, network, image, background, windows):
        """The Part of a network, on its own grid."""
        return self._said(network, image, background, windows)[1]

    def probabilities(self, odds, whole):
        """(labels,), see `Part`."""
        found = np.array(whole, float)
        for own, place in zip(odds, self.state["masked"], strict=True):
            slope, beside, intercept = self.state["line"][place]
            found[place] = slope * own[TOPS.index(self.state["top"][place])] + beside * whole[place] + intercept
        return scipy.special.expit(found)

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probabilities and their decisions; those of no finding and of each finding, in native space."""
        row = tasks[0].together(tasks, [task.probabilities(part.odds, part.whole) for task, part in zip(tasks, parts)])
        finding = averaged(tasks, [part.finding for part in parts]).astype(np.float32)
        native = volume.to_native(finding, geometry, order=1)  # 0 where the network has seen nothing
        return row, {"probabilities": [1 - native.max(0), *native]}

    def predict(self, network, case, windows, fold=None):
        """`located`, of each label that is learned from masks: whether its most probable voxel is in its mask.

        It is NaN of a case with nothing to find there. With `fold` planes through that voxel are written to the case's
        `evidence`, of the labels that the case has and of the most probable ones, _SHOWN at most; see `_planes`.
        """
        logits, part = self._said(network, case.image(), case.background, windows)
        labels = self.labels_of(case)
        bits = np.array(case.mask()) if case.class_voxels else np.zeros(part.finding.shape[1:], np.uint8)
        sample = {"mask": torch.from_numpy(bits)[None], "target": torch.tensor([labels])}
        sample["known"] = torch.tensor([known(case.findings, labels)])
        loss = float(self.loss((logits[None].cpu(), torch.from_numpy(part.whole)[None], None), sample))
        row = dict(zip(self.names_of("target"), labels))
        for number, place in enumerate(self.state["masked"]):
            mask, peak = bits >> place & 1, _peak(part.finding[number])
            row[self.names_of("located")[place]] = float(mask[peak] > 0) if mask.any() else np.nan
        if fold is not None and self._pictures < _PICTURES:
            self._pictures += 1
            planes = self._planes(case.image(), part, bits, labels)
            np.savez_compressed(fold.evidence(case.id, new=True), **planes)
        return Answer.of(case, part._replace(finding=None), loss=loss, **row)

    def _planes(self, image, part, bits, labels):
        """Arrays of S labels, whose places are `labels`: image_A, evidence_A and reference_A (S, ...) across axis A.

        The planes go through the voxel of the highest probability, in the channel in which the most probable voxels
        stand out most.
        """
        order = sorted(range(len(part.odds)), key=lambda own: -part.odds[own][_MIDDLE])
        order.sort(key=lambda own: -labels[self.state["masked"][own]])  # stable
        found = {"labels": [self.state["masked"][own] for own in order[:_SHOWN]]}
        for own in order[:_SHOWN]:
            finding, peak = part.finding[own], _peak(part.finding[own])
            chosen = finding >= np.sort(finding, axis=None)[-TOPS[_MIDDLE] :][0]
            contrast = [abs(channel[chosen].mean() - channel.mean()) / max(channel.std(), 1e-6) for channel in image]
            mask = bits >> self.state["masked"][own] & 1 > 0
            arrays = image[int(np.argmax(contrast))].astype(np.float16), finding.astype(np.float16), mask
            for name, array in zip(("image", "evidence", "reference"), arrays):
                for axis in range(3):
                    found.setdefault(f"{name}_{axis}", []).append(array.take(peak[axis], axis))
        return {name: np.array(planes) for name, planes in found.items()}

    def finish(self, answers, fold=None):
        columns = self.names_of("probability")
        rows = [
            {**answer.row, **dict(zip(columns, self.probabilities(answer.kept.odds, answer.kept.whole).tolist()))}
            for answer in answers
        ]
        return Results(self.decided(rows), kept=[answer.kept for answer in answers])

    def calibrate(self, evaluate):
        """Choose `top`, then the line, of each label that varies, and the thresholds, on the inner validation cases."""
        results = evaluate()
        odds, whole = (np.array([getattr(part, name) for part in results.kept]) for name in ("odds", "whole"))
        for number, place in enumerate(self.state["masked"]):
            labels, own = results.arrays(self.names_of("target")[place])[0], odds[:, number]
            if 0 < labels.sum() < len(labels):
                chosen = _choose(labels, own)
                self.state["top"][place] = TOPS[chosen]
                self.state["line"][place] = list(fit_logistic(labels, own[:, chosen], whole[:, place]))
        answers = [Answer(*pair) for pair in zip(results.rows, results.kept)]
        return self.choose_thresholds(self.finish(answers).rows)

    def score(self, results):
        """`located` is the share of what masks show whose most probable voxel is in its mask."""
        columns = [self.names_of("located")[place] for place in self.state["masked"]]
        located = np.array([[row.get(name, np.nan) for name in columns] for row in results.rows], float)
        known = located[~np.isnan(located)]
        return {**super().score(results), **({"located": float(known.mean())} if len(known) else {})}

    def meaning(self):
        names = self.names_of("target")
        return {**super().meaning(), "task.evidence of": [names[place] for place in self.state["masked"]]}

    @staticmethod
    def merged(states):
        """Of each label the median of `top`, of an even number the lower one, and the mean of the lines."""
        tops = [sorted(own)[(len(own) - 1) // 2] for own in zip(*(state["top"] for state in states))]
        return {"top": tops, "line": np.mean([state["line"] for state in states], axis=0).tolist()}


class _Head(NamedTuple):
    """The head, as a task of its own."""

    task: FromMasks
    mode = "classification"

    def loss(self, outputs, batch):
        labels = batch["target"].reshape(len(batch["target"]), -1)
        return self.task.loss_of_head(outputs, labels)


class Evidence(FromMasks, TwoClasses, Task):
    stratum_kind = "class_and_number"
    keys = _KEYS
    options = ("task.class_weights", "task.evidence", "train.balanced", "model.deep_supervision")
    view = view.of_two_classes()

    @classmethod
    def found(cls, config, cases, counts, enough):
        """What the log says of the masks; enough: [whether a label is learned from them]."""
        [(positives, masked)] = counts
        return {"positives": positives, "with_mask": masked, "negatives": len(cases) - positives}

    @classmethod
    def masks(cls, config, counts):
        """How many cases have one, in words."""
        [(positives, masked)] = counts
        return f"{masked} of {positives} cases of class 1"

    @staticmethod
    def said(place):
        return "of class 1"

    def where(self, place):
        return "labels/SUB/SES/seg.nii.gz, or data.mask_column"

    def strata(self, cases):
        """The class, and in each class the size of the finding where a mask shows it."""
        return [(categories.class_of(case)[1], math.log1p(case.foreground_mm3 or 0.0)) for case in cases]

    def fit(self, train, val):
        """Fit inverse-frequency weights of the cases by their class, whose mean over the training cases is 1."""
        return [*super().fit(train, val), *self.doubts_of_patch(train)]

    @staticmethod
    def merge(states):
        return {**FromMasks.merged(states), "threshold": float(np.mean([state["threshold"] for state in states]))}


class LabelEvidence(FromMasks, Labels, Task):
    keys = _KEYS
    options = ("task.class_weights", "task.evidence", "train.balanced", "model.deep_supervision")
    view = view.of_labels()

    @classmethod
    def check(cls, config, refuse):
        cls.check_labels(config, refuse)
        if not sources.of(config.data).geometry:
            wanted = f"none for data.source={config.data.source}: only labels of volumes have masks"
            refuse("task.evidence", config.task.evidence, wanted)
        super().check(config, refuse)

    @classmethod
    def found(cls, config, cases, counts, enough):
        """What the log says of the masks of each label: how many of the cases that have it have one."""
        said = [f"{name}:{masked}/{positives}" for name, (positives, masked) in zip(config.task.targets, counts)]
        found = {"from_masks": [one for one, is_enough in zip(said, enough) if is_enough]}
        return {**found, "from_labels": [one for one, is_enough in zip(said, enough) if not is_enough]}

    @classmethod
    def masks(cls, config, counts):
        """How many cases have one, in words."""
        named = zip(config.task.targets, counts)
        return ", ".join(f"{masked} of {positives} cases with {name}" for name, (positives, masked) in named)

    def __init__(self, config):
        super().__init__(config)
        self.state["class_weights"] = [[1.0, 1.0]] * len(self.names)

    def said(self, place):
        return f"with {self.config.task.targets[place]}"

    def where(self, place):
        columns = self.wanted(self.config.task).mask_columns(self.config.data.mask_column)
        return f"the column {columns[place]}"

    def inspect(self, cases):
        """Note which labels are learned from masks: those of which as many positives have one as `settle` wants."""
        counts = counted(cases)
        self.state["masked"] = np.flatnonzero(_enough(self.config, counts)).tolist()
        if not self.state["masked"]:
            most, place = max((masked, -place) for place, (_, masked) in enumerate(counts))
            got = f"got at most {most} masks of a label ({self.where(-place)})"
            raise UserError(f"task.evidence: {got}, wanted {_fewest(self.config)} of one, or task.evidence=none")

    def strata(self, cases):
        """The labels, and of those that are learned from masks also where one is."""
        masked = self.state["masked"]
        return [[*self.labels_of(case), *(int(_shows(case, place)) for place in masked)] for case in cases]

    def fit(self, train, val):
        """Fit inverse-frequency weights of each label's 0 and 1, whose mean over the training cases is 1."""
        self.check_parts(train, val)
        positives = positives_of(train)
        if self.config.task.class_weights == "inverse_frequency":
            counts = np.stack([len(train) - positives, positives], axis=1).astype(int)
            self.state["class_weights"] = [categories.inverse_frequency(own).tolist() for own in counts]
        said = self.alike("training", positives, len(train), "not learned, and their cases not weighed")
        return [*said, *self.doubts_of_patch(train)]

    @staticmethod
    def merge(states):
        return {**FromMasks.merged(states), **Labels.merged_thresholds(states)}


def counted(cases):
    """[(positives, those with a mask)] of each label, from cases that are listed or prepared."""
    labels = np.array([np.atleast_1d(case.target) for case in cases]) == 1
    shown = np.array([[one is not None for one in case.findings] for case in cases])
    return list(zip(labels.sum(0).tolist(), (labels & shown).sum(0).tolist()))


def _shows(case, place):
    """Whether a mask shows what a case has of a label."""
    return bool(case.target[place]) and case.findings[place] is not None


def _fewest(config):
    return max(_FEWEST, config.cv.folds)


def _enough(config, counts):
    """[whether there are masks enough to learn a label from], see `counted`."""
    return [masked >= _fewest(config) for _, masked in counts]


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


def _peak(finding):
    """The voxel of the highest probability in (X, Y, Z)."""
    return np.unravel_index(finding.argmax(), finding.shape)
