"""The linear probe of FOMO26: heads of several learning rates on frozen features, of which validation chooses one.

All heads see the same batches. They are trained by gradient descent with momentum and without weight decay, at a rate
that falls to 0 on a half cosine, as DINOv2's probes are (Oquab et al. 2024). Features are taken as they are: a head
of a rate that is too high for them may diverge, and is then not chosen. Needs numpy and scipy only.
"""

from typing import NamedTuple

import numpy as np
import scipy

from . import checks, ranking
from .probe import check_classes

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_DEVIATION = 0.01  # of the first weights
_MOMENTUM = 0.9


class Heads(NamedTuple):
    """Linear heads side by side: weight (F, R, K), bias (R, K)."""

    weight: np.ndarray
    bias: np.ndarray

    def probabilities(self, features):
        """(R, n, K) of features (n, F); NaN of heads that have diverged."""
        with np.errstate(all="ignore"):
            logits = np.tensordot(np.asarray(features, float), self.weight, 1) + self.bias
            return scipy.special.softmax(logits, axis=2).transpose(1, 0, 2)


def train(features, labels, classes, rates=RATES, epochs=20, batch_size=64, seed=0):
    """Heads (R of them) that have learned whole numbers 0 .. K-1 (n,) from features (n, F), by the mean log loss.

    The seed gives the first weights, equal for all rates, and the order of each epoch.
    """
    features, labels = np.asarray(features, float), check_classes(labels, classes)
    checks.whole_number(epochs, "epochs", 1)
    (n, inputs), count, rate = features.shape, len(rates), np.asarray(rates, float)[:, None]
    first = np.random.default_rng([seed, 0]).normal(0, _DEVIATION, (inputs, 1, classes))
    weight, bias = np.repeat(first, count, axis=1), np.zeros((count, classes))
    speeds, one_hot = (np.zeros_like(weight), np.zeros_like(bias)), np.eye(classes)[labels]
    starts = range(0, n, batch_size)
    steps = epochs * len(starts)
    with np.errstate(all="ignore"):  # heads that diverge
        for epoch in range(epochs):
            order = np.random.default_rng([seed, 1 + epoch]).permutation(n)
            for place, start in enumerate(starts):
                chosen = order[start : start + batch_size]
                x, share = features[chosen], rate * (1 + np.cos(np.pi * (epoch * len(starts) + place) / steps)) / 2
                logits = (x @ weight.reshape(inputs, -1)).reshape(len(x), count, classes) + bias
                error = (scipy.special.softmax(logits, axis=2) - one_hot[chosen, None]) / len(x)
                slopes = (x.T @ error.reshape(len(x), -1)).reshape(weight.shape), error.sum(0)
                for values, speed, slope in zip((weight, bias), speeds, slopes):
                    speed *= _MOMENTUM
                    speed += slope
                    values -= share * speed
    return Heads(weight, bias)


def choose(probabilities, labels):
    """(index, macro AUROC of each) of the head that ranks best; NaN for one that has diverged.

    probabilities: (R, n, K) of validation cases; labels: (n,). Of equal ones the lowest rate's, the first. ValueError
    where all have diverged, or no class can be ranked.
    """
    one_hot = np.eye(probabilities.shape[2], dtype=int)[labels]
    found = np.array([ranking.macro_auroc(one_hot, of) if np.isfinite(of).all() else np.nan for of in probabilities])
    if np.isnan(found).all():
        raise ValueError("the heads of all rates have diverged, or the validation cases are of one class")
    return int(np.nanargmax(found)), found
