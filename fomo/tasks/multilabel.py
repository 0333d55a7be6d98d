"""Several findings that may occur together, one logit each: on slices of scans, or on whole volumes.

Of slices, Results have a row for each slice and, in `scans`, one for each scan, which is what counts. The probabilities
of a scan's slices are pooled by `eval.pool_slices`; if that is auto, calibration chooses (until then it is the mean).
"""

import operator

import numpy as np

from ..config import UserError
from ..data import order, sources
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
from ..runtime import lazy
from ..runtime.lazy import torch
from . import categories, pooling
from .results import Answer, Blend, Output, Results, averaged
from .task import HEAD, ONE_OR_MORE, Rates, Task
from .two_classes import rival_probability
from .views import multilabel as view

losses = lazy.Module("..losses", __package__)

_EVAL_KEYS = ("eval.pool_windows", "eval.threshold", "eval.pool_slices", "eval.top_slices")


class Multilabel(Task):
    mode = "classification"
    losses = ("bce", "focal", "asymmetric")
    reads, columns = "flags", ONE_OR_MORE
    rates = Rates(3e-4, 1e-4)
    select, higher_is_better = "volume_auroc_macro", True
    stratum_kind = "multilabel"
    training_state = ("pos_weight",)
    keys = ("task.focal_alpha", "data.crop_position", *_EVAL_KEYS)
    options = (
        *("task.class_weights", "task.label_smoothing", "train.balanced", "augment.mix", "eval.saliency"),
        *("eval.calibrate", *HEAD),
    )
    view = view.VIEW

    @classmethod
    def check(cls, config, refuse):
        task = config.task
        if not task.targets:
            refuse("task.targets", task.targets, "at least one label for task.type=multilabel")
        if task.class_weights != "none" and task.loss == "asymmetric":
            wanted = "none for task.loss=asymmetric, which weighs positives and negatives itself"
            refuse("task.class_weights", task.class_weights, wanted)
        if config.eval.calibrate == "temperature":
            refuse("eval.calibrate", "temperature", "none or half for task.type=multilabel")
        if config.eval.calibrate == "half" and config.eval.threshold == "half":
            refuse(
                "eval.threshold", "half", "youden or f1 for eval.calibrate=half, which moves what they choose to 0.5"
            )

    def __init__(self, config):
        super().__init__(config)
        self.names = [name.replace(" ", "_") for name in config.task.targets]
        self.out_channels = len(self.names)
        pooled = "mean" if config.eval.pool_slices == "auto" else config.eval.pool_slices
        # thresholds: {"slice" and "volume": {"all": one for all labels, "each": one per label}}; None: 0.5 everywhere
        self.state = {"pos_weight": None, "pooling": pooled, "thresholds": None, "extraction": None}
        self.state["moved"] = False  # whether probabilities are moved so that each threshold is 0.5

    @property
    def blend(self):
        return Blend(self._names_of("target"), self._names_of("probability"), macro_auroc)

    def check_parts(self, train, val):
        for part, cases in (("training", train), ("validation", val)):
            if not _varies(_positives(cases), len(cases)).any():
                lack = "that are alike in each of task.targets, wanted a label that some have and some don't"
                categories.refuse(self.config, part, cases, lack)

    def fit(self, train, val):
        """Fit the weight of each label's positives: negatives / positives in training, 1 where either is missing."""
        self.check_parts(train, val)
        self.state.update(sources.of(self.config.data).record(self.config.data))  # for prediction
        positives = _positives(train)
        varies = _varies(positives, len(train))
        if self.config.task.class_weights == "inverse_frequency":
            weights = np.ones(self.out_channels)
            weights[varies] = (len(train) - positives[varies]) / positives[varies]
            self.state["pos_weight"] = weights.tolist()
        return self._alike("training", positives, len(train), "not learned, and their positives not weighed")

    def _alike(self, part, positives, cases, effect):
        """A message about labels that none or all cases of a part have; positives: (labels,) how many have each."""
        alike = np.flatnonzero(~_varies(positives, cases))
        names = ", ".join(f"{self.config.task.targets[k]} ({positives[k]:g})" for k in alike)
        return [f"labels that none or all of the {cases} {part} cases have: {names}: {effect}"] if names else ()

    def balance(self, cases):
        return order.by_label([case.target for case in cases])

    def head_targets(self, cases):
        return [case.target for case in cases]

    def rival_targets(self, cases):
        return [case.target for case in cases]

    def rival_row(self, row, said):
        probabilities = rival_probability(np.asarray(said))
        columns = self._names_of("probability") + self._names_of("decision")
        return {**row, **dict(zip(columns, [*probabilities.tolist(), *(probabilities >= 0.5).astype(int).tolist()]))}

    def loss(self, outputs, batch):
        return self._loss(outputs, batch["target"], self.config.task.label_smoothing)

    def _loss(self, logits, target, smoothing=0.0):
        """(B,): the loss; in the focal loss the weight w of the positives becomes alpha = w / (1 + w)."""
        task, weights = self.config.task, self.state["pos_weight"]
        if task.loss == "focal":
            alpha = task.focal_alpha if weights is None else [weight / (1 + weight) for weight in weights]
            return losses.focal_multilabel(logits, target, alpha, task.focal_gamma, smoothing)
        if task.loss == "asymmetric":
            return losses.asymmetric(logits, target, task.gamma_neg, task.gamma_pos, task.clip, smoothing)
        return losses.bce(logits, target, weights, smoothing)

    def _probabilities(self, network, image, background, windows):
        """(labels,) float64: the mean or the maximum over the windows that cover the case."""
        return self.pooled(windows.each(network, image, background).double().sigmoid())

    def _answers(self, probabilities, cases):
        targets = torch.tensor([case.target for case in cases])
        loss = self._loss(probabilities.logit(eps=1e-15).float(), targets.to(probabilities.device)).tolist()
        columns = self._names_of("target") + self._names_of("probability")
        return [
            Answer.of(case, scan=case.scan, loss=one, **dict(zip(columns, [*map(int, case.target), *row])))
            for case, one, row in zip(cases, loss, probabilities.tolist())
        ]

    def predict(self, network, case, windows, fold=None):
        return self._answers(self._probabilities(network, case.image(), case.background, windows)[None], [case])[0]

    def predict_batch(self, outputs, cases):
        return self._answers(outputs.double().sigmoid(), cases)

    def infer(self, network, image, background, windows):
        """(labels,) probabilities."""
        return self._probabilities(network, image, background, windows).cpu().numpy()

    @staticmethod
    def answer(tasks, parts, geometry):
        """Mean probabilities, and the decisions at the means of the thresholds, weighted."""
        return tasks[0].rows_of(tasks, [part[None] for part in parts])[0], {}

    @staticmethod
    def rows_of(tasks, parts, level="volume"):
        """Rows of mean probabilities and decisions at mean thresholds; parts: (rows, labels) of each task."""
        probabilities = averaged(tasks, [task.moved(part, level) for task, part in zip(tasks, parts)])
        decisions = probabilities >= averaged(tasks, [task.thresholds(level)["each"] for task in tasks])
        columns = tasks[0]._names_of("probability") + tasks[0]._names_of("decision")
        both = zip(probabilities.tolist(), decisions.astype(int).tolist())
        return [dict(zip(columns, first + second)) for first, second in both]

    def calibrate(self, evaluate):
        """Choose the pooling with the best macro AUROC of the scans, and the thresholds, on the inner validation cases.

        A label that does not vary there has no threshold of its own and takes the one of all labels together.
        """
        rows = evaluate().rows
        levels, self.state["moved"] = {"volume": rows}, False
        if _has_scans(rows):
            if self.config.eval.pool_slices == "auto":
                (_, first, scan), (labels, scores) = _scans(rows), self.labels_and_scores(rows)
                macro = {kind: macro_auroc(labels[first], self.pool(scores, scan, kind)) for kind in pooling.KINDS}
                self.state["pooling"] = max(macro, key=macro.get)  # of equals the first
            levels = {"slice": rows, "volume": self._scans_of(rows)}
        effect = "not seen when the epoch was chosen"
        if self.config.eval.threshold != "half":
            self.state["thresholds"] = {level: self._choose(part) for level, part in levels.items()}
            effect += "; they take the threshold of all labels together"
            self.state["moved"] = self.config.eval.calibrate == "half"
        return self._alike("validation", self.matrix(rows, "target").sum(axis=0), len(rows), effect)

    def pool(self, probabilities, scan, kind=None):
        """(scans, labels) from (slices, labels); scan: of each slice, 0 .. scans - 1; kind None: the calibrated one."""
        return pooling.pool(probabilities, scan, kind or self.state["pooling"], self.config.eval.top_slices)

    def _choose(self, rows):
        (labels, scores), criterion = self.labels_and_scores(rows), self.config.eval.threshold
        together = choose_threshold(labels.ravel(), scores.ravel(), criterion)
        each = choose_threshold(labels, scores, criterion)
        return {"all": together, "each": np.where(np.isnan(each), together, each).tolist()}

    def thresholds(self, level):
        """{"all", "each"} of what `moved` gives."""
        fitted = self.state["thresholds"]
        plain = fitted is None or self.state.get("moved")
        return {"all": 0.5, "each": [0.5] * self.out_channels} if plain else fitted[level]

    def moved(self, probabilities, level):
        """(n, labels) with eval.calibrate=half: log odds minus those of each label's threshold, which becomes 0.5."""
        if not self.state.get("moved"):
            return probabilities
        return shifted(probabilities, self.state["thresholds"][level]["each"])

    def finish(self, answers, fold=None):
        rows = [answer.row for answer in answers]
        if not _has_scans(rows):
            return Results(self._decided(rows, "volume"))
        return Results(self._decided(rows, "slice"), self._scans_of(rows))

    def _decided(self, rows, level):
        """The rows with decisions at each label's threshold, and with the `threshold` of all labels together.

        Their probabilities are `moved`.
        """
        thresholds, names = self.thresholds(level), self._names_of("probability") + self._names_of("decision")
        probabilities = self.moved(self.matrix(rows, "probability"), level)
        decisions = (probabilities >= np.array(thresholds["each"])).astype(int)
        made = [first + second for first, second in zip(probabilities.tolist(), decisions.tolist())]
        return [{**row, "threshold": thresholds["all"], **dict(zip(names, own))} for row, own in zip(rows, made)]

    def _scans_of(self, rows):
        """One row per scan, sorted by id, from those of its slices; the same columns, `id` is the scan's name."""
        names, first, scan = _scans(rows)
        loss = np.bincount(scan, [row["loss"] for row in rows]) / np.bincount(scan)
        columns, pooled = self._names_of("probability"), self.pool(self.matrix(rows, "probability"), scan)
        made = [
            {**rows[place], "id": str(name), "loss": value, **dict(zip(columns, probabilities))}
            for name, place, value, probabilities in zip(names, first, loss.tolist(), pooled.tolist())
        ]
        return self._decided(made, "volume")

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
    def merge(states):
        chosen = [state["pooling"] for state in states]
        merged = {"pooling": max(chosen, key=chosen.count)}  # that of most, of equals the first
        fitted = [state["thresholds"] for state in states]
        if fitted[0] is not None:
            merged["thresholds"] = {
                level: {name: np.mean([one[level][name] for one in fitted], axis=0).tolist() for name in both}
                for level, both in fitted[0].items()
            }
        return merged

    def _names_of(self, kind):
        return [f"{kind}_{name}" for name in self.names]

    def matrix(self, rows, kind):
        """(rows, labels) of the columns `kind`_LABEL."""
        take = operator.itemgetter(*self._names_of(kind))
        return np.array([take(row) for row in rows], np.float64).reshape(len(rows), self.out_channels)

    def labels_and_scores(self, rows):
        return self.matrix(rows, "target"), self.matrix(rows, "probability")


def _positives(cases):
    """(labels,) how many cases have each."""
    return np.array([case.target for case in cases]).sum(axis=0)


def _varies(positives, cases):
    """(labels,): whether some cases have the label and some do not; positives: (labels,) how many have it."""
    return (positives > 0) & (positives < cases)


def _has_scans(rows):
    return bool(rows[0]["scan"])  # empty in a table that was written without


def _scans(rows):
    """(names, place of each one's first row, scan of each row)."""
    return np.unique([row["scan"] for row in rows], return_index=True, return_inverse=True)


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
