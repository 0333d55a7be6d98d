"""The scoreboard: ranks by the challenge's rules, and whole runs of it on tiny phantoms, stopped and continued."""

import html
import json
import math
import os
import shutil

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command, tool
from report_runs import needs_figures

from fomo import checkpoint as checkpoints
from fomo import kinds, metrics, report
from fomo.config import UserError
from fomo.data.phantoms import heads
from fomo.pages import figures
from fomo.runs import board, challenge, crossval, demo, scoreboard
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


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """Those of all runs would take half of the time."""
    monkeypatch.setattr(figures, "available", lambda: False)


@needs_figures
def test_the_page_shows_intervals_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.undo()
    failed, paths = {("random", "task3"): "no such folder"}, {"a": "/x/a.pt", "random": None}
    found = board.Board(["a", "random"], failed, paths)
    found._ranked = {"task1": challenge.TASKS[1], "task3": challenge.TASKS[3]}
    for name, task, metric, value in (("a", "task1", "auroc", 0.8), ("random", "task1", "auroc", 0.6)):
        found._add(name, task, metric, value, value - 0.1, value + 0.1, 20)
    for name, metric, value in (("a", "mae", 6.0), ("a", "pearson", 0.5), ("random", "mae", math.nan)):
        found._add(name, "task3", metric, value, math.nan, math.nan, 30)
    found._add("random", "task3", "pearson", math.nan, math.nan, math.nan, None)
    found.finish()
    assert [row["overall"] for row in found.ranking] == [1, 2]
    text = open(found.write(str(tmp_path)), encoding="utf-8").read()
    assert text.count("<svg") == 3 and "task3 of random is missing, and has the last rank: no such folder" in text
    assert "/<wbr>x/<wbr>a.pt" in text and "task3 by MAE and Pearson r" in text
    assert "0.7000 to 0.9000" in text and "Nothing can be compared" in text
    assert files.read_csv(tmp_path / "scoreboard.csv")[0]["rank"] == "1.0" and "FOMO26 ranks masks" not in text
    found = board.Board(["a", "random"], {})
    found._ranked = {"task2": challenge.TASKS[2]}
    for name in found.names:
        for metric in ("fomo26_dice", "fomo26_nsd", "dice", "surface_dice"):
            found._add(name, "task2", metric, 0.5, 0.4, 0.6, 9)
    found.finish()
    assert [row["rank"] for row in found.scores[:2]] == [1.5, 1.5] and math.isnan(found.scores[2]["rank"])
    text = open(found.write(str(tmp_path)), encoding="utf-8").read()
    assert "<b>a and random</b> share the best mean rank, 1.5" in text
    assert "task2 by FOMO26's Dice and FOMO26's NSD" in html.unescape(text) and text.count("not ranked") == 4
    assert "Tasks of FOMO26 that were not asked for, which there count as the last place: 1, 3, 4, 5, 6, 7." in text


def test_masks_are_ranked_by_the_challenges_metrics_whether_a_config_asks_for_them_or_not(tiny_config, tmp_path):
    path = shutil.copy(tiny_config("segmentation", name="my_task2"), tmp_path / "my_task2.yaml")
    of_task = scoreboard._asked([path], ())["my_task2"]
    assert list(of_task.ranked.metrics) == ["fomo26_dice", "fomo26_nsd"]
    [one] = scoreboard.contestants([])
    assert scoreboard._config(one, "my_task2", of_task, str(tmp_path), ()).eval.challenge == "fomo26"
    of_task = of_task._replace(ranked=challenge.ranked_as("lesions", "dice", True))
    assert scoreboard._config(one, "lesions", of_task, str(tmp_path), ()).eval.challenge == "none"


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
    monkeypatch.setattr(board, "_RESAMPLES", 50)
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
    assert of_probe["first"] == "random", "so that a difference is what pretraining gains"
    assert float(of_probe["difference"]) == pytest.approx(values[0] - values[1])
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
    before = {path: path.read_bytes() for path in output.glob("scoreboard.*")}
    others = (
        ([*arguments, "train.epochs=2"], "mae/task1 holds a run of another config .train.epochs"),
        (arguments[:-1] + ["subject"], "mae/probe: holds a probe of subject=PatientID, got subject=subject"),
        ([*arguments, "--features", "bottleneck"], "mae/embeddings: got features=bottleneck, and its vectors"),
        (arguments[: arguments.index("--cases")], "scoreboard.json has task6, task7, too"),
        ([text for text in arguments if text != configs[1]], "scoreboard.json has task3, too"),
        (arguments[1:], "scoreboard.json has mae, too"),
    )
    for changed, said in others:
        with pytest.raises(UserError, match=said):
            tool("scoreboard", *changed)
    content = checkpoints.load(checkpoint)
    content["model"] = {
        key: value + 1 if value.is_floating_point() else value for key, value in content["model"].items()
    }
    checkpoints.save(checkpoint, content)
    with pytest.raises(UserError, match="mae/task1 began from other weights"):
        tool("scoreboard", *arguments)
    assert before == {path: path.read_bytes() for path in output.glob("scoreboard.*")}, "nothing is lost"


