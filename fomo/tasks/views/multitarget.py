"""Classification of several targets at once, or into more than two classes: a block per target."""

import math
from typing import NamedTuple

import numpy as np

from ...metrics import confusion_matrix
from ...pages import page
from ...pages.case_table import case_table
from ...pages.figures.probabilities import calibration, roc, rocs
from ...pages.page import number, tag
from ..categories import arrays_of, columns_of
from .classification import against_chance, confusion_table
from .heatmaps import heatmaps
from .view import SHARE_RIGHT, View, names_in, truth


class _Target(NamedTuple):
    name: str
    column: str  # as it is called in the columns of a table
    labels: np.ndarray  # (n,)
    decisions: np.ndarray  # (n,)
    probabilities: np.ndarray  # (n, K)
    classes: list  # names of the K classes

    def curves(self):
        """[(class, is it this class, its probability)]; of two classes the second one only."""
        columns = enumerate(zip(self.classes, self.probabilities.T))
        found = [(name, (self.labels == k).astype(int), scores) for k, (name, scores) in columns]
        return found if len(found) > 2 else found[1:]

    def counts(self):
        """(K, K) cases by class and decision."""
        return confusion_matrix(self.labels, self.decisions, len(self.classes))


def _targets(run):
    names = zip(run.config.task.targets, run.task.names)
    return [_Target(name, column, *arrays_of(run.results, column)) for name, column in names]


def _verdict(run):
    count = len(run.config.task.targets)
    of = f"mean AUROC of {count} targets" if count > 1 else "mean AUROC of the classes"
    return against_chance(*run.with_interval(run.estimate), name=of)


def _table(run, target):
    rows, cases, counts = [], len(target.labels), target.counts()
    for k, name in enumerate(target.classes):
        auroc = f"{target.column}_auroc" + (f"_{name}" if len(target.classes) > 2 else "")
        right, of, decided = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        recall, precision = (right / count if count else float("nan") for count in (of, decided))
        rows.append([name, of, of / cases, run.value(auroc), recall, precision])
    columns = ["class", "cases", "share", "AUROC", "recall", "precision"]
    return page.table(columns, rows, f"{target.name}: each class against the rest, of {cases} cases")


def _blocks(run, draw):
    parts = []
    for target in _targets(run):
        matrix = confusion_table(target.counts().tolist(), target.classes, target.classes)
        figures, what = _curves(run, target) if draw else [], "The most probable class is decided."
        figures.append(page.figure(tag("div", matrix, class_="scroll"), "Confusion matrix.", what))
        parts += [tag("h3", target.name), _table(run, target), page.grid(figures)]
    return parts


def _curves(run, target):
    """ROC and calibration; [] where a class is that of no case, or of all."""
    curves = target.curves()
    if not all(0 < labels.sum() < len(labels) for _, labels, _ in curves):
        return []
    names, labels, scores = (list(part) for part in zip(*curves))
    if len(curves) == 1:
        subjects, auroc = [row["subject"] for row in run.rows], run.value(f"{target.column}_auroc")
        drawn = roc(labels[0], scores[0], subjects, run.config.seed, auroc)
        text = f"Of the class {names[0]}; pointwise bootstrap band, as of independent subjects."
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
        for one in targets:
            target, decision = (one.classes[int(row[f"{kind}_{one.column}"])] for kind in ("target", "decision"))
            values += [target, decision, row[f"probability_{one.column}_{target}"]]
            wrong += [one.name] if target != decision else []
        names = f": {', '.join(wrong)}" if len(targets) > 1 else ""
        found.append((row, values, f"wrong{names}" if wrong else ""))
    titles = [f"{target.name}{what}" for target in targets for what in ("", ", decided", ", of the true class")]
    return case_table(["loss", *titles], found)


def _squared_error(row):
    """Summed over the classes, the mean over the targets: unlike the loss it does not depend on class weights."""
    errors, columns = [], list(row)
    for name in names_in(row):
        target, classes = row[f"target_{name}"], enumerate(columns_of(name, columns))
        errors.append(sum((row[f"probability_{name}_{text}"] - (k == target)) ** 2 for k, text in classes))
    return sum(errors) / len(errors)


def _ranked(run):
    """All targets together, and each: each class against the rest, of two classes the second one only."""
    found = {}
    for target in _targets(run):
        labels, scores = (np.column_stack(part) for part in list(zip(*target.curves()))[1:])
        two = len(target.classes) == 2
        found[f"{target.column}_auroc"] = (labels[:, 0], scores[:, 0]) if two else (labels, scores)
    # of all targets with the same weight, however many classes they have
    columns = [tuple(np.reshape(part, (len(part), -1)) for part in one) for one in found.values()]
    most = math.lcm(*(labels.shape[1] for labels, _ in columns))
    wide = [[np.repeat(part, most // part.shape[1], axis=1) for part in one] for one in columns]
    together = tuple(map(np.hstack, zip(*wide)))
    defined = 0 < (together[0].min(0) < together[0].max(0)).sum()
    return {"auroc_macro": together, **found} if defined else {}


VIEW = View(
    title="Targets",
    verdict=_verdict,
    tables=lambda run: _blocks(run, draw=False),
    pictures=lambda run: [*_blocks(run, draw=True), *heatmaps(run)],
    cases=cases,
    truth=truth,
    per_case={"brier": (_squared_error, False, "squared error"), **SHARE_RIGHT},
    ranked=_ranked,
)
