"""Simulated cross-validations with a known truth: linear models that are refitted on each fold's training cases.

Each function returns labels (n,), folds (n,), subjects (n,), out-of-fold scores (studies, n) and the truth (studies,)
of each metric: the mean over the k models of their value in the population, which is Gaussian and so has a formula.
All studies of a set-up share labels, folds and subjects; their features are drawn anew.
"""

from typing import NamedTuple

import numpy as np
from scipy import special, stats

from fomo import metrics

FOLDS, FEATURES = 5, 5


class Studies(NamedTuple):
    labels: np.ndarray  # (n,), or (studies, n) targets of a regression
    folds: np.ndarray
    subjects: np.ndarray
    scores: np.ndarray
    truth: dict


def stratified(labels):
    """Fold of each label: those of a class take turns, the next class goes on where the last one stopped."""
    folds = np.empty(len(labels), int)
    order = np.argsort(labels, kind="stable")
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def _logistic(x, y, penalty=1.0, steps=12):
    """(studies, features + 1) coefficients of x (studies, n, features), the intercept last, by Newton's method."""
    x = np.concatenate([x, np.ones_like(x[..., :1])], axis=2)
    ridge = penalty * np.diag([1.0] * (x.shape[2] - 1) + [1e-3])
    w = np.zeros((len(x), x.shape[2]))
    for _ in range(steps):
        p = special.expit(np.einsum("sni,si->sn", x, w))
        gradient = np.einsum("sni,sn->si", x, p - y) + w @ ridge
        hessian = np.einsum("sni,sn,snj->sij", x, p * (1 - p), x) + ridge
        w -= np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return w


def _ridge(x, y, penalty=1.0):
    mean_x, mean_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    x, y = x - mean_x, y - mean_y
    gram = np.einsum("sni,snj->sij", x, x) + penalty * np.eye(x.shape[2])
    w = np.linalg.solve(gram, np.einsum("sni,sn->si", x, y)[..., None])[..., 0]
    return np.concatenate([w, mean_y - np.einsum("si,sni->sn", w, mean_x)], axis=1)


def _average_precision(separation, share):
    """Of N(separation, 1) positives among N(0, 1) negatives, by its integral over the recall; vectorised."""
    recall = (np.arange(400) + 0.5) / 400
    threshold = separation[..., None] + special.ndtri(1 - recall)
    fpr = special.ndtr(-threshold)
    return (share * recall / (share * recall + (1 - share) * fpr)).mean(axis=-1)


def _features(rng, studies, subjects, shift, features):
    """Unit normal features around `shift` (n, features); half the variance is the subject's where it has several."""
    count = subjects.max() + 1
    several = 0.5 if count < len(subjects) else 0.0
    own = rng.normal(size=(studies, count, features))[:, subjects]
    return shift + np.sqrt(several) * own + np.sqrt(1 - several) * rng.normal(size=(studies, len(subjects), features))


def classes(rng, studies, n, share, auroc, sessions=1, offset=0.0, features=FEATURES):
    """auroc: of the best linear score. offset: SD of what is added to the logits of a fold's model."""
    positive = max(1, round(share * n))
    subjects = np.arange(n)
    labels = (subjects < positive).astype(int)
    folds = stratified(labels)
    labels, folds, subjects = (np.repeat(values, sessions) for values in (labels, folds, subjects))
    length = np.sqrt(2) * special.ndtri(auroc)
    x = _features(rng, studies, subjects, labels[:, None] * length / np.sqrt(features), features)
    scores, found = np.empty(x.shape[:2]), {"auroc": [], "average_precision": [], "accuracy": []}
    for fold in range(FOLDS):
        test = folds == fold
        w = _logistic(x[:, ~test], labels[~test])
        w[:, -1] += offset * rng.normal(size=studies)
        scores[:, test] = np.einsum("sni,si->sn", x[:, test], w[:, :-1]) + w[:, -1:]
        norm = np.linalg.norm(w[:, :-1], axis=1)
        apart = w[:, :-1].sum(axis=1) * length / np.sqrt(features) / norm
        right = special.ndtr(apart + w[:, -1] / norm), special.ndtr(-w[:, -1] / norm)
        actual = labels.mean()
        found["auroc"].append(special.ndtr(apart / np.sqrt(2)))
        found["average_precision"].append(_average_precision(apart, actual))
        found["accuracy"].append(actual * right[0] + (1 - actual) * right[1])
    return Studies(labels, folds, subjects, scores, {name: np.mean(v, axis=0) for name, v in found.items()})


