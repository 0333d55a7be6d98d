"""ROC, precision and recall, calibration, scores."""

import numpy as np

from ... import metrics
from ..page import number
from .panel import BLUE, GREY, ORANGE, SKY, SOFT, panel, unit_square
from .training import FOLDS


def roc(labels, scores, subjects, seed, auroc):
    def draw(axes):
        draw_band(axes, roc_band(labels, scores, subjects, seed))
        draw_roc(axes, labels, scores, color=BLUE, linewidth=1.8, label=f"model, AUROC {number(auroc, 3)}")
        finish_roc(axes, chance="chance, 0.5")

    return panel(draw, f"ROC curve, area {number(auroc, 3)}; chance is 0.5")


def rocs(curves):
    """curves: [(name, labels, scores)]."""
    areas = [(name, number(metrics.auroc(labels, scores), 3)) for name, labels, scores in curves]

    def draw(axes):
        looks = zip(FOLDS * 4, ("-", "--", "-.", ":") * 8)
        for (_, labels, scores), (name, area), (colour, style) in zip(curves, areas, looks):
            draw_roc(axes, labels, scores, style, color=colour, label=f"{name}, {area}")
        finish_roc(axes, title="AUROC", title_fontsize=8)

    return panel(draw, "ROC curves: " + ", ".join(f"{name} {area}" for name, area in areas))


def roc_band(labels, scores, subjects, seed, resamples=500):
    """(false-positive rates, low, high): pointwise 95% bootstrap band of the true-positive rate, whole subjects drawn.

    labels, scores: (n,), or (n, K) for the mean over K labels (in a resample: over those that have both classes).
    """
    rng = np.random.default_rng(seed)
    pairs = zip(*(np.asarray(array).reshape(len(array), -1).T for array in (labels, scores)))
    sorted_labels = [_sorted(*pair) for pair in pairs]
    subject = np.unique(subjects, return_inverse=True)[1]
    n, grid, found = subject.max() + 1, np.linspace(0, 1, 101), []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[subject]
        curves = []
        for order, positive, last in sorted_labels:
            drawn = weight[order]
            tp, fp = np.cumsum(drawn * positive)[last], np.cumsum(drawn * (1 - positive))[last]
            if tp[-1] and fp[-1]:
                curves.append(np.interp(grid, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1])))
        if curves:
            found.append(np.mean(curves, axis=0))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return grid, low, high


def _sorted(labels, scores):
    """(order of falling scores, labels in it, the last place of each distinct score: ties are one step)."""
    order = np.argsort(-scores, kind="stable")
    return order, (labels[order] == 1).astype(float), np.append(np.diff(scores[order]) != 0, True)


def draw_band(axes, band):
    axes.fill_between(*band, color=BLUE, alpha=0.18, linewidth=0, label="95% band")


def draw_roc(axes, labels, scores, style="-", **look):
    false, true, _ = metrics.roc_curve(labels, scores)
    axes.plot(false, true, style, **look)


def finish_roc(axes, chance=None, **legend):
    """The diagonal, the legend and the axes of ROC curves; chance: what the legend calls the diagonal."""
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label=chance)
    axes.legend(loc="lower right", **legend)
    unit_square(axes, "false-positive rate", "true-positive rate")


def precision_recall(labels, scores, average_precision):
    share, area = number(float(np.mean(labels)), 3), number(average_precision, 3)

    def draw(axes):
        draw_precision_recall(axes, labels, scores, color=BLUE, linewidth=1.8, label=f"model, average precision {area}")
        axes.axhline(np.mean(labels), linestyle="--", color=GREY, linewidth=1, label=f"chance, {share}")
        axes.legend(loc="best")
        unit_square(axes, "recall", "precision")

    return panel(draw, f"precision-recall curve, average precision {area}; chance is {share}")


def draw_precision_recall(axes, labels, scores, style="-", **look):
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    axes.plot(np.append(0, recall), np.append(precision[0], precision), style, drawstyle="steps-pre", **look)


def calibration_bins(labels, scores, bins=10):
    """[(mean probability, share of positives, cases, low, high)] of equal-width bins, with Wilson's interval."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    found, z2 = [], 1.959964**2
    for k in np.unique(index):
        inside = index == k
        n, share = int(inside.sum()), float(labels[inside].mean())
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        found.append((float(scores[inside].mean()), share, n, centre - half, centre + half))
    return found


def calibration(labels, scores, ece):
    means, shares, cases, lows, highs = np.transpose(calibration_bins(labels, scores))

    def draw(axes):
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfect")
        axes.vlines(means, lows, highs, color=BLUE, linewidth=1)
        look = {"color": BLUE, "edgecolors": "white", "linewidths": 0.8, "zorder": 3}
        axes.scatter(means, shares, s=12 + 90 * cases / len(labels), label="cases of one bin, 95% interval", **look)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, columnspacing=1.2, markerscale=0.8)
        unit_square(axes, "predicted probability", "share of positive cases")

    return panel(draw, f"calibration, expected calibration error {number(ece, 3)}")


def score_histogram(labels, scores, names=("class 0", "class 1")):
    """Scores of the two classes, the second upwards and the first downwards."""

    def draw(axes):
        edges = np.linspace(0, 1, 21)
        for label, colour, hatch in ((0, SKY, None), (1, ORANGE, "////")):
            counts = np.histogram(scores[labels == label], edges)[0] * (1 if label else -1)
            look = {"color": colour, "edgecolor": "white", "linewidth": 0.6, "hatch": hatch}
            axes.bar(edges[:-1], counts, 0.05, align="edge", label=names[label], **look)
        axes.axhline(0, color=SOFT, linewidth=0.8)
        top = max(1, max(abs(limit) for limit in axes.get_ylim()) * 1.25)
        what = "labels" if names[1] == "present" else "cases"
        of = " of class 1" if names[1] == "class 1" else ""
        axes.set(xlim=(0, 1), ylim=(-top, top), ylabel=what, xlabel=f"predicted probability{of}")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(lambda value, position: f"{abs(value):g}")
        axes.legend(*(list(reversed(part)) for part in axes.get_legend_handles_labels()), loc="upper center", ncols=2)

    positive = int(labels.sum())
    return panel(
        draw, f"histogram of the probabilities of {positive} positive and {len(labels) - positive} negative cases"
    )
