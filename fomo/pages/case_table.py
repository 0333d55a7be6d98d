"""Tables of cases, worst first, with what to look at in each: what the tables of all tasks share."""

import numpy as np

from .page import Cell, tag


def outliers(values):
    """(n,) bool: above the upper quartile by more than 1.5 interquartile ranges (Tukey's fence) of the finite values.

    NaN and inf are no outliers here: they have warnings of their own. Values without spread have none.
    """
    values = np.asarray(values, float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values), bool)
    low, high = np.quantile(finite, (0.25, 0.75))
    return np.isfinite(values) & (values > high + 1.5 * (high - low)) & (high > low)


def case_table(titles, lines):
    """(all titles, table rows, ids of the cases with a warning); lines: [(row, values of `titles`, warning or "")]."""
    warned = [row["id"] for row, _, warning in lines if warning]

    def cells(row, values, warning):
        shown = Cell(tag("span", warning, class_="warn") if warning else "", warning)
        return [row["id"], *[shown] * bool(warned), *values, int(row["fold"])]

    return ["case", *["warning"] * bool(warned), *titles, "fold"], [cells(*line) for line in lines], warned
