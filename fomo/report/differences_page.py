"""The comparison of runs as text, CSV and HTML."""

import itertools
import os

import numpy as np

from .. import config as config_module
from .. import metrics
from ..config import as_user_error
from ..pages import figures, page
from ..pages.figures.numbers import paired
from ..pages.figures.probabilities import rocs
from ..pages.page import number, tag
from ..runtime import files
from . import covers


def comparison_text(rows):
    """A table of aligned text for each pair of runs."""
    found = []
    for titles, lines in map(_titles_and_lines, _pairs(rows)):
        lines = [titles, *([page.shown(content) for content in line] for line in lines)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
        found.append("\n".join(padded))
    return "\n\n".join(found)


def _pairs(rows):
    return [list(of_pair) for _, of_pair in itertools.groupby(rows, key=lambda row: (row["first"], row["second"]))]


def _titles_and_lines(rows):
    """What the table of a pair of runs shows, in text and in HTML."""
    left_out = any(row["left_out"] for row in rows)
    titles = ["metric", rows[0]["first"], rows[0]["second"], "difference", "95% interval", "p", "p (Holm)"]
    titles += ["better", "cases", *["left out"] * left_out]

    def line(row):
        values = (row[name] for name in ("first_value", "second_value", "difference"))
        p_values = (page.Cell(number(row[name], 3), row[name]) for name in ("p", "p_holm"))
        found = [page.label(row["metric"]), *values, page.interval_cell(row["low"], row["high"]), *p_values]
        return [*found, row["better"] or "not shown", row["cases"], *[row["left_out"]] * left_out]

    return titles, [line(row) for row in rows]


def write_comparison(rows, runs, output):
    """comparison.csv and comparison.html in the folder `output`; returns the path of the page."""
    with as_user_error(f"cannot write to {output}"):
        os.makedirs(output, exist_ok=True)
        files.write_csv(os.path.join(output, "comparison.csv"), rows)
    return page.save(os.path.join(output, "comparison.html"), _document(rows, runs))


def _document(rows, runs):
    names, first = list(runs), _first(runs)
    title = f"Comparison of {' and '.join(names) if len(names) == 2 else f'{len(names)} runs'}"
    subjects = len({row["subject"] for row in first.rows})
    what = f"{first.config.task.type} · {len(first.units)} {first.cases} of {subjects} subjects"
    said = [_sentence(row) for row in rows if row["metric"] == _headline(rows, first)]
    parts = [
        tag("header", [tag("h1", title), tag("p", what, class_="sub")]),
        tag("div", tag("div", said, class_="say"), class_="hero"),
        page.alert(_notes(rows, runs)),
        page.section("Differences", _tables(rows), "differences"),
        page.section("Case by case", _pictures(runs), "pictures"),
        page.section("Cases", [_cases(runs)], "cases"),
        page.section("Settings", [_settings(runs)], "settings"),
        tag("footer", "Written by tools/compare.py; the same differences are in comparison.csv."),
    ]
    return page.document(title, parts)


def _first(runs):
    return next(iter(runs.values()))


def _headline(rows, run):
    """The metric that the page begins with: the runs' own, or the first one of each case where that has no test."""
    tested = [row["metric"] for row in rows]
    names = [run.headline + metrics.WITHIN, run.headline]
    return next((name for name in names if name in tested), next(iter(run.task.view.per_case)))


def _sentence(row):
    verdict = f"Neither {row['first']} nor {row['second']} is shown to be better."
    verdict = f"{row['better']} is better." if row["better"] else verdict
    first, second = (f"{number(row[f'{which}_value'], 3)} of {row[which]}" for which in ("first", "second"))
    interval = page.interval(row["low"], row["high"], 3) or "undefined"
    difference = f"difference {number(row['difference'], 3)} (95% interval {interval})"
    values = f"{page.capital(page.label(row['metric']))} {first}, {second}; {difference}"
    return tag("p", [tag("b", verdict), f" {values}, p\u00a0=\u00a0{number(row['p_holm'], 2)} after correction."])


def _notes(rows, runs):
    first, found = _first(runs), []
    if _headline(rows, first) not in (first.headline, first.headline + metrics.WITHIN):
        values = [f"{number(run.value(first.headline), 3)} of {name}" for name, run in runs.items()]
        metric = page.capital(page.label(first.headline))
        found.append(f"{metric}, by which the runs select their epochs, has no test here; it is {', '.join(values)}.")
    if any(run.splits != first.splits for run in runs.values()):
        found.append("The runs have other folds: part of the difference is in what each was trained on.")
    if any(row["left_out"] for row in rows):
        which = "cases whose value is undefined (both masks empty) or infinite (one empty) in either run"
        found.append(f"Left out: {which}.")
    return found


def _tables(rows):
    ranked = any(row["test"] == "DeLong" for row in rows)
    delong = "by DeLong's test for AUROCs, its terms summed per subject (Obuchowski 1997), for the rest "
    better = f"better: p below 0.05 after Holm's correction over all {len(rows)} tests"
    found = [
        page.note(f"p {delong if ranked else ''}by permutation of whole subjects; {better}. {covers.OF_DIFFERENCES}")
    ]
    for of_pair in _pairs(rows):
        caption = f"{of_pair[0]['second']} minus {of_pair[0]['first']} on the same cases"
        found.append(page.table(*_titles_and_lines(of_pair), caption, sortable=True))
    return found


def _per_case(runs):
    """(name in print, higher is better, {run name: (n,) values}) of the first per-case metric of the task."""
    value_of, higher, label = next(iter(_first(runs).task.view.per_case.values()))
    return label, higher, {name: np.array([value_of(row) for row in run.units]) for name, run in runs.items()}


def _pictures(runs):
    if not figures.available():
        return [page.note(figures.MISSING)]
    found = []
    ranked = {name: run.task.view.ranked(run) for name, run in runs.items()}
    for metric, (labels, _) in _first(ranked).items():
        if labels.ndim > 1:  # of several labels, which have curves of their own
            continue
        curves = [(name, *of_run[metric]) for name, of_run in ranked.items()]
        found.append(page.figure(rocs(curves), f"{page.label(metric)}.", "All cases of each run."))
    label, higher, values = _per_case(runs)
    (base, of_base), *others = values.items()
    for name, of_other in others:
        kept = np.isfinite(of_base) & np.isfinite(of_other)
        if kept.any():
            picture = paired(of_base[kept], of_other[kept], (base, name), label)
            text = f"{'Above' if higher else 'Below'} the line: {name} is better."
            found.append(page.figure(picture, f"{page.capital(label)} of each case.", text))
    return [page.grid(found)]


def _cases(runs):
    label, _, values = _per_case(runs)
    columns = np.array(list(values.values()))
    spread = np.ptp(columns, axis=0)  # inf or NaN where one is
    order = np.argsort(np.where(np.isfinite(spread), -spread, np.inf), kind="stable")
    ids = [row["id"] for row in _first(runs).units]
    rows = [[ids[i], *columns[:, i].tolist(), float(spread[i])] for i in order]
    caption = f"{page.capital(label)} of each case, largest difference first"
    return page.table(["case", *values, "largest difference"], rows, caption, sortable=True)


def _settings(runs):
    rows = [["code", *(run.start.get("code", "not logged") for run in runs.values())]]
    for of_runs in zip(*(config_module.fields(run.config) for run in runs.values())):
        rows.append([of_runs[0][0], *(config_module.show(value) for _, _, value in of_runs)])
    rows = [row for row in rows if row[0] not in ("name", "output") and len(set(row[1:])) > 1]
    if not rows:
        return page.note("The runs have the same config and code.")
    return page.table(["key", *runs], rows, "Keys of the config, and the code, in which the runs differ")
