"""The comparison of runs as text, CSV and HTML."""

import math
import os

import numpy as np

from .. import tables
from ..config import UserError
from . import figures, page, views
from .page import number, tag


def sentence(row):
    """What the headline's row says, in words."""
    verdict = (
        f"{row['better']} is better"
        if row["better"]
        else f"Neither {row['first']} nor {row['second']} is shown to be better"
    )
    first, second = (f"{number(row[f'{which}_value'], 3)} of {row[which]}" for which in ("first", "second"))
    interval = page.interval(row["low"], row["high"], 3) or "undefined"
    difference = f"difference {number(row['difference'], 3)} (95% interval {interval})"
    p_value = f"p = {number(row['p_holm'], 2)} after correction"
    return f"{verdict}: {page.label(row['metric'])} {first}, {second}; {difference}, {p_value}."


def comparison_text(rows):
    """The table as aligned text."""
    head = [
        "metric",
        "first",
        "second",
        "first",
        "second",
        "difference",
        "95% interval",
        "p",
        "p (Holm)",
        "better",
        "cases",
    ]
    lines = [head]
    for row in rows:
        values = [number(row[name]) for name in ("first_value", "second_value", "difference")]
        p_values = [number(row[name], 3) for name in ("p", "p_holm")]
        cases = f"{row['cases']}" + (f" ({row['left_out']} left out)" if row["left_out"] else "")
        lines.append(
            [
                row["metric"],
                row["first"],
                row["second"],
                *values,
                page.interval(row["low"], row["high"]),
                *p_values,
                row["better"] or "-",
                cases,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def write_comparison(rows, runs, output):
    """comparison.csv and comparison.html in the folder `output`; returns the path of the page."""
    try:
        os.makedirs(output, exist_ok=True)
        tables.write_csv(os.path.join(output, "comparison.csv"), rows)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    return page.save(os.path.join(output, "comparison.html"), _document(rows, runs))


def _document(rows, runs):
    names, first = list(runs), next(iter(runs.values()))
    subjects = len({row["subject"] for row in first.rows})
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    units = views.of(first).units(first)
    parts = [
        tag(
            "header",
            [
                tag("h1", f"Comparison of {title}"),
                tag(
                    "p",
                    f"{first.config.task.type} · {len(units)} {first.cases} of {subjects} subjects",
                    class_="sub",
                ),
            ],
        ),
        tag(
            "div",
            tag(
                "div",
                [tag("p", tag("b", sentence(row))) for row in rows if row["metric"] == _headline(rows, first)],
                class_="say",
            ),
            class_="hero",
        ),
        _notes(rows, runs, subjects),
        page.section("Differences", [_table(rows, names)], "differences"),
        page.section("Case by case", _pictures(runs), "pictures"),
        page.section("Cases", [_cases(runs)], "cases"),
        tag("footer", "Written by tools/compare.py; the same numbers are in comparison.csv."),
    ]
    return page.document(f"Comparison of {title}", parts)


def _headline(rows, run):
    """The metric that the page begins with: the runs' own, or the first one of each case where that has no test."""
    return run.headline if any(row["metric"] == run.headline for row in rows) else next(iter(views.of(run).per_case))


def _notes(rows, runs, subjects):
    first = next(iter(runs.values()))
    found = []
    if any(run.splits != first.splits for run in runs.values()):
        found.append("The runs have other folds: part of the difference is in what each was trained on.")
    if subjects < len(first.rows) and views.of(first).ranked(first):
        found.append(
            "Some subjects have several cases, which DeLong's test takes as independent: its p is somewhat too small."
        )
    if any(row["left_out"] for row in rows):
        found.append(
            "Left out: cases whose value is undefined (both masks empty) or infinite (one empty) in either run."
        )
    return (
        tag(
            "div",
            [tag("b", "Please note"), tag("ul", [tag("li", text) for text in found])],
            class_="alert",
            role="note",
        )
        if found
        else None
    )


def _table(rows, names):
    lines = []
    for row in rows:
        values = [row[name] for name in ("first_value", "second_value", "difference")]
        interval = page.Cell(page.interval(row["low"], row["high"]), row["low"])
        p_values = [page.Cell(number(row[name], 3), row[name]) for name in ("p", "p_holm")]
        lines.append(
            [
                page.label(row["metric"]),
                row["first"],
                row["second"],
                *values,
                interval,
                *p_values,
                row["better"] or "not shown",
                row["cases"],
                row["left_out"],
                row["test"],
            ]
        )
    columns = [
        "metric",
        "first",
        "second",
        "of the first",
        "of the second",
        "difference",
        "95% interval",
        "p",
        "p (Holm)",
        "better",
        "cases",
        "left out",
        "test",
    ]
    what = "Second minus first"
    if len(names) == 2:  # the names stand above the values
        what = f"{names[1]} minus {names[0]}"
        columns[3:5] = names
        columns, *lines = ([line[0], *line[3:]] for line in [columns, *lines])
    return page.table(
        columns,
        lines,
        f"{what} on the same cases; better: p below 0.05 after Holm's correction over the whole table",
        sortable=True,
    )


def _per_case(runs):
    """(name in print, higher is better, {run name: (n,) values}) of the first per-case metric of the task."""
    first = next(iter(runs.values()))
    view = views.of(first)
    value_of, higher, label = next(iter(view.per_case.values()))
    return label, higher, {name: np.array([value_of(row) for row in view.units(run)]) for name, run in runs.items()}


def _pictures(runs):
    if not figures.available():
        return [page.note(figures.MISSING)]
    label, higher, values = _per_case(runs)
    pictures = []
    ranked = {name: views.of(run).ranked(run) for name, run in runs.items()}
    for metric, (labels, _) in next(iter(ranked.values())).items():
        curves = [(name, labels.astype(int), of_run[metric][1]) for name, of_run in ranked.items()]
        title = "ROC." if len(ranked) == 1 else f"ROC: {page.label(metric)}."
        pictures.append(page.figure(figures.rocs(curves), title, "All cases of each run."))
    (base, of_base), *others = values.items()
    for name, of_other in others:
        kept = np.isfinite(of_base) & np.isfinite(of_other)
        if kept.any():
            better = "Above" if higher else "Below"
            picture = figures.paired(of_base[kept], of_other[kept], (base, name), label)
            pictures.append(
                page.figure(
                    picture, f"{label[0].upper()}{label[1:]} of each case.", f"{better} the line: {name} is better."
                )
            )
    return [page.grid(pictures)]


def _cases(runs):
    label, higher, values = _per_case(runs)
    columns = np.array(list(values.values()))
    spread = columns.max(axis=0) - columns.min(axis=0)  # inf or NaN where one is
    order = sorted(range(len(spread)), key=lambda i: -spread[i] if np.isfinite(spread[i]) else math.inf)
    first = next(iter(runs.values()))
    ids = [row["id"] for row in views.of(first).units(first)]
    rows = [[ids[i], *columns[:, i].tolist(), float(spread[i])] for i in order]
    return page.table(
        ["case", *values, "largest difference"],
        rows,
        f"{label[0].upper()}{label[1:]} of each case, largest difference first",
        sortable=True,
    )
