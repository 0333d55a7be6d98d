"""Several labels in one plot."""

import numpy as np

from ... import metrics
from ..page import number
from .classification import draw_band, draw_precision_recall, draw_roc, finish_roc, roc_band
from .panel import BLUE, GREEN, GREY, MARKS, ORANGE, PURPLE, panel, unit_square


def macro_roc(labels, scores, subjects, seed, macro, chosen):
    """The mean ROC curve over labels (n, K) with its band, and those of `chosen`: [(name, column, AUROC)]."""
    resamples = int(np.clip(2e7 / labels.size, 50, 500))

    def draw(axes):
        grid, low, high = roc_band(labels, scores, subjects, seed, resamples)
        draw_band(axes, (grid, low, high))
        defined = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
        curves = [metrics.roc_curve(labels[:, k], scores[:, k]) for k in defined]
        mean = np.mean([np.interp(grid, false, true) for false, true, _ in curves], axis=0)
        axes.plot(grid, mean, color=BLUE, linewidth=1.8, label=f"mean, AUROC {number(macro, 3)}")
        for (name, k, value), colour, style in zip(chosen, (GREEN, PURPLE, ORANGE), ("-", "-.", ":")):
            look = {"color": colour, "linewidth": 1.1, "label": f"{_short(name)}, {number(value, 3)}"}
            draw_roc(axes, labels[:, k], scores[:, k], style, **look)
        finish_roc(axes, fontsize=7.5)

    return panel(draw, f"mean ROC curve over {labels.shape[1]} labels, area {number(macro, 3)}; chance is 0.5")


def precision_recalls(curves):
    """curves: [(name, labels, scores, average precision)]."""

    def draw(axes):
        looks = zip((BLUE, GREEN, PURPLE, ORANGE), ("-", "-", "-.", ":"))
        for (name, labels, scores, value), (colour, style) in zip(curves, looks):
            draw_precision_recall(
                axes, labels, scores, style, color=colour, label=f"{_short(name)}, {number(value, 3)}"
            )
        axes.legend(loc="best", fontsize=7.5, title="average precision", title_fontsize=7.5)
        unit_square(axes, "recall", "precision")

    values = ", ".join(f"{name} {number(value, 3)}" for name, _, _, value in curves)
    return panel(draw, f"precision-recall curves, average precision: {values}")


def per_label(names, series, xlabel, chance):
    """A line per label: series [(legend, values, lows or None, highs)]; chance: one number, or one per label."""

    def draw(axes):
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
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=7.5, columnspacing=1, handletextpad=0.4
        )

    values = ", ".join(f"{name} {number(value, 3)}" for name, value in zip(names, series[0][1]))
    return panel(draw, f"{xlabel} of each label: {values}", height=max(2.0, 1.0 + 0.2 * len(names)))


def _short(name, length=22):
    return name if len(name) <= length else name[: length - 1] + "\u2026"
