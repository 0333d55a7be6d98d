"""What all tasks share that tell several findings by a probability each, however the network comes to it."""

import operator

import numpy as np

from ..config import UserError
from ..data import order
from ..metrics import (
    WITHIN,
    auroc,
    average_precision,
    brier,
    choose_threshold,
    crg,
    ece,
    macro_auroc,
    shifted,
    within_folds,
)
from ..metrics.checks import mean_of_defined
from . import categories
from .results import Blend, Output, Results, averaged
from .task import ONE_OR_MORE
from .two_classes import rival_probability


class Labels:
    """A part of such a task, beside `Task`: of each label L its rows have `target_L`, `probability_L`, `decision_L`.

    Of networks that see slices its Results have a row for each slice and, in `scans`, one for each scan, which is what
    counts. Its `state` has thresholds and moved.
    """

    reads, columns = "flags", ONE_OR_MORE
    select, higher_is_better = "volume_auroc_macro", True
    stratum_kind = "multilabel"

    @staticmethod
    def check_labels(config, refuse):
        """The rules of a config that all these tasks have."""
        if not config.task.targets:
            refuse("task.targets", config.task.targets, "at least one label for task.type=multilabel")

    def begin_state(self):
        """The state before anything is fitted.

        thresholds: {"slice" and "volume": {"all": one for all labels, "each": one per label}}; None: 0.5 everywhere.
        moved: whether probabilities are moved so that each threshold is 0.5.
        """
        return {"thresholds": None, "moved": False}

    @property
    def names(self):
        """The labels, as columns call them."""
        return [name.replace(" ", "_") for name in self.config.task.targets]

    @property
    def blend(self):
        return Blend(self.names_of("target"), self.names_of("probability"), macro_auroc)

    def rival_targets(self, cases):
        return [case.target for case in cases]

    def rival_row(self, row, said):
        probabilities = rival_probability(np.asarray(said))
        columns = self.names_of("probability") + self.names_of("decision")
        return {**row, **dict(zip(columns, [*probabilities.tolist(), *(probabilities >= 0.5).astype(int).tolist()]))}

    def check_parts(self, train, val):
        for part, cases in (("training", train), ("validation", val)):
            if not differs(positives_of(cases), len(cases)).any():
                lack = "that are alike in each of task.targets, wanted a label that some have and some don't"
                categories.refuse(self.config, part, cases, lack)

    def alike(self, part, positives, cases, effect):
        """A message about labels that none or all cases of a part have; positives: (labels,) how many have each."""
        alike = np.flatnonzero(~differs(positives, cases))
        names = ", ".join(f"{self.config.task.targets[k]} ({positives[k]:g})" for k in alike)
        return [f"labels that none or all of the {cases} {part} cases have: {names}: {effect}"] if names else ()

    def balance(self, cases):
        return order.by_label([case.target for case in cases])

    def labels_of(self, case):
        """[0 or 1 of each label] of a case."""
        return [int(flag) for flag in case.target]

    @classmethod
    def together(cls, tasks, probabilities):
        """The row of a case: the mean of the networks' probabilities (labels,), decided at their mean thresholds."""
        return cls.rows_of(tasks, [own[None] for own in probabilities])[0]

    @staticmethod
    def rows_of(tasks, parts, level="volume"):
        """Rows of mean probabilities and decisions at mean thresholds; parts: (rows, labels) of each task."""
        probabilities = averaged(tasks, [task.moved(part, level) for task, part in zip(tasks, parts)])
        decisions = probabilities >= averaged(tasks, [task.thresholds(level)["each"] for task in tasks])
        columns = tasks[0].names_of("probability") + tasks[0].names_of("decision")
        both = zip(probabilities.tolist(), decisions.astype(int).tolist())
        return [dict(zip(columns, first + second)) for first, second in both]

    def choose_thresholds(self, rows, scans=None):
        """Choose the thresholds by the rows of the inner validation cases; messages about labels.

        A label that does not vary there has no threshold of its own and takes the one of all labels together.
        scans: the rows of the scans, where `rows` are of their slices.
        """
        effect, levels = "not seen when the epoch was chosen", {"volume": rows}
        if scans is not None:
            levels = {"slice": rows, "volume": scans}
        if self.config.eval.threshold != "half":
            self.state["thresholds"] = {level: self._choose(part) for level, part in levels.items()}
            effect += "; they take the threshold of all labels together"
            self.state["moved"] = self.config.eval.calibrate == "half"
        return self.alike("validation", self.matrix(rows, "target").sum(axis=0), len(rows), effect)

    def _choose(self, rows):
        (labels, scores), criterion = self.labels_and_scores(rows), self.config.eval.threshold
        together = choose_threshold(labels.ravel(), scores.ravel(), criterion)
        each = choose_threshold(labels, scores, criterion)
        return {"all": together, "each": np.where(np.isnan(each), together, each).tolist()}

    def thresholds(self, level):
        """{"all", "each"} of what `moved` gives."""
        fitted = self.state["thresholds"]
        plain = fitted is None or self.state.get("moved")
        return {"all": 0.5, "each": [0.5] * len(self.names)} if plain else fitted[level]

    def moved(self, probabilities, level):
        """(n, labels) with eval.calibrate=half: log odds minus those of each label's threshold, which becomes 0.5."""
        if not self.state.get("moved"):
            return probabilities
        return shifted(probabilities, self.state["thresholds"][level]["each"])

    def decided(self, rows, level="volume"):
        """The rows with decisions at each label's threshold, and with the `threshold` of all labels together.

        Their probabilities are `moved`.
        """
        thresholds, names = self.thresholds(level), self.names_of("probability") + self.names_of("decision")
        probabilities = self.moved(self.matrix(rows, "probability"), level)
        decisions = (probabilities >= np.array(thresholds["each"])).astype(int)
        made = [first + second for first, second in zip(probabilities.tolist(), decisions.tolist())]
        return [{**row, "threshold": thresholds["all"], **dict(zip(names, own))} for row, own in zip(rows, made)]

    def score(self, results):
        """Metrics `volume_*` and, where the rows are slices of scans, `slice_*`.

        Macro is the mean over the labels where a metric is defined, micro counts all decisions together. f1, precision,
        recall, hamming (share of wrong decisions) and exact_match (share of rows without one) are at each label's own
        threshold and, where that is not 0.5, also at the threshold of all labels (`*_common`) and at 0.5 (`*_half`).
        """
        units = Results(_units(results))
        found = self._score(units.rows, "volume")
        if units.folds is not None:
            both = self.labels_and_scores(units.rows)
            found[f"volume_auroc_macro{WITHIN}"] = within_folds(macro_auroc, *both, units.folds)
        return {**found, **self._score(results.rows, "slice")} if results.scans else found

    def _score(self, rows, level):
        scores = self.matrix(rows, "probability")
        labels, decisions = (self.matrix(rows, kind).astype(bool) for kind in ("target", "decision"))
        ap = _of_each(average_precision, labels, scores)
        undefined = int(np.isnan(ap).sum())
        result = {
            "auroc_macro": macro_auroc(labels, scores),
            "auroc_micro": auroc(labels.ravel(), scores.ravel()),
            "ap_macro": mean_of_defined(ap),
            "ap_micro": average_precision(labels.ravel(), scores.ravel()),
            **({"labels_undefined": undefined} if undefined else {}),
            **_decisions(labels, decisions, ""),
        }
        half, common = scores >= 0.5, [[row["threshold"]] for row in rows if "threshold" in row]  # of files maybe none
        if (decisions != half).any() or (np.array(common) != 0.5).any():
            if common:
                result.update(_decisions(labels, scores >= np.array(common), "_common"))
            result.update(_decisions(labels, half, "_half"))
        result.update(ece=mean_of_defined(_of_each(ece, labels, scores)), brier=brier(labels.ravel(), scores.ravel()))
        return {f"{level}_{name}": value for name, value in result.items()}

    def intervals(self, results, resamples, seed):
        """Of the scans' macro AUROC; `tables` has those of each label."""
        units = Results(_units(results))
        both = self.labels_and_scores(units.rows)
        interval = units.bootstrap(resamples, seed)
        found = {"volume_auroc_macro": interval(macro_auroc, *both, stratify=False)}
        if units.folds is not None:
            found[f"volume_auroc_macro{WITHIN}"] = interval(macro_auroc, *both, within=True)
        return found

    def tables(self, results):
        """{"labels": a row per label}: prevalence and metrics over the scans or volumes, `slice_*` over the slices.

        A fold's table has its `threshold`; the table of several folds together has none.
        """
        volumes, resamples = Results(_units(results)), self.config.eval.bootstrap
        interval = volumes.bootstrap(resamples, self.config.seed)
        labels, scores = self.labels_and_scores(volumes.rows)
        decisions = self.matrix(volumes.rows, "decision").astype(bool)
        precision, recall, f1 = _rates(*_counts(labels.astype(bool), decisions))
        of_slices = self.labels_and_scores(results.rows) if results.scans else None
        fitted = self.state["thresholds"] is not None or self.config.eval.threshold == "half"
        result = []
        for k, name in enumerate(self.config.task.targets):
            y, p = labels[:, k], scores[:, k]
            row = {"label": name, "n": len(y), "positives": int(y.sum()), "prevalence": float(y.mean())}
            row["auroc"] = auroc(y, p)
            if resamples:
                _, row["auroc_low"], row["auroc_high"], _ = interval(auroc, y, p)
            row.update(ap=average_precision(y, p), f1=f1[k], precision=precision[k], recall=recall[k], ece=ece(y, p))
            if of_slices:
                y, p = (values[:, k] for values in of_slices)
                row.update(slice_auroc=auroc(y, p), slice_ap=average_precision(y, p))
            if fitted:
                row["threshold"] = self.thresholds("volume")["each"][k]
            result.append(row)
        return {"labels": result}

    def outputs(self):
        names = zip(self.names, self.config.task.targets)
        return [Output(k, f"probability_{name}", f"target_{name}", 1, title) for k, (name, title) in enumerate(names)]

    @staticmethod
    def merged_thresholds(states):
        """{"thresholds": the mean of those of several states}, if any were chosen."""
        fitted = [state["thresholds"] for state in states]
        if fitted[0] is None:
            return {}
        return {
            "thresholds": {
                level: {name: np.mean([one[level][name] for one in fitted], axis=0).tolist() for name in both}
                for level, both in fitted[0].items()
            }
        }

    def names_of(self, kind):
        return [f"{kind}_{name}" for name in self.names]

    def matrix(self, rows, kind):
        """(rows, labels) of the columns `kind`_LABEL."""
        take = operator.itemgetter(*self.names_of(kind))
        return np.array([take(row) for row in rows], np.float64).reshape(len(rows), len(self.names))

    def labels_and_scores(self, rows):
        return self.matrix(rows, "target"), self.matrix(rows, "probability")


