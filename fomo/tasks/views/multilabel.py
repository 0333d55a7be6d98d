"""Several findings that may occur together: a table and curves of the labels, for the scans and for their slices."""

import numpy as np

from ...pages import page
from ...pages.case_table import case_table
from ...pages.figures.probabilities import calibration, mean_roc, per_label, precision_recalls, score_histogram
from ...pages.page import number, tag
from .classification import against_chance
from .heatmaps import heatmaps
from .view import SHARE_RIGHT, View, names_in, truth


def _verdict(run):
    text = against_chance(*run.with_interval(run.estimate), name="mean AUROC")
    return f"{text} It is the mean over {len(run.config.task.targets)} labels, each against its absence."


def _unit_name(run):
    return "scans" if run.scans else "cases"


def _table(run, labels):
    """A row per label, the highest AUROC first."""
    columns = ["label", "positive", "prevalence", "AUROC", "95% interval", "average precision"]
    columns += ["calibration error (ECE)", *["AUROC, slices", "average precision, slices"] * bool(run.scans)]
    rows = []
    for row in sorted(labels, key=_by_auroc):
        interval = page.interval_cell(row.get("auroc_low", np.nan), row.get("auroc_high", np.nan), 3)
        rows.append([row["label"], row["positives"], row["prevalence"], row["auroc"], interval, row["ap"], row["ece"]])
        rows[-1] += [row["slice_auroc"], row["slice_ap"]] if run.scans else []
    caption = f"Each label over {len(run.units)} {_unit_name(run)}, with its interval over subjects"
    return page.table(columns, rows, caption, sortable=True)


def _by_auroc(row):
    return (np.isnan(row["auroc"]), -row["auroc"])


def _decisions(run, labels):
    """Confusion counts of each label, each fold's decisions at its own threshold."""
    target, decision = (run.task.matrix(run.units, kind) == 1 for kind in ("target", "decision"))
    both = ((target, decision), (~target, decision), (target, ~decision), (~target, ~decision))
    counts = zip(*((a & b).sum(0).tolist() for a, b in both))
    rates = ("precision", "recall", "f1")
    rows = [[row["label"], *of_label, *map(row.get, rates)] for row, of_label in zip(labels, counts)]
    columns = ["label", *map(page.label, ("tp", "fp", "fn", "tn")), "precision", "recall", "F1"]
    rule = run.config.eval.threshold
    where = f"the threshold that each fold chose on its inner validation cases ({rule})" if rule != "half" else "0.5"
    return page.table(columns, rows, f"Decisions on {len(run.units)} {_unit_name(run)}, at {where}", sortable=True)


def _tables(run):
    labels = run.task.tables(run.results)["labels"]
    return [_table(run, labels), _decisions(run, labels)]


def _pictures(run):
    labels = run.task.tables(run.results)["labels"]
    table, decisions = _table(run, labels), _decisions(run, labels)
    return [table, *_curves(run, labels), decisions, *heatmaps(run, ("absent", "present"))]


def _curves(run, labels):
    ranked = sorted((row for row in labels if not np.isnan(row["auroc"])), key=_by_auroc)
    if not ranked:
        return [page.note("No label has both positive and negative cases: there are no curves to draw.")]
    places = {row["label"]: k for k, row in enumerate(labels)}
    chosen = [places[ranked[i]["label"]] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})]
    parts = [page.grid([*_forests(run, ranked), _scores(run)])]
    if not run.scans:
        return [*parts, page.grid(_of_level(run, "volume", run.rows, labels, chosen))]
    for title, level, rows in (("Scans", "volume", run.scans), ("Slices", "slice", run.rows)):
        parts += [tag("h3", title), page.grid(_of_level(run, level, rows, labels, chosen))]
    return parts


