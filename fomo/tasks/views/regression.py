"""Regression of one number: predicted over true, the error over the true value, the errors."""

import math

import numpy as np

from ...data import sources
from ...pages import page
from ...pages.case_table import case_table, outliers
from ...pages.figures.numbers import error_histogram, line, predicted_over_true, residuals
from ...pages.page import interval, number
from .selective import risk_coverage_of
from .view import View


def _unit(run):
    _, unit = sources.of(run.config.data).number
    return f" ({unit})" if unit else ""


def _against_the_mean(run):
    targets, predictions, means = run.results.arrays("target", "prediction", "training_mean")
    gain = np.abs(means - targets) - np.abs(predictions - targets)
    return against_the_mean(run, gain, f"MAE {number(run.value('mae_of_the_mean'), 3)}")


def against_the_mean(run, gain, error):
    """A sentence; gain: (n,) by how much the error is smaller than that of the training mean, which `error` names."""
    guess, resamples = f"predicting the mean of the training cases for everyone ({error})", run.config.eval.bootstrap
    value, low, high = float(gain.mean()), math.nan, math.nan
    if resamples and len(run.rows) > 1:
        value, low, high, _ = run.results.bootstrap(resamples, run.config.seed)(np.mean, gain)
    if math.isnan(low) or math.isnan(high):
        change = f"{number(abs(value), 3)} {'smaller' if value > 0 else 'larger'}"
        return f"Against {guess} the error is {change}; no interval was computed."
    if low > 0:
        return f"Better than {guess}: the error is {number(value, 3)} smaller (95% interval {interval(low, high, 3)})."
    if high < 0:
        return f"Worse than {guess}: the error is {number(-value, 3)} larger (95% interval {interval(-high, -low, 3)})."
    return f"Not shown to be better than {guess}: the difference may be 0."


def _pictures(run):
    name, unit = sources.of(run.config.data).number
    drawn = figures_of(run.results, name + _unit(run), unit or "target's unit")
    if (spread := _spread(run)) is not None:
        errors = np.abs(np.subtract(*run.results.arrays("prediction", "target")))
        drawn += risk_coverage_of(run, errors, -spread, f"mean absolute error{_unit(run)}", (0, math.inf))
    return [page.grid(drawn)]


def _spread(run):
    """(n,) how unsure each prediction is, by the width of its interval; None where all are alike or lack one."""
    if not all("low" in row and math.isfinite(row["high"] - row["low"]) for row in run.rows):
        return None
    width = np.subtract(*run.results.arrays("high", "low"))
    return width if np.ptp(width) > 1e-9 * np.abs(width).max() else None


def figures_of(results, name, short):
    """Figures of one number, which is called `name`, in a unit that is called `short`."""
    targets, predictions = results.arrays("target", "prediction")
    series = [("predicted", predictions)]
    if all(math.isfinite(row.get("corrected", math.nan)) for row in results.rows):
        series.append(("bias-corrected", *results.arrays("corrected")))
    slopes = "; ".join(f"{legend} {number(line(targets, values - targets)[0], 2)}" for legend, values in series)
    falling = f"A falling line is the pull towards the mean. Slope: {slopes}."
    above = "Above the line: predicted too high."
    return [
        page.figure(predicted_over_true(targets, series, name), "Predicted over true.", above),
        page.figure(residuals(targets, series, name, short), "Error over true value.", falling),
        page.figure(error_histogram(predictions - targets, short), "Errors.", "Before bias correction."),
    ]


def bins(targets, unit):
    """(edges, step) of ranges of the true value: decades of years, or about eight round ranges of another unit."""
    span = max(float(np.ptp(targets)), 1e-9)
    rough = span / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = 10.0 if unit == "years" else next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
    first, last = (math.floor(float(end) / step) for end in (targets.min(), targets.max()))
    return [k * step for k in range(first, last + 2)], step


def _by_range(run):
    """The errors of each range of the true value."""
    targets, predictions = run.results.arrays("target", "prediction")
    _, unit = sources.of(run.config.data).number
    edges, step = bins(targets, unit)
    rows = []
    for low, high in zip(edges, edges[1:]):
        errors = (predictions - targets)[(targets >= low) & (targets < high)]
        if len(errors):
            name = f"{low:g} to {high - 1:g}" if unit == "years" else f"{low:g} to below {high:g}"
            rows.append([name, len(errors), *(float(value) for value in (np.abs(errors).mean(), errors.mean()))])
    columns = [f"true value{f' ({unit})' if unit else ''}", "cases", "MAE", "mean error"]
    what = "decade" if unit == "years" else "range of the true value"
    return [page.table(columns, rows, f"Error by {what}; the mean error is above 0 where predictions are too high")]


def cases(rows):
    """By the absolute error."""
    errors = [row["prediction"] - row["target"] for row in rows]
    flags = outliers(np.abs(errors))
    corrected = any("corrected" in row for row in rows)
    found = []
    for row, error, flag in sorted(zip(rows, errors, flags), key=lambda one: -abs(one[1])):
        values = [row["target"], row["prediction"], error, abs(error)]
        values += [row.get("corrected", math.nan)] if corrected else []
        found.append((row, values, "outlier" if flag else ""))
    return case_table(["true", "predicted", "error", "absolute error", *["corrected"] * corrected], found)


def _absolute_error(row, column="prediction"):
    return abs(row.get(column, math.nan) - row["target"])


VIEW = View(
    verdict=_against_the_mean,
    unit=_unit,
    results=_by_range,
    pictures=_pictures,
    cases=lambda run: cases(run.rows),
    per_case={
        "mae": (_absolute_error, False, "absolute error"),
        "mse": (lambda row: (row["prediction"] - row["target"]) ** 2, False, "squared error"),
        "corrected_mae": (lambda row: _absolute_error(row, "corrected"), False, "corrected absolute error"),
    },
)
