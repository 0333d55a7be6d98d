"""Curves and plots as inline SVG, by matplotlib, which is optional: `available()` says whether it is there.

Each plot is one small panel that is legible at its own size, so that the page can stack them on a narrow screen.
Colours: Okabe and Ito's, which colour-blind readers tell apart; a second mark (dash, marker) goes with each.
"""

import importlib.util
import io
import re

import numpy as np

from .. import metrics
from .page import Html, escape, number

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072b2", "#d55e00", "#007a5a", "#a64d85", "#3a8fc4", "#6b7580"
FOLDS = (BLUE, ORANGE, GREEN, PURPLE, "#8a6d00", "#1b1f24", SKY, GREY)
MISSING = "Figures need matplotlib, which is not installed: pip install matplotlib, then python tools/report.py RUN."
_RASTER_FROM = 3000  # points: above it they are drawn as pixels, which keeps the page light


def available():
    return importlib.util.find_spec("matplotlib") is not None


def panel(draw, alt, width=3.7, height=3.05):
    """Html of the SVG that `draw(axes)` fills; alt: what it shows, for those who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        drawing = Figure(figsize=(width, height), layout="constrained")
        draw(drawing.add_subplot())
        file = io.StringIO()
        drawing.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, dpi=150
        )
    return accessible_svg(file.getvalue(), alt)


def accessible_svg(text, alt):
    """The <svg> element alone, sized by the page, with its description."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening).group()
    return Html(
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view} xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{escape(alt)}">{rest}'
    )


_RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fomo",  # the same run gives the same file
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#8a939c",
    "axes.labelcolor": "#1b1f24",
    "text.color": "#1b1f24",
    "xtick.color": "#4d5761",
    "ytick.color": "#4d5761",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.7,
    "legend.framealpha": 0.6,  # readable over a curve, which shows through
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "axes.formatter.useoffset": False,
}


# ----------------------------------------------------------------------------------------- training


def fold_colour(index, folds):
    return FOLDS[index] if folds <= len(FOLDS) else BLUE


