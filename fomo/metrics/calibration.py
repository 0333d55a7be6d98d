"""Are the probabilities right: Brier score, log loss, calibration error; temperature scaling.

Binary: labels (n,) 0/1 and probabilities (n,) of class 1. Multiclass: labels (n,) in 0..k-1 and probabilities (n, k).
"""

import numpy as np
from scipy import optimize, special

from . import checks


def check_multiclass(labels, probabilities):
    """Labels as int64 (n,) and probabilities as float64 (n, k), in [0, 1], rows summing to 1 (to 1e-4)."""
    probabilities = checks.real(probabilities, "probabilities", dimensions=2).astype(np.float64)
    checks.probability_range(probabilities)
    sums = probabilities.sum(axis=1)
    if np.abs(sums - 1).max() > 1e-4:
        worst = int(np.abs(sums - 1).argmax())
        checks.fail("probabilities", f"a sum of {sums[worst]:.6g} in row {worst}", "rows that sum to 1")
    labels = checks.class_labels(labels, probabilities.shape[1])
    if len(labels) != len(probabilities):
        checks.fail("probabilities", f"{len(probabilities)} rows", f"{len(labels)}, the number of labels")
    return labels, probabilities


def _of_true_class(labels, probabilities):
    """(n,) probability given to each case's true class."""
    if np.ndim(probabilities) == 2:
        labels, probabilities = check_multiclass(labels, probabilities)
        return probabilities[np.arange(len(labels)), labels]
    labels, probabilities = checks.labels_and_probabilities(labels, probabilities)
    return np.where(labels, probabilities, 1 - probabilities.astype(np.float64))


def brier(labels, probabilities):
    """Mean squared error of the probabilities; for k > 2 columns, of all k, summed over the classes (0 to 2).

    Binary (n,): mean of (p - y)^2 (0 to 1), as scikit-learn; the (n, k) form is Brier's original, twice that for k = 2.
    """
    if np.ndim(probabilities) == 2:
        labels, probabilities = check_multiclass(labels, probabilities)
        return float(np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1).mean())
    return float(np.square(1 - _of_true_class(labels, probabilities)).mean())


def log_loss(labels, probabilities):
    """Mean of -ln(probability of the true class), which is clipped at float64's 2.2e-16, as in scikit-learn."""
    epsilon = np.finfo(np.float64).eps
    return float(-np.log(np.clip(_of_true_class(labels, probabilities), epsilon, 1 - epsilon)).mean())


def ece(labels, probabilities, bins=15):
    """Expected calibration error: |mean outcome - mean probability| over equal-width bins, weighted by their cases.

    Binary: bins of the probability of class 1, outcome the label. Multiclass: bins of the largest probability, outcome
    whether it is right (Guo et al., ICML 2017). A bin includes its lower edge, the last one also 1, as torchmetrics.
    """
    checks.whole_number(bins, "bins", 1)
    if np.ndim(probabilities) == 2:
        labels, probabilities = check_multiclass(labels, probabilities)
        confidence, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        outcome, confidence = checks.labels_and_probabilities(labels, probabilities)
    edges = np.linspace(0, 1, bins + 1)
    index = np.minimum(np.searchsorted(edges, confidence, "right") - 1, bins - 1)
    gaps = np.bincount(index, outcome - confidence.astype(np.float64), bins)
    return float(np.abs(gaps).sum() / len(outcome))


def fit_temperature(labels, logits, bounds=(0.05, 20.0)):
    """The temperature for `apply_temperature` that minimises the log loss (Guo et al., ICML 2017).

    labels (n,), logits (n,) of class 1 against class 0, or (n, k). Fit on cases that are not reported on. The loss is
    convex in 1/temperature; separable cases end at the lower bound, logits that rank the wrong way at the upper. One
    class only: NaN.
    """
    low, high = (checks.number(bound, "bounds", 0, above=True) for bound in bounds)
    if np.ndim(logits) == 2:
        logits = checks.real(logits, "logits", 2).astype(np.float64)
        labels = checks.class_labels(labels, logits.shape[1])
        if len(labels) != len(logits):
            checks.fail("logits", f"{len(logits)} rows", f"{len(labels)}, the number of labels")
        others = logits - logits[np.arange(len(labels)), labels][:, None]
    else:
        labels, logits = checks.labels_and_scores(labels, logits, name="logits")
        logits = logits.astype(np.float64)
        others = np.stack([np.zeros(len(logits)), np.where(labels, -logits, logits)], axis=1)
    if (labels == labels[0]).all():
        return float("nan")

    def loss(log_temperature):
        return special.logsumexp(others * np.exp(-log_temperature), axis=1).mean()

    bounds = np.log([low, high])
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options=dict(xatol=1e-9))
    return float(np.exp(min((found.x, *bounds), key=loss)))


def apply_temperature(logits, temperature):
    """Probabilities of logits / temperature: (n,) -> probability of class 1, (n, k) -> (n, k); temperature NaN: NaN."""
    logits = np.asarray(logits, np.float64) / temperature
    return special.expit(logits) if logits.ndim == 1 else special.softmax(logits, axis=1)
