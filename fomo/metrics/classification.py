"""Metrics of decisions: the confusion matrix and the metrics that follow from it, for two or more classes.

A rate whose denominator is 0 is NaN (scikit-learn: 0 with a warning): precision when nothing is predicted positive,
recall without positives, specificity without negatives, F1 without both, Matthews when only one class occurs or is
predicted, balanced accuracy when a class is missing. Macro averages run over the classes where the metric is defined.
"""

import numpy as np

from . import calibration, checks, ranking


def confusion_matrix(labels, predictions, classes):
    """(classes, classes) counts, rows the true and columns the predicted class; both (n,) in 0..classes-1."""
    checks.whole_number(classes, "classes", 2)
    labels = checks.class_labels(labels, classes)
    predictions = checks.class_labels(predictions, classes, "predictions")
    checks.same_shape(predictions, "predictions", labels, "labels")
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def decision_metrics(tp, fp, fn, tn):
    """Metrics of a 2x2 table: accuracy balanced_accuracy precision recall specificity f1 mcc, and tp fp fn tn."""
    ratio = checks.ratio
    tp, fp, fn, tn = map(int, (tp, fp, fn, tn))
    recall, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    rates = dict(
        accuracy=ratio(tp + tn, tp + fp + fn + tn),
        balanced_accuracy=(recall + specificity) / 2,
        precision=ratio(tp, tp + fp),
        recall=recall,
        specificity=specificity,
        f1=ratio(2 * tp, 2 * tp + fp + fn),
        mcc=matthews([[tn, fp], [fn, tp]]),
    )
    return rates | dict(tp=tp, fp=fp, fn=fn, tn=tn)


def crg(labels, decisions):
    """The CRG score of decisions about labels that are rare, both (n, labels) 0/1; NaN without a label, or with all.

    With A labels that are there of T in all, a finding is worth (T - A) / 2A, as much as its lack costs; a false one
    costs 1. Of s, what all are worth, and of the best sum S = (T - A) / 2 the score is S / (2 S - s): 1 where all is
    right, 1/3 where nothing or everything is said to be there. Hamamci et al., MIDL 2025, arXiv:2505.17167; the same as
    crg_score.py of the VLM3D challenge (forithmus/VLM3D-Dockers), which counts over all volumes and labels together.
    """
    labels, decisions = np.asarray(labels, bool), np.asarray(decisions, bool)
    checks.same_shape(decisions, "decisions", labels, "labels")
    there, right = np.count_nonzero(labels), np.count_nonzero(labels & decisions)
    best = (labels.size - there) / 2
    if not there or not best:
        return float("nan")
    worth = best / there
    found = worth * (right - (there - right)) - np.count_nonzero(decisions & ~labels)
    return float(best / (2 * best - found))


def matthews(confusion):
    """Matthews' correlation of a (k, k) confusion matrix (k > 2: Gorodkin's R_K, Comput Biol Chem 28:367, 2004)."""
    confusion = np.asarray(confusion, np.float64)
    true, predicted, n = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread_true, spread_predicted = n * n - true @ true, n * n - predicted @ predicted
    return checks.ratio(np.trace(confusion) * n - true @ predicted, np.sqrt(spread_true) * np.sqrt(spread_predicted))


def binary_metrics(labels, probabilities, threshold=0.5, decisions=None):
    """A dict of auroc average_precision, the metrics of `decision_metrics`, brier log_loss ece.

    labels: (n,) 0/1; probabilities: (n,) of class 1, in [0, 1].
    threshold: positive means probability >= threshold.
    decisions: (n,) 0/1, which replace the threshold's where given.
    """
    labels, probabilities = checks.labels_and_probabilities(labels, probabilities)
    chosen = probabilities >= threshold if decisions is None else np.asarray(decisions) == 1
    tp, positive, predicted = map(np.count_nonzero, (labels & chosen, labels, chosen))
    return dict(
        auroc=ranking.auroc(labels, probabilities),
        average_precision=ranking.average_precision(labels, probabilities),
        **decision_metrics(tp, predicted - tp, positive - tp, labels.size - positive - predicted + tp),
        brier=calibration.brier(labels, probabilities),
        log_loss=calibration.log_loss(labels, probabilities),
        ece=calibration.ece(labels, probabilities),
    )


