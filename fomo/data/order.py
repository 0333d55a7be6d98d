"""The training case of each sample slot: shuffled passes over all cases, or balanced between classes or labels."""

import functools

import numpy as np

from ..runtime import seeds

_PASS = 16  # length of a pass that is balanced between labels, per case: as fine as shares can be
_STEPS = 200  # of the fit of these shares
_LEAST = 1e-12  # share of a label that cannot be seen more often


class Order:
    """The case of each slot: one shuffled pass after another, so that all cases are seen equally often.

    groups: [places of cases]: the passes are over the groups, and each group has its own passes over its places.
    """

    def __init__(self, count, seed, fold, groups=None):
        self._arguments = count, seed, fold, groups
        self._groups = [np.arange(count)] if groups is None else groups
        self._shuffled = functools.lru_cache(maxsize=2 * len(self._groups) + 2)(self._shuffle)

    def _shuffle(self, size, *address):
        _, seed, fold, _ = self._arguments
        return seeds.generator(seed, "order", fold, *address).permutation(size)

    def __getitem__(self, slot):
        turn, place = divmod(slot, len(self._groups))
        which = self._shuffled(len(self._groups), 0, turn)[place]
        members = self._groups[which]
        turn, place = divmod(turn, len(members))
        return int(members[self._shuffled(len(members), 1 + int(which), turn)[place]])

    def __reduce__(self):  # to worker processes that are spawned: the memo stays behind
        return Order, self._arguments


def by_class(classes):
    """Groups that draw all classes equally often; classes: (n,) whole numbers."""
    classes = np.asarray(classes)
    return [np.flatnonzero(classes == value) for value in np.unique(classes)]


def by_label(flags):
    """One group that shows each label, and cases without any, about equally often; flags: (n, labels) 0/1.

    A case stands in it once or more: the weight of a case is the product of one factor for each of its labels, so that
    the weights of each label's cases have one sum (iterative proportional fitting). Where a label's cases all have
    another one, that one is seen more often. Labels that no case or every case has are left out.
    """
    flags = np.asarray(flags, bool)
    flags = flags[:, (flags.sum(0) > 0) & (flags.sum(0) < len(flags))]
    flags = np.column_stack([flags, ~flags.any(1)])
    flags = flags[:, flags.any(0)].astype(float)
    factors = np.zeros(flags.shape[1])  # their logarithms
    step = min(0.5, 1 / flags.sum(1).max())  # a larger one overshoots where a case has many labels, and diverges
    for _ in range(_STEPS):
        logarithms = flags @ factors
        weights = np.exp(logarithms - logarithms.max())
        weights /= weights.sum()
        seen = weights @ flags
        factors -= step * np.log(np.maximum(seen, _LEAST) / seen.mean())
    times = np.maximum(1, np.round(weights * _PASS * len(flags))).astype(int)
    return [np.repeat(np.arange(len(flags)), times)]
