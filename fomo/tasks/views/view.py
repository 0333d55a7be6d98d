"""What a task can show of its runs; the defaults are the plain view, which needs no more than rows with a loss."""

import math
from typing import Callable, NamedTuple

from ...pages.case_table import finish
from ...pages.page import label


def plain_verdict(run):
    return "What this value means is up to the reader: no baseline is computed for this task."


def plain_cases(run):
    """Every number in the rows, the highest loss first."""
    rows = run.rows
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("id", "subject", "fold", "scan")))
    ranked = sorted(rows, key=lambda row: -row["loss"]) if "loss" in names else rows
    return finish(
        [label(name) for name in names], [(row, [row.get(name, math.nan) for name in names], "") for row in ranked]
    )


class View(NamedTuple):
    title: str = "Predictions"  # of the section with the pictures
    verdict: Callable = plain_verdict  # run -> one plain sentence: the headline against chance, say
    unit: Callable = lambda run: ""  # run -> of the headline's value, " (years)"
    main: Callable = lambda metric: True  # name of a metric -> whether it stands in the first table of results
    notes: Callable = lambda run: []  # run -> texts that the reader should know before the numbers
    curves: Callable = (
        lambda run, options: []
    )  # run, keywords of figures.training.curves -> more figures of the training
    tables: Callable = lambda run: []  # run -> parts instead of the pictures where matplotlib is missing
    pictures: Callable = lambda run, listed: []  # run, its sources.Case list or None -> parts
    cases: Callable = plain_cases  # run -> (columns, table rows, case ids with a warning)
    # what tools/compare.py needs:
    units: Callable = lambda run: run.rows  # run -> the rows that are compared
    truth: Callable = lambda row: row.get("target")  # row -> what runs that are compared must have in common
    per_case: dict = {}  # {metric: (row -> value of the case, higher is better, its name in print)}; the first is drawn
    ranked: Callable = lambda run: {}  # run -> {metric: (labels, scores)} of what DeLong's test compares
