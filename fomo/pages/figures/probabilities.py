"""ROC, precision and recall, calibration and scores, of one label, of several runs or classes, and of many labels."""

import numpy as np

from ... import metrics
from ..page import number
from ..rates import wilson
from .epochs import FOLDS
from .panel import BLUE, GREEN, GREY, MARKS, ORANGE, PURPLE, SKY, SOFT, diagonal, legend_above, plot, unit_square

_BAND = {"color": BLUE, "alpha": 0.18, "linewidth": 0, "label": "95% band"}
_CHOSEN = (("-", GREEN), ("-.", PURPLE), (":", ORANGE))  # of the labels that are drawn beside all together


@plot
def roc(axes, labels, scores, subjects, seed, auroc, point=None):
    """The curve of (n,) labels and scores, with its band over subjects.

    point: (false-positive rate, true-positive rate) of the decisions.
    """
    axes.fill_between(*roc_band(labels, scores, subjects, seed), **_BAND)
    _draw_roc(axes, labels, scores, color=BLUE, linewidth=1.8, label=f"model, AUROC {number(auroc, 3)}")
    if point is not None:
        look = {"color": ORANGE, "markersize": 8, "markeredgecolor": "white", "zorder": 5}
        axes.plot(*point, "D", label="decisions", clip_on=False, **look)
    _finish_roc(axes, chance="chance, 0.5")
    return f"ROC curve, area {number(auroc, 3)}; chance is 0.5"


@plot
def rocs(axes, curves):
    """Several curves in one plot: [(name, labels, scores)]."""
    areas = [(name, number(metrics.auroc(labels, scores), 3)) for name, labels, scores in curves]
    looks = zip(FOLDS * 4, ("-", "--", "-.", ":") * 8)
    for (_, labels, scores), (name, area), (colour, style) in zip(curves, areas, looks):
        _draw_roc(axes, labels, scores, style, color=colour, label=f"{name}, {area}")
    _finish_roc(axes, title="AUROC", title_fontsize=8)
    return "ROC curves: " + ", ".join(f"{name} {area}" for name, area in areas)


@plot
def mean_roc(axes, labels, scores, subjects, seed, mean_auroc, chosen):
    """The mean curve over labels (n, K) with its band, and those of `chosen`: [(name, column, AUROC)]."""
    band = roc_band(labels, scores, subjects, seed, resamples=int(np.clip(2e7 / labels.size, 50, 500)))
    axes.fill_between(*band, **_BAND)
    defined = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    curves = [metrics.roc_curve(labels[:, k], scores[:, k]) for k in defined]
    mean = np.mean([np.interp(band[0], false, true) for false, true, _ in curves], axis=0)
    axes.plot(band[0], mean, color=BLUE, linewidth=1.8, label=f"mean, AUROC {number(mean_auroc, 3)}")
    for (name, k, value), (style, colour) in zip(chosen, _CHOSEN):
        look = {"color": colour, "linewidth": 1.1, "label": f"{_short(name)}, {number(value, 3)}"}
        _draw_roc(axes, labels[:, k], scores[:, k], style, **look)
    _finish_roc(axes, fontsize=7.5)
    return f"mean ROC curve over {labels.shape[1]} labels, area {number(mean_auroc, 3)}; chance is 0.5"


def roc_band(labels, scores, subjects, seed, resamples=500):
    """(false-positive rates, low, high): pointwise 95% bootstrap band of the true-positive rate, whole subjects drawn.

    labels, scores: (n,), or (n, K) for the mean over K labels (in a resample: over those that have both classes).
    """
    rng = np.random.default_rng(seed)
    falling = []  # of each label (order of falling scores, positives in it, last place of each distinct score)
    for truth, score in zip(*(np.asarray(array).reshape(len(array), -1).T for array in (labels, scores))):
        order = np.argsort(-score, kind="stable")
        falling.append((order, (truth[order] == 1).astype(float), np.append(np.diff(score[order]) != 0, True)))
    subject = np.unique(subjects, return_inverse=True)[1]
    n, grid, found = subject.max() + 1, np.linspace(0, 1, 101), []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[subject]
        curves = []
        for order, positive, last in falling:  # ties are one step
            drawn = weight[order]
            tp, fp = np.cumsum(drawn * positive)[last], np.cumsum(drawn * (1 - positive))[last]
            if tp[-1] and fp[-1]:
                curves.append(np.interp(grid, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1])))
        if curves:
            found.append(np.mean(curves, axis=0))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return grid, low, high


def _draw_roc(axes, labels, scores, style="-", **look):
    false, true, _ = metrics.roc_curve(labels, scores)
    axes.plot(false, true, style, **look)


def _finish_roc(axes, chance=None, **legend):
    """The diagonal, the legend and the axes of ROC curves; chance: what the legend calls the diagonal."""
    diagonal(axes, chance)
    legend_above(axes, **{"ncols": 2, "columnspacing": 1, **legend})
    unit_square(axes, "false-positive rate", "true-positive rate")


@plot
def precision_recall(axes, labels, scores, average_precision):
    """The curve of (n,) labels and scores."""
    share, area = number(float(np.mean(labels)), 3), number(average_precision, 3)
    _draw_precision_recall(axes, labels, scores, color=BLUE, linewidth=1.8, label=f"model, average precision {area}")
    axes.axhline(np.mean(labels), linestyle="--", color=GREY, linewidth=1, label=f"chance, {share}")
    legend_above(axes)
    unit_square(axes, "recall", "precision")
    return f"precision-recall curve, average precision {area}; chance is {share}"


