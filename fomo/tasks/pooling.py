"""From the slices of scans to the scans: one probability per label from those of all its slices."""

import numpy as np

KINDS = ("mean", "max", "topk", "noisy_or")


def pool(probabilities, scan, kind, top=3):
    """(scans, labels) from probabilities (slices, labels) and each slice's scan, a whole number 0 .. scans - 1.

    kind: "mean" or "max" over the slices of a scan; "topk": for each label the mean of the `top` highest slices (of all
    where there are fewer); "noisy_or": 1 - product of (1 - p), as if slices were independent and one were enough.
    """
    probabilities, scan = np.asarray(probabilities, np.float64), np.asarray(scan)
    order = np.argsort(scan, kind="stable")
    probabilities, scan = probabilities[order], scan[order]
    starts = np.flatnonzero(np.diff(scan, prepend=-1))
    counts = np.diff(starts, append=len(scan))[:, None]
    if kind == "max":
        return np.maximum.reduceat(probabilities, starts)
    if kind == "mean":
        return np.add.reduceat(probabilities, starts) / counts
    if kind == "noisy_or":
        return 1 - np.multiply.reduceat(1 - probabilities, starts)
    if kind != "topk":
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(KINDS)}")
    result = np.empty((len(starts), probabilities.shape[1]))
    kept = (np.arange(len(scan)) - np.repeat(starts, counts[:, 0]) < top)[:, None]
    for label, column in enumerate(probabilities.T):
        highest_first = column[np.lexsort((-column, scan))][:, None]
        result[:, label : label + 1] = np.add.reduceat(highest_first * kept, starts)
    return result / np.minimum(counts, top)
