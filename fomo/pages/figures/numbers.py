"""Predictions and errors over the true value, the errors, and one run's values over another's.

series: [(legend, predictions)].
"""

import numpy as np

from ..page import number
from .panel import GREY, MARKS, ORANGE, histogram, identity, legend_above, plot, points


@plot
def predicted_over_true(axes, targets, series, unit):
    identity(axes, targets, *(values for _, values in series))
    for (legend, values), mark in zip(series, MARKS):
        points(axes, targets, values, *mark, label=legend)
    axes.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}")
    legend_above(axes, ncols=3, columnspacing=1, handletextpad=0.3)
    return f"predicted over true {unit} of {len(targets)} cases, with the identity line"


@plot
def residuals(axes, targets, series, unit, short):
    """Errors over the true value, each series with its fitted line, whose slope is the pull towards the mean."""
    axes.axhline(0, linestyle="--", color=GREY, linewidth=1)
    ends = np.array([targets.min(), targets.max()])
    for (legend, values), (colour, marker) in zip(series, MARKS):
        points(axes, targets, values - targets, colour, marker, label=legend)
        slope, intercept = line(targets, values - targets)
        axes.plot(ends, slope * ends + intercept, color="white", linewidth=3.5, zorder=4)
        axes.plot(ends, slope * ends + intercept, color=colour, linewidth=1.8, zorder=5)
    axes.set(xlabel=f"true {unit}", ylabel=f"predicted minus true ({short})")
    legend_above(axes, ncols=3, columnspacing=1, handletextpad=0.3)
    slopes = ", ".join(f"{legend} slope {number(line(targets, values - targets)[0], 3)}" for legend, values in series)
    return f"errors over true {unit}; {slopes}"


def line(x, y):
    """(slope, intercept) of least squares; NaN where x does not vary or y is undefined."""
    if np.ptp(x) == 0 or not np.isfinite(y).all():
        return float("nan"), float("nan")
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


@plot
def paired(axes, first, second, names, label):
    """The values of two runs on the same cases."""
    identity(axes, first, second, legend="equal")
    points(axes, first, second, label="case")
    axes.set(xlabel=f"{label}, {names[0]}", ylabel=f"{label}, {names[1]}")
    legend_above(axes, ncols=3, columnspacing=1, handletextpad=0.3)
    return f"{label} of {len(first)} cases: {names[1]} over {names[0]}"


@plot
def error_histogram(axes, errors, short):
    """How often errors of each size are; short: their unit."""
    median = float(np.median(errors))
    histogram(axes, errors, min(30, max(8, len(errors) // 4)))
    axes.axvline(0, linestyle="--", color=GREY, linewidth=1)
    axes.axvline(median, color=ORANGE, linewidth=1.5, label=f"median {number(median, 3)}")
    axes.set(xlabel=f"predicted minus true ({short})")
    legend_above(axes, ncols=3, columnspacing=1, handletextpad=0.3)
    return f"histogram of {len(errors)} errors, median {number(median, 3)}"
