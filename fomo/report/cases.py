"""The table of cases, worst first, with what to look at in each."""

import math

import numpy as np

from . import page

_SURE = 0.1  # probability of the true class below which a classification is confidently wrong


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


def classification(rows):
    """(columns, table rows, case ids with a warning), by the probability of the true class."""
    ranked = sorted(rows, key=_of_true_class)
    found = []
    for row in ranked:
        warnings = [] if row["decision"] == row["target"] else ["wrong"]
        if _of_true_class(row) < _SURE:
            warnings.append("and sure of it" if warnings else "unlikely by its probability")
        found.append(
            (row, [row["target"], row["probability"], row["decision"], _of_true_class(row)], " ".join(warnings))
        )
    return _finish(["label", "probability", "decision", "of the true class"], found)


def _of_true_class(row):
    return row["probability"] if row["target"] == 1 else 1 - row["probability"]


def regression(rows):
    errors = [abs(row["prediction"] - row["target"]) for row in rows]
    flagged = {row["id"] for row, flag in zip(rows, outliers(errors)) if flag}
    ranked = sorted(rows, key=lambda row: -abs(row["prediction"] - row["target"]))
    corrected = any("corrected" in row for row in rows)
    found = []
    for row in ranked:
        values = [
            row["target"],
            row["prediction"],
            row["prediction"] - row["target"],
            abs(row["prediction"] - row["target"]),
        ]
        values += [row.get("corrected", math.nan)] if corrected else []
        found.append((row, values, "outlier" if row["id"] in flagged else ""))
    columns = ["true", "predicted", "error", "absolute error"] + (["corrected"] if corrected else [])
    return _finish(columns, found)


_SHOWN = ("dice", "surface_dice", "hd95", "average_surface_distance", "sensitivity", "precision")


def segmentation(rows):
    flagged = {row["id"] for row, flag in zip(rows, outliers([row["hd95"] for row in rows])) if flag}
    # a Dice that is undefined is a rightly empty mask, so it goes last
    ranked = sorted(rows, key=lambda row: (math.isnan(row["dice"]), row["dice"], -row["reference_voxels"]))
    found = []
    for row in ranked:
        values = [
            *(row[name] for name in _SHOWN),
            row["reference_voxels"],
            row["predicted_voxels"],
            row["lesions_missed"],
            row["lesions_false"],
        ]
        found.append((row, values, "; ".join(_mask_warnings(row, row["id"] in flagged))))
    columns = [page.label(name) for name in _SHOWN] + [
        "reference voxels",
        "predicted voxels",
        "lesions missed",
        "false lesions",
    ]
    return _finish(columns, found)


def _mask_warnings(row, outlier):
    if row["reference_voxels"] == 0:
        return ["nothing there, something predicted"] if row["predicted_voxels"] else []
    if row["predicted_voxels"] == 0:
        return ["empty prediction"]
    warnings = ["no overlap"] if row["dice"] == 0 else []
    # with several classes the counts of each stand in columns of their own
    missed = sum(value for name, value in row.items() if name.startswith("lesions_missed_")) or row["lesions_missed"]
    if missed > 0:
        warnings.append(f"{page.number(missed)} missed lesion{'s' if missed != 1 else ''}")
    if outlier:
        warnings.append("outlier by HD95")
    return warnings


def _finish(columns, found):
    warned = [row["id"] for row, _, warning in found if warning]

    def line(row, values, warning):
        shown = page.tag("span", warning, class_="warn") if warning else ""
        return [row["id"], *([page.Cell(shown, warning)] if warned else []), int(row["fold"]), *values]

    return ["case", *(["warning"] if warned else []), "fold", *columns], [line(*entry) for entry in found], warned


TABLES = {"classification": classification, "regression": regression, "segmentation": segmentation}
