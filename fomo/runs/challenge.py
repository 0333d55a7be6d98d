"""FOMO26: what each task is ranked by, how much it weighs, and how places become one number."""

import math
import re
from typing import NamedTuple

import numpy as np


class Ranked(NamedTuple):
    """A task's share of the ranking, {metric: whether higher is better}, and what is shown beside without a rank.

    scored_as: the config's eval.challenge, without which a run lacks these metrics.
    """

    weight: float
    metrics: dict
    beside: tuple[str, ...] = ()
    scored_as: str = "none"


_AUROC = {"auroc": True}
_MASKS = Ranked(0.25, {"fomo26_dice": True, "fomo26_nsd": True}, ("dice", "surface_dice"), "fomo26")
TASKS = {
    1: Ranked(0.10, _AUROC),
    2: _MASKS,
    3: Ranked(0.10, {"mae": False, "pearson": True}),
    4: _MASKS,
    5: Ranked(0.10, _AUROC),
    6: Ranked(0.10, {"auroc": True, "f1": True}),
    7: Ranked(0.10, {"fairness_auroc": True, "fairness_f1": True}),
}


def ranked_as(name, headline, higher_is_better):
    """How a run of this name is ranked: as the challenge's task whose number it has, or else by its headline."""
    found = number(name)
    return TASKS[found] if found else Ranked(0.10, {headline: higher_is_better})


def number(name):
    """The number of the challenge's task in the name of a run, or None."""
    found = re.search(r"(?<![a-z])task_?([1-7])(?!\d)", name)
    return int(found[1]) if found else None


def places(values, higher_is_better):
    """(n,) ranks from 1, the best; equal values share the mean of theirs, and a missing one (NaN) has the last, n."""
    values = np.asarray(values, float)
    found = np.full(len(values), float(len(values)))
    there = ~np.isnan(values)
    signed = -values[there] if higher_is_better else values[there]
    found[there] = [np.count_nonzero(signed < value) + (1 + np.count_nonzero(signed == value)) / 2 for value in signed]
    return found


def overall(by_task, weights):
    """(n,) weighted means of the tasks' ranks; by_task: {task: (n,) ranks}, weights: {task: share}."""
    total = math.fsum(weights[task] for task in by_task)
    return sum(weights[task] * np.asarray(ranks) for task, ranks in by_task.items()) / total