def curves(histories, names, ylabel, best, unfreeze=None, level=None, limits=None):
    """names: [(history column, line style, legend)]; best: {fold: epoch}, marked on the last of `names`.

    unfreeze: the epoch in which the encoder begins to be trained; level: (value, what it is), a line to compare with;
    limits: of the values' axis.
    """

    def draw(axes):
        for index, (fold, rows) in enumerate(histories.items()):
            colour = fold_colour(index, len(histories))
            epochs = [row["epoch"] for row in rows]
            for name, style, _ in names:
                values = [row[name] for row in rows]
                alone = {"marker": ".", "markersize": 4} if len(rows) == 1 else {}
                axes.plot(epochs, values, style, color=colour, linewidth=1.5 if style == "-" else 0.9, **alone)
            if fold in best:
                row = rows[int(best[fold]) - 1]
                axes.plot(
                    row["epoch"], row[names[-1][0]], "o", color=colour, markersize=6, markeredgecolor="white", zorder=5
                )
        if unfreeze is not None:
            axes.axvline(unfreeze, color="#4d5761", linewidth=1, linestyle=":")
            late = unfreeze > max(len(rows) for rows in histories.values()) / 2
            axes.annotate(
                "encoder trained from here",
                (unfreeze, 1),
                (0, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if late else "left",
                va="bottom",
                fontsize=8,
                color="#4d5761",
            )
        if level is not None:
            axes.axhline(level[0], color=GREY, linewidth=1, linestyle="--", label=level[1])
        if len(names) > 1:
            for _, style, legend in names:
                axes.plot([], [], style, color="#4d5761", linewidth=1.5 if style == "-" else 0.9, label=legend)
        if len(names) > 1 or level is not None:
            axes.legend(loc="best")
        axes.set(xlabel="epoch", ylabel=ylabel, ylim=limits)
        axes.xaxis.get_major_locator().set_params(integer=True)

    last = {fold: rows[-1][names[-1][0]] for fold, rows in histories.items()}
    return panel(
        draw,
        f"{ylabel} over epochs; at the last epoch " + ", ".join(f"fold {f}: {number(v, 3)}" for f, v in last.items()),
    )


# ----------------------------------------------------------------------------------- classification


def roc_band(labels, scores, subjects, seed, resamples=500, level=0.95):
    """(false-positive rates, low, high): pointwise bootstrap band of the true-positive rate, whole subjects drawn.

    labels, scores: (n,), or (n, K) for the mean over K labels (in a resample: over those that have both classes).
    """
    rng = np.random.default_rng(seed)
    sorted_labels = [_sorted(*pair) for pair in zip(_columns(labels), _columns(scores))]
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
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return grid, low, high


def _columns(array):
    array = np.asarray(array)
    return array[:, None].T if array.ndim == 1 else array.T


def _sorted(labels, scores):
    """(order of falling scores, labels in it, the last place of each distinct score: ties are one step)."""
    order = np.argsort(-scores, kind="stable")
    return order, (labels[order] == 1).astype(float), np.append(np.diff(scores[order]) != 0, True)


def roc(labels, scores, subjects, seed, auroc):
    def draw(axes):
        grid, low, high = roc_band(labels, scores, subjects, seed)
        axes.fill_between(grid, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95% band")
        false, true, _ = metrics.roc_curve(labels, scores)
        axes.plot(false, true, color=BLUE, linewidth=1.8, label=f"model, AUROC {number(auroc, 3)}", drawstyle="default")
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="chance, 0.5")
        axes.legend(loc="lower right")
        _unit_square(axes, "false-positive rate", "true-positive rate")

    return panel(draw, f"ROC curve, area {number(auroc, 3)}; chance is 0.5")


def precision_recall(labels, scores, average_precision):
    share = float(np.mean(labels))

    def draw(axes):
        precision, recall, _ = metrics.precision_recall_curve(labels, scores)
        axes.plot(
            np.append(0, recall),
            np.append(precision[0], precision),
            drawstyle="steps-pre",
            color=BLUE,
            linewidth=1.8,
            label=f"model, average precision {number(average_precision, 3)}",
        )
        axes.axhline(share, linestyle="--", color=GREY, linewidth=1, label=f"chance, {number(share, 3)}")
        axes.legend(loc="best")
        _unit_square(axes, "recall", "precision")

    return panel(
        draw, f"precision-recall curve, average precision {number(average_precision, 3)}; chance is {number(share, 3)}"
    )


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
    bins = calibration_bins(labels, scores)

    def draw(axes):
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfect")
        for mean, share, n, low, high in bins:
            axes.plot([mean, mean], [low, high], color=BLUE, linewidth=1)
        axes.scatter(
            [b[0] for b in bins],
            [b[1] for b in bins],
            s=[12 + 90 * b[2] / len(labels) for b in bins],
            color=BLUE,
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
            label="cases of one bin, 95% interval",
        )
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, columnspacing=1.2, markerscale=0.8)
        _unit_square(axes, "predicted probability", "share of positive cases")

    return panel(draw, f"calibration, expected calibration error {number(ece, 3)}")


