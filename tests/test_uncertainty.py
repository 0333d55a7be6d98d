"""What is said of single cases: intervals that hold what they promise, temperatures, and networks that disagree."""

import csv
import json

import numpy as np
import pytest
from conftest import members_of, tool
from scipy import optimize, special

from fomo import checkpoint, kinds, metrics, tasks
from fomo.config import UserError
from fomo.metrics.calibration import fit_temperature, tempered
from fomo.runs import crossval
from fomo.tasks import Results
from fomo.tasks.classification import Classification
from fomo.tasks.regression import Regression


def test_conformal_intervals_hold_what_they_promise():
    rng, held = np.random.default_rng(0), {0.8: [], 0.9: []}
    for _ in range(2000):
        targets, errors = rng.normal(50, 20, 31), rng.standard_t(3, 31) * 4
        for level, found in held.items():
            half = metrics.conformal_half_width(targets[:30], targets[:30] + errors[:30], level)
            found.append(abs(errors[30]) <= half)
    for level, found in held.items():
        expected = np.ceil(31 * level) / 31  # exact for errors without ties
        assert np.mean(found) == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 2000))


def test_the_half_width_is_an_order_statistic_and_infinite_for_too_few():
    errors = np.array([3.0, -1.0, 4.0, 1.5, -9.0, 2.0, 6.0, -5.0, 0.5])
    assert metrics.conformal_half_width(np.zeros(9), errors, 0.9) == 9.0
    assert metrics.conformal_half_width(np.zeros(9), errors, 0.8) == 6.0
    assert metrics.conformal_half_width(np.zeros(8), errors[:8], 0.9) == np.inf


def test_a_temperature_is_that_of_the_data_and_keeps_the_order():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < special.expit(odds)).astype(int)
    for wrong in (0.5, 1.0, 3.0):
        sure = special.expit(odds * wrong)
        temperature = fit_temperature(labels, sure)
        assert temperature == pytest.approx(wrong, rel=0.07)
        right = tempered(sure, temperature)
        assert np.array_equal(np.argsort(right, kind="stable"), np.argsort(sure, kind="stable"))
        assert (
            metrics.ece(labels, right) < 0.02
            and metrics.log_loss(labels, right) <= metrics.log_loss(labels, sure) + 1e-3
        )
        best = optimize.minimize_scalar(
            lambda t: metrics.log_loss(labels, special.expit(special.logit(sure) / t)),
            bounds=(0.1, 10),
            method="bounded",
        ).x
        assert temperature == pytest.approx(best, rel=0.02)
    assert tempered(0.5, 7.0) == 0.5 and tempered(0.123, 1) == 0.123


def test_few_cases_give_no_extreme_temperature():
    for sides in ([0.0, 0.1, 0.9, 1.0], [0.5, 0.5, 0.5, 0.5], [0.4, 0.1, 0.6, 0.9]):
        assert 0.3 < fit_temperature([0, 0, 1, 1], sides) < 6
    assert 6 < fit_temperature([0, 0, 1, 1], [1.0, 0.9, 0.1, 0.0]) < 20, "all are wrong"


def config_of(tiny_config, task="classification", **sections):
    return kinds.load(tiny_config(task, **sections))


