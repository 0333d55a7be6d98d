"""The page of a linear probe of embeddings: how well classes are told, and how evenly over groups of subjects."""

import math

import numpy as np

from .. import metrics
from ..pages import figures, page
from ..pages.figures import groups as groups_figure
from ..pages.figures.probabilities import rocs
from ..pages.page import interval, interval_cell, label, number, tag

_CHALLENGE = "heads"  # the method that the challenge ranks by
_MOST = 12  # classes of which a curve can be told from the others


def write_probe(found, methods, path, title):
    """Write the page of an evaluation.probe.Found; methods: {name: what it is called}. Returns its path."""
    return page.save(path, _document(found, methods, title))


def _document(found, methods, title):
    facts = found.facts
    what = f"{facts['cases']} cases · {facts['classes']} classes · {facts['features']} numbers a case"
    parts = [
        tag("header", [tag("h1", title), tag("p", what, class_="sub")]),
        _headline(found),
        page.alert(_notes(found)),
        page.section("Metrics", _metrics(found, methods), "metrics"),
        page.section("Pictures", [_pictures(found)], "pictures"),
        page.section("Groups", _groups(found, methods), "groups"),
        page.section("Splits", [_splits(found, methods)], "splits"),
        tag("footer", "Written by tools/probe.py; the same numbers are in probe.json and in the tables beside it."),
    ]
    return page.document(title, parts)


def _headline(found):
    rows = {row["metric"]: row for row in found.summary if row["method"] == _CHALLENGE}
    auroc, f1 = rows["auroc"], rows["f1"]
    value = [tag("div", "AUROC, one class against the rest", class_="label")]
    value.append(tag("div", number(auroc["value"], 3), class_="value", id="headline", data_value=repr(auroc["value"])))
    if not math.isnan(auroc["low"]):
        value.append(tag("div", f"95% interval {interval(auroc['low'], auroc['high'], 3)}", class_="label"))
    limits = interval(f1["low"], f1["high"], 3) or "undefined"
    said = [tag("p", [tag("b", f"Mean F1 {number(f1['value'], 3)}"), f" (95% interval {limits})."])]
    for row in found.fairness:
        if row["method"] == _CHALLENGE and row["kind"] == "fairness":
            shown = f"Fairness score by {label(row['metric'])} {number(row['value'], 3)}"
            limits = interval(row["low"], row["high"], 3) or "undefined"
            variables = row["group"] or "none that is defined"
            said.append(tag("p", f"{shown} (95% interval {limits}; variables: {variables})."))
    facts = found.facts
    how = (
        f"By FOMO26's linear heads, first split (seed {facts['seeds'][0]}), on {len(found.predictions)} tested cases: "
        "half of the subjects of each class, which nothing was trained on or chosen by."
    )
    about = "they are about these fitted heads on new subjects of this population, not about what others would teach"
    said.append(page.note(f"{how} The 95% intervals draw whole subjects: {about}."))
    return tag("div", [tag("div", value), tag("div", said, class_="say")], class_="hero")


def _notes(found):
    facts, notes = found.facts, []
    if facts["missing"]:
        notes.append(f"{facts['missing']} cases have no embedding: where they are tested they get the worst answer.")
    if facts["unlabelled"]:
        notes.append(f"{facts['unlabelled']} lines of the table have no class, and are left out.")
    return [*notes, *(f"{text}." for text in (*map(page.capital, facts["unsaid"]), *facts["doubts"]))]


def _metrics(found, methods):
    titles = ["method", "metric", "value", "95% interval", "mean over splits", "SD over splits", "splits"]
    rows = [
        [methods[row["method"]], label(row["metric"]), row["value"], interval_cell(row["low"], row["high"])]
        + [row["mean"], row["sd"], row["splits"]]
        for row in found.summary
    ]
    text = (
        "AUROC and F1 are means over the classes, AUROC of each against the rest. Value and interval are of the first "
        "split, the interval over subjects. Mean and SD are over splits, which share their subjects: the SD says how "
        "much a split's luck counts, not how exact the mean is."
    )
    return [page.note(text), page.table(titles, rows, "How well classes are told")]


