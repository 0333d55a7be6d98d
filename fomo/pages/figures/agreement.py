"""How masks agree: distributions of overlap and distance, and the volumes."""

import numpy as np

from ..page import number
from .panel import DARK, ORANGE, diagonal, histogram, legend_above, plot, points


@plot
def distribution(axes, values, label, unit, mean):
    """The histogram of a metric's finite values, with its mean; unit: "" for a share of 1."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        axes.text(0.5, 0.5, "no case with a finite value", ha="center", va="center", transform=axes.transAxes)
    else:
        histogram(axes, finite, 20, (0, 1) if not unit else (0, float(finite.max()) or 1.0))
        median = float(np.median(finite))
        axes.axvline(mean, color=ORANGE, linewidth=1.5, label=f"mean {number(mean, 3)}")
        axes.axvline(median, color=DARK, linewidth=1.2, linestyle="--", label=f"median {number(median, 3)}")
        legend_above(axes, ncols=2)
    axes.set(xlabel=f"{label} ({unit})" if unit else label)
    return f"distribution of {label} over {len(finite)} cases, mean {number(mean, 3)}"


@plot
def volumes(axes, reference, predicted, unit):
    """Predicted over reference volume on logarithmic axes; an empty side is drawn on the axis."""
    positive = np.concatenate([reference[reference > 0], predicted[predicted > 0]])
    floor = float(positive.min()) / 2 if len(positive) else 0.5
    x, y = np.maximum(reference, floor), np.maximum(predicted, floor)
    ends = floor, max(float(x.max()), float(y.max())) * 1.5
    diagonal(axes, "identity", ends)
    both = (reference > 0) & (predicted > 0)
    points(axes, x[both], y[both], label="case")
    if (~both).any():
        look = {"s": 22, "color": ORANGE, "marker": "x", "linewidths": 1.2, "clip_on": False}
        axes.scatter(x[~both], y[~both], label="one of them empty", **look)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel=f"reference volume ({unit})", ylabel=f"predicted volume ({unit})")
    for axis in (axes.xaxis, axes.yaxis):
        _round_ticks(axis, *ends)
    legend_above(axes, ncols=3, columnspacing=1, handletextpad=0.3)
    return f"predicted over reference volume of {len(reference)} cases, with the identity line"


def _round_ticks(axis, low, high):
    """Three to six ticks at round numbers of a logarithmic axis, however many decades it spans."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**decade for decade in decades for f in factors if low <= f * 10.0**decade <= high]
        if len(ticks) <= 6:
            break
    axis.set_ticks(ticks[:: -(-len(ticks) // 6)] or [low, high])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, position: f"{value:.3g}")
