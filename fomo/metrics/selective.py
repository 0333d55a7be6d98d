"""What a model's errors are on the cases of which it is surest, if the others are left to a human."""

import numpy as np

from . import checks


def risk_coverage(losses, confidence):
    """(coverage (n,), risk (n,)): the mean loss of the surest 1/n, 2/n ... of the cases (El-Yaniv and Wiener 2010).

    losses: (n,) finite, as 1 for a wrong decision and 0 for a right one. confidence: (n,) finite, higher for surer.
    Cases of equal confidence share their mean loss, so that their order does not count.
    """
    losses, confidence = checks.real_pair(losses, confidence, "losses", "confidence")
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(group, losses) / counts
    covered = np.arange(1, len(losses) + 1)
    return covered / len(losses), np.cumsum(np.repeat(mean, counts)) / covered


def risk_coverage_area(losses, confidence):
    """The mean of the risk over all coverages (AURC, Geifman and El-Yaniv 2017): low where errors are unsure."""
    return float(risk_coverage(losses, confidence)[1].mean())
