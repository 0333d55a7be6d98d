"""The views of classification, of several targets and of several labels, and their plots."""

import numpy as np
import pytest
from report_runs import make_run, needs_figures, shown, verdict

from fomo import config, metrics, tasks
from fomo.pages import page
from fomo.pages.figures.probabilities import calibration_bins, roc_band
from fomo.report import run
from fomo.tasks import views


@pytest.mark.parametrize(
    "skill, start",
    [(3.0, "Better than chance"), (0.0, "Not shown to be better than chance"), (-3.0, "Worse than chance")],
)
def test_the_verdict(tmp_path, skill, start):
    folder = make_run(tmp_path / "run", "classification", skill=skill, cases=60, seed=1)
    assert verdict(run.Run(folder)).startswith(start)


@needs_figures
def test_the_auroc_within_folds_is_at_the_top(tmp_path):
    folder = make_run(tmp_path / "run", "classification", cases=60)
    found, page = run.Run(folder), shown(folder)
    labels, scores = found.results.arrays("target", "probability")
    within = metrics.within_folds(metrics.auroc, labels, scores, found.results.folds)
    assert found.estimate == "auroc_within" and page.values["headline"] == pytest.approx(within)
    assert "over all pairs of cases" in page.text and "mean of these models on new cases" in page.text
    assert "Scores of each fold." in page.text


def test_models_on_other_scales_are_a_warning():
    rng = np.random.default_rng(0)
    labels, folds = np.arange(100) % 2, np.arange(100) // 4 % 5
    rows = [
        {"id": str(i), "subject": str(i), "fold": int(folds[i]), "target": int(y), "probability": float(p)}
        for i, (y, p) in enumerate(zip(labels, 1 / (1 + np.exp(-rng.normal(size=100) - labels))))
    ]
    task = tasks.build(config.Config(task=config.Task(type="classification")))
    assert task.shifts(tasks.Results(rows), 0) == ()
    moved = [{**row, "probability": (row["probability"] + row["fold"]) / 5} for row in rows]
    (message,) = task.shifts(tasks.Results(moved), 0)
    assert "within folds is" in message and "higher than over all cases" in message
    assert task.shifts(tasks.Results([{**row, "fold": 1} for row in moved]), 0) == ()  # one model


def test_classes_are_called_as_in_the_table(tmp_path):
    found = run.Run(make_run(tmp_path / "run", "classification"))
    assert found.classes == ["0", "1"] and "Class 0 is" not in str(views.classification._confusion(found))
    found.classes = ["AD", "<CN>"]
    assert "Class 0 is AD, class 1 &lt;CN&gt;: in sorted order." in str(views.classification._confusion(found))


def test_cases_come_worst_first_with_warnings():
    base = {"subject": "s", "fold": 1.0, "target": 1.0}
    given = [{**base, "id": str(p), "probability": p, "decision": float(p >= 0.5)} for p in (0.9, 0.05, 0.4)]
    _, rows, _ = views.classification.cases(given)
    assert [(row[0], row[1].value) for row in rows] == [("0.05", "wrong and sure of it"), ("0.4", "wrong"), ("0.9", "")]


def test_the_roc_band_surrounds_the_curve():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    scores = labels + rng.normal(size=200)
    grid, low, high = roc_band(labels, scores, np.arange(200), seed=0, resamples=200)
    order = np.argsort(-scores)
    true, false = np.cumsum(labels[order]) / 100, np.cumsum(1 - labels[order]) / 100
    curve = np.interp(grid, false, true)
    assert (low <= high).all() and np.mean((low <= curve) & (curve <= high)) > 0.95
    assert 0.02 < np.mean(high - low) < 0.3
    tied = roc_band(labels, np.zeros(200), np.arange(200), seed=0, resamples=20)
    assert np.allclose(tied[1], grid) and np.allclose(tied[2], grid)  # ties are one step: the diagonal


def test_the_band_of_the_mean_over_labels():
    labels = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0], axis=1)
    scores = np.stack([labels[:, 0], 1 - labels[:, 1]], axis=1).astype(
        float
    )  # one label perfect, the other upside down
    grid, low, high = roc_band(labels, scores, np.arange(60), seed=0, resamples=20)
    assert np.allclose(low[1:-1], 0.5) and np.allclose(high[1:-1], 0.5) and low[-1] == high[-1] == 1


def test_calibration_bins():
    (first, second) = calibration_bins(np.array([0, 1, 1]), np.array([0.11, 0.19, 1.0]))
    assert first[:3] == (pytest.approx(0.15), 0.5, 2)
    assert second[:3] == (1.0, 1.0, 1)
    # Wilson's interval of 1 in 2: 0.0945 to 0.9055
    assert first[3:] == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))


def test_the_squared_error_of_several_targets_by_hand():
    row = {
        "loss": 9.0,
        "target_a": 2,
        "decision_a": 0,
        "probability_a_x": 0.5,
        "probability_a_y": 0.2,
        "probability_a_z": 0.3,
    }
    row |= {"target_a_b": 0, "decision_a_b": 0, "probability_a_b_x": 0.9, "probability_a_b_y": 0.1}
    # of a: .25 + .04 + .49; of a_b: .01 + .01
    assert views.multitarget.VIEW.per_case["brier"][0](row) == pytest.approx((0.78 + 0.02) / 2)


@needs_figures
def test_the_overlays_of_each_fold(tmp_path):
    found = shown(make_run(tmp_path / "labels", "multilabel", cases=12))
    assert found.tags.count("img") == 4 and "Lung nodule 0.900 (present), Cardiomegaly 0.200 (absent)" in found.text
    asked = make_run(tmp_path / "asked", "classification", cases=12, eval={"saliency": 2})
    assert "The run has stored no maps." in shown(asked).text
    assert "stored no maps" not in shown(make_run(tmp_path / "not_asked", "classification", cases=12)).text


@needs_figures
def test_the_errors_over_coverage_are_drawn_with_their_area(tmp_path):
    folder = make_run(tmp_path / "run", "classification", cases=60)
    text = shown(folder).text
    rows = run.Run(folder).rows
    wrong = [float(row["decision"] != row["target"]) for row in rows]
    sure = [row["probability"] if row["decision"] else 1 - row["probability"] for row in rows]
    area = metrics.risk_coverage_area(wrong, sure)
    assert f"Area {page.number(area, 3)} (95% interval " in text.split("Risk over coverage.")[1]
