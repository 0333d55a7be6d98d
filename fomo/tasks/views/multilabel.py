"""Several findings that may occur together: a table and curves of the labels, for the scans and for their slices."""

import numpy as np

from ...pages import heatmaps, page
from ...pages.case_table import finish
from ...pages.figures.classification import calibration, score_histogram
from ...pages.figures.multilabel import macro_roc, per_label, precision_recalls
from ...pages.page import number, tag
from .classification import against_chance
from .view import View


def _units(run):
    """The rows that count: scans, or volumes that are cases themselves."""
    return run.volumes or run.rows


def _columns(run, kind):
    return [f"{kind}_{name.replace(' ', '_')}" for name in run.config.task.targets]


def _matrix(run, rows, kind):
    names = _columns(run, kind)
    return np.array([[row[name] for name in names] for row in rows])


def _verdict(run):
    text = against_chance(*run.with_interval(run.headline), name="mean AUROC")
    return f"{text} It is the mean over {len(run.config.task.targets)} labels, each against its absence."


def _labels(run):
    return run.task.tables(run.rows, **({"volumes": run.volumes} if run.volumes else {}))["labels"]


def _table(run, labels):
    """One row per label, the highest AUROC first."""
    columns = [
        "label",
        "positive",
        "prevalence",
        "AUROC",
        "95% interval",
        "average precision",
        "calibration error (ECE)",
    ]
    columns += ["AUROC, slices", "average precision, slices"] if run.volumes else []
    rows = []
    for row in sorted(labels, key=_by_auroc):
        interval = page.interval_cell(row.get("auroc_low", np.nan), row.get("auroc_high", np.nan), 3)
        rows.append([row["label"], row["positives"], row["prevalence"], row["auroc"], interval, row["ap"], row["ece"]])
        rows[-1] += [row["slice_auroc"], row["slice_ap"]] if run.volumes else []
    return page.table(columns, rows, f"Each label over {_count(run)}; bootstrap interval over subjects", sortable=True)


def _decisions(run, labels):
    """Confusion counts of each label, each fold's decisions at its own threshold."""
    target, decision = (_matrix(run, _units(run), kind) == 1 for kind in ("target", "decision"))
    rows = []
    for k, row in enumerate(labels):
        y, d = target[:, k], decision[:, k]
        counts = [int(np.sum(a & b)) for a, b in ((y, d), (~y, d), (y, ~d), (~y, ~d))]
        rows.append([row["label"], *counts, row["precision"], row["recall"], row["f1"]])
    columns = [
        "label",
        "true positives",
        "false positives",
        "false negatives",
        "true negatives",
        "precision",
        "recall",
        "F1",
    ]
    rule = run.config.eval.threshold
    where = (
        "at 0.5" if rule == "half" else f"at the threshold that each fold chose on its inner validation cases ({rule})"
    )
    return page.table(columns, rows, f"Decisions on {_count(run)}, {where}", sortable=True)


def _by_auroc(row):
    return (np.isnan(row["auroc"]), -row["auroc"])


def _count(run):
    return f"{len(_units(run))} {'scans' if run.volumes else 'cases'}"


def _tables(run):
    labels = _labels(run)
    return [_table(run, labels), _decisions(run, labels)]


def _pictures(run, listed):
    labels = _labels(run)
    parts = [_table(run, labels), *_curves(run, labels), _decisions(run, labels)]
    return parts + heatmaps.heatmaps(run, ("absent", "present"))


def _curves(run, labels):
    ranked = sorted((row for row in labels if not np.isnan(row["auroc"])), key=_by_auroc)
    if not ranked:
        return [page.note("No label has both positive and negative cases: there are no curves to draw.")]
    places = {row["label"]: k for k, row in enumerate(labels)}
    chosen = [places[ranked[i]["label"]] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})]
    parts = []
    for level, rows in (("volume", run.volumes or run.rows), ("slice", run.rows if run.volumes else [])):
        if rows:
            parts += [tag("h3", "Slices" if level == "slice" else "Scans")] if run.volumes else []
            parts += [page.grid(_of_level(run, level, rows, labels, chosen))]
    return [page.grid([*_forests(run, ranked), _scores(run)]), *parts]