def _forests(run, ranked):
    def column(name):
        return np.array([row.get(name, np.nan) for row in ranked])

    names, unit = [row["label"] for row in ranked], _unit_name(run)
    auroc, ap = [(unit, *map(column, ("auroc", "auroc_low", "auroc_high")))], [(unit, column("ap"), None, None)]
    if run.scans:
        auroc.append(("slices", column("slice_auroc"), None, None))
        ap.append(("slices", column("slice_ap"), None, None))
    drawn = per_label(names, auroc, "AUROC", 0.5), per_label(names, ap, "average precision", column("prevalence"))
    return [
        page.figure(drawn[0], "AUROC of each label.", "With the interval over subjects."),
        page.figure(drawn[1], "Average precision of each label.", "Chance is the label's prevalence."),
    ]


def _of_level(run, level, rows, labels, chosen):
    """Figures of the scans or cases, level "volume", or of the slices, level "slice". chosen: places of some labels."""
    target, score = run.task.labels_and_scores(rows)
    auroc, ap, ece = (run.value(f"{level}_{name}") for name in ("auroc_macro", "ap_micro", "ece"))
    prefix = "slice_" if level == "slice" else ""
    curves = [(labels[k]["label"], k, labels[k][f"{prefix}auroc"]) for k in chosen]
    recalls = [("all together", target.ravel(), score.ravel(), ap)]
    recalls += [(labels[k]["label"], target[:, k], score[:, k], labels[k][f"{prefix}ap"]) for k in chosen]
    band = mean_roc(target, score, [row["subject"] for row in rows], run.config.seed, auroc, curves)
    what = "The mean over the labels, its bootstrap band as of independent subjects; the best, middle and worst label."
    errors = f"All labels together; the mean of the labels' own errors (ECE) is {number(ece, 3)}."
    return [
        page.figure(band, "ROC.", what),
        page.figure(precision_recalls(recalls), "Precision and recall.", "Of all labels together, and of these."),
        page.figure(calibration(target.ravel(), score.ravel(), ece), "Calibration.", errors),
    ]


def _scores(run):
    target, score = run.task.labels_and_scores(run.units)
    picture = score_histogram(target.ravel(), score.ravel(), ("absent", "present"), what="labels", of="")
    what = "All labels together: findings that are there upwards, those that are not downwards."
    return page.figure(picture, "Scores.", what)


def cases(run):
    """By the loss: what each scan has, what was missed and what was invented."""
    names, rows, found = run.config.task.targets, run.units, []
    target, decision = (run.task.matrix(rows, kind) == 1 for kind in ("target", "decision"))
    for i in sorted(range(len(rows)), key=lambda i: -rows[i]["loss"]):
        right, missed, false = target[i] & decision[i], target[i] & ~decision[i], ~target[i] & decision[i]
        warning = "all findings missed" if target[i].any() and not right.any() else ""
        words = [_listed(names, chosen) for chosen in (right, missed, false)]
        found.append((rows[i], [rows[i]["loss"], int(missed.sum() + false.sum()), *words], warning))
    return case_table(["loss", "wrong labels", "found", "missed", "false"], found)


def _listed(names, chosen):
    text = ", ".join(name for name, is_chosen in zip(names, chosen) if is_chosen)
    return page.Cell(tag("span", text, class_="wrap") if text else "", text)


def _squared_error(row):
    return np.mean([(row[f"probability_{name}"] - row[f"target_{name}"]) ** 2 for name in names_in(row)])


def _ranked(run):
    """All labels together, and each."""
    target, score = run.task.labels_and_scores(run.units)
    target = target.astype(int)
    each = {f"{name}_auroc": (y, p) for name, y, p in zip(run.task.names, target.T, score.T) if 0 < y.sum() < len(y)}
    return {run.task.select: (target, score), **each} if each else {}


def _main(metric):
    """Of the scans what is at each label's own threshold or at none, of the slices the ranking."""
    if metric.startswith("slice_"):
        return metric in ("slice_auroc_macro", "slice_ap_macro")
    return not metric.endswith(("_common", "_half", "_undefined"))


VIEW = View(
    title="Labels",
    main=_main,
    verdict=_verdict,
    tables=_tables,
    pictures=_pictures,
    cases=cases,
    truth=truth,
    per_case={"brier": (_squared_error, False, "squared error"), **SHARE_RIGHT},
    ranked=_ranked,
)
