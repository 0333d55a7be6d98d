"""Whether probabilities are right: Brier score, log loss and calibration error.

Binary: labels (n,) 0/1 and probabilities (n,) of class 1. Multiclass: labels (n,) in 0..k-1 and probabilities (n, k).
"""

import numpy as np

from . import checks

_EDGE = 1e-6  # how near to 0 and 1 a threshold may lie
_SURE = 16.0  # log odds, 1e-7: a probability of 0 should not be all that a temperature is fitted to


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
    """Mean squared error of the probabilities.

    Binary: from 0 to 1, as in scikit-learn. Multiclass: Brier's original, which sums over the classes, from 0 to 2.
    """
    if np.ndim(probabilities) == 2:
        labels, probabilities = check_multiclass(labels, probabilities)
        return float(np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1).mean())
    return float(np.square(1 - _of_true_class(labels, probabilities)).mean())


def log_loss(labels, probabilities):
    """Mean of -ln(probability of the true class), clipped at float64's 2.2e-16, as in scikit-learn."""
    epsilon = np.finfo(np.float64).eps
    return float(-np.log(np.clip(_of_true_class(labels, probabilities), epsilon, 1 - epsilon)).mean())


def ece(labels, probabilities, bins=15):
    """Expected calibration error: |mean outcome - mean probability| over equal-width bins, weighted by their cases.

    Binary: binned by the probability of class 1; the outcome is the label. Multiclass: by the largest probability; the
    outcome is whether it is right (Guo et al., ICML 2017). A bin includes its lower edge, the last one also 1.
    """
    checks.whole_number(bins, "bins", 1)
    if np.ndim(probabilities) == 2:
        labels, probabilities = check_multiclass(labels, probabilities)
        confidence, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        outcome, confidence = checks.labels_and_probabilities(labels, probabilities)
    edges = np.linspace(0, 1, bins + 1)
    index = np.minimum(np.searchsorted(edges, confidence, "right") - 1, bins - 1)
    return float(np.abs(np.bincount(index, outcome - confidence.astype(np.float64), bins)).sum() / len(outcome))


def fit_logistic(labels, scores, beside=None):
    """(slope, intercept) of the line whose sigmoid turns scores (n,) into probabilities of class 1 (Platt 1999).

    It works with few cases, and with scores that part the classes: as Platt does, the n1 cases of class 1 are taken for
    (n1 + 1) / (n1 + 2) of one, and the others for 1 / (n0 + 2). Besides, slope and intercept of the standardised scores
    are drawn to 1 and 0, as by one standard normal observation each, and the slope is positive, so that the order of
    the scores stays.

    With other scores `beside` them (n,): (slope, slope of these, intercept). Theirs is drawn to 0, and is not negative:
    few cases leave the first ones alone.
    """
    from scipy.optimize import minimize

    labels, scores = checks.labels_and_scores(labels, scores)
    columns = [scores] if beside is None else [scores, checks.labels_and_scores(labels, beside, name="beside")[1]]
    positives = np.count_nonzero(labels)
    wanted = np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    values = np.stack(columns, axis=1).astype(np.float64)
    centre, scale = values.mean(0), values.std(0)
    scale[scale == 0] = 1.0
    standard = np.column_stack([(values - centre) / scale, np.ones(len(labels))])
    prior = np.eye(standard.shape[1])[0]  # slope 1 of the first, and 0 of all else

    def cost(line):
        logits, away = standard @ line, line - prior
        off = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - wanted
        value = (np.logaddexp(0, logits) - wanted * logits).sum() + (away**2).sum() / 2
        return value, off @ standard + away

    bounds = [(0.01, None), *[(0.0, None)] * (len(columns) - 1), (None, None)]
    *slopes, intercept = minimize(cost, prior, jac=True, bounds=bounds).x
    slopes = np.array(slopes) / scale
    return *slopes.tolist(), float(intercept - slopes @ centre)


def fit_temperature(labels, probabilities):
    """The temperature T > 0 by which sigmoid(logit(p) / T) is best calibrated on these cases (Guo et al., ICML 2017).

    labels (n,) 0/1, probabilities (n,) of class 1. Above 1: the probabilities were too sure. The order stays, and so
    does 1/2. As in `fit_logistic` the labels are a little less than sure, and log T is drawn to 0 by one standard
    normal observation, so that few cases, or cases that are parted, give no extreme one; it is 1/20 to 20.
    """
    from scipy.optimize import minimize_scalar

    labels, probabilities = checks.labels_and_probabilities(labels, probabilities)
    odds, positives = np.clip(logit(probabilities), -_SURE, _SURE), np.count_nonzero(labels)
    wanted = np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def cost(log_t):
        scaled = odds * np.exp(-log_t)
        return (np.logaddexp(0, scaled) - wanted * scaled).sum() + log_t**2 / 2

    return float(np.exp(minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded").x))


def logit(probabilities):
    """Log odds; 0 and 1 count as the numbers beside them (1e-38, and 1 less float64's 1.1e-16)."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-38, 1 - 2.0**-53)
    return np.log(p) - np.log1p(-p)


def tempered(probabilities, temperature):
    """sigmoid(logit(p) / temperature); at temperature 1 the probabilities as they are."""
    if temperature == 1:
        return probabilities
    return 1 / (1 + np.exp(-logit(probabilities) / temperature))


def shifted(probabilities, thresholds):
    """sigmoid(logit(p) - logit(t)): each p in the same order as before, and t becomes 1/2.

    probabilities (..., n) and thresholds (n,), or one for all; thresholds at 0 and 1 count as 1e-6 from them.
    """
    chosen = np.clip(np.asarray(thresholds, np.float64), _EDGE, 1 - _EDGE)
    return 1 / (1 + np.exp(logit(chosen) - logit(probabilities)))
