"""Right and wrong decisions of yes or no, as the four rates that readers know by name."""

import math

from .page import Cell, interval_cell, table


def wilson(hits, cases):
    """(low, high): Wilson's 95% interval of a share; NaN without cases."""
    if not cases:
        return math.nan, math.nan
    z2 = 1.959964**2
    share = hits / cases
    centre = (share + z2 / (2 * cases)) / (1 + z2 / cases)
    half = math.sqrt(z2 * (share * (1 - share) / cases + z2 / (4 * cases * cases))) / (1 + z2 / cases)
    return (centre - half if hits else 0.0), (centre + half if hits < cases else 1.0)  # at the ends without rounding


def of(hits, cases):
    """The share; NaN without cases."""
    return hits / cases if cases else math.nan


def rates_table(tp, fp, fn, tn, present, absent, caption):
    """Sensitivity, specificity and the two predictive values, with the counts they are of.

    present, absent: cases of the two kinds in print, "cases with a lesion".
    """
    rows = []
    for name, hits, cases, what in (
        ("sensitivity", tp, tp + fn, f"of the {present}, those that are said to be so"),
        ("specificity", tn, tn + fp, f"of the {absent}, those that are said to be so"),
        ("positive predictive value (PPV)", tp, tp + fp, f"of those said to be {present}, those that are"),
        ("negative predictive value (NPV)", tn, tn + fn, f"of those said to be {absent}, those that are"),
    ):
        counts = Cell(f"{hits} of {cases}", hits)
        rows.append([name, of(hits, cases), interval_cell(*wilson(hits, cases), 3), counts, what])
    caption = f"{caption}; Wilson's intervals, as of independent cases of one model"
    return table(["", "share", "95% interval (Wilson)", "cases", "what it is"], rows, caption)
