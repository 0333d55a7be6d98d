"""Tables of cases, worst first, with what to look at in each: what they share."""

import numpy as np

from . import page


def outliers(values):
    """(n,) bool: above the upper quartile by more than 1.5 interquartile ranges (Tukey's fence) of the finite values.

    NaN and inf are no outliers here: they have warnings of their own. No spread: none.
    """
    values = np.asarray(values, float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values), bool)
    low, high = np.quantile(finite, (0.25, 0.75))
    return np.isfinite(values) & (values > high + 1.5 * (high - low)) & (high > low)


def columns_of(rows, *names):
    """[(n,) array of each of the names]."""
    return [np.array([row[name] for row in rows]) for name in names]


def finish(columns, found):
    """(columns, table rows, case ids with a warning) from [(row, values under `columns`, warning or "")]."""
    warned = [row["id"] for row, _, warning in found if warning]

    def line(row, values, warning):
        shown = page.tag("span", warning, class_="warn") if warning else ""
        return [row["id"], *([page.Cell(shown, warning)] if warned else []), *values, int(row["fold"])]

    return ["case", *(["warning"] if warned else []), *columns, "fold"], [line(*entry) for entry in found], warned
