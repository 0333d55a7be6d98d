"""Classification into two classes: ROC, precision and recall, calibration, scores, confusion matrix."""

import math

import numpy as np

from ...pages import page
from ...pages.case_table import case_table
from ...pages.figures.probabilities import calibration, precision_recall, roc, score_histogram, scores_per_fold
from ...pages.page import number, tag
from ...pages.rates import of, rates_table
from .heatmaps import heatmaps
from .selective import risk_coverage_of
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


def confusion_table(counts, names, decided):
    """The confusion matrix as Html. counts[i][j]: cases of the class names[i] that were decided to be decided[j]."""

    def cell(i, j):
        count, of = counts[i][j], sum(counts[i])
        share = f"{100 * count / of:.0f}% of {of}" if of else "none there"
        opacity = 0.06 + 0.34 * (count / of if of else 0)
        style = f"background:rgba({'58,143,196' if i == j else '213,94,0'},{opacity:.2f})"
        return tag("td", [str(count), tag("small", share)], style=style, data_value=repr(float(count)))

    columns = range(len(decided))
    rows = [tag("tr", [tag("th", name, scope="row"), *(cell(i, j) for j in columns)]) for i, name in enumerate(names)]
    titles = ["label", *(f"decided {name}" for name in decided)]
    head = tag("tr", [tag("th", title, scope="col") for title in titles])
    many = " many" if len(names) > 2 else ""
    return tag("table", [tag("thead", head), tag("tbody", rows)], class_=f"confusion{many}")


def _counts(run):
    return tuple(int(run.value(name)) for name in ("tp", "fp", "fn", "tn"))


def _results(run):
    where = "at 0.5" if run.config.eval.threshold == "half" else "each fold's at its own threshold"
    names = [f"cases of class {name}" for name in reversed(run.classes)]
    return [rates_table(*_counts(run), *names, f"Decisions on all {run.cases}, {where}")]


def _confusion(run):
    """The 2x2 table of decisions, each fold's at its own threshold."""
    tp, fp, fn, tn = _counts(run)
    table = confusion_table([[tp, fn], [fp, tn]], ["class 1", "class 0"], ["1", "0"])
    rule = run.config.eval.threshold
    where = "at 0.5" if rule == "half" else f"at its own threshold, chosen on its inner validation cases ({rule})"
    zero, one = run.classes
    named = "" if (zero, one) == ("0", "1") else f" Class 0 is {zero}, class 1 {one}: in sorted order."
    return page.figure(table, "Confusion matrix.", f"Each fold decides {where}.{named}")


def _labels_and_scores(run):
    labels, scores = run.results.arrays("target", "probability")
    return labels.astype(int), scores


def _wrong_and_sure(run):
    """Of each case whether its decision is wrong, and the probability of what was decided."""
    targets, decisions, probabilities = run.results.arrays("target", "decision", "probability")
    return (decisions != targets).astype(float), np.where(decisions == 1, probabilities, 1 - probabilities)


def _of_folds(run, labels, scores):
    folds = run.results.folds
    if folds is None:
        return []
    said = "A fold whose two classes both lie higher or lower than the others' has a model with another scale."
    return [page.figure(scores_per_fold(labels, scores, folds), "Scores of each fold.", said)]


def _pictures(run):
    labels, scores = _labels_and_scores(run)
    if len(np.unique(labels)) < 2:
        alone = page.note("The finished folds have cases of one class only: there are no curves to draw.")
        return [_confusion(run), alone]
    auroc, average_precision, ece = map(run.value, ("auroc", "average_precision", "ece"))
    tp, fp, fn, tn = _counts(run)
    point = of(fp, fp + tn), of(tp, tp + fn)
    band = roc(labels, scores, [row["subject"] for row in run.rows], run.config.seed, auroc, point)
    recall = precision_recall(labels, scores, average_precision)
    below = "Dots below the diagonal: probabilities too high; bars: Wilson's intervals, as of independent cases. "
    below += f"Size: number of cases; ECE {number(ece, 3)}."
    figures = [
        page.figure(
            band,
            "ROC.",
            f"All {run.cases}; pointwise bootstrap band, as of independent subjects. Diamond: what was decided.",
        ),
        page.figure(recall, "Precision and recall.", "Chance is the share of positive cases."),
        page.figure(calibration(labels, scores, ece), "Calibration.", below),
        page.figure(score_histogram(labels, scores), "Scores.", "Class 1 upwards, class 0 downwards."),
        *risk_coverage_of(run, *_wrong_and_sure(run), "share of wrong decisions", (0, 1)),
        *_of_folds(run, labels, scores),
        _confusion(run),
    ]
    return [page.grid(figures), *heatmaps(run)]


def cases(rows):
    """By the probability of the true class."""
    found = []
    for row in sorted(rows, key=_of_true_class):
        warnings = [] if row["decision"] == row["target"] else ["wrong"]
        if _of_true_class(row) < _SURE:
            warnings.append("and sure of it" if warnings else "unlikely by its probability")
        values = [row["target"], row["probability"], row["decision"], _of_true_class(row)]
        found.append((row, values, " ".join(warnings)))
    return case_table(["label", "probability", "decision", "of the true class"], found)


def _of_true_class(row):
    return row["probability"] if row["target"] == 1 else 1 - row["probability"]


VIEW = View(
    title="Scores",
    verdict=lambda run: against_chance(*run.with_interval(run.estimate)),
    tables=lambda run: [_confusion(run)],
    results=_results,
    pictures=_pictures,
    cases=lambda run: cases(run.rows),
    per_case={
        "brier": (lambda row: (row["probability"] - row["target"]) ** 2, False, "squared error"),
        "accuracy": (lambda row: float(row["decision"] == row["target"]), True, "right decision"),
    },
    ranked=lambda run: {"auroc": _labels_and_scores(run)},
)
