"""The page of a stress test: which changes of its images a model cannot stand."""

import math

from ..pages import figures, page
from ..pages.figures.grades import over_grades
from ..pages.page import label, number, tag
from . import covers


def write_stress(facts, rows, worst, shifts, path):
    """Write the page; returns its path.

    facts: {name, task, folds (tested), of (all folds), cases, subjects}. rows: of evaluation.stress.table; worst: some
    of them. shifts: {name: transforms.shifts.Shift}.
    """
    return page.save(path, _document(facts, rows, worst, shifts))


def _document(facts, rows, worst, shifts):
    title = f"Stress test of {facts['name']}"
    folds = f"{len(facts['folds'])} of {facts['of']} folds"
    what = f"{facts['task']} · {folds} · {facts['cases']} cases of {facts['subjects']} subjects · {len(rows)} changes"
    same = "The same numbers are in stress.csv and stress.json."
    parts = [
        tag("header", [tag("h1", title), tag("p", what, class_="sub")]),
        _headline(rows, worst, shifts),
        page.alert(_notes(facts, rows)),
        page.section("Curves", [_curves(rows, shifts)], "curves"),
        page.section("Numbers", [_table(rows, shifts)], "numbers"),
        page.section("What was changed", [_meaning(shifts)], "changes"),
        tag("footer", f"Written by tools/stress.py. {same}"),
    ]
    return page.document(title, parts)


def _headline(rows, worst, shifts):
    said = [_sentence(place, row, shifts[row["change"]]) for place, row in enumerate(worst, start=1)]
    shown = sum(row["low"] > 0 for row in rows)
    how = f"Of {len(rows)} changes {shown or 'none'} cost more than chance (the 95% interval of the drop is above 0)."
    said = said or [tag("p", tag("b", "No change costs anything."))]
    about = "The worst are chosen by the same numbers, so on new cases they will cost a little less."
    text = page.note(f"{how} {about} {covers.OF_DROPS}")
    return tag("div", tag("div", [*said, text], class_="say"), class_="hero")


def _sentence(place, row, shift):
    limits = page.interval(row["low"], row["high"], 3) or "undefined"
    values = f"{label(row['metric'])} {number(row['changed'], 3)} instead of {number(row['unchanged'], 3)}"
    sure = "" if row["low"] > 0 else "; it may be chance"
    drop = f"drop {number(row['drop'], 3)} (95% interval {limits}{sure})"
    what = f"{place}. {page.capital(shift.title)} at {number(row['grade'], 3)} ({shift.unit}): "
    return tag("p", [tag("b", what), f"{values}, {drop}."])


def _notes(facts, rows):
    found = []
    if len(facts["folds"]) < facts["of"]:
        found.append("The run is not finished: only the models of its finished folds are tested.")
    if most := max(row["left_out"] for row in rows):
        what = "cases whose value is undefined or infinite, before or after the change, are left out"
        found.append(f"Up to {most} {what}: each line compares the same cases.")
    return found


def _curves(rows, shifts):
    if not figures.available():
        return page.note(figures.MISSING)
    return page.grid([_curve([row for row in rows if row["change"] == name], one) for name, one in shifts.items()])


def _curve(rows, shift):
    errors = any(row["drop"] * (row["unchanged"] - row["changed"]) < 0 for row in rows)  # which grow
    sign = -1 if errors else 1
    limits = [tuple(row["unchanged"] - sign * row[end] for end in ("low", "high")) for row in rows]
    grades, values = [row["grade"] for row in rows], [row["changed"] for row in rows]
    unchanged = rows[0]["unchanged"]
    if math.isnan(unchanged):
        return page.note(f"{page.capital(shift.title)}: the metric is undefined.")
    picture = over_grades(grades, values, limits, shift.neutral, unchanged, shift.unit, label(rows[0]["metric"]))
    return page.figure(picture, f"{page.capital(shift.title)}.", "")


def _table(rows, shifts):
    columns = ["change", "grade", "unchanged", "changed", "drop", "95% interval", "cases", "left out"]

    def line(row):
        limits = page.interval_cell(row["low"], row["high"])
        values = (row[name] for name in ("grade", "unchanged", "changed", "drop"))
        return [shifts[row["change"]].title, *values, limits, row["cases"], row["left_out"]]

    metric = page.capital(label(rows[0]["metric"]))
    caption = f"{metric} of all cases together; the drop is what is lost of it, or how much an error grows"
    return page.table(columns, [*map(line, rows)], f"{caption}, with its interval over subjects", sortable=True)


def _meaning(shifts):
    rows = [[one.title, one.unit, ", ".join(f"{grade:g}" for grade in one.grades), one.help] for one in shifts.values()]
    caption = "Images are changed after preprocessing; masks follow rotation and scale"
    return page.table(["change", "unit of its grades", "grades", "what it is"], rows, caption)
