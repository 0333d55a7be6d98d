"""Whole-case regression of one number, trained on targets standardised by the training cases."""

import math

import numpy as np

from ..metrics import (
    WITHIN,
    apply_bias_correction,
    bounded_bias_correction,
    conformal_half_width,
    mae,
    pearson,
    r2,
    regression_metrics,
    within_folds,
)
from ..runtime import lazy
from .results import Answer, Blend, Output, Results, averaged
from .task import HEAD, ONE_OR_MORE, Task
from .views import regression as view

losses = lazy.Module("..losses", __package__)


LEVEL = 0.9  # of the prediction interval; .95 would need 19 validation cases


class Regression(Task):
    mode = "regression"
    losses = ("huber", "mse")
    reads, columns = "number", ONE_OR_MORE
    select, higher_is_better = "mae", False
    stratum_kind = "continuous"
    training_state = ("training_mean", "mean", "scale")
    out_channels = 1
    keys = ("task.label_scaling", "eval.pool_windows", "data.crop_position")
    options = HEAD
    # that a mask has a voxel says that the case is of a class; a number depends on what of it is counted
    instead = {"task.evidence": ": a mask does not tell a number, so learn both, side by side, by task.type=multitask"}
    view = view.VIEW
    single = "prediction"
    scored = ("prediction", "corrected", "low", "high")
    blend = Blend(("target",), ("prediction",), lambda targets, values: -mae(targets[:, 0], values[:, 0]))

    @classmethod
    def variant(cls, section):
        """Several targets have an output each."""
        from .multiregression import Multiregression  # which is made of Regressions

        return Multiregression if len(section.targets) > 1 else cls

    def __init__(self, config):
        super().__init__(config)
        self.state = {"training_mean": None, "mean": 0.0, "scale": 1.0, "bias_correction": None, "half_width": None}

    def fit(self, train, val):
        """Fit mean and standard deviation of the training targets; equal targets get the scale 1."""
        targets = np.array([case.target for case in train])
        equal = targets.min() == targets.max()  # the deviation about a rounded mean need not be 0
        self.state["training_mean"] = float(targets.mean())
        if self.config.task.label_scaling == "standard":
            self.state["mean"] = self.state["training_mean"]
            self.state["scale"] = 1.0 if equal else float(targets.std())
        same = f"all {len(targets)} training targets are {targets[0]:g}"
        return [f"{same}: there is nothing to learn, and they are not scaled"] if equal else ()

    def head_targets(self, cases):
        return [[(case.target - self.state["mean"]) / self.state["scale"]] for case in cases]

    def rival_targets(self, cases):
        return [[case.target] for case in cases]

    def rival_row(self, row, said):
        return {**row, "prediction": float(said[0])}

    def rival_outputs(self):
        return [Output(0, "prediction", "target", None, "the number")]

    def loss(self, outputs, batch):
        return self._loss(outputs[:, 0], (batch["target"] - self.state["mean"]) / self.state["scale"])

    def _loss(self, outputs, scaled_target):
        return (losses.mse if self.config.task.loss == "mse" else losses.huber)(outputs, scaled_target)

    def _scaled(self, network, image, background, windows):
        """0-d tensor, in training's scale: the mean or the maximum over the windows that cover the case."""
        return self.pooled(windows.each(network, image, background)[:, 0])

    def _in_unit(self, scaled):
        return float(scaled) * self.state["scale"] + self.state["mean"]

    def infer(self, network, image, background, windows):
        """The number, in the targets' unit."""
        return self._in_unit(self._scaled(network, image, background, windows))

    @staticmethod
    def answer(tasks, parts, geometry):
        """The weighted mean of the networks' predictions and, if all have them, of corrected ones and of the limits.

        Of several networks `prediction_sd` is the standard deviation between them: where they disagree.
        """
        rows = [task._fitted([{"prediction": part}])[0] for task, part in zip(tasks, parts)]
        shared = set.intersection(*map(set, rows))
        row = {name: float(averaged(tasks, [row[name] for row in rows])) for name in rows[0] if name in shared}
        return row | ({"prediction_sd": float(np.std(parts, ddof=1))} if len(parts) > 1 else {}), {}

    def predict(self, network, case, windows, fold=None):
        scaled = self._scaled(network, case.image(), case.background, windows)
        target = scaled.new_tensor([(case.target - self.state["mean"]) / self.state["scale"]])
        said = {"prediction": self._in_unit(scaled), "training_mean": self.state["training_mean"]}
        return Answer.of(case, target=case.target, **said, loss=float(self._loss(scaled[None], target)))

    def spread(self, results):
        return tuple(float(values.std()) for values in results.arrays("prediction", "target"))

    def calibrate(self, evaluate):
        """Fit two things on validation cases: the line that undoes the pull towards the mean, as far as it is safe (age
        bias), and the interval that holds LEVEL of the targets, see `metrics.conformal_half_width`.
        """
        targets, predictions = evaluate().arrays("target", "prediction")
        line, reason = bounded_bias_correction(targets, predictions)
        self.state["bias_correction"] = list(line)
        width, count = conformal_half_width(targets, predictions, LEVEL), len(targets)
        self.state["half_width"] = width if math.isfinite(width) else None
        messages = []
        if reason is not None:
            said = f"age-bias correction from {count} validation cases: off (`corrected` is the raw one): {reason}"
            messages.append(said)
        if self.state["half_width"] is None:
            messages.append(f"no prediction interval (low, high): {count} validation cases are too few for {LEVEL:.0%}")
        return messages or ()

    def finish(self, answers, fold=None):
        return Results(self._fitted([answer.row for answer in answers]))

    def _fitted(self, rows):
        """The rows with all that was fitted on validation cases: `corrected`; `low` and `high` about `prediction`."""
        rows, half = self._corrected(rows), self.state.get("half_width")
        if half is None:
            return rows
        return [{**row, "low": row["prediction"] - half, "high": row["prediction"] + half} for row in rows]

    def _corrected(self, rows):
        if self.state["bias_correction"] is None:
            return rows
        corrected = apply_bias_correction([row["prediction"] for row in rows], self.state["bias_correction"])
        return [{**row, "corrected": float(value)} for row, value in zip(rows, corrected)]

    def score(self, results):
        """Metrics of the raw predictions, of predicting the training mean and, as `corrected_*`, after bias correction.

        If a fold's correction is undefined, because its validation predictions do not vary, so are `corrected_*`.
        """
        raw = regression_metrics(*results.arrays("target", "prediction"))
        scores = dict(raw)
        if results.folds is not None:
            scores[f"pearson{WITHIN}"] = within_folds(pearson, *results.arrays("target", "prediction"), results.folds)
        if "training_mean" in results.rows[0]:  # not where only files are evaluated
            scores["mae_of_the_mean"] = mae(*results.arrays("target", "training_mean"))
        if "corrected" in results.rows[0]:
            targets, corrected = results.arrays("target", "corrected")
            defined = np.isfinite(corrected).all()
            values = regression_metrics(targets, corrected) if defined else dict.fromkeys(raw, math.nan)
            scores.update({f"corrected_{name}": value for name, value in values.items()})
        if _has_limits(results):
            low, high = results.arrays("low", "high")
            scores["interval_coverage"] = float(_covered(results).mean())
            scores["interval_width"] = float((high - low).mean())
        return scores

    def intervals(self, results, resamples, seed):
        """Of the raw predictions and, where they are defined, of the corrected ones."""
        interval, found = results.bootstrap(resamples, seed), {}
        if results.folds is not None:
            found[f"pearson{WITHIN}"] = interval(pearson, *results.arrays("target", "prediction"), within=True)
        for prefix, column in (("", "prediction"), ("corrected_", "corrected")):
            if column in results.rows[0]:
                targets, values = results.arrays("target", column)
                metrics = (mae, r2, pearson) if np.isfinite(values).all() else ()
                found.update({prefix + metric.__name__: interval(metric, targets, values) for metric in metrics})
        if _has_limits(results):
            found["interval_coverage"] = interval(np.mean, _covered(results))
        return found

    def shifts(self, results, seed):
        return results.shift(pearson, "correlation", *results.arrays("target", "prediction"), seed)

    @staticmethod
    def merge(states):
        """The lines (p - intercept) / slope are linear in p: their mean, written as one line; the mean half width."""
        if states[0]["bias_correction"] is None:
            return {}
        widths = [state.get("half_width") for state in states]
        width = {"half_width": None if None in widths else float(np.mean(widths))}
        slopes, intercepts = np.array([state["bias_correction"] for state in states]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = 1 / np.mean(1 / slopes)
            return {**width, "bias_correction": [float(slope), float(slope * np.mean(intercepts / slopes))]}

    @staticmethod
    def units(state):
        return state["mean"], state["scale"]


def _has_limits(results):
    """Whether all rows have `low` and `high`."""
    return all(name in row for row in results.rows for name in ("low", "high"))


def _covered(results):
    """(n,) 1 where the target lies in its interval, and 0."""
    targets, low, high = results.arrays("target", "low", "high")
    return ((low <= targets) & (targets <= high)).astype(float)
