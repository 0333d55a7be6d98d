"""What changed images cost a model: its test cases under graded changes, against the same cases unchanged.

The images come from the cache, so a change acts after preprocessing: on the network's grid, on normalised intensities.
With data.normalize=zscore a channel then gets back its mean and standard deviation, as preprocessing would have given
it; with zscore_nonzero those of the voxels that are not 0. Masks follow spatial changes. What a change moves out of the
cached box is lost. A segmentation is scored on the network's grid and before post-processing, so its Dice differs a
little from that of the run, in the space of the files.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..config import UserError
from ..data import sources
from ..data.cases import Prepared
from ..runtime import seeds
from ..tasks import Results
from ..training.evaluate import evaluate
from ..transforms.shifts import SHIFTS, Shift, without
from .answered import Answered

UNCHANGED = "unchanged"


class Change(NamedTuple):
    """A pass over the test cases; shift: None of the unchanged ones."""

    name: str
    grade: float
    shift: Shift | None


class Paired(NamedTuple):
    """A metric before and after a change. drop: what is lost of it, or by how much an error has grown, with limits."""

    metric: str
    unchanged: float
    changed: float
    drop: float
    low: float
    high: float
    cases: int
    left_out: int  # cases where it is undefined or infinite, before or after


@dataclass(frozen=True)
class Changed(Prepared):
    """A prepared case whose image, and mask, are changed when they are read."""

    of: Prepared
    change: Change
    seed: int
    scaling: str  # data.normalize

    case = property(lambda self: self.of.case)
    shape = property(lambda self: self.of.shape)
    background = property(lambda self: self.of.background)
    class_voxels = property(lambda self: self.of.class_voxels)
    geometry = property(lambda self: self.of.geometry)

    def image(self):
        """(C, X, Y, Z) float32."""
        own = {"standardised": self.scaling.startswith("zscore"), "nonzero": self.scaling == "zscore_nonzero"}
        return self.change.shift.changed(self.of.image(), *self._drawn, outside=self.of.outside, **own)

    def mask(self):
        """(X, Y, Z) uint8."""
        return self.change.shift.changed_mask(self.of.mask(), *self._drawn)

    @property
    def _drawn(self):
        spacing_mm = (1.0, 1.0, 1.0) if self.geometry is None else self.geometry.spacing_mm
        return self.change.grade, seeds.of_change(self.seed, self.id, self.change.name), spacing_mm


def check(config, task):
    """Raise UserError for a run that cannot be tested like this."""
    if task.pretrains or task.reads == "flags" or not sources.of(config.data).geometry:
        got = f"task.type={config.task.type} data.source={config.data.source}"
        raise UserError(f"stress: got {got}, wanted a classification, segmentation or regression of volumes")
    if not (task.view.ranked or task.view.per_case):
        raise UserError(f"stress: got task.type={config.task.type}, whose view has nothing to compare case by case")


def shifts_of(config):
    """{name: Shift} that cases of this config may meet: all, and the lack of each optional channel."""
    found, channels = dict(SHIFTS), list(config.data.channels)
    if len(channels) > 1:
        for name in config.data.optional_channels:
            found[f"without_{name}"] = without(name, channels.index(name))
    return found


def changes_of(config):
    """The Changes in order: the unchanged cases first."""
    found = [Change(UNCHANGED, 0.0, None)]
    return found + [Change(name, grade, one) for name, one in shifts_of(config).items() for grade in one.grades]


def rows_of(config, task, network, cases, change):
    """The rows of what the network says about the cases under a Change, sorted by id."""
    if change.shift is not None:
        cases = [Changed(case, change, config.seed, config.data.normalize) for case in cases]
    return evaluate(config, task, network, cases).rows


def paired(config, task, before, after):
    """The Paired of a task's rows of the same cases before and after a change.

    The metric is the task's own (task.select): an AUROC by DeLong's test with the terms summed per subject, over the
    pairs within folds where there are several; a mean over the cases by the bootstrap over subjects. Where that has no
    paired test, the first metric of each case does, as in the comparison of runs.
    """
    if [row["id"] for row in before] != [row["id"] for row in after]:
        raise ValueError(f"after: got the cases of {len(after)} rows, wanted the {len(before)} of before")
    one, other = (Answered(config, task, Results(rows)) for rows in (before, after))
    subjects, view = one.results.arrays("subject")[0], task.view
    ranked = view.ranked(one)
    if task.select in ranked:
        (labels, first), (_, second), folds = ranked[task.select], view.ranked(other)[task.select], one.results.folds
        test = metrics.delong_test(labels, first, second, groups=subjects, folds=folds)
        name = task.select + (metrics.WITHIN if folds is not None else "")
        return Paired(name, test.first, test.second, test.difference, test.low, test.high, len(labels), 0)
    name = task.select if task.select in view.per_case else next(iter(view.per_case))
    value_of, higher, _ = view.per_case[name]
    first, second = (np.array([value_of(row) for row in rows], float) for rows in (before, after))
    kept = np.isfinite(first) & np.isfinite(second)
    left_out = int(np.count_nonzero(~kept))
    if not kept.any():
        return Paired(name, *[math.nan] * 5, 0, left_out)
    first, second = first[kept], second[kept]
    lost = first - second if higher else second - first
    low, high = 0.0, 0.0  # where no case has changed there is nothing to draw
    if lost.any():
        interval = metrics.bootstrap_ci(np.mean, lost, seed=config.seed, groups=subjects[kept])
        low, high = interval.low, interval.high
    means = float(first.mean()), float(second.mean()), float(lost.mean())
    return Paired(name, *means, low, high, int(kept.sum()), left_out)


def table(config, task, rows):
    """A dict for each change and grade; rows: {(name, grade): rows of all folds' cases}, with the unchanged ones."""
    found, before = [], _sorted(rows[UNCHANGED, 0.0])
    for name, grade, shift in changes_of(config):
        if shift is not None:
            values = paired(config, task, before, _sorted(rows[name, grade]))
            found.append({"change": name, "grade": grade, **values._asdict()})
    return found


def _sorted(rows):
    return sorted(rows, key=lambda row: row["id"])


def worst(found, count=3):
    """Of the `count` changes that cost most, the grade at which each does; those that cost nothing are left out."""
    of_change = functools.reduce(_larger, [row for row in found if row["drop"] > 0], {})
    return sorted(of_change.values(), key=lambda row: -row["drop"])[:count]


def _larger(most, row):
    other = most.get(row["change"])
    return most if other is not None and other["drop"] >= row["drop"] else {**most, row["change"]: row}
