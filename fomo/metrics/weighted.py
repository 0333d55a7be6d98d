"""Metrics of many weightings of the same cases at once, as resampling needs them.

Each function takes the data of a metric, and returns a function of the cases' weights (resamples, n) that gives its
(resamples,) values. Weights are whole numbers: how often a case counts.
"""

from functools import partial

import numpy as np

from . import checks, ranking, regression

_REGRESSION = ("mae", "mse", "rmse", "r2", "pearson", "ccc", "bias_slope")


def one_by_one(metric, data):
    def evaluate(weights):
        indices = (np.repeat(np.arange(len(row)), row.astype(np.int64)) for row in weights)
        values = [metric(*(array[index] for array in data)) for index in indices]
        if isinstance(values[0], dict):
            return {name: np.array([value[name] for value in values], np.float64) for name in values[0]}
        return np.array(values, np.float64)

    return evaluate


def _weighted_mean(values):
    values = checks.real(values, "values", finite=False).astype(np.float64)

    def evaluate(weights):
        with np.errstate(invalid="ignore"):  # 0 times inf: the estimate is infinite, and its limits NaN anyway
            return weights @ values / weights.sum(axis=1)

    return evaluate


def _by_score(labels, scores, descending=False):
    """A function that gives (resamples, distinct scores) weights of the positive and of the negative cases."""
    labels, scores = checks.labels_and_scores(labels, scores)
    order = np.argsort(-scores if descending else scores)
    labels, scores = labels[order], scores[order]
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))

    def class_weights(weights):
        weights = weights[:, order]
        both = weights * labels, weights * ~labels
        return both if len(starts) == len(order) else [np.add.reduceat(one, starts, axis=1) for one in both]

    return class_weights


def _weighted_auroc(labels, scores):
    class_weights = _by_score(labels, scores)

    def evaluate(weights):
        positive, negative = class_weights(weights)
        below = np.cumsum(negative, axis=1)
        total = below[:, -1] * positive.sum(axis=1)
        below -= negative / 2  # ties count half
        with np.errstate(invalid="ignore"):
            return np.einsum("rn,rn->r", positive, below) / total

    return evaluate


def _weighted_average_precision(labels, scores):
    class_weights = _by_score(labels, scores, descending=True)

    def evaluate(weights):
        positive, negative = class_weights(weights)
        tp, fp = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
        with np.errstate(invalid="ignore"):
            precision = np.where(tp > 0, tp / (tp + fp), 0)
            value = np.einsum("rn,rn->r", positive, precision) / tp[:, -1]
        return np.where(fp[:, -1] > 0, value, np.nan)

    return evaluate


def _weighted_macro_auroc(labels, scores):
    labels, scores = checks.labels_and_scores(labels, scores, dimensions=2)
    columns = [_weighted_auroc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    return _macro(columns)


def _macro(columns):
    """The mean of those of several functions of the weights that are defined."""

    def evaluate(weights):
        values = np.array([column(weights) for column in columns])
        with np.errstate(invalid="ignore"):
            return sum(np.nan_to_num(values)) / sum(~np.isnan(values))

    return evaluate


def _weighted_regression(name, targets, predictions):
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    error = predictions - targets
    x, y = targets - targets.mean(), predictions - predictions.mean()
    columns = np.stack([np.abs(error), error**2, x, y, x * x, y * y, x * y], axis=1)
    shift = targets.mean() - predictions.mean()

    def evaluate(weights):
        mae, mse, mx, my, xx, yy, xy = (weights @ columns / weights.sum(axis=1)[:, None]).T
        xx, yy, xy = xx - mx * mx, yy - my * my, xy - mx * my
        # where a resample repeats one value, what is left is rounding and no spread
        xx = np.where(xx > 1e-14 * np.square(x).max(), xx, np.nan)
        yy = np.where(yy > 1e-14 * np.square(y).max(), yy, np.nan)
        pearson = np.clip(xy / np.sqrt(xx * yy), -1, 1)
        with np.errstate(invalid="ignore"):  # where nothing varies
            ccc = 2 * xy / (np.nan_to_num(xx) + np.nan_to_num(yy) + (mx - my + shift) ** 2)
        values = mae, mse, np.sqrt(mse), 1 - mse / xx, pearson, ccc, xy / xx - 1
        return dict(zip(_REGRESSION, values))[name]

    return evaluate


WEIGHTED = {
    np.mean: _weighted_mean,
    ranking.auroc: _weighted_auroc,
    ranking.average_precision: _weighted_average_precision,
    ranking.macro_auroc: _weighted_macro_auroc,
    **{getattr(regression, name): partial(_weighted_regression, name) for name in _REGRESSION},
}


def evaluator(metric, data):
    """The function of the weights for a metric (labels, scores) of `data`, which may have its own, metric.weighted.

    The weights are 0 or more; where a metric has no fast function they are rounded down to how often a case is there.
    """
    own = getattr(metric, "weighted", None) or WEIGHTED.get(metric)
    return own(*data) if own else one_by_one(metric, data)


def _within_auroc(labels, scores, folds):
    """Over the pairs of one fold."""
    labels, scores = checks.labels_and_scores(labels, scores)
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    parts = [(own, _by_score(labels[own], scores[own])) for own in members]

    def evaluate(weights):
        wins, pairs = np.zeros((2, len(weights)))
        for own, class_weights in parts:
            positive, negative = class_weights(weights[:, own])
            below = np.cumsum(negative, axis=1)
            pairs += below[:, -1] * positive.sum(axis=1)
            wins += np.einsum("rn,rn->r", positive, below - negative / 2)
        with np.errstate(invalid="ignore"):
            return wins / pairs

    return evaluate


def _within_macro_auroc(labels, scores, folds):
    columns = [_within_auroc(labels[:, k], scores[:, k], folds) for k in range(labels.shape[1])]
    return _macro(columns)


def _within_pearson(targets, predictions, folds):
    """Of the deviations from the fold's means."""
    targets, predictions = checks.real_pair(targets, predictions, "targets", "predictions")
    x, y = targets - targets.mean(), predictions - predictions.mean()
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    smallest = 1e-14 * np.square([x, y]).max(axis=1)

    def evaluate(weights):
        xx, yy, xy = np.zeros((3, len(weights)))
        for fold in np.unique(folds):
            total, mx, my, *squares = (weights[:, folds == fold] @ columns[folds == fold]).T
            some = np.maximum(total, 1)
            for found, square, product in zip((xx, yy, xy), squares, (mx * mx, my * my, mx * my)):
                found += square - product / some
        spread = (xx > smallest[0] * len(x)) & (yy > smallest[1] * len(x))
        return np.clip(xy / np.sqrt(np.where(spread, xx * yy, np.nan)), -1, 1)

    return evaluate


WITHIN = {ranking.auroc: _within_auroc, ranking.macro_auroc: _within_macro_auroc, regression.pearson: _within_pearson}
