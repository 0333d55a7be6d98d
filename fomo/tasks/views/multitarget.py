"""Classification of several targets at once, or into more than two classes: a block per target."""

import numpy as np

from ...pages import heatmaps, page
from ...pages.case_table import finish
from ...pages.figures.classification import calibration, roc, rocs
from ...pages.page import number, tag
from ..categories import columns_of
from .classification import against_chance, confusion_table
from .view import View


def _targets(run):
    """[(name, its column, names of the classes, counts (K, K) by class and decision)]."""
    lines = run.task.tables(run.rows)["confusion"]
    found = []
    for name in run.config.task.targets:
        of_target = [line for line in lines if line["target"] == name]
        classes = list(dict.fromkeys(line["class"] for line in of_target))
        counts = np.array([line["cases"] for line in of_target]).reshape(len(classes), len(classes))
        found.append((name, name.replace(" ", "_"), classes, counts.tolist()))
    return found


def _verdict(run):
    count = len(run.config.task.targets)
    of = f"mean AUROC of {count} targets" if count > 1 else "mean AUROC of the classes"
    return against_chance(*run.with_interval(run.headline), name=of)


def _curves_of(run, column, classes):
    """[(class, is it this class, its probability)]; of two classes the second one only."""
    target = np.array([row[f"target_{column}"] for row in run.rows])
    return [
        (name, (target == k).astype(int), np.array([row[f"probability_{column}_{name}"] for row in run.rows]))
        for k, name in enumerate(classes)
        if len(classes) > 2 or k
    ]


def _table(run, name, column, classes, counts):
    counts, rows = np.array(counts), []
    for k, text in enumerate(classes):
        auroc = f"{column}_auroc_{text}" if len(classes) > 2 else f"{column}_auroc"
        right, of, decided = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        recall, precision = (right / count if count else float("nan") for count in (of, decided))
        rows.append([text, of, of / counts.sum(), run.metrics[auroc]["pooled"], recall, precision])
    columns = ["class", "cases", "share", "AUROC", "recall", "precision"]
    return page.table(columns, rows, f"{name}: each class against the rest, of {int(counts.sum())} cases")


def _blocks(run, draw):
    parts = []
    for name, column, classes, counts in _targets(run):
        matrix = confusion_table(counts, classes, classes)
        matrix = page.figure(
            tag("div", matrix, class_="scroll"), "Confusion matrix.", "The most probable class is decided."
        )
        pictures = [matrix]
        curves = _curves_of(run, column, classes)
        if draw and all(0 < labels.sum() < len(labels) for _, labels, _ in curves):
            if len(curves) == 1:
                labels, scores = curves[0][1:]
                subjects = [row["subject"] for row in run.rows]
                drawn = roc(labels, scores, subjects, run.config.seed, run.metrics[f"{column}_auroc"]["pooled"])
                text = f"Of the class {classes[1]}; pointwise bootstrap band over subjects."
            else:
                drawn, text = rocs(curves), "Each class against the rest."
            bins = _together(curves)
            ece = run.metrics[f"{column}_ece"]["pooled"]
            pictures = [
                page.figure(drawn, "ROC.", text),
                page.figure(calibration(*bins, ece), "Calibration.", f"Of all classes together; ECE {number(ece, 3)}."),
                matrix,
            ]
        parts += [tag("h3", name), _table(run, name, column, classes, counts), page.grid(pictures)]
    return parts


def _together(curves):
    return np.concatenate([labels for _, labels, _ in curves]), np.concatenate([scores for _, _, scores in curves])


def cases(run):
    """By the loss, which is the mean over the targets."""
    targets, found = _targets(run), []
    for row in sorted(run.rows, key=lambda row: -row["loss"]):
        values, wrong = [row["loss"]], []
        for name, column, classes, _ in targets:
            target, decision = int(row[f"target_{column}"]), int(row[f"decision_{column}"])
            values += [classes[target], classes[decision], row[f"probability_{column}_{classes[target]}"]]
            wrong += [name] if target != decision else []
        found.append(
            (row, values, f"wrong: {', '.join(wrong)}" if wrong and len(targets) > 1 else "wrong" if wrong else "")
        )
    titles = [f"{name}{what}" for name, _, _, _ in targets for what in ("", ", decided", ", of the true class")]
    return finish(["loss", *titles], found)


def _columns(row, kind):
    return [name for name in row if name.startswith(f"{kind}_")]


def _squared_error(row):
    """Over the classes, the mean over the targets: unlike the loss it does not depend on how a run weighs the classes."""
    errors, columns = [], list(row)
    for target in _columns(row, "target"):
        name = target.removeprefix("target_")
        classes = enumerate(columns_of(name, columns))
        errors.append(sum((row[f"probability_{name}_{text}"] - (k == row[target])) ** 2 for k, text in classes))
    return sum(errors) / len(errors)


def _share_right(row):
    pairs = [(row[name], row["decision_" + name.removeprefix("target_")]) for name in _columns(row, "target")]
    return sum(a == b for a, b in pairs) / len(pairs)


def _ranked(run):
    """Of the targets with two classes; more have no DeLong test."""
    return {
        f"{column}_auroc": _curves_of(run, column, classes)[0][1:]
        for _, column, classes, _ in _targets(run)
        if len(classes) == 2
    }


VIEW = View(
    title="Targets",
    verdict=_verdict,
    tables=lambda run: _blocks(run, draw=False),
    pictures=lambda run, listed: [*_blocks(run, draw=True), *heatmaps.heatmaps(run)],
    cases=cases,
    truth=lambda row: [row[name] for name in _columns(row, "target")],
    per_case={
        "brier": (_squared_error, False, "squared error"),
        "accuracy": (_share_right, True, "share of right decisions"),
    },
    ranked=_ranked,
)