@plot
def precision_recalls(axes, curves):
    """Several curves in one plot, the first one of all labels together: [(name, labels, scores, average precision)]."""
    for (name, labels, scores, value), (style, colour) in zip(curves, (("-", BLUE), *_CHOSEN)):
        _draw_precision_recall(axes, labels, scores, style, color=colour, label=f"{_short(name)}, {number(value, 3)}")
    legend_above(axes, ncols=2, fontsize=7.5, title="average precision", title_fontsize=7.5, columnspacing=1)
    unit_square(axes, "recall", "precision")
    values = ", ".join(f"{name} {number(value, 3)}" for name, _, _, value in curves)
    return f"precision-recall curves, average precision: {values}"


def _draw_precision_recall(axes, labels, scores, style="-", **look):
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    axes.plot(np.append(0, recall), np.append(precision[0], precision), style, drawstyle="steps-pre", **look)


def calibration_bins(labels, scores, bins=10):
    """[(mean probability, share of positives, cases, low, high)] of equal-width bins, with Wilson's interval."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    found = []
    for k in np.unique(index):
        inside = index == k
        n, positive = int(inside.sum()), float(labels[inside].sum())
        found.append((float(scores[inside].mean()), positive / n, n, *wilson(positive, n)))
    return found


@plot
def calibration(axes, labels, scores, ece):
    """The share of positives over the probability, of (n,) labels and scores."""
    means, shares, cases, lows, highs = np.transpose(calibration_bins(labels, scores))
    diagonal(axes, "perfect")
    axes.vlines(means, lows, highs, color=BLUE, linewidth=1)
    look = {"color": BLUE, "edgecolors": "white", "linewidths": 0.8, "zorder": 3}
    axes.scatter(means, shares, s=12 + 90 * cases / len(labels), label="cases of one bin, 95% interval", **look)
    legend_above(axes, ncols=2, columnspacing=1.2, markerscale=0.8)
    unit_square(axes, "predicted probability", "share of positive cases")
    return f"calibration, expected calibration error {number(ece, 3)}"


@plot
def score_histogram(axes, labels, scores, names=("class 0", "class 1"), what="cases", of=" of class 1"):
    """Scores of the two classes, the second upwards and the first downwards."""
    edges = np.linspace(0, 1, 21)
    for label, colour, hatch in ((0, SKY, None), (1, ORANGE, "////")):
        counts = np.histogram(scores[labels == label], edges)[0] * (1 if label else -1)
        look = {"color": colour, "edgecolor": "white", "linewidth": 0.6, "hatch": hatch}
        axes.bar(edges[:-1], counts, 0.05, align="edge", label=names[label], **look)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    top = max(1, max(abs(limit) for limit in axes.get_ylim()) * 1.25)
    axes.set(xlim=(0, 1), ylim=(-top, top), ylabel=what, xlabel=f"predicted probability{of}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, position: f"{abs(value):g}")
    legend_above(axes, ncols=2)
    positive = int(labels.sum())
    return f"histogram of the probabilities of {positive} positive and {len(labels) - positive} negative cases"


@plot
def scores_per_fold(axes, labels, scores, folds):
    """The scores of each fold by class, as log odds, with the medians: are the models' scores on one scale?"""
    clipped = np.clip(np.asarray(scores, float), 1e-6, 1 - 1e-6)
    odds, numbers = np.log(clipped / (1 - clipped)), np.unique(folds)
    for label, colour, marker, shift in ((0, BLUE, "o", -0.15), (1, ORANGE, "^", 0.15)):
        chosen = labels == label
        at = np.searchsorted(numbers, folds[chosen]) + 1 + shift
        spread = 0.12 * np.linspace(-1, 1, max(chosen.sum(), 2))[: chosen.sum()]
        axes.scatter(at + spread, odds[chosen], s=10, alpha=0.7, color=colour, marker=marker, label=f"class {label}")
        for place, number_ in enumerate(numbers, start=1):
            if (of_fold := chosen & (folds == number_)).any():
                axes.hlines(np.median(odds[of_fold]), place + shift - 0.13, place + shift + 0.13, color=colour)
    axes.set_xticks(np.arange(len(numbers)) + 1, [f"{int(fold)}" for fold in numbers])
    axes.set(xlabel="fold", ylabel="log odds of class 1", xlim=(0.4, len(numbers) + 0.6))
    legend_above(axes, ncols=2)
    return f"log odds of the cases of {len(numbers)} folds by class, with the medians"


@plot
def per_label(axes, names, series, xlabel, chance):
    """A line per label. series: [(legend, values, lows or None, highs)]; chance: one number, or one per label."""
    axes.figure.set_figheight(max(2.0, 1.0 + 0.2 * len(names)))
    at = np.arange(len(names))[::-1]
    if np.ndim(chance) == 0:
        axes.axvline(chance, linestyle="--", color=GREY, linewidth=1, label="chance")
    else:
        axes.scatter(chance, at, marker="|", s=70, color=GREY, label="chance")
    for (legend, values, low, high), (colour, marker) in zip(series, MARKS):
        if low is not None:
            axes.hlines(at, low, high, color=colour, linewidth=1.4)
        axes.scatter(values, at, color=colour, marker=marker, s=22, zorder=3, label=legend, linewidths=0)
    axes.set_yticks(at, [_short(name, 26) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=xlabel, ylim=(-0.7, len(names) - 0.3))
    legend_above(axes, ncols=3, fontsize=7.5, columnspacing=1, handletextpad=0.4)
    values = ", ".join(f"{name} {number(value, 3)}" for name, value in zip(names, series[0][1]))
    return f"{xlabel} of each label: {values}"


def _short(name, length=22):
    return name if len(name) <= length else name[: length - 1] + "\u2026"
