"""A metric over the grades of a change, against what it is without it."""

import numpy as np

from ..page import number
from .panel import BLUE, GREY, plot


@plot
def over_grades(axes, grades, values, limits, neutral, unchanged, unit, label):
    """grades, values: (n,). limits: [(low, high)] of each value; `neutral`: the grade at which it is `unchanged`."""
    order = np.argsort([*grades, neutral])
    x, y = np.array([*grades, neutral])[order], np.array([*values, unchanged])[order]
    axes.axhline(unchanged, linestyle="--", color=GREY, linewidth=1, label="unchanged")
    low, high = np.array(limits, float).T
    axes.vlines(grades, low, high, color=BLUE, linewidth=4, alpha=0.3, label="95% interval of the drop")
    axes.plot(x, y, "-o", color=BLUE, markersize=4)
    axes.set(xlabel=unit, ylabel=label)
    axes.legend(loc="best")
    said = ", ".join(f"{number(value, 3)} at {number(grade, 3)}" for grade, value in zip(grades, values))
    return f"{label} over {unit}: {number(unchanged, 3)} unchanged, {said}"
