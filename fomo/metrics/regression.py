"""Regression metrics, and the linear correction of the age bias.

targets, predictions: (n,), finite; the error is prediction minus target. Where a formula divides by 0, as for equal
targets, the result is NaN.
"""

import math

import numpy as np

from . import checks
from .ranking import average_ranks

_FEWEST_TO_CORRECT = 20  # cases; in simulations of fewer the corrected error was up to twice the raw one
_LARGEST_RISE = 0.05  # of the mean absolute error, by what `bounded_bias_correction` does
_LARGEST_GAIN = 3.0


def mae(targets, predictions):
    """Mean absolute error, in the targets' unit."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    return float(np.abs(predictions - targets).mean())


def mse(targets, predictions):
    """Mean squared error."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    return float(np.square(predictions - targets).mean())


def rmse(targets, predictions):
    """Root of the mean squared error, in the targets' unit."""
    return float(np.sqrt(mse(targets, predictions)))


def r2(targets, predictions):
    """Coefficient of determination, 1 - sum of squared errors / sum of squares about the targets' mean."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    return 1 - checks.ratio(np.square(predictions - targets).sum(), _squares(targets))


def pearson(targets, predictions):
    """Pearson's correlation."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    squares = np.sqrt(_squares(targets)) * np.sqrt(_squares(predictions))
    return float(np.clip(checks.ratio(_products(targets, predictions), squares), -1, 1))


def spearman(targets, predictions):
    """Spearman's correlation: Pearson's on the ranks, ties sharing their mean rank."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    return pearson(average_ranks(targets), average_ranks(predictions))


def ccc(targets, predictions):
    """Lin's concordance, 2 s_xy / (s_x^2 + s_y^2 + (mean x - mean y)^2), with 1/n moments (Biometrics 45:255, 1989)."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    shift = len(targets) * (targets.mean() - predictions.mean()) ** 2
    return checks.ratio(2 * _products(targets, predictions), _squares(targets) + _squares(predictions) + shift)


def bias_slope(targets, predictions):
    """Least-squares slope of the error over the target: 0 without bias, -1 where the mean is always predicted."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    return checks.ratio(_products(targets, predictions - targets), _squares(targets))


def regression_metrics(targets, predictions):
    """All of the above as a dict: mae mse rmse r2 pearson spearman ccc bias_slope."""
    metrics = (mae, mse, rmse, r2, pearson, spearman, ccc, bias_slope)
    return {metric.__name__: metric(targets, predictions) for metric in metrics}


def fit_bias_correction(targets, predictions):
    """(slope, intercept) of the least-squares line prediction = slope * target + intercept.

    Fit it on cases that are not reported on. Both are NaN when all targets are equal.
    """
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    slope = checks.ratio(_products(targets, predictions), _squares(targets))
    return slope, float(predictions.mean() - slope * targets.mean())


def bounded_bias_correction(targets, predictions):
    """((slope, intercept), reason): the line of `fit_bias_correction`, as far as it cannot harm.

    Dividing by a flat line that few cases have given makes errors many times larger. Therefore the line is flattened
    only as far as its slope is known (two standard errors), at most to a third, and only as long as the mean absolute
    error of these cases does not rise by more than a twentieth, two standard errors included. The mean prediction
    stays where it is. (1, 0) changes nothing; then `reason` says why, else it is None.
    """
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    count, squares = len(targets), _squares(targets)
    if count < _FEWEST_TO_CORRECT:
        return (1.0, 0.0), f"{count} cases, wanted {_FEWEST_TO_CORRECT} or more"
    if not squares:
        return (1.0, 0.0), "their targets are all equal"
    slope, intercept = fit_bias_correction(targets, predictions)
    spread = np.sum((predictions - slope * targets - intercept) ** 2) / (count - 2)
    flatness = 1 - slope
    sure = max(0.0, 1 - 4 * spread / squares / max(flatness**2, 1e-18))
    centre, raw, gain = predictions.mean(), np.abs(predictions - targets), 1.0
    for candidate in np.linspace(1, min(_LARGEST_GAIN, 1 / max(1 - flatness * sure, 1e-9)), 41)[1:]:
        rise = np.abs(centre + candidate * (predictions - centre) - targets) - raw
        if rise.mean() + 2 * rise.std(ddof=1) / math.sqrt(count) > _LARGEST_RISE * raw.mean():
            break
        gain = float(candidate)
    reason = None if gain != 1 else "no slope is sure enough, or it would raise the error"
    return (1 / gain, float(centre * (1 - 1 / gain))), reason


def apply_bias_correction(predictions, correction):
    """(predictions - intercept) / slope: Cole et al., Mol Psychiatry 23:1385 (2018); NaN when the slope is 0 or NaN.

    It needs no target of the corrected cases. The variant of de Lange and Cole, NeuroImage Clin 26:102229 (2020), is
    left out on purpose: it subtracts a line in the *true* age, so that even a constant prediction correlates with age.
    """
    predictions = checks.real(predictions, "predictions").astype(np.float64)
    slope, intercept = correction
    return (predictions - intercept) / (slope if slope else np.nan)


def _products(first, second):
    """Sum of the products about the means; exactly 0 where either is constant, although its mean may be rounded."""
    constant = any(values.min() == values.max() for values in (first, second))
    return 0.0 if constant else np.dot(first - first.mean(), second - second.mean())


def _squares(values):
    """Sum of the squares about the mean."""
    return _products(values, values)


def conformal_half_width(targets, predictions, level=0.9):
    """Half the width of an interval about a prediction that holds a new case's target with probability `level` or more.

    Split conformal prediction (Lei et al., JASA 113:1094, 2018): the ceil((n + 1) * level)-th smallest absolute error
    of n cases, which the model was not trained on and which are as new ones are. Infinite for too few
    cases, at 0.9 fewer than nine: no smaller interval can promise the level.
    """
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    level = checks.number(level, "level", 0.5, 0.9999)
    place = int(np.ceil((len(targets) + 1) * level - 1e-9))
    errors = np.sort(np.abs(targets - predictions))
    return float(errors[place - 1]) if place <= len(errors) else float("inf")
