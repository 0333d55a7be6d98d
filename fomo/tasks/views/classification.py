"""Classification into two classes: ROC, precision and recall, calibration, scores, confusion matrix."""

import math

import numpy as np

from ...pages import heatmaps, page
from ...pages.case_table import columns_of, finish
from ...pages.figures.classification import calibration, precision_recall, roc, score_histogram
from ...pages.page import number, tag
from .view import View

_SURE = 0.1  # probability of the true class below which a classification is confidently wrong


def against_chance(value, low, high, name="AUROC"):
    """What an AUROC and its interval say, in one sentence."""
    if math.isnan(value):
        return f"The {name} is undefined: the finished folds have cases of one class only."
    if math.isnan(low):
        return "Chance is 0.5; without an interval it cannot be said whether this differs from it."
    if low > 0.5:
        return "Better than chance (0.5): the whole interval lies above it."
    if high < 0.5:
        return "Worse than chance (0.5): the whole interval lies below it; check the labels."
    return "Not shown to be better than chance: the interval contains 0.5."


def _verdict(run):
    return against_chance(*run.with_interval("auroc"))


def confusion_table(counts, names, decided):
    """counts[i][j]: cases of the class names[i] that were decided to be of decided[j], the same classes in one order."""

    def cell(i, j):
        count, of = counts[i][j], sum(counts[i])
        share = f"{100 * count / of:.0f}% of {of}" if of else "none there"
        opacity = 0.06 + 0.34 * (count / of if of else 0)
        colour = "58,143,196" if i == j else "213,94,0"
        content = [str(count), tag("small", share)]
        return tag("td", content, style=f"background:rgba({colour},{opacity:.2f})", data_value=repr(float(count)))

    rows = [
        tag("tr", [tag("th", name, scope="row"), *(cell(i, j) for j in range(len(decided)))])
        for i, name in enumerate(names)
    ]
    head = tag(
        "tr", [tag("th", "label", scope="col"), *(tag("th", f"decided {name}", scope="col") for name in decided)]
    )
    many = " many" if len(names) > 2 else ""
    return tag("table", [tag("thead", head), tag("tbody", rows)], class_=f"confusion{many}")


def _confusion(run):
    """The 2x2 table of decisions, each fold's at its own threshold."""
    tp, fp, fn, tn = (int(run.metrics[name]["pooled"]) for name in ("tp", "fp", "fn", "tn"))
    table = confusion_table([[tp, fn], [fp, tn]], ["class 1", "class 0"], ["1", "0"])
    rule = run.config.eval.threshold
    where = "at 0.5" if rule == "half" else f"at its own threshold, chosen on its inner validation cases ({rule})"
    named = (
        "" if run.classes == ["0", "1"] else f" Class 0 is {run.classes[0]}, class 1 {run.classes[1]}: in sorted order."
    )
    return page.figure(table, "Confusion matrix.", f"Each fold decides {where}.{named}")


def _pictures(run, listed):
    labels, scores = columns_of(run.rows, "target", "probability")
    labels = labels.astype(int)
    if len(np.unique(labels)) < 2:
        return [
            _confusion(run),
            page.note("The finished folds have cases of one class only: there are no curves to draw."),
        ]
    value = {name: run.metrics[name]["pooled"] for name in ("auroc", "average_precision", "ece")}
    subjects = [row["subject"] for row in run.rows]
    pictures = [
        page.figure(
            roc(labels, scores, subjects, run.config.seed, value["auroc"]),
            "ROC.",
            f"All {run.cases}; pointwise bootstrap band over subjects.",
        ),
        page.figure(
            precision_recall(labels, scores, value["average_precision"]),
            "Precision and recall.",
            "Chance is the share of positive cases.",
        ),
        page.figure(
            calibration(labels, scores, value["ece"]),
            "Calibration.",
            f"Dots below the diagonal: probabilities too high. Size: number of cases; ECE {number(value['ece'], 3)}.",
        ),
        page.figure(score_histogram(labels, scores), "Scores.", "Class 1 upwards, class 0 downwards."),
    ]
    return [page.grid([*pictures, _confusion(run)]), *heatmaps.heatmaps(run)]


def cases(rows):
    """By the probability of the true class."""
    ranked = sorted(rows, key=_of_true_class)
    found = []
    for row in ranked:
        warnings = [] if row["decision"] == row["target"] else ["wrong"]
        if _of_true_class(row) < _SURE:
            warnings.append("and sure of it" if warnings else "unlikely by its probability")
        found.append(
            (row, [row["target"], row["probability"], row["decision"], _of_true_class(row)], " ".join(warnings))
        )
    return finish(["label", "probability", "decision", "of the true class"], found)


def _of_true_class(row):
    return row["probability"] if row["target"] == 1 else 1 - row["probability"]


VIEW = View(
    title="Scores",
    verdict=_verdict,
    tables=lambda run: [_confusion(run)],
    pictures=_pictures,
    cases=lambda run: cases(run.rows),
    per_case={
        "brier": (lambda row: (row["probability"] - row["target"]) ** 2, False, "squared error"),
        "accuracy": (lambda row: float(row["decision"] == row["target"]), True, "right decision"),
    },
    ranked=lambda run: {"auroc": columns_of(run.rows, "target", "probability")},
)
