"""What travels between a task and those that run it: answers, results, and the outputs of its network."""

import functools
from typing import NamedTuple

import numpy as np

from ..metrics import bootstrap_ci


class Answer(NamedTuple):
    """What a network says about one case whose label is known."""

    row: dict  # plain values, with `id`, `subject` and `loss`
    kept: object = None  # what only `Task.finish` and `Task.score` need, such as features; no table holds it

    @classmethod
    def of(cls, case, kept=None, **values):
        """The Answer about a Prepared case, with these values in its row."""
        return cls({"id": case.id, "subject": case.subject, **values}, kept)


class Results(NamedTuple):
    """What a task makes of the answers of some cases."""

    rows: list  # a dict of plain values per case
    scans: list = []  # of networks that see slices: a dict per scan, pooled from its slices
    kept: list = []  # of each row, what its Answer kept

    def arrays(self, *names):
        """[(n,) array of each of the columns `names` of the rows]."""
        return [np.array([row[name] for row in self.rows]) for name in names]

    def bootstrap(self, resamples, seed):
        """`metrics.bootstrap_ci` of arrays that have a value per row; it draws whole subjects."""
        return functools.partial(bootstrap_ci, resamples=resamples, seed=seed, groups=self.arrays("subject")[0])


class Output(NamedTuple):
    """An output of a network that tells classes apart, and where its probability stands in a row."""

    index: int
    column: str  # of a row: its probability
    target: str  # of a row: the true value
    value: int  # of the target where the case has what this output stands for
    name: str  # in print

    def is_there(self, row):
        return row[self.target] == self.value