def _forests(run, ranked):
    names = [row["label"] for row in ranked]

    def column(name):
        return np.array([row.get(name, np.nan) for row in ranked])

    unit = "scans" if run.volumes else "cases"
    auroc = [(unit, column("auroc"), column("auroc_low"), column("auroc_high"))]
    ap = [(unit, column("ap"), None, None)]
    if run.volumes:
        auroc.append(("slices", column("slice_auroc"), None, None))
        ap.append(("slices", column("slice_ap"), None, None))
    return [
        page.figure(per_label(names, auroc, "AUROC", 0.5), "AUROC of each label.", "With the interval over subjects."),
        page.figure(
            per_label(names, ap, "average precision", column("prevalence")),
            "Average precision of each label.",
            "Chance is the label's prevalence.",
        ),
    ]


def _of_level(run, level, rows, labels, chosen):
    target, score = _matrix(run, rows, "target").astype(int), _matrix(run, rows, "probability")
    subjects = [row["subject"] for row in rows]
    value = {name: run.metrics[f"{level}_{name}"]["pooled"] for name in ("auroc_macro", "ap_micro", "ece")}
    prefix = "slice_" if level == "slice" else ""
    curves = [(labels[k]["label"], k, labels[k][f"{prefix}auroc"]) for k in chosen]
    recalls = [("all together", target.ravel(), score.ravel(), value["ap_micro"])]
    recalls += [(labels[k]["label"], target[:, k], score[:, k], labels[k][f"{prefix}ap"]) for k in chosen]
    return [
        page.figure(
            macro_roc(target, score, subjects, run.config.seed, value["auroc_macro"], curves),
            "ROC.",
            "The mean over the labels with its band over subjects; the best, the middle and the worst label.",
        ),
        page.figure(precision_recalls(recalls), "Precision and recall.", "Of all labels together, and of these."),
        page.figure(
            calibration(target.ravel(), score.ravel(), value["ece"]),
            "Calibration.",
            f"All labels together; the mean of the labels' own errors (ECE) is {number(value['ece'], 3)}.",
        ),
    ]


def _scores(run):
    target, score = (_matrix(run, _units(run), kind).ravel() for kind in ("target", "probability"))
    picture = score_histogram(target.astype(int), score, ("absent", "present"))
    return page.figure(
        picture, "Scores.", "All labels together: findings that are there upwards, those that are not downwards."
    )


def cases(run):
    """By the loss: what each scan has, what was missed and what was invented."""
    names, found = run.config.task.targets, []
    rows = _units(run)
    target, decision = (_matrix(run, rows, kind) == 1 for kind in ("target", "decision"))
    for i in sorted(range(len(rows)), key=lambda i: -rows[i]["loss"]):
        missed, false = target[i] & ~decision[i], ~target[i] & decision[i]
        wrong = int(missed.sum() + false.sum())
        warning = "all findings missed" if target[i].any() and not (target[i] & decision[i]).any() else ""
        words = [_listed(names, chosen) for chosen in (target[i] & decision[i], missed, false)]
        found.append((rows[i], [rows[i]["loss"], wrong, *words], warning))
    return finish(["loss", "wrong labels", "found", "missed", "false"], found)


def _listed(names, chosen):
    text = ", ".join(name for name, is_chosen in zip(names, chosen) if is_chosen)
    return page.Cell(tag("span", text, class_="wrap") if text else "", text)


def _squared_error(row):
    return np.mean([(row["probability_" + name] - row["target_" + name]) ** 2 for name in _named(row)])


def _right(row):
    return np.mean([row["decision_" + name] == row["target_" + name] for name in _named(row)])


def _named(row):
    return [name.removeprefix("target_") for name in row if name.startswith("target_")]


def _ranked(run):
    rows = _units(run)
    target, score = _matrix(run, rows, "target"), _matrix(run, rows, "probability")
    return {
        f"{name.replace(' ', '_')}_auroc": (target[:, k], score[:, k])
        for k, name in enumerate(run.config.task.targets)
        if 0 < target[:, k].sum() < len(rows)
    }


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
    units=_units,
    truth=lambda row: [row["target_" + name] for name in _named(row)],
    per_case={
        "brier": (_squared_error, False, "squared error"),
        "accuracy": (_right, True, "share of right decisions"),
    },
    ranked=_ranked,
)