def score_histogram(labels, scores, names=("class 0", "class 1")):
    """Scores of the two classes, the second upwards and the first downwards."""

    def draw(axes):
        edges = np.linspace(0, 1, 21)
        for label, colour, hatch in ((0, SKY, None), (1, ORANGE, "////")):
            counts = np.histogram(scores[labels == label], edges)[0] * (1 if label else -1)
            axes.bar(
                edges[:-1],
                counts,
                0.05,
                align="edge",
                color=colour,
                edgecolor="white",
                linewidth=0.6,
                hatch=hatch,
                label=names[label],
            )
        axes.axhline(0, color="#4d5761", linewidth=0.8)
        top = max(1, max(abs(limit) for limit in axes.get_ylim()) * 1.25)
        what = "labels" if names[1] == "present" else "cases"
        of = " of class 1" if names[1] == "class 1" else ""
        axes.set(xlim=(0, 1), ylim=(-top, top), ylabel=what, xlabel=f"predicted probability{of}")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(lambda value, position: f"{abs(value):g}")
        axes.legend(*(list(reversed(part)) for part in axes.get_legend_handles_labels()), loc="upper center", ncols=2)

    return panel(
        draw,
        f"histogram of the probabilities of {int(labels.sum())} positive and {int((1 - labels).sum())} negative cases",
    )


def macro_roc(labels, scores, subjects, seed, macro, chosen):
    """The mean ROC curve over labels (n, K) with its band, and those of `chosen`: [(name, column, AUROC)]."""
    resamples = int(np.clip(2e7 / labels.size, 50, 500))

    def draw(axes):
        grid, low, high = roc_band(labels, scores, subjects, seed, resamples)
        axes.fill_between(grid, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95% band")
        found = []
        for k in range(labels.shape[1]):
            if 0 < labels[:, k].sum() < len(labels):
                false, true, _ = metrics.roc_curve(labels[:, k], scores[:, k])
                found.append(np.interp(grid, false, true))
        axes.plot(grid, np.mean(found, axis=0), color=BLUE, linewidth=1.8, label=f"mean, AUROC {number(macro, 3)}")
        for (name, k, value), colour, style in zip(chosen, (GREEN, PURPLE, ORANGE), ("-", "-.", ":")):
            false, true, _ = metrics.roc_curve(labels[:, k], scores[:, k])
            axes.plot(false, true, style, color=colour, linewidth=1.1, label=f"{_short(name)}, {number(value, 3)}")
        axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        axes.legend(loc="lower right", fontsize=7.5)
        _unit_square(axes, "false-positive rate", "true-positive rate")

    return panel(draw, f"mean ROC curve over {labels.shape[1]} labels, area {number(macro, 3)}; chance is 0.5")


def precision_recalls(curves):
    """curves: [(name, labels, scores, average precision)]."""

    def draw(axes):
        for (name, labels, scores, value), colour, style in zip(curves, (BLUE, GREEN, PURPLE, ORANGE), ("-", "-", "-.", ":")):
            precision, recall, _ = metrics.precision_recall_curve(labels, scores)
            x, y = np.append(0, recall), np.append(precision[0], precision)
            axes.plot(x, y, style, drawstyle="steps-pre", color=colour, label=f"{_short(name)}, {number(value, 3)}")
        axes.legend(loc="best", fontsize=7.5, title="average precision", title_fontsize=7.5)
        _unit_square(axes, "recall", "precision")

    return panel(draw, "precision-recall curves, average precision: " + ", ".join(f"{c[0]} {number(c[3], 3)}" for c in curves))


def per_label(names, series, xlabel, chance):
    """A line per label: series [(legend, values, lows or None, highs)]; chance: one number, or one per label."""

    def draw(axes):
        at = np.arange(len(names))[::-1]
        if np.ndim(chance) == 0:
            axes.axvline(chance, linestyle="--", color=GREY, linewidth=1, label="chance")
        else:
            axes.scatter(chance, at, marker="|", s=70, color=GREY, label="chance")
        for (legend, values, low, high), (colour, marker) in zip(series, _MARKS):
            if low is not None:
                axes.hlines(at, low, high, color=colour, linewidth=1.4)
            axes.scatter(values, at, color=colour, marker=marker, s=22, zorder=3, label=legend, linewidths=0)
        axes.set_yticks(at, [_short(name, 26) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=xlabel, ylim=(-0.7, len(names) - 0.3))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=7.5, columnspacing=1, handletextpad=0.4)

    values = ", ".join(f"{name} {number(value, 3)}" for name, value in zip(names, series[0][1]))
    return panel(draw, f"{xlabel} of each label: {values}", height=max(2.0, 1.0 + 0.2 * len(names)))


def _short(name, length=22):
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def _unit_square(axes, xlabel, ylabel):
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)


