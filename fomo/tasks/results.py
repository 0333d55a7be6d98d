"""What travels between a task and those that run it: answers, results, and the outputs of its network."""

from typing import NamedTuple

import numpy as np

from ..metrics import bootstrap_ci, cross_validated_ci, fold_shift


class Answer(NamedTuple):
    """What a network says about one case whose label is known."""

    row: dict  # plain values, with `id`, `subject` and `loss`
    kept: object = None  # what only `Task.finish` and `Task.score` need, such as features; no table holds it

    @classmethod
    def of(cls, case, kept=None, **values):
        """The Answer about a Prepared case, with these values in its row."""
        return cls({"id": case.id, "subject": case.subject, **values}, kept)


def finished(answer):
    """The Answer that `Task.predict` has given, or of which it has given the rest of the work as a function."""
    return answer() if callable(answer) else answer


class Results(NamedTuple):
    """What a task makes of the answers of some cases."""

    rows: list  # a dict of plain values per case
    scans: list = []  # of networks that see slices: a dict per scan, pooled from its slices
    kept: list = []  # of each row, what its Answer kept

    def arrays(self, *names):
        """[(n,) array of each of the columns `names` of the rows]."""
        return [np.array([row[name] for row in self.rows]) for name in names]

    @property
    def folds(self):
        """(n,) fold of each row; None where the rows are not of several folds' models."""
        folds = [row.get("fold") for row in self.rows]
        return None if None in folds or len(set(folds)) < 2 else np.array(folds)

    def bootstrap(self, resamples, seed):
        """A function that gives the interval of a metric of arrays with a value per row, over whole subjects.

        It is `metrics.bootstrap_ci`, with `stratify`, or that of the out-of-fold cases of several models,
        `metrics.cross_validated_ci`, with `of_folds`, its options. chosen: the rows of which the arrays are.
        """
        subjects, folds = self.arrays("subject")[0], self.folds

        def interval(metric, labels, scores=None, chosen=slice(None), stratify=None, within=False, **of_folds):
            own = {"groups": subjects[chosen], "seed": seed}
            if folds is None:
                bounds = of_folds.get("bounds")
                return bootstrap_ci(metric, labels, scores, resamples, stratify=stratify, bounds=bounds, **own)
            return cross_validated_ci(metric, labels, scores, folds=folds[chosen], within=within, **own, **of_folds)

        return interval

    def shift(self, metric, name, labels, scores, seed):
        """Messages: where the metric within folds is not that over all cases, the models differ in their scale."""
        if self.folds is None:
            return ()
        difference, noise = fold_shift(metric, labels, scores, self.folds, self.arrays("subject")[0], seed)
        if not noise or not abs(difference) > 3 * noise:
            return ()
        what = f"the {name} within folds is {abs(difference):.3f} {'higher' if difference > 0 else 'lower'}"
        return [f"{what} than over all cases (noise {noise:.3f}): the folds' models do not score on one scale"]


class Blend(NamedTuple):
    """What an ensemble of a task's networks averages, each network with its weight."""

    targets: tuple  # columns of a row: the true values
    columns: tuple  # of a row: what is averaged
    metric: object  # (labels (n, K), values (n, K)) -> by which weights are searched, higher is better


def averaged(tasks, values):
    """The mean of the values (M, ...) of M networks, weighted; tasks: theirs."""
    return np.average(values, axis=0, weights=[task.weight for task in tasks])


class Output(NamedTuple):
    """An output of a network, and where its probability, or the number that it says, stands in a row."""

    index: int
    column: str  # of a row: its probability
    target: str  # of a row: the true value
    value: int | None  # of the target where the case has what this output stands for; None: it says a number
    name: str  # in print

    def is_there(self, row):
        return row[self.target] == self.value

    def truth(self, row):
        """What is there to say of a case: the number, or whether it has what the output stands for."""
        return row[self.target] if self.value is None else self.is_there(row)