def test_a_task_that_fails_loses_no_other_and_the_same_command_tries_again(asked, tmp_path, capsys):
    checkpoint, configs, _ = asked
    text = (tmp_path / "task3.yaml").read_text()
    (tmp_path / "task3.yaml").write_text(text.replace("source: phantom", "source: fomo3"))
    arguments = [checkpoint, "--tasks", *configs, "--output", tmp_path / "board"]
    with pytest.raises(scoreboard.TasksFailed, match="task3 of mae: .*1 more failed.; the others are done") as error:
        tool("scoreboard", *arguments)
    assert error.value.exit_code == 1
    capsys.readouterr()
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
    tool("scoreboard", *arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if " scoreboard " in line]
    assert [line.rpartition("=")[2] for line in lines] == ["true", "true", "false", "false"]
    assert not json.loads((tmp_path / "board" / "scoreboard.json").read_text())["missing"]


def test_ranks_share_the_folds_and_hear_of_a_failure(asked, tmp_path):
    checkpoint, configs, _ = asked
    text = (tmp_path / "task3.yaml").read_text()
    (tmp_path / "task3.yaml").write_text(text.replace("source: phantom", "source: fomo3"))
    arguments = [checkpoint, "--tasks", *reversed(configs), "--output", tmp_path / "board", "cv.parallel=folds"]
    done = run_command("tools/scoreboard.py", *arguments, ranks=2)
    assert done.returncode == 1 and "task3 of mae" in done.stderr
    found = json.loads((tmp_path / "board" / "scoreboard.json").read_text())
    assert len(found["missing"]) == 2 and sum(row["value"] is not None for row in found["scores"]) == 2


def test_names_and_mistakes(asked, tmp_path):
    checkpoint, configs, _ = asked
    other = shutil.copy(checkpoint, tmp_path / "mae.pt")
    names = [one.name for one in scoreboard.contestants([str(checkpoint), str(other)])]
    assert names == ["mae", "mae_2", "random"]
    with pytest.raises(UserError, match="got the name task1 twice"):
        scoreboard.run([str(checkpoint)], [configs[0], configs[0]], str(tmp_path / "b"), Log(active=False))
    wrong = (
        ("cohort", ("age:60|x",), "t1", "wanted numbers that rise"),
        ("cohorte", (), "t1", "did you mean 'cohort'"),
    )
    for target, groups, column, said in (*wrong, ("cohort", (), "T1", "wanted T1 with")):
        probed = scoreboard.Probed(str(tmp_path / "heads" / "table.csv"), target, groups, column)
        with pytest.raises(UserError, match=said):
            scoreboard.run([str(checkpoint)], configs, str(tmp_path / "b"), Log(active=False), (), probed)
    assert not (tmp_path / "b").exists(), "what cannot end is not begun"
    with pytest.raises(UserError, match="no such file"):
        scoreboard.contestants([str(tmp_path / "none.pt")])


def test_the_demo_pretrains_once_and_probes_its_own_table(tiny_config, tmp_path, monkeypatch, capsys):
    configs = tmp_path / "configs" / "fomo26"
    configs.mkdir(parents=True)
    shutil.copy(tiny_config(name="demo_task1", optim={"lr": "auto"}, **FAST), configs / "demo_task1.yaml")
    small = {"output": ".", **FAST, "augment": {"preset": "none"}, "data": {"prepare_workers": 0}}
    small["train"] = {**FAST["train"], "amp": "off"}
    text = yaml.safe_dump({"base": str(ROOT / "configs" / "fomo26" / "demo_mae.yaml"), **small, "model": {"width": 2}})
    (configs / "demo_mae.yaml").write_text(text)
    for name, value in (("_SIZE", 24), ("_PRETRAINED", 6), ("_PROBED", 36), ("_CASES", 16)):
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(board, "_RESAMPLES", 20)
    arguments = str(tmp_path / "configs"), str(tmp_path / "demo"), Log()
    page = demo.run(*arguments)
    found = json.loads((tmp_path / "demo" / "scoreboard.json").read_text())
    assert os.path.exists(page) and {row["checkpoint"] for row in found["ranking"]} == {"demo_mae", "random"}
    assert set(found["weights"]) == {"demo_task1", "task6", "task7"} and not found["missing"]
    monkeypatch.setattr(crossval, "run", None)  # everything is finished
    demo.run(*arguments)
    with pytest.raises(UserError, match="got no demo_task"):
        demo.run(str(tmp_path), str(tmp_path / "demo"), Log())
