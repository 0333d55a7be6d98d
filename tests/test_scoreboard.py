"""The scoreboard: ranks by the challenge's rules, and whole runs of it on tiny phantoms, stopped and continued."""

import json
import math
import os
import shutil

import numpy as np
import pytest
from conftest import run_command, tool

from fomo import kinds, metrics, report
from fomo.config import UserError
from fomo.data.phantoms import heads
from fomo.runs import challenge, crossval, scoreboard
from fomo.runtime import files
from fomo.runtime.log import Log


def test_places_share_their_mean_and_a_missing_value_is_last():
    nan = math.nan
    assert challenge.places([0.9, 0.5, 0.9, nan], True).tolist() == [1.5, 3, 1.5, 4]
    assert challenge.places([9.0, 5.0, nan, nan], False).tolist() == [2, 1, 4, 4]
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 5, 12).astype(float)
    np.testing.assert_allclose(challenge.places(values, False), scipy_stats.rankdata(values))
    np.testing.assert_allclose(challenge.places(values, True), scipy_stats.rankdata(-values))


def test_the_weights_are_those_of_the_challenge():
    weights = {number: ranked.weight for number, ranked in challenge.TASKS.items()}
    assert weights == {1: 0.1, 2: 0.25, 3: 0.1, 4: 0.25, 5: 0.1, 6: 0.1, 7: 0.1} and math.isclose(
        sum(weights.values()), 1
    )
    found = challenge.overall({2: [1.0, 2.0], 3: [2.0, 1.0]}, weights)
    assert found == pytest.approx([(0.25 + 0.2) / 0.35, (0.5 + 0.1) / 0.35])
    for name in ("task4", "demo_fomo26_task4", "my-task_4"):
        assert challenge.ranked_as(name, "dice", True).weight == 0.25
    assert challenge.ranked_as("multitask4", "mae", False) == challenge.Ranked(0.1, {"mae": False})
    assert challenge.ranked_as("task12", "mae", False).metrics == {"mae": False}


def test_a_paired_swap_knows_a_difference_from_none():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    good, bad = labels + rng.normal(0, 0.7, 200), rng.normal(size=200)
    found = metrics.paired_swap(metrics.auroc, labels, bad, good, resamples=300)
    assert found.difference == metrics.auroc(labels, good) - metrics.auroc(labels, bad)
    assert found.low > 0.1 and found.p < 0.01
    delong = metrics.delong_test(labels, good, bad)
    assert found.low == pytest.approx(delong.low, abs=0.04) and found.high == pytest.approx(delong.high, abs=0.04)
    p = [metrics.paired_swap(metrics.auroc, labels, *rng.normal(size=(2, 200)), resamples=99).p for _ in range(30)]
    assert 0.3 < np.mean(p) < 0.7
    same = metrics.paired_swap(metrics.auroc, labels, good, good, resamples=50)
    assert (same.difference, same.p) == (0, 1)
    assert math.isnan(metrics.paired_swap(metrics.auroc, np.zeros(5, int), *rng.normal(size=(2, 5))).p)


FAST = {"train": {"epochs": 1, "steps_per_epoch": 2}, "eval": {"bootstrap": 20}}


@pytest.fixture
def asked(tiny_config, tmp_path):
    """(checkpoint of a masked autoencoder, files of two tasks, arguments of tasks 6 and 7)."""
    data = {"channels": ["t1"], "phantom_layout": "table", "phantom_cases": 30}
    crossval.run(
        kinds.load(tiny_config("mae", name="mae", data=data, model={"name": "unet_b_lw_dec"}, **FAST)), one_split=True
    )
    configs = []
    for name, task in (("task1", "classification"), ("task3", "regression")):
        configs.append(
            shutil.copy(tiny_config(task, name=name, optim={"lr": "auto"}, **FAST), tmp_path / f"{name}.yaml")
        )
    table, _ = heads_table(tmp_path / "heads")
    probed = ["--cases", table, "--target", "cohort", "--groups", "gender", "age:60", "--column", "t1"]
    return tmp_path / "runs" / "mae" / "fold_1" / "best.pt", configs, [*probed, "--subject-column", "PatientID"]


def heads_table(folder):
    heads.make(folder, "table", 30, 24)
    return str(folder / "table.csv"), folder


def rows_of(output, name="scoreboard"):
    return files.read_csv(os.path.join(output, f"{name}.csv"))


