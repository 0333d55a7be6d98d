"""Regression of several numbers: scaled and scored each on its own, a run, its report, prediction and evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_command

from fomo import checkpoint, kinds, nets, tasks
from fomo.config import UserError
from fomo.data import sources
from fomo.metrics import mae, pearson
from fomo.runs import soup
from fomo.runtime import files
from fomo.tasks import Answer, Results
from fomo.tasks.multiregression import Multiregression
from fomo.tasks.regression import Regression

NAMES = ["age", "brain volume"]
TARGETS = np.array([[20.0, 1000.0], [40.0, 1300.0], [60.0, 1100.0], [80.0, 1400.0]])


@pytest.fixture
def table(tiny_config, tmp_path):
    """A table of phantom heads with two numbers, of which the second is not in the images' scale of the first."""
    data = {"phantom_layout": "table", "channels": ["t1"]}
    config = kinds.load(tiny_config("regression", task={"targets": ["age"]}, data=data))
    cases, rng = sources.list_cases(config.data, tasks.wanted(config)), np.random.default_rng(0)
    rows = [
        {
            "id": case.id,
            "subject": case.subject,
            "t1": case.images[0].path,
            "age": case.target,
            "brain volume": 1500 - 4 * case.target + rng.normal() * 20,
        }
        for case in cases
    ]
    files.write_csv(str(tmp_path / "table.csv"), rows)
    return str(tmp_path / "table.csv")


@pytest.fixture
def load(tiny_config):
    def load(targets=NAMES, csv="table.csv", **sections):
        data = {"source": "table", "csv": csv, "channels": ["t1"], **sections.pop("data", {})}
        return kinds.load(tiny_config("regression", task={"targets": targets}, data=data, **sections))

    return load


def labelled(targets):
    return [SimpleNamespace(target=tuple(row)) for row in targets.tolist()]


@pytest.fixture
def fitted(load):
    task = tasks.build(load())
    assert task.fit(labelled(TARGETS), labelled(TARGETS)) == []
    return task


def test_several_targets_are_this_task_and_one_is_the_usual_one(load):
    assert isinstance(tasks.build(load()), Multiregression)
    assert isinstance(tasks.build(load(["age"])), Regression)
    with pytest.raises(UserError, match="task.targets: got .*, wanted at least one column"):
        load([])


def test_the_loss_is_the_mean_of_that_of_each_standardised_target(fitted):
    means, deviations = TARGETS.mean(0), TARGETS.std(0)
    assert fitted.state["mean"] == pytest.approx(means.tolist())
    assert fitted.state["scale"] == fitted.state["training_sd"] == pytest.approx(deviations.tolist())
    outputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    scaled = torch.tensor((TARGETS - means) / deviations, dtype=torch.float32)
    wanted = torch.nn.functional.huber_loss(outputs, scaled, reduction="none").mean(1)
    batch = {"target": torch.tensor(TARGETS, dtype=torch.float32)}
    torch.testing.assert_close(fitted.loss(outputs, batch), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.head_targets(labelled(TARGETS)), scaled, rtol=1e-5, atol=1e-6)


def answers(task, predictions, targets=TARGETS):
    rows = []
    for place, (target, predicted) in enumerate(zip(targets, predictions)):
        row = {"id": f"c{place}", "subject": f"c{place}", "loss": 0.0}
        for k, name in enumerate(task.names):
            known = {"training_mean": task.state["training_mean"][k], "training_sd": task.state["training_sd"][k]}
            said = {"target": target[k], "prediction": predicted[k], **known}
            row.update({f"{column}_{name}": value for column, value in said.items()})
        rows.append(row)
    return [Answer(row) for row in rows]


def test_each_target_is_scored_as_its_own_and_the_mean_of_standardised_errors_chooses(fitted):
    predictions = TARGETS + np.array([[1.0, 30.0], [-3.0, 0.0], [2.0, -60.0], [2.0, 30.0]])
    results = fitted.finish(answers(fitted, predictions))
    scores = fitted.score(results)
    assert Multiregression.select == "standardised_mae" and not Multiregression.higher_is_better
    assert scores["standardised_mae"] == pytest.approx(np.mean([2.0, 30.0] / TARGETS.std(0)))
    for k, name in enumerate(["age", "brain_volume"]):
        assert scores[f"{name}_mae"] == pytest.approx(mae(TARGETS[:, k], predictions[:, k]))
        assert scores[f"{name}_pearson"] == pytest.approx(pearson(TARGETS[:, k], predictions[:, k]))
        assert scores[f"{name}_mae_of_the_mean"] == pytest.approx(np.abs(TARGETS[:, k] - TARGETS[:, k].mean()).mean())
    intervals = fitted.intervals(results, 50, 0)
    assert set(intervals) >= {"standardised_mae", "age_mae", "brain_volume_r2"} <= set(scores)
    said, true = fitted.spread(results)
    assert said == pytest.approx((predictions.std(0) / TARGETS.std(0)).mean()) and true == pytest.approx(1)


