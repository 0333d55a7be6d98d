"""What all tasks share that tell two classes apart by one probability, however the network comes to it."""

import numpy as np
import scipy

from ..config import UserError
from ..metrics import WITHIN, auroc, average_precision, binary_metrics, choose_threshold, macro_auroc, within_folds
from . import categories
from .results import Blend, Output, Results, averaged
from .task import ONE_OR_MORE


def rival_probability(said):
    """A number within (0, 1), in the order of what a linear fit to 0 and 1 says; .5 stays."""
    return scipy.special.expit(4 * (said - 0.5))


class TwoClasses:
    """A part of such a task, beside `Task`: its rows have `target`, `probability` (of class 1) and `decision`.

    Its `state` has classes (their names), class_weights and threshold.
    """

    reads, columns = "class", ONE_OR_MORE
    select, higher_is_better = "auroc", True
    training_state = ("class_weights",)
    binary = True
    single = "probability"
    scored = ("probability", "decision")
    blend = Blend(("target",), ("probability",), macro_auroc)

    @classmethod
    def class_names(cls, recorded):
        return categories.class_names(recorded)

    def rival_targets(self, cases):
        return [[case.target] for case in cases]

    def rival_row(self, row, said):
        probability = float(rival_probability(said[0]))
        return {**row, "probability": probability, "decision": int(probability >= 0.5)}

    def begin_state(self):
        """The state before anything is fitted."""
        return {"classes": ["0", "1"], "class_weights": [1.0, 1.0], "threshold": 0.5}

    def inspect(self, cases):
        unknown = sorted({case.target for case in cases} - {0, 1})
        if unknown:
            wanted = "wanted 2: set task.classes to their number"
            raise UserError(f"target: got {unknown[0] + 1:g} classes or more, {wanted}")
        found = dict(map(categories.class_of, cases))
        if len(found) < 2:
            got = f"got the class {', '.join(found.values())} in all {len(cases)} labelled cases"
            raise UserError(f"target: {got}, wanted two classes")
        self.state["classes"] = [found.get(number, str(number)) for number in (0, 1)]

    def check_parts(self, train, val):
        for part, cases in (("training", train), ("validation", val)):
            if len({case.target for case in cases}) < 2:
                categories.refuse(self.config, part, cases, f"of class {cases[0].target:g} only, wanted both classes")

    def fit(self, train, val):
        """Fit inverse-frequency class weights, whose mean over the training cases is 1."""
        self.check_parts(train, val)
        if self.config.task.class_weights == "inverse_frequency":
            counts = np.bincount([int(case.target) for case in train], minlength=2)
            self.state["class_weights"] = categories.inverse_frequency(counts).tolist()
        return ()

    @staticmethod
    def names_of(kind):
        """The columns of a `kind`, which several labels have one each of."""
        return [kind]

    def labels_of(self, case):
        """[0 or 1] of a case."""
        return [categories.known_class(case, "class", self.state["classes"])]

    def decided(self, rows):
        """The rows with the decisions by their probabilities."""
        return [{**row, "decision": int(row["probability"] >= self.state["threshold"])} for row in rows]

    @staticmethod
    def together(tasks, probabilities):
        """The row of a case: the weighted mean of the networks' probabilities, decided at that of their thresholds.

        Of several networks `probability_sd` is the standard deviation between them: where they disagree.
        """
        probability = float(np.squeeze(averaged(tasks, probabilities)))  # of each network a number, or (1,)
        threshold = averaged(tasks, [task.state["threshold"] for task in tasks])
        spread = {"probability_sd": float(np.std(probabilities, ddof=1))} if len(tasks) > 1 else {}
        return {"probability": probability, "decision": int(probability >= threshold), **spread}

    def choose_thresholds(self, rows):
        """Put the decision threshold that is best on these cases into `state`; no messages."""
        if self.config.eval.threshold != "half":
            labels, scores = Results(rows).arrays("target", "probability")
            self.state["threshold"] = choose_threshold(labels, scores, self.config.eval.threshold)
        return ()

    def score(self, results):
        labels, scores, decisions = results.arrays("target", "probability", "decision")
        found = binary_metrics(labels, scores, decisions=decisions)
        folds = results.folds
        return found if folds is None else {**found, f"auroc{WITHIN}": within_folds(auroc, labels, scores, folds)}

    def intervals(self, results, resamples, seed):
        """Of the ranking metrics, and of the shares of right decisions among all cases, class 1 and class 0."""
        interval = results.bootstrap(resamples, seed)
        labels, scores, decisions = results.arrays("target", "probability", "decision")
        right = (decisions == labels).astype(float)
        result = {metric.__name__: interval(metric, labels, scores) for metric in (auroc, average_precision)}
        if results.folds is not None:
            result[f"auroc{WITHIN}"] = interval(auroc, labels, scores, within=True)
        for name, chosen in (("accuracy", labels >= 0), ("recall", labels == 1), ("specificity", labels == 0)):
            if chosen.any():
                result[name] = interval(np.mean, right[chosen], chosen=chosen)
        return result

    def shifts(self, results, seed):
        return results.shift(auroc, "AUROC", *results.arrays("target", "probability"), seed)

    def finish(self, answers, fold=None):
        return Results(self.decided([answer.row for answer in answers]))

    def outputs(self):
        return [Output(1, "probability", "target", 1, "class 1")]

    def learned(self):
        return {"class_names": self.state["classes"]}