# --------------------------------------------------------------------------------------- regression


def predicted_over_true(targets, series, unit):
    """series: [(legend, predictions)]."""

    def draw(axes):
        both = np.concatenate([targets, *(values for _, values in series)])
        low, high = float(np.nanmin(both)), float(np.nanmax(both))
        pad = 0.04 * (high - low or 1)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], "--", color=GREY, linewidth=1, label="identity")
        _scatter(axes, targets, series)
        axes.set(
            xlim=(low - pad, high + pad),
            ylim=(low - pad, high + pad),
            xlabel=f"true {unit}",
            ylabel=f"predicted {unit}",
        )
        axes.legend(loc="upper left")

    return panel(draw, f"predicted over true {unit} of {len(targets)} cases, with the identity line")


def residuals(targets, series, unit, short):
    """Errors over the true value with a fitted line each; its slope is the pull towards the mean."""

    def draw(axes):
        axes.axhline(0, linestyle="--", color=GREY, linewidth=1)
        _scatter(axes, targets, [(legend, values - targets) for legend, values in series])
        for (legend, values), (colour, _) in zip(series, _MARKS):
            slope, intercept = line(targets, values - targets)
            ends = np.array([targets.min(), targets.max()])
            axes.plot(ends, slope * ends + intercept, color="white", linewidth=3.5, zorder=4)
            axes.plot(ends, slope * ends + intercept, color=colour, linewidth=1.8, zorder=5)
        axes.set(xlabel=f"true {unit}", ylabel=f"predicted minus true ({short})")
        axes.legend(loc="best")

    slopes = ", ".join(f"{legend} slope {number(line(targets, values - targets)[0], 3)}" for legend, values in series)
    return panel(draw, f"errors over true {unit}; {slopes}")


