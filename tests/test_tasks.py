"""What each task fits, scores and counts, on rows and cases made by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fomo import config as config_module
from fomo import tasks


def build(tiny_config, task, /, **sections):
    return tasks.build(config_module.load(tiny_config(task, **sections)))


def labelled(*targets):
    return [SimpleNamespace(case=SimpleNamespace(target=float(target))) for target in targets]


def test_class_weights_are_inverse_frequencies_with_mean_one_over_the_cases(tiny_config):
    task = build(tiny_config, "classification", task={"class_weights": "inverse_frequency"})
    task.fit(labelled(0, 0, 0, 1))
    assert task.state["class_weights"] == pytest.approx([4 / 2 / 3, 4 / 2 / 1])
    weights = np.array(task.state["class_weights"])[[0, 0, 0, 1]]
    assert weights.mean() == pytest.approx(1)
    logits, batch = torch.zeros(2, 2), {"target": torch.tensor([0.0, 1.0])}
    assert task.loss(logits, batch).tolist() == pytest.approx([math.log(2) * 2 / 3, math.log(2) * 2])


def test_decisions_use_the_threshold_that_was_fitted_on_validation(tiny_config):
    task = build(tiny_config, "classification")
    val = [{"target": y, "probability": p} for y, p in ((0, 0.1), (0, 0.2), (1, 0.3), (1, 0.4))]
    task.calibrate(lambda: val)
    assert task.state["threshold"] == pytest.approx(0.25)
    rows = task.finish([{"id": i, "subject": i, "target": y, "probability": p} for i, y, p in (("a", 1, 0.26), ("b", 0, 0.24))])
    assert [row["decision"] for row in rows] == [1, 0] and task.score(rows)["accuracy"] == 1
    half = build(tiny_config, "classification", eval={"threshold": "half"})
    half.calibrate(lambda: pytest.fail("nothing is to be fitted"))
    assert half.state["threshold"] == 0.5


def test_one_class_is_undefined_and_not_one_half(tiny_config):
    task = build(tiny_config, "classification")
    rows = task.finish([{"id": i, "subject": i, "target": 1, "probability": p} for i, p in (("a", 0.2), ("b", 0.9))])
    scores = task.score(rows)
    assert math.isnan(scores["auroc"]) and scores["recall"] == 0.5 and math.isnan(scores["specificity"])


def test_regression_learns_standardised_targets_and_answers_in_years(tiny_config):
    task = build(tiny_config, "regression", task={"loss": "mse"})
    task.fit(labelled(30, 50, 70))
    assert task.state["mean"] == 50 and task.state["scale"] == pytest.approx(math.sqrt(800 / 3))
    outputs, batch = torch.tensor([[0.0]]), {"target": torch.tensor([50 + task.state["scale"]])}
    assert task.loss(outputs, batch).item() == pytest.approx(1)
    row = {"id": "a", "subject": "a", "target": 60.0, "prediction": 55.0, "training_mean": 50.0}
    scores = task.score([row, {**row, "target": 40.0, "prediction": 45.0}])
    assert scores["mae"] == 5 and scores["mae_of_the_mean"] == 10 and "corrected_mae" not in scores


def test_the_bias_correction_comes_from_validation_and_is_shown_beside_the_raw_values(tiny_config):
    task = build(tiny_config, "regression")
    val = [{"target": t, "prediction": 50 + 0.5 * (t - 50)} for t in (30.0, 50.0, 70.0)]
    task.calibrate(lambda: val)
    rows = task.finish([{"id": "a", "subject": "a", "target": t, "prediction": 50 + 0.5 * (t - 50), "training_mean": 50.0} for t in (20.0, 80.0)])
    scores = task.score(rows)
    assert scores["mae"] == 15 and scores["bias_slope"] == pytest.approx(-0.5)
    assert scores["corrected_mae"] == pytest.approx(0, abs=1e-9)
    task.state["bias_correction"] = [float("nan"), float("nan")]
    scores = task.score(task.finish([{k: v for k, v in row.items() if k != "corrected"} for row in rows]))
    assert scores["mae"] == 15 and math.isnan(scores["corrected_mae"])


def test_missed_and_undefined_cases_are_counted_beside_the_mean(tiny_config):
    task = build(tiny_config, "segmentation")
    common = {"subject": "s", "loss": 0.0, "reference_voxels": 5}
    rows = [
        {"id": "a", **common, "predicted_voxels": 5, "dice": 0.8, "hd95": 2.0},
        {"id": "b", **common, "predicted_voxels": 0, "dice": 0.0, "hd95": math.inf},
        {"id": "c", **common, "predicted_voxels": 0, "dice": math.nan, "hd95": math.nan},
    ]
    scores = task.score(rows)
    assert scores["dice"] == pytest.approx(0.4) and scores["dice_undefined"] == 1
    assert scores["hd95"] == 2 and scores["hd95_infinite"] == 1 and scores["hd95_undefined"] == 1
    assert scores["empty_predictions"] == 2


def test_more_classes_have_their_own_columns_and_a_mean_over_the_defined(tiny_config):
    task = build(tiny_config, "segmentation", task={"classes": 4})
    values = {1: 0.5, 2: 1.0, 3: math.nan}
    row = task._per_class(lambda c: {"dice": values[c]})
    assert row["dice"] == 0.75 and row["dice_1"] == 0.5 and row["dice_2"] == 1.0 and math.isnan(row["dice_3"])


def test_voxel_class_weights_ignore_which_case_a_voxel_is_in(tiny_config):
    task = build(tiny_config, "segmentation", task={"class_weights": "inverse_frequency"})
    masks = [np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8) * np.array([0, 1], np.uint8)]
    task.fit([SimpleNamespace(mask=lambda m=m: m) for m in masks])
    assert task.state["class_weights"] == pytest.approx([0.5, 1.5])  # 12 and 4 voxels
