"""How evenly a metric is spread over groups of subjects, as FOMO26 scores it (task 7). Needs numpy and scipy only.

The disparity of a variable (sex, bins of age) is the largest value of a metric over its groups minus the smallest one;
the fairness score is the mean of 1 - disparity over the variables. A group in which the metric is undefined, as the
AUROC where all are of one class, counts for nothing.

labels, scores: (n, K) one-hot and numbers, as of `ranking.macro_auroc`. groups: {variable: Groups}.
"""

from typing import NamedTuple

import numpy as np

from . import checks, ranking
from .weighted import evaluator


def macro_f1(labels, scores):
    """Mean F1 of K classes over those that occur or are said; the largest score (the first of equals) decides."""
    labels, scores = checks.labels_and_scores(labels, scores, dimensions=2)
    return float(_weighted_macro_f1(labels, scores)(np.ones((1, len(labels))))[0])


def _weighted_macro_f1(labels, scores):
    truth = np.asarray(labels, float)
    said = np.eye(truth.shape[1])[np.argmax(scores, axis=1)]

    def evaluate(weights):
        with np.errstate(invalid="ignore"):
            f1 = 2 * (weights @ (truth * said)) / (weights @ truth + weights @ said)
            return np.nansum(f1, axis=1) / np.count_nonzero(~np.isnan(f1), axis=1)

    return evaluate


macro_f1.weighted = _weighted_macro_f1
METRICS = {"auroc": ranking.macro_auroc, "f1": macro_f1}


class Groups(NamedTuple):
    """The groups of a variable: their names, and the number of each case's, -1 where it is unknown."""

    names: tuple[str, ...]
    codes: np.ndarray

    def members(self):
        """{name: (n,) bool} of the groups that have cases."""
        found = {name: self.codes == number for number, name in enumerate(self.names)}
        return {name: of for name, of in found.items() if of.any()}


def categories(texts):
    """The Groups of texts, None: unknown."""
    names = tuple(sorted({text for text in texts if text is not None}))
    return Groups(names, np.array([-1 if text is None else names.index(text) for text in texts]))


def bins(values, edges):
    """The Groups of numbers, NaN: unknown. Edges 25 and 50 give "<=25", "25-50" and ">50", upper ends included."""
    if list(edges) != sorted(set(edges)) or not len(edges):
        raise ValueError(f"edges: got {', '.join(map(str, edges)) or 'none'}, wanted numbers that rise")
    shown = [f"{edge:g}" for edge in edges]
    names = (f"<={shown[0]}", *map("-".join, zip(shown, shown[1:])), f">{shown[-1]}")
    places = np.searchsorted(np.asarray(edges, float), values, side="left")
    return Groups(names, np.where(np.isnan(values), -1, places))


class ByGroup:
    """A metric for `bootstrap_ci`: {key: value} of each group and variable, and of all variables together.

    Keys: ("group", variable, name) the metric; ("disparity", variable); ("fairness",). In a resample the difference is
    that of the two groups that are extreme in the data, with its sign: where the limits of a disparity include 0, none
    is shown. They do not know that the pair was chosen; `permutation` does.
    """

    def __init__(self, metric, groups):
        self.metric, self.groups = metric, groups

    def extremes(self, labels, scores):
        """{variable: (best group, worst group)}, of variables with two groups in which the metric is defined."""
        found = {}
        for variable in self.groups:
            values = {name: self.metric(labels[of], scores[of]) for name, of in self.groups[variable].members().items()}
            values = {name: value for name, value in values.items() if not np.isnan(value)}
            if len(values) > 1:
                found[variable] = max(values, key=values.get), min(values, key=values.get)
        return found

    def __call__(self, labels, scores):
        found = self.weighted(labels, scores)(np.ones((1, len(labels))))
        return {key: float(value[0]) for key, value in found.items()}

    def weighted(self, labels, scores):
        labels, scores = np.asarray(labels), np.asarray(scores)
        extremes = self.extremes(labels, scores)
        parts = [
            (("group", variable, name), of, evaluator(self.metric, (labels[of], scores[of])))
            for variable in self.groups
            for name, of in self.groups[variable].members().items()
        ]

        def evaluate(weights):
            found = {key: evaluate_group(weights[:, of]) for key, of, evaluate_group in parts}
            undefined = np.full(len(weights), np.nan)
            for variable in self.groups:
                best, worst = (("group", variable, name) for name in extremes.get(variable, (None, None)))
                found["disparity", variable] = found.get(best, undefined) - found.get(worst, undefined)
            defined = [found["disparity", variable] for variable in extremes]
            found["fairness",] = 1 - np.mean(defined, axis=0) if defined else undefined
            return found

        return evaluate


def permutation(metric, groups, labels, scores, subjects, resamples=1000, seed=0):
    """{variable: p} of the disparity, if which subject of a class is in which group said nothing of the metric.

    Whole subjects of one class swap groups; a subject's group is that of its first case. p = (1 + as large) / (1 +
    resamples); NaN where fewer than two groups are defined.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    names, first, subject = np.unique(subjects, return_index=True, return_inverse=True)
    of_class, found = labels[first].argmax(1), {}
    evaluate = evaluator(metric, (labels, scores))
    for place, (variable, of_variable) in enumerate(groups.items()):
        own = of_variable.codes[first]
        strata = [np.flatnonzero((own >= 0) & (of_class == k)) for k in np.unique(of_class)]
        rng, drawn = np.random.default_rng([seed, place]), np.tile(own, (resamples + 1, 1))
        for row in drawn[1:]:
            for members in strata:
                row[members] = own[rng.permutation(members)]
        values = [evaluate((drawn == code).astype(float)[:, subject]) for code in np.unique(own[own >= 0])]
        kept = np.array([of_group for of_group in values if not np.isnan(of_group[0])])
        if len(kept) < 2:
            found[variable] = float("nan")
            continue
        spread = np.nanmax(kept, axis=0) - np.nanmin(kept, axis=0)
        found[variable] = float((1 + np.count_nonzero(spread[1:] >= spread[0] - 1e-12)) / (1 + resamples))
    return found