def line(x, y):
    """(slope, intercept) of least squares; NaN where x does not vary or y is undefined."""
    if np.ptp(x) == 0 or not np.isfinite(y).all():
        return float("nan"), float("nan")
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def error_histogram(errors, short):
    def draw(axes):
        axes.hist(errors, bins=min(30, max(8, len(errors) // 4)), color=SKY, edgecolor="white", linewidth=0.6)
        axes.axvline(0, linestyle="--", color=GREY, linewidth=1)
        axes.axvline(
            np.median(errors), color=ORANGE, linewidth=1.5, label=f"median {number(float(np.median(errors)), 3)}"
        )
        axes.set(xlabel=f"predicted minus true ({short})", ylabel="cases")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    return panel(draw, f"histogram of {len(errors)} errors, median {number(float(np.median(errors)), 3)}")


_MARKS = ((BLUE, "o"), (ORANGE, "^"))


def _points(n, size):
    """Marks that are still told apart when there are many."""
    return {
        "s": size if n <= 200 else size / 2,
        "alpha": 0.75 if n <= 200 else 0.5,
        "linewidths": 0,
        "rasterized": n > _RASTER_FROM,
    }


def _scatter(axes, x, series):
    for (legend, values), (colour, marker) in zip(series, _MARKS):
        axes.scatter(x, values, color=colour, marker=marker, label=legend, **_points(len(x), 16))


# ------------------------------------------------------------------------------------- segmentation


def distribution(values, label, unit, mean):
    """Histogram of a metric's finite values, with its mean."""
    finite = values[np.isfinite(values)]

    def draw(axes):
        if not len(finite):
            axes.text(0.5, 0.5, "no case with a finite value", ha="center", va="center", transform=axes.transAxes)
        else:
            limits = (0, 1) if not unit else (0, float(finite.max()) or 1.0)
            axes.hist(finite, bins=20, range=limits, color=SKY, edgecolor="white", linewidth=0.6)
            axes.axvline(mean, color=ORANGE, linewidth=1.5, label=f"mean {number(mean, 3)}")
            axes.axvline(
                np.median(finite),
                color="#1b1f24",
                linewidth=1.2,
                linestyle="--",
                label=f"median {number(float(np.median(finite)), 3)}",
            )
            axes.legend(loc="best")
        axes.set(xlabel=f"{label} ({unit})" if unit else label, ylabel="cases")
        axes.yaxis.get_major_locator().set_params(integer=True)

    return panel(draw, f"distribution of {label} over {len(finite)} cases, mean {number(mean, 3)}")


def volumes(reference, predicted, unit):
    """Predicted over reference volume on logarithmic axes; an empty side is drawn on the axis."""
    positive = np.concatenate([reference[reference > 0], predicted[predicted > 0]])
    floor = float(positive.min()) / 2 if len(positive) else 0.5

    def draw(axes):
        x, y = np.maximum(reference, floor), np.maximum(predicted, floor)
        top = max(float(x.max()), float(y.max())) * 1.5
        axes.plot([floor, top], [floor, top], "--", color=GREY, linewidth=1, label="identity")
        both = (reference > 0) & (predicted > 0)
        axes.scatter(x[both], y[both], color=BLUE, label="case", **_points(len(x), 18))
        if (~both).any():
            axes.scatter(
                x[~both],
                y[~both],
                s=22,
                color=ORANGE,
                marker="x",
                linewidths=1.2,
                label="one of them empty",
                clip_on=False,
            )
        axes.set(xscale="log", yscale="log", xlim=(floor, top), ylim=(floor, top))
        axes.set(xlabel=f"reference volume ({unit})", ylabel=f"predicted volume ({unit})")
        for axis in (axes.xaxis, axes.yaxis):
            _round_ticks(axis, floor, top)
        axes.legend(loc="upper left")

    return panel(draw, f"predicted over reference volume of {len(reference)} cases, with the identity line")


def _round_ticks(axis, low, high):
    """Three to six ticks at round numbers of a logarithmic axis, however many decades it spans."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**decade for decade in decades for f in factors if low <= f * 10.0**decade <= high]
        if len(ticks) <= 6:
            break
    axis.set_ticks(ticks[:: -(-len(ticks) // 6)] or [low, high])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, position: number(value, 3))


# --------------------------------------------------------------------------------------- comparison


def paired(first, second, names, label):
    def draw(axes):
        low, high = float(min(first.min(), second.min())), float(max(first.max(), second.max()))
        pad = 0.04 * (high - low or 1)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], "--", color=GREY, linewidth=1, label="equal")
        axes.scatter(first, second, color=BLUE, label="case", **_points(len(first), 18))
        axes.set(
            xlim=(low - pad, high + pad),
            ylim=(low - pad, high + pad),
            xlabel=f"{label}, {names[0]}",
            ylabel=f"{label}, {names[1]}",
        )
        axes.legend(loc="best")

    return panel(draw, f"{label} of {len(first)} cases: {names[1]} over {names[0]}")


def rocs(curves):
    """curves: [(name, labels, scores)]."""

    def draw(axes):
        for (name, labels, scores), colour, style in zip(curves, FOLDS * 4, ("-", "--", "-.", ":") * 8):
            false, true, _ = metrics.roc_curve(labels, scores)
            axes.plot(false, true, style, color=colour, label=f"{name}, {number(metrics.auroc(labels, scores), 3)}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        axes.legend(loc="lower right", title="AUROC", title_fontsize=8)
        _unit_square(axes, "false-positive rate", "true-positive rate")

    values = ", ".join(f"{name} {number(metrics.auroc(labels, scores), 3)}" for name, labels, scores in curves)
    return panel(draw, f"ROC curves: {values}")