def _pictures(found):
    if not figures.available():
        return page.note(figures.MISSING)
    names, drawn = found.facts["names"], []
    truth = np.array([names.index(row["target"]) for row in found.predictions])
    said = np.array([names.index(row["prediction"]) for row in found.predictions])
    scores = np.array([[row[f"probability_{name}"] for name in names] for row in found.predictions])
    curves = [(name, truth == number, scores[:, number]) for number, name in enumerate(names[:_MOST])]
    text = "Each class against the rest, first split." + (f" The first {_MOST} classes." if len(names) > _MOST else "")
    drawn.append(page.figure(rocs(curves), "ROC curves.", text))
    table = metrics.confusion_matrix(truth, said, len(names))
    drawn.append(page.figure(groups_figure.confusion(table, names), "Classes.", "True in rows, said in columns."))
    return page.grid([*drawn, *_of_groups(found)])


def _of_groups(found):
    """A figure for each metric, where there are groups."""
    for overall in (row for row in found.summary if row["method"] == _CHALLENGE):
        metric = overall["metric"]
        rows = [row for row in found.fairness if (row["method"], row["metric"]) == (_CHALLENGE, metric)]
        rows = [row for row in rows if row["kind"] == "group" and not math.isnan(row["value"])]
        if rows:
            shown = [f"{row['variable']} {row['group']}" for row in rows]
            values, lows, highs = ([row[key] for row in rows] for key in ("value", "low", "high"))
            picture = groups_figure.by_group(shown, values, lows, highs, overall["value"], label(metric))
            yield page.figure(picture, f"{label(metric)} by group.", "Bars: 95% intervals over subjects.")


def _groups(found, methods):
    if not found.fairness:
        return [page.note("No groups were named (--groups).")]
    text = (
        "Disparity: the largest value over the groups minus the smallest one. Its interval is that of the difference "
        "of these two groups, which includes 0 where none is shown; p knows that they were chosen among all (whole "
        "subjects of a class swap groups). Fairness score: the mean of 1 minus the disparity over the variables; "
        "where its interval reaches 1, no disparity is shown."
    )
    parts = [page.note(text)]
    for kind, caption in (("fairness", "Fairness score"), ("disparity", "Disparity"), ("group", "Groups")):
        rows = [row for row in found.fairness if row["kind"] == kind]
        titles = ["method", "metric", *_COLUMNS[kind]]
        lines = [[methods[row["method"]], label(row["metric"]), *_cells(kind, row)] for row in rows]
        parts.append(page.table(titles, lines, caption, sortable=kind == "group"))
    return parts


_COLUMNS = {
    "fairness": ["value", "95% interval", "variables"],
    "disparity": ["variable", "value", "95% interval", "p", "of", "groups without a value", "cases"],
    "group": ["variable", "group", "value", "95% interval", "cases"],
}


def _cells(kind, row):
    value = [row["value"], interval_cell(row["low"], row["high"])]
    if kind == "fairness":
        return [*value, row["group"] or "none"]
    if kind == "group":
        return [row["variable"], row["group"], *value, row["cases"]]
    p = page.Cell(number(row["p"], 2), row["p"])
    return [row["variable"], *value, p, row["group"], row["undefined"], row["cases"]]


def _splits(found, methods):
    titles = ["method", "seed", "metric", "value", "95% interval", "tested", "without an embedding"]
    rows = [
        [methods[row["method"]], row["seed"], label(row["metric"]), row["value"]]
        + [interval_cell(row["low"], row["high"]), row["tested"], row["missing"]]
        for row in found.scores
    ]
    return page.table(titles, rows, "Every split", sortable=True)