def test_a_run_is_calibrated_on_validation_cases_and_predicts_the_same(tiny_config, tmp_path, phantom_root):
    config = config_of(tiny_config, eval={"calibrate": "temperature"}, cv={"final": "ensemble"})
    crossval.run(config)
    run = tmp_path / "runs" / "run"
    contents = [checkpoint.load(run / f"fold_{k}" / "best.pt") for k in (1, 2)]
    assert all(content["task"]["temperature"] != 1 for content in contents)
    with open(run / "fold_1" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    [member] = members_of(run / "fold_1" / "best.pt")
    temperature = member.task.state["temperature"]
    which = [
        "--source",
        "fomo1",
        "--root",
        next(phantom_root.glob("task1_16x24*")),
        "--ids",
        *(row["id"] for row in rows),
    ]
    tool("predict", run / "fold_1" / "best.pt", *which, "--output", tmp_path / "one")
    tool("predict", run, *which, "--output", tmp_path / "both")
    for row in rows:
        alone, both = (table(tmp_path / name)[row["id"]] for name in ("one", "both"))
        assert float(alone["probability"]) == pytest.approx(float(row["probability"]), abs=1e-4)
        assert alone["decision"] == row["decision"] and "probability_sd" not in alone
        assert float(both["probability_sd"]) >= 0
    raw = member.task
    raw.state["temperature"] = 1.0
    assert raw.tempered(0.7) == 0.7
    raw.state["temperature"] = temperature
    assert raw.tempered(0.7) == pytest.approx(special.expit(special.logit(0.7) / temperature))


def table(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_the_threshold_is_chosen_after_the_temperature(tiny_config):
    task = tasks.build(config_of(tiny_config, eval={"calibrate": "temperature"}))
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = [{"target": int(y), "probability": float(special.expit(6 * (rng.normal() + y - 0.2)))} for y in labels]
    assert task.calibrate(lambda: Results(rows)) == ()
    temperature = task.state["temperature"]
    assert temperature > 1.5
    calibrated = [tempered(row["probability"], temperature) for row in rows]
    assert task.state["threshold"] == pytest.approx(metrics.choose_threshold(labels, np.array(calibrated), "youden"))
    assert task.calibrate(lambda: Results(rows)) == () and task.state["temperature"] == temperature, "fitted anew"
    merged = Classification.merge([{"threshold": 0.2, "temperature": 4.0}, {"threshold": 0.4, "temperature": 1.0}])
    assert merged == pytest.approx({"threshold": 0.3, "temperature": 2.0, "moved": 0.5})


def test_only_two_classes_are_calibrated(tiny_config):
    with pytest.raises(UserError, match="eval.calibrate: got temperature, wanted none for task.type=regression"):
        config_of(tiny_config, "regression", eval={"calibrate": "temperature"})


def test_networks_that_disagree_are_shown(tiny_config):
    one, other = (tasks.build(config_of(tiny_config)) for _ in range(2))
    row, _ = one.answer([one, other], [0.2, 0.6], None)
    assert row["probability"] == pytest.approx(0.4) and row["probability_sd"] == pytest.approx(
        np.std([0.2, 0.6], ddof=1)
    )
    assert "probability_sd" not in one.answer([one], [0.2], None)[0]
    ages = [tasks.build(config_of(tiny_config, "regression")) for _ in range(2)]
    for task, half in zip(ages, (4.0, 6.0)):
        task.state |= {"bias_correction": [1.0, 0.0], "half_width": half}
    row, _ = ages[0].answer(ages, [50.0, 60.0], None)
    assert (row["prediction"], row["low"], row["high"]) == (55.0, 50.0, 60.0)
    assert row["prediction_sd"] == pytest.approx(np.std([50, 60], ddof=1))
    ages[1].state["half_width"] = None  # too few validation cases
    assert "low" not in ages[0].answer(ages, [50.0, 60.0], None)[0]
    states = [{"bias_correction": [1.0, 0.0], "half_width": half} for half in (4.0, None)]
    assert Regression.merge(states)["half_width"] is None
    assert Regression.merge(states[:1] * 2)["half_width"] == 4.0


def test_ages_have_intervals_whose_coverage_is_counted(tiny_config, tmp_path):
    crossval.run(config_of(tiny_config, "regression", data={"phantom_cases": 40}, cv={"val_fraction": 0.5}))
    run = tmp_path / "runs" / "run"
    rows = list(table(run).values())
    covered = [float(row["low"]) <= float(row["target"]) <= float(row["high"]) for row in rows]
    widths = [float(row["high"]) - float(row["low"]) for row in rows]
    found = json.loads((run / "summary.json").read_text())["metrics"]
    assert found["interval_coverage"]["pooled"] == pytest.approx(np.mean(covered))
    assert found["interval_width"]["pooled"] == pytest.approx(np.mean(widths))
    low, high = (found["interval_coverage"][f"pooled_{end}"] for end in ("low", "high"))
    assert 0 <= low <= np.mean(covered) <= high <= 1
    half = checkpoint.load(run / "fold_1" / "best.pt")["task"]["half_width"]
    assert {round(float(row["high"]) - float(row["prediction"]), 6) for row in rows if row["fold"] == "1"} == {
        round(half, 6)
    }
    tool(
        "evaluate", "--predictions", run, "--references", references(tmp_path, rows), "--output", tmp_path / "evaluated"
    )
    again = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())["metrics"]
    assert again["interval_coverage"]["value"] == pytest.approx(np.mean(covered))


def references(tmp_path, rows):
    path = tmp_path / "references.csv"
    path.write_text("id,target\n" + "".join(f"{row['id']},{row['target']}\n" for row in rows))
    return path


def test_too_few_validation_cases_are_said(tiny_config):
    task = tasks.build(config_of(tiny_config, "regression"))
    rows = [{"target": float(t), "prediction": float(t) + 1} for t in range(8)]
    messages = task.calibrate(lambda: Results(rows))
    assert any("no prediction interval" in message and "8 validation cases" in message for message in messages)
    assert task.state["half_width"] is None and "low" not in task._fitted([{"prediction": 5.0}])[0]
