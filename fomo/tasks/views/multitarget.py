"""Classification of several targets at once, or into more than two classes: a block per target."""

from typing import NamedTuple

import numpy as np

from ...pages import page
from ...pages.case_table import arrays_of, case_table
from ...pages.figures.probabilities import calibration, roc, rocs
from ...pages.page import number, tag
from ..categories import columns_of
from .classification import against_chance, confusion_table
from .heatmaps import heatmaps
from .view import View


class _Target(NamedTuple):
    name: str
    column: str  # as it is called in the columns of a table
    classes: list  # their names
    counts: np.ndarray  # (K, K) cases by class and decision

    def curves(self, run):
        """[(class, is it this class, its probability)]; of two classes the second one only."""
        (target,) = arrays_of(run.rows, f"target_{self.column}")
        scores = arrays_of(run.rows, *(f"probability_{self.column}_{name}" for name in self.classes))
        found = [(name, (target == k).astype(int), scores[k]) for k, name in enumerate(self.classes)]
        return found if len(found) > 2 else found[1:]


def _targets(run):
    lines = run.task.tables(run.results)["confusion"]
    found = []
    for name in run.config.task.targets:
        of_target = [line for line in lines if line["target"] == name]
        classes = list(dict.fromkeys(line["class"] for line in of_target))
        counts = np.array([line["cases"] for line in of_target]).reshape(len(classes), len(classes))
        found.append(_Target(name, name.replace(" ", "_"), classes, counts))
    return found


def _verdict(run):
    count = len(run.config.task.targets)
    of = f"mean AUROC of {count} targets" if count > 1 else "mean AUROC of the classes"
    return against_chance(*run.with_interval(run.headline), name=of)


def _table(run, target):
    rows, cases = [], int(target.counts.sum())
    for k, name in enumerate(target.classes):
        auroc = f"{target.column}_auroc" + (f"_{name}" if len(target.classes) > 2 else "")
        right, of, decided = int(target.counts[k, k]), int(target.counts[k].sum()), int(target.counts[:, k].sum())
        recall, precision = (right / count if count else float("nan") for count in (of, decided))
        rows.append([name, of, of / cases, run.value(auroc), recall, precision])
    columns = ["class", "cases", "share", "AUROC", "recall", "precision"]
    return page.table(columns, rows, f"{target.name}: each class against the rest, of {cases} cases")


def _blocks(run, draw):
    parts = []
    for target in _targets(run):
        matrix = tag("div", confusion_table(target.counts.tolist(), target.classes, target.classes), class_="scroll")
        matrix = page.figure(matrix, "Confusion matrix.", "The most probable class is decided.")
        figures = [*(_curves(run, target) if draw else []), matrix]
        parts += [tag("h3", target.name), _table(run, target), page.grid(figures)]
    return parts


def _curves(run, target):
    """ROC and calibration; [] where a class is that of no case, or of all."""
    curves = target.curves(run)
    if not all(0 < labels.sum() < len(labels) for _, labels, _ in curves):
        return []
    names, labels, scores = (list(part) for part in zip(*curves))
    if len(curves) == 1:
        subjects, auroc = [row["subject"] for row in run.rows], run.value(f"{target.column}_auroc")
        drawn = roc(labels[0], scores[0], subjects, run.config.seed, auroc)
        text = f"Of the class {names[0]}; pointwise bootstrap band over subjects."
    else:
        drawn, text = rocs(curves), "Each class against the rest."
    ece = run.value(f"{target.column}_ece")
    all_classes = f"Of all classes together; ECE {number(ece, 3)}."
    return [
        page.figure(drawn, "ROC.", text),
        page.figure(calibration(*map(np.concatenate, (labels, scores)), ece), "Calibration.", all_classes),
    ]


def cases(run):
    """By the loss, which is the mean over the targets."""
    targets, found = _targets(run), []
    for row in sorted(run.rows, key=lambda row: -row["loss"]):
        values, wrong = [row["loss"]], []
        for name, column, classes, _ in targets:
            target, decision = int(row[f"target_{column}"]), int(row[f"decision_{column}"])
            values += [classes[target], classes[decision], row[f"probability_{column}_{classes[target]}"]]
            wrong += [name] if target != decision else []
        warning = "wrong" if wrong else ""
        found.append((row, values, f"wrong: {', '.join(wrong)}" if wrong and len(targets) > 1 else warning))
    titles = [f"{target.name}{what}" for target in targets for what in ("", ", decided", ", of the true class")]
    return case_table(["loss", *titles], found)


def _columns(row, kind):
    return [name for name in row if name.startswith(f"{kind}_")]


def _squared_error(row):
    """Summed over the classes, the mean over the targets: unlike the loss it does not depend on class weights."""
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
    return {f"{target.column}_auroc": target.curves(run)[0][1:] for target in _targets(run) if len(target.classes) == 2}


VIEW = View(
    title="Targets",
    verdict=_verdict,
    tables=lambda run: _blocks(run, draw=False),
    pictures=lambda run, listed: [*_blocks(run, draw=True), *heatmaps(run)],
    cases=cases,
    truth=lambda row: [row[name] for name in _columns(row, "target")],
    per_case={
        "brier": (_squared_error, False, "squared error"),
        "accuracy": (_share_right, True, "share of right decisions"),
    },
    ranked=_ranked,
)
