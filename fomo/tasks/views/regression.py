"""Regression of one number: predicted over true, the error over the true value, the errors."""

import math

import numpy as np

from ... import metrics
from ...pages import page
from ...pages.case_table import columns_of, finish, outliers
from ...pages.figures.regression import error_histogram, line, predicted_over_true, residuals
from ...pages.page import number
from .view import View

_TARGETS = {"fomo3": "age (years)", "phantom": "age (years)"}  # of data.source


def _target(run):
    """What is predicted, with its unit where the data set gives it."""
    return _TARGETS.get(run.config.data.source, "value")


def _unit(run):
    return " (years)" if "years" in _target(run) else ""


def _against_the_mean(run):
    targets, predictions, means = columns_of(run.rows, "target", "prediction", "training_mean")
    of_the_mean = run.metrics["mae_of_the_mean"]["pooled"]
    baseline = f"predicting the mean of the training cases for everyone (MAE {number(of_the_mean, 3)})"
    gain = np.abs(means - targets) - np.abs(predictions - targets)
    if not run.config.eval.bootstrap or len(run.rows) < 2:
        change = f"{number(abs(gain.mean()), 3)} {'smaller' if gain.mean() > 0 else 'larger'}"
        return f"Against {baseline} the error is {change}; no interval was computed."
    subjects = [row["subject"] for row in run.rows]
    found = metrics.bootstrap_ci(
        np.mean, gain, resamples=run.config.eval.bootstrap, seed=run.config.seed, groups=subjects
    )
    if found.low > 0:
        limits = page.interval(found.low, found.high, 3)
        return f"Better than {baseline}: the error is {number(found.value, 3)} smaller (95% interval {limits})."
    if found.high < 0:
        limits = page.interval(-found.high, -found.low, 3)
        return f"Worse than {baseline}: the error is {number(-found.value, 3)} larger (95% interval {limits})."
    return f"Not shown to be better than {baseline}: the difference may be 0."


def _pictures(run, listed):
    targets, predictions = columns_of(run.rows, "target", "prediction")
    unit = _target(run)
    short = "years" if "years" in unit else "target's unit"
    series = [("predicted", predictions)]
    if all(math.isfinite(row.get("corrected", math.nan)) for row in run.rows):
        series.append(("bias-corrected", columns_of(run.rows, "corrected")[0]))
    slopes = [(legend, line(targets, values - targets)[0]) for legend, values in series]
    text = "; ".join(f"{legend} {number(slope, 2)}" for legend, slope in slopes)
    pictures = [
        page.figure(
            predicted_over_true(targets, series, unit), "Predicted over true.", "Above the line: predicted too high."
        ),
        page.figure(
            residuals(targets, series, unit, short),
            "Error over true value.",
            f"A falling line is the pull towards the mean. Slope: {text}.",
        ),
        page.figure(error_histogram(predictions - targets, short), "Errors.", "Before bias correction."),
    ]
    return [page.grid(pictures)]


def cases(rows):
    """By the absolute error."""
    errors = [abs(row["prediction"] - row["target"]) for row in rows]
    flagged = {row["id"] for row, flag in zip(rows, outliers(errors)) if flag}
    ranked = sorted(rows, key=lambda row: -abs(row["prediction"] - row["target"]))
    corrected = any("corrected" in row for row in rows)
    found = []
    for row in ranked:
        error = row["prediction"] - row["target"]
        values = [row["target"], row["prediction"], error, abs(error)]
        values += [row.get("corrected", math.nan)] if corrected else []
        found.append((row, values, "outlier" if row["id"] in flagged else ""))
    columns = ["true", "predicted", "error", "absolute error"] + (["corrected"] if corrected else [])
    return finish(columns, found)


VIEW = View(
    verdict=_against_the_mean,
    unit=_unit,
    pictures=_pictures,
    cases=lambda run: cases(run.rows),
    per_case={
        "mae": (lambda row: abs(row["prediction"] - row["target"]), False, "absolute error"),
        "mse": (lambda row: (row["prediction"] - row["target"]) ** 2, False, "squared error"),
        "corrected_mae": (
            lambda row: abs(row.get("corrected", math.nan) - row["target"]),
            False,
            "corrected absolute error",
        ),
    },
)
