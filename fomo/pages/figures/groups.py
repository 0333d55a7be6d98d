"""Groups of subjects beside each other, and which class was taken for which."""

import numpy as np

from ..page import number
from .panel import BLUE, DARK, GREY, legend_above, plot


@plot
def by_group(axes, names, values, lows, highs, overall, label, called="all"):
    """A mark with its interval for each group, from top to bottom, and a line where all together are (None: none).

    called: what the line is.
    """
    at = np.arange(len(names))[::-1]
    axes.figure.set_figheight(max(1.6, 0.9 + 0.24 * len(names)))
    if overall is not None:
        axes.axvline(overall, linestyle="--", color=GREY, linewidth=1, label=f"{called}, {number(overall, 3)}")
    axes.hlines(at, lows, highs, color=BLUE, linewidth=2)
    axes.plot(values, at, "o", color=BLUE, markersize=5)
    axes.set(xlabel=label, ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(at, names)
    axes.grid(axis="y", visible=False)
    if overall is not None:
        legend_above(axes)
    return f"{label} by group: " + ", ".join(f"{name} {number(value, 3)}" for name, value in zip(names, values))


@plot
def confusion(axes, table, names):
    """The share of each true class (a row) that was taken for each class (a column), with the counts."""
    table = np.asarray(table)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(table.shape):
        colour = "white" if shares[row, column] > 0.6 else DARK
        axes.text(column, row, str(int(table[row, column])), ha="center", va="center", color=colour, fontsize=7.5)
    short = [name if len(name) <= 10 else name[:9] + "\u2026" for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short)
    axes.set(xlabel="said", ylabel="true")
    axes.grid(visible=False)
    right = int(np.trace(table))
    return f"table of true and said classes: {right} of {int(table.sum())} are right"