def multiclass_metrics(labels, probabilities):
    """All metrics of a classifier of k > 1 exclusive classes as a dict.

    labels: (n,) in 0..k-1; probabilities: (n, k), rows summing to 1: the largest one (the first of equals) decides.
    Keys:
      accuracy, balanced_accuracy (mean recall over the classes that occur), mcc, brier, log_loss, ece
      micro_f1 (equal to the accuracy), confusion (k, k)
      macro_*, *_defined, *_per_class (k,): for precision, recall, specificity, f1, auroc and average_precision of one
      class against the rest, the mean over the defined classes, their number and each class's value
    """
    labels, probabilities = calibration.check_multiclass(labels, probabilities)
    n, classes = probabilities.shape
    table = confusion_matrix(labels, probabilities.argmax(axis=1), classes)
    tp = np.diag(table)
    fp, fn = table.sum(0) - tp, table.sum(1) - tp
    rows = [decision_metrics(*counts) for counts in zip(tp, fp, fn, n - tp - fp - fn)]
    for k, row in enumerate(rows):
        row["auroc"] = ranking.auroc(labels == k, probabilities[:, k])
        row["average_precision"] = ranking.average_precision(labels == k, probabilities[:, k])
    result = dict(
        accuracy=checks.ratio(tp.sum(), n),
        balanced_accuracy=checks.mean_of_defined([row["recall"] for row in rows]),
        mcc=matthews(table),
        micro_f1=checks.ratio(tp.sum(), n),
        brier=calibration.brier(labels, probabilities),
        log_loss=calibration.log_loss(labels, probabilities),
        ece=calibration.ece(labels, probabilities),
        confusion=table,
    )
    for name in ("precision", "recall", "specificity", "f1", "auroc", "average_precision"):
        values = np.array([row[name] for row in rows], np.float64)
        result[f"macro_{name}"] = checks.mean_of_defined(values)
        result[f"{name}_defined"] = int(np.count_nonzero(~np.isnan(values)))
        result[f"{name}_per_class"] = values
    return result


def choose_threshold(labels, scores, criterion="youden"):
    """The threshold that makes the best decisions `score >= threshold` on these cases, for use on other cases.

    labels, scores: (n,), or (n, k) for one threshold per label, then (k,).
    criterion: "youden" (sensitivity + specificity - 1) or "f1".
    The threshold lies midway between two neighbouring distinct scores, or at the lowest score where all decisions are
    positive. Of equally good ones the highest is taken. One class only: NaN.
    """
    checks.choice(criterion, "criterion", ("youden", "f1"))
    if np.ndim(scores) == 2:
        labels, scores = checks.labels_and_scores(labels, scores, dimensions=2)
        return np.array([choose_threshold(labels[:, k], scores[:, k], criterion) for k in range(scores.shape[1])])
    labels, scores = checks.labels_and_scores(labels, scores)
    if labels.all() or not labels.any():
        return float("nan")
    values, tp, at_or_above = ranking.cumulative_counts(labels, scores)
    fp = at_or_above - tp
    if criterion == "youden":  # times both class sizes: whole numbers, so that equally good thresholds compare equal
        gain = tp * fp[-1] - fp * tp[-1]
    else:
        gain = 2 * tp / (at_or_above + tp[-1])
    best = int(np.argmax(gain))
    if best + 1 == len(values):
        return float(values[best])
    middle = values[best + 1] / 2 + values[best] / 2
    return float(middle if middle > values[best + 1] else values[best])
