"""What the report shows of a task's runs; the defaults are the plain view, which needs rows with a loss and no more.

`run` is always the report's Run, see report/run.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...pages.case_table import case_table
from ...pages.page import label


def _plain_verdict(run):
    return "What this value means is up to the reader: no baseline is computed for this task."


def _plain_cases(run):
    """Every number in the rows, the highest loss first."""
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    names = [name for name in names if name not in ("id", "subject", "fold", "scan", "missing")]
    ranked = sorted(run.rows, key=lambda row: -row["loss"])
    return case_table(map(label, names), [(row, [row.get(name, math.nan) for name in names], "") for row in ranked])


class View(NamedTuple):
    title: str = "Predictions"  # of the section with the pictures
    verdict: Callable = _plain_verdict  # (run) -> one plain sentence: the headline against chance, say
    unit: Callable = lambda run: ""  # (run) -> what follows the headline's name, such as " (years)"
    beside: Callable = lambda run: []  # (run) -> lines below the headline's value
    results: Callable = lambda run: []  # (run) -> parts below the table of the main results
    main: Callable = lambda metric: True  # (name of a metric) -> whether it stands in the first table of results
    notes: Callable = lambda run: []  # (run) -> texts that the reader should know before the numbers
    curves: Callable = lambda run, options: []  # (run, options of figures.epochs.curves) -> more figures of training
    tables: Callable = lambda run: []  # (run) -> parts that take the place of the pictures where matplotlib is missing
    pictures: Callable = lambda run: []  # (run) -> parts
    cases: Callable = _plain_cases  # (run) -> what `pages.case_table.case_table` gives
    order: str = "worst first"  # of these cases, as the table's caption says it; "" for none
    # what the comparison of runs needs:
    truth: Callable = lambda row: row.get("target")  # (row) -> what must be equal in runs that are compared
    per_case: dict = {}  # {metric: (row -> value of the case, higher is better, its name in print)}; the first is drawn
    ranked: Callable = lambda run: {}  # (run) -> {metric: (labels of 0 and 1, scores)} of what DeLong's test compares


def names_in(row):
    """Names of the labels, or of several targets, that a row has columns of."""
    return [name.removeprefix("target_") for name in row if name.startswith("target_")]


def truth(row):
    """The true value of each of them."""
    return [row[f"target_{name}"] for name in names_in(row)]


def _share_right(row):
    return np.mean([row[f"decision_{name}"] == row[f"target_{name}"] for name in names_in(row)])


SHARE_RIGHT = {"accuracy": (_share_right, True, "share of right decisions")}  # of their decisions, for `per_case`


def read_arrays(path):
    """{name: array} of an .npz file of numbers and text."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