def positives_of(cases):
    """(labels,) how many cases have each."""
    return np.array([case.target for case in cases]).sum(axis=0)


def differs(positives, cases):
    """(labels,): whether some cases have the label and some do not; positives: (labels,) how many have it."""
    return (positives > 0) & (positives < cases)


def _of_each(metric, labels, scores):
    """[the metric of each label]; both (rows, labels)."""
    return [metric(*columns) for columns in zip(labels.T, scores.T)]


def _counts(labels, decisions):
    """(true positives, decided positives, positives) of each label."""
    return (labels & decisions).sum(0), decisions.sum(0), labels.sum(0)


def _rates(right, decided, positives):
    """(precision, recall, F1); NaN where the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return right / decided, right / positives, 2 * right / (decided + positives)


def _decisions(labels, decisions, at):
    counts, wrong = _counts(labels, decisions), labels != decisions
    precision, recall, f1 = _rates(*counts)
    _, _, micro = _rates(*map(np.sum, counts))
    result = {"f1_macro": mean_of_defined(f1), "f1_micro": float(micro), "precision_macro": mean_of_defined(precision)}
    result.update(recall_macro=mean_of_defined(recall), hamming=float(wrong.mean()))
    result["exact_match"] = float(1 - wrong.any(axis=1).mean())
    result["crg"] = crg(labels, decisions)
    for name, values in (("f1", f1), ("precision", precision)):
        if np.isnan(values).any():
            result[f"{name}_undefined"] = int(np.isnan(values).sum())
    return {name + at: value for name, value in result.items()}


def _units(results):
    """The rows that count: of scans where there are any, or else of the cases. UserError for a scan without its row."""
    known = {row["id"] for row in results.scans}
    lacking = {row["scan"] for row in results.rows if row.get("scan") not in (None, "", row["id"])} - known
    if lacking:
        wanted = "wanted its line in predictions_volumes.csv: delete the fold and run again"
        raise UserError(f"scan {min(lacking)}: got its slices only, {wanted}")
    return results.scans or results.rows