def test_each_target_has_its_own_bias_correction_and_folds_share_them(fitted):
    rng = np.random.default_rng(0)
    targets = TARGETS.mean(0) + TARGETS.std(0) * rng.normal(size=(60, 2))
    shrunk = TARGETS.mean(0) + [0.9, 0.8] * (targets - TARGETS.mean(0)) + rng.normal(size=(60, 2))
    fitted.calibrate(lambda: Results([answer.row for answer in answers(fitted, shrunk, targets)]))
    lines = fitted.state["bias_correction"]
    assert len(lines) == 2 and lines[0] != lines[1]
    row = fitted.finish(answers(fitted, shrunk, targets)).rows[0]
    for (slope, intercept), name in zip(lines, fitted.names):
        assert row[f"corrected_{name}"] == pytest.approx((row[f"prediction_{name}"] - intercept) / slope)
    both = [fitted.state, {**fitted.state, "bias_correction": lines[::-1], "mean": [0.0, 0.0]}]
    merged = soup.merged(Multiregression, both)
    assert merged["mean"] == fitted.state["mean"]
    pairs = [[{"bias_correction": line} for line in pair] for pair in zip(lines, lines[::-1])]
    assert merged["bias_correction"] == [Regression.merge(pair)["bias_correction"] for pair in pairs]


def test_heads_are_brought_to_the_units_of_each_target():
    network = nets.build("unet_b", 1, 2, mode="regression", width=2).eval()
    own, wanted = ([20.0, 1000.0], [5.0, 90.0]), ([30.0, 1100.0], [8.0, 70.0])
    image = torch.randn(1, 1, 32, 16, 16)
    before = network(image) * torch.tensor(own[1]) + torch.tensor(own[0])
    network.load_state_dict(soup._in_units(network.state_dict(), "decoder.fc", own, wanted))
    torch.testing.assert_close(network(image) * torch.tensor(wanted[1]) + torch.tensor(wanted[0]), before)


def test_a_number_that_stands_for_a_missing_one_is_said_with_its_column(load, table, tmp_path):
    rows = files.read_csv(table)
    rows = [{**row, "brain volume": -9 if place == 3 else row["brain volume"]} for place, row in enumerate(rows)]
    files.write_csv(table, rows)
    load(csv=table)
    done = run_command("train.py", tmp_path / "config.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "far from all others" in line]
    assert "brain volume" in line and "values=-9 " in line
    [data] = [line for line in done.stdout.splitlines() if " data " in line and "source=table" in line]
    assert "age_lowest=" in data and "brain_volume_highest=" in data


def test_a_run_its_report_prediction_and_evaluation(load, table, tmp_path):
    load(csv=table, cv={"final": "refit"}, train={"epochs": 1, "steps_per_epoch": 2})
    done = run_command("cv.py", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    summary, rows = files.read_json(run / "summary.json"), files.read_csv(run / "predictions.csv")
    assert summary["headline"] == "standardised_mae" and len(rows) == 16
    assert {"target_age", "prediction_brain_volume", "corrected_age"} <= set(rows[0])
    page = (run / "report.html").read_text()
    assert "standard deviations" in page and "MAE of the training mean" in page and "<h3>brain volume</h3>" in page
    states = [checkpoint.load(run / place / "best.pt")["task"] for place in ("fold_1", "final")]
    assert all(len(state["mean"]) == 2 for state in states) and states[0]["mean"] != states[1]["mean"]
    epochs = [line for line in (run / "log.txt").read_text().splitlines() if " epoch fold=1 " in line]
    assert epochs and all("val_standardised_mae=" in line and "val_age_mae=" in line for line in epochs)
    scored = run_command(
        *("tools/evaluate.py", "--predictions", run, "--references", table),
        *("--output", tmp_path / "scores", "--bootstrap", 20),
    )
    assert scored.returncode == 0, scored.stderr
    scores = files.read_json(tmp_path / "scores" / "evaluation.json")
    assert scores["kind"] == "multiregression" and scores["cases"] == 16
    for name in ("standardised_mae", "age_mae", "brain_volume_pearson", "age_corrected_mae"):
        pooled = summary["metrics"][name]["pooled"]
        assert scores["metrics"][name]["value"] == pytest.approx(pooled, nan_ok=True), name
    done = run_command("tools/predict.py", run / "final", "--cases", table, "--output", tmp_path / "answers")
    assert done.returncode == 0, done.stderr
    answered = files.read_csv(tmp_path / "answers" / "predictions.csv")
    assert len(answered) == 16 and {"prediction_age", "corrected_brain_volume"} <= set(answered[0])
    done = run_command("tools/evaluate.py", "--predictions", tmp_path / "answers", "--references", table)
    assert done.returncode == 0 and "brain_volume_mae" in done.stdout and "standardised_mae" not in done.stdout