def numbers(rng, studies, n, explained, sessions=1, features=FEATURES):
    """explained: the R2 of the best linear prediction of targets with variance 1."""
    subjects = np.arange(n)
    folds = subjects % FOLDS
    folds, subjects = np.repeat(folds, sessions), np.repeat(subjects, sessions)
    x = _features(rng, studies, subjects, 0.0, features)
    beta = np.sqrt(explained / features)
    own = rng.normal(size=(studies, n))[:, subjects] if sessions > 1 else 0.0
    noise = rng.normal(size=(studies, n * sessions))
    noise = (noise + own) / np.sqrt(2) if sessions > 1 else noise
    y = beta * x.sum(axis=2) + np.sqrt(1 - explained) * noise
    scores, found = np.empty_like(y), {"mae": [], "r2": [], "pearson": []}
    for fold in range(FOLDS):
        test = folds == fold
        w = _ridge(x[:, ~test], y[:, ~test])
        scores[:, test] = np.einsum("sni,si->sn", x[:, test], w[:, :-1]) + w[:, -1:]
        spread, bias = np.sqrt(((w[:, :-1] - beta) ** 2).sum(axis=1) + 1 - explained), w[:, -1]
        found["mae"].append(stats.foldnorm.mean(np.abs(bias) / spread, scale=spread))
        found["r2"].append(1 - spread**2 - bias**2)
        found["pearson"].append(beta * w[:, :-1].sum(axis=1) / np.linalg.norm(w[:, :-1], axis=1))
    return Studies(y, folds, subjects, scores, {name: np.mean(v, axis=0) for name, v in found.items()})


def dices(rng, studies, n, missed=0.15, sessions=1):
    """Dice per case in `scores` (`labels` are the same), 0 where missed; each model has its own quality."""
    subjects = np.repeat(np.arange(n), sessions)
    folds = subjects % FOLDS
    hard = rng.normal(size=(studies, n))[:, subjects]
    quality = 0.25 * rng.normal(size=(studies, FOLDS))
    grid = (np.arange(2000) + 0.5) / 2000
    at = special.ndtri(grid)

    def value(z, q):
        good = special.expit(1.2 + q + 0.9 * z)
        return np.where(z + 0.5 * q < special.ndtri(missed), 0.0, good)

    noise = rng.normal(size=hard.shape)
    mixed = (hard + noise) / np.sqrt(2) if sessions > 1 else hard
    values = value(mixed, quality[:, folds])
    truth = np.mean([value(at, quality[:, k : k + 1]).mean(axis=1) for k in range(FOLDS)], axis=0)
    return Studies(values, folds, subjects, values, {"mean": truth})


def cases_of(kind, studies):
    """[(name of the metric, function, labels (n,) or (studies, n), scores or None)] of a set of studies."""
    if kind == "classes":
        right = ((studies.scores >= 0) == studies.labels).astype(float)
        ranked = [(name, getattr(metrics, name), studies.labels, studies.scores) for name in list(studies.truth)[:2]]
        return [*ranked, ("accuracy", np.mean, right, None)]
    if kind == "numbers":
        return [(name, getattr(metrics, name), studies.labels, studies.scores) for name in studies.truth]
    return [("mean", np.mean, studies.labels, None)]


def coverage(kind, studies, interval, only=None):
    """{metric: (share of the studies whose interval holds the truth, mean width)}.

    interval: (metric, labels, scores or None, folds, subjects, number of the study) -> Interval.
    """
    found = {}
    for name, metric, labels, scores in cases_of(kind, studies):
        if only not in (None, name):
            continue
        hits, widths = [], []
        for i, truth in enumerate(studies.truth[name]):
            own = labels if labels.ndim == 1 else labels[i]
            other = None if scores is None else scores[i]
            _, low, high, _ = interval(metric, own, other, studies.folds, studies.subjects, i)
            hits.append(low - 1e-9 <= truth <= high + 1e-9)
            widths.append(high - low)
        found[name] = float(np.mean(hits)), float(np.nanmean(widths))
    return found
