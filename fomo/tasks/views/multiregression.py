"""Regression of several numbers: a block per target, and the cases by their mean standardised error."""

import numpy as np

from ...pages import page
from ...pages.case_table import case_table, outliers
from ...pages.page import interval, number, tag
from ..results import Results
from .regression import against_the_mean, figures_of
from .view import View, names_in, truth

_COLUMNS = ("target", "prediction", "training_mean", "training_sd", "corrected")  # of a row, for each target
_SHARED = ("id", "subject", "fold", "loss")


def results_of(results, name):
    """The Results of one of several targets, in the columns that a Regression has."""
    first = results.rows[0]
    own = [(column, f"{column}_{name}") for column in _COLUMNS if f"{column}_{name}" in first]
    own += [(column, column) for column in _SHARED if column in first]
    return Results([{column: row[where] for column, where in own} for row in results.rows])


def standardised_errors(rows, names, of="prediction"):
    """(n,): of each row the mean over the targets of |error| / deviation in training; None where that is not known.

    of: "prediction" or "training_mean", which says the same of everyone.
    """
    if not all(f"training_sd_{name}" in rows[0] for name in names):
        return None
    errors = [[row[f"{of}_{name}"] - row[f"target_{name}"] for name in names] for row in rows]
    deviations = [[row[f"training_sd_{name}"] for name in names] for row in rows]
    return (np.abs(errors) / deviations).mean(1)


def _verdict(run):
    of_mean = standardised_errors(run.rows, run.task.names, "training_mean")
    gain = of_mean - standardised_errors(run.rows, run.task.names)
    return against_the_mean(run, gain, f"{number(of_mean.mean(), 3)} standard deviations")


def _table(run):
    rows = []
    for title, name in zip(run.config.task.targets, run.task.names):
        value, low, high = run.with_interval(f"{name}_mae")
        of_mean, r2, pearson = (run.value(f"{name}_{metric}") for metric in ("mae_of_the_mean", "r2", "pearson"))
        rows.append([title, value, interval(low, high, 3), of_mean, r2, pearson])
    columns = ["target", "MAE", "95% interval", "MAE of the training mean", "R²", "Pearson"]
    return page.table(columns, rows, f"Each target in its own unit, of {len(run.rows)} cases")


def _pictures(run):
    parts = [_table(run)]
    for title, name in zip(run.config.task.targets, run.task.names):
        parts += [tag("h3", title), page.grid(figures_of(results_of(run.results, name), title, f"unit of {title}"))]
    return parts


def _cases(run):
    """By the mean standardised error."""
    errors = standardised_errors(run.rows, run.task.names)
    found = []
    for row, error, flag in sorted(zip(run.rows, errors, outliers(errors)), key=lambda one: -one[1]):
        pairs = [[row[f"target_{name}"], row[f"prediction_{name}"]] for name in run.task.names]
        found.append((row, [float(error), *sum(pairs, [])], "outlier" if flag else ""))
    titles = [f"{title}{what}" for title in run.config.task.targets for what in ("", ", predicted")]
    return case_table(["standardised error", *titles], found)


def _standardised_error(row):
    return float(standardised_errors([row], names_in(row))[0])


VIEW = View(
    title="Targets",
    verdict=_verdict,
    unit=lambda run: " (standard deviations)",
    main=lambda metric: metric == "standardised_mae" or metric.endswith(("_mae", "_r2", "_pearson")),
    tables=lambda run: [_table(run)],
    pictures=_pictures,
    cases=_cases,
    truth=truth,
    per_case={"standardised_mae": (_standardised_error, False, "mean standardised error")},
)