def test_checkpoints_and_random_weights_are_ranked_and_what_is_finished_is_not_run_again(
    asked, tmp_path, capsys, monkeypatch
):
    checkpoint, configs, probed = asked
    output = tmp_path / "board"
    arguments = [checkpoint, "--tasks", *configs, "--output", output, *probed]
    tool("scoreboard", *arguments)
    found = json.loads((output / "scoreboard.json").read_text())
    assert [row["checkpoint"] for row in found["scores"][:2]] == ["mae", "random"] and not found["missing"]
    assert set(found["weights"]) == {"task1", "task3", "task6", "task7"}
    for name in ("mae", "random"):
        for task, metric in (("task1", "auroc"), ("task3", "mae"), ("task3", "pearson")):
            [row] = [
                row
                for row in found["scores"]
                if (row["checkpoint"], row["task"], row["metric"]) == (name, task, metric)
            ]
            run = report.run.Run(output / name / task)
            assert row["value"] == pytest.approx(run.value(metric), nan_ok=True)
        assert ("path: null" in (output / name / task / "config.yaml").read_text()) == (name == "random")
        assert (output / name / "probe" / "probe.html").exists()
    ranks = {row["checkpoint"]: row for row in found["ranking"]}
    for name, row in ranks.items():
        assert row["overall"] == pytest.approx(np.mean(list(row["tasks"].values()))), "four tasks of one weight"
        assert row["overall"] + ranks["random" if name == "mae" else "mae"]["overall"] == pytest.approx(3)
    [of_probe] = [row for row in rows_of(output, "differences") if (row["task"], row["metric"]) == ("task6", "auroc")]
    values = [row["value"] for row in found["scores"] if (row["task"], row["metric"]) == ("task6", "auroc")]
    assert float(of_probe["difference"]) == pytest.approx(values[1] - values[0])
    holm = report.differences.holm([float(row["p"]) for row in rows_of(output, "differences")])
    assert [float(row["p_holm"]) for row in rows_of(output, "differences")] == pytest.approx(holm)
    page = (output / "scoreboard.html").read_text()
    assert "mean rank" in page and "task3 (25%)" in page and "fairness score by AUROC" in page
    capsys.readouterr()

    def never(*_, **__):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(crossval, "run", never)
    tool("scoreboard", *arguments)
    log = capsys.readouterr().out
    assert log.count("finished=true") == 4 and "kept=30" in log
    assert json.loads((output / "scoreboard.json").read_text()) == found
    with pytest.raises(scoreboard.TasksFailed, match="task1 of mae: .*another config .train.epochs.*3 more failed"):
        tool("scoreboard", *arguments, "train.epochs=2")


def test_a_task_that_fails_loses_no_other_and_the_same_command_tries_again(asked, tmp_path):
    checkpoint, configs, _ = asked
    text = (tmp_path / "task3.yaml").read_text()
    (tmp_path / "task3.yaml").write_text(text.replace("source: phantom", "source: fomo3"))
    arguments = ["tools/scoreboard.py", checkpoint, "--tasks", *configs, "--output", tmp_path / "board"]
    done = run_command(*arguments)
    assert done.returncode == 1 and "task3 of mae" in done.stderr and "Traceback" not in done.stderr
    found = json.loads((tmp_path / "board" / "scoreboard.json").read_text())
    assert {(row["checkpoint"], row["task"]) for row in found["missing"]} == {("mae", "task3"), ("random", "task3")}
    values = {
        (row["task"], row["checkpoint"]): (row["value"], row["rank"])
        for row in found["scores"]
        if row["metric"] != "pearson"
    }
    assert values["task3", "mae"] == (None, 2) and values["task3", "random"] == (None, 2), "the last place"
    assert values["task1", "mae"][0] is not None
    assert "task3 of mae is missing" in (tmp_path / "board" / "scoreboard.html").read_text()
    (tmp_path / "task3.yaml").write_text(text)
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished=true") >= 2
    assert not json.loads((tmp_path / "board" / "scoreboard.json").read_text())["missing"]


def test_ranks_share_the_folds(asked, tmp_path):
    checkpoint, configs, _ = asked
    done = run_command(
        "tools/scoreboard.py",
        checkpoint,
        "--tasks",
        *configs,
        "--output",
        tmp_path / "board",
        "cv.parallel=folds",
        ranks=2,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "board" / "scoreboard.json").read_text())["ranking"]) == 2


def test_names_and_mistakes(asked, tmp_path):
    checkpoint, configs, _ = asked
    other = shutil.copy(checkpoint, tmp_path / "mae.pt")
    names = [one.name for one in scoreboard.contestants([str(checkpoint), str(other)])]
    assert names == ["mae", "mae_2", "random"]
    with pytest.raises(UserError, match="got the name task1 twice"):
        scoreboard.run([str(checkpoint)], [configs[0], configs[0]], str(tmp_path / "b"), Log(active=False))
    with pytest.raises(UserError, match="no such file"):
        scoreboard.contestants([str(tmp_path / "none.pt")])
