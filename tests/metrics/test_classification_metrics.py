"""Decision metrics against tables counted by hand and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo import metrics

NAN = float("nan")


def test_a_table_by_hand():
    got = metrics.decision_metrics(tp=3, fp=1, fn=2, tn=4)
    mcc = (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6)
    rates = dict(accuracy=0.7, balanced_accuracy=0.7, precision=0.75, recall=0.6, specificity=0.8, f1=6 / 9, mcc=mcc)
    expected = rates | dict(tp=3, fp=1, fn=2, tn=4)
    assert got == pytest.approx(expected)


def test_undefined_is_nan():
    only_negatives = metrics.binary_metrics([0, 0, 0], [0.1, 0.2, 0.3])
    for name in ("auroc", "average_precision", "balanced_accuracy", "precision", "recall", "f1", "mcc"):
        assert np.isnan(only_negatives[name]), name
    assert only_negatives["accuracy"] == only_negatives["specificity"] == 1
    never_predicted = metrics.binary_metrics([0, 1], [0.1, 0.2])
    assert np.isnan(never_predicted["precision"]) and np.isnan(never_predicted["mcc"]) and never_predicted["f1"] == 0


def test_the_threshold_itself_is_positive():
    row = metrics.binary_metrics([1, 0], [0.5, 0.5])
    assert (row["tp"], row["fp"]) == (1, 1)
    assert metrics.binary_metrics([1, 0], [0.5, 0.5], threshold=0.51)["tp"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(4, 50))
def test_binary_equals_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    probabilities = np.clip(rng.normal(0.4 + 0.2 * labels, 0.3), 0, 1).round(2)
    probabilities[2:4] = 0.9, 0.1  # both decisions occur
    decisions = probabilities >= 0.5
    row = metrics.binary_metrics(labels, probabilities)
    expected = dict(
        auroc=sklearn.metrics.roc_auc_score(labels, probabilities),
        average_precision=sklearn.metrics.average_precision_score(labels, probabilities),
        accuracy=sklearn.metrics.accuracy_score(labels, decisions),
        balanced_accuracy=sklearn.metrics.balanced_accuracy_score(labels, decisions),
        precision=sklearn.metrics.precision_score(labels, decisions),
        recall=sklearn.metrics.recall_score(labels, decisions),
        specificity=sklearn.metrics.recall_score(labels, decisions, pos_label=0),
        f1=sklearn.metrics.f1_score(labels, decisions),
        mcc=sklearn.metrics.matthews_corrcoef(labels, decisions),
        brier=sklearn.metrics.brier_score_loss(labels, probabilities),
        log_loss=sklearn.metrics.log_loss(labels, probabilities),
    )
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    tn, fp, fn, tp = sklearn.metrics.confusion_matrix(labels, decisions).ravel()
    assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (tp, fp, fn, tn)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_multiclass_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(4), rng.integers(0, 4, 40))
    probabilities = rng.dirichlet(np.ones(4), 44)
    probabilities[:4] = 0.7 * np.eye(4) + 0.075  # every class is predicted
    decisions = probabilities.argmax(axis=1)
    row = metrics.multiclass_metrics(labels, probabilities)
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(labels, decisions)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(row[f"{name}_per_class"], values)
        assert np.isclose(row[f"macro_{name}"], values.mean()) and row[f"{name}_defined"] == 4
    np.testing.assert_array_equal(row["confusion"], sklearn.metrics.confusion_matrix(labels, decisions))
    assert np.isclose(row["mcc"], sklearn.metrics.matthews_corrcoef(labels, decisions))
    assert np.isclose(row["micro_f1"], sklearn.metrics.f1_score(labels, decisions, average="micro"))
    assert np.isclose(row["balanced_accuracy"], sklearn.metrics.balanced_accuracy_score(labels, decisions))
    assert np.isclose(row["macro_auroc"], sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert np.isclose(row["log_loss"], sklearn.metrics.log_loss(labels, probabilities))


def test_a_class_that_is_missing_is_counted_not_averaged():
    row = metrics.multiclass_metrics([0, 0, 1, 1], [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.9, 0], [0.7, 0.2, 0.1]])
    np.testing.assert_equal(row["recall_per_class"], [1, 0.5, NAN])
    assert row["macro_recall"] == 0.75 and row["recall_defined"] == 2 and row["auroc_defined"] == 2


def test_confusion_matrix_rows_are_the_truth():
    np.testing.assert_array_equal(metrics.confusion_matrix([0, 0, 1], [1, 0, 1], 3), [[1, 1, 0], [0, 1, 0], [0, 0, 0]])


# -------------------------------------------------------------------------------------- thresholds


def test_threshold_by_hand():
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.6, 0.4, 0.7, 0.9]
    # Youden: at .7: 2/3; at .4: 1 - 1/2; at .9: 1/3 -> between .6 and .7. F1: at .7: 4/5; at .4: 6/7 -> between .1
    # and .4.
    assert metrics.choose_threshold(labels, scores) == pytest.approx(0.65)
    assert metrics.choose_threshold(labels, scores, "f1") == pytest.approx(0.25)
    per_label = metrics.choose_threshold(np.stack([labels, [0] * 5], axis=1), np.stack([scores, scores], axis=1))
    np.testing.assert_allclose(per_label, [0.65, NAN])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.sampled_from(["youden", "f1"]), st.booleans())
def test_no_threshold_is_better(seed, criterion, neighbours):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, 20))
    scores = rng.normal(labels, 1).round(1) / 10
    if neighbours:  # scores with no number between them
        scores = np.where(scores > 0, np.nextafter(0.5, 1), 0.5)

    def quality(threshold):
        tp, fp = np.sum(labels & (scores >= threshold)), np.sum((1 - labels) & (scores >= threshold))
        youden = tp / labels.sum() - fp / (1 - labels).sum()
        return youden if criterion == "youden" else 2 * tp / (tp + fp + labels.sum())

    chosen = metrics.choose_threshold(labels, scores, criterion)
    best = max(quality(score) for score in scores)
    assert quality(chosen) == pytest.approx(best)
    assert scores.min() <= chosen <= scores.max()


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.binary_metrics([0, 1], [0.2, 1.2]), "got values from 0.2 to 1.2, wanted 0 to 1"),
        (lambda: metrics.binary_metrics([0, 1], [0.2, NAN]), "probabilities: got 1 non-finite cases"),
        (lambda: metrics.multiclass_metrics([0, 1], [[0.5, 0.6], [0.5, 0.5]]), "got a sum of 1.1 in row 0"),
        (lambda: metrics.multiclass_metrics([0, 2], [[0.5, 0.5], [0.5, 0.5]]), "got labels from 0 to 2, wanted 0 to 1"),
        (lambda: metrics.multiclass_metrics([0], [[0.5, 0.5], [0.5, 0.5]]), "probabilities: got 2 rows, wanted 1"),
        (lambda: metrics.confusion_matrix([0, 1], [0, 3], 3), "predictions: got labels from 0 to 3, wanted 0 to 2"),
        (lambda: metrics.confusion_matrix([0.0, 1.0], [0, 1], 2), "got dtype float64, wanted integer class labels"),
        (lambda: metrics.choose_threshold([0, 1], [0.1, 0.2], "best"), "criterion: got 'best'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
