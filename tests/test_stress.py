"""What changed images cost a run's models: whole stress tests of tiny runs, continued, refused, on two ranks."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, one_line_error, run_command, tool

from fomo import kinds, metrics, tasks
from fomo.config import UserError
from fomo.evaluation import stress
from fomo.run_folder import RunFolder
from fomo.runs import stress as runs_stress
from fomo.transforms.shifts import SHIFTS

FEW = {"noise": (0.2, 0.4), "slices": (3.0,), "rotation": (10.0,)}


@pytest.fixture(autouse=True)
def few_changes(monkeypatch):
    """Three kinds of change: an intensity, an acquisition, a movement."""
    monkeypatch.setattr(stress, "SHIFTS", {name: replace(SHIFTS[name], grades=few) for name, few in FEW.items()})


def copied(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def read(run):
    with open(run / "stress" / "stress.csv", newline="") as file:
        return json.loads((run / "stress" / "stress.json").read_text()), list(csv.DictReader(file))


EXPECTED = {"classification": "auroc_within", "regression": "mae", "segmentation": "dice"}


@pytest.mark.parametrize("task", EXPECTED)
def test_a_run_is_tested_and_what_is_unchanged_is_what_the_run_has_found(task, trained, tmp_path):
    run = copied(trained(task), tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*.csv")}
    tool("stress", run)
    assert before == {path: path.read_bytes() for path in before}, "the run's own tables stay"
    content, table = read(run)
    assert {(row["change"], float(row["grade"])) for row in table} == {
        (name, grade) for name, grades in FEW.items() for grade in grades
    }
    assert content["cases"] == 16 and content["folds"] == [1, 2]
    own = json.loads((run / "summary.json").read_text())["metrics"]
    for row in content["rows"]:
        assert row["metric"] == EXPECTED[task]
        if task != "segmentation":  # whose Dice is on the network's grid here
            assert row["unchanged"] == pytest.approx(own[row["metric"]]["pooled"], abs=1e-9)
        sign = 1 if task != "regression" else -1
        if row["drop"] is not None:
            assert row["drop"] == pytest.approx(sign * (row["unchanged"] - row["changed"]), abs=1e-9)
            assert row["low"] <= row["drop"] <= row["high"]
    page = (run / "stress" / "stress.html").read_text()
    for row in content["worst"]:
        assert SHIFTS[row["change"]].title.capitalize() in page
    log = (run / "stress" / "log.txt").read_text()
    assert "changes=4 passes=10 finished=0" in log and log.count(" change=") == 10 and " left_s=" in log
    assert "stress finished=true" in log


def test_the_values_are_those_of_the_stored_answers(trained, tmp_path):
    """AUROC over pairs within folds by brute force, of the answers in fold_K.jsonl."""
    run = copied(trained("classification"), tmp_path)
    runs_stress.run(str(run))
    passes = [
        json.loads(line) for k in (1, 2) for line in (run / "stress" / f"fold_{k}.jsonl").read_text().split("\n")[:-1]
    ]
    for row in read(run)[0]["rows"]:
        wins = pairs = 0
        for _, name, grade, cases in passes:
            if (name, grade) == (row["change"], row["grade"]):
                positive = [case["probability"] for case in cases if case["target"] == 1]
                negative = [case["probability"] for case in cases if case["target"] == 0]
                wins += sum((a > b) + (a == b) / 2 for a in positive for b in negative)
                pairs += len(positive) * len(negative)
        assert row["changed"] == pytest.approx(wins / pairs)


def test_a_stopped_test_continues_and_a_finished_one_runs_nothing_again(trained, tmp_path, monkeypatch):
    run = copied(trained("classification"), tmp_path)
    asked, original = [], stress.rows_of

    def counted(config, task, network, cases, change):
        asked.append((change.name, change.grade))
        if len(asked) == 7:
            raise KeyboardInterrupt
        return original(config, task, network, cases, change)

    monkeypatch.setattr(stress, "rows_of", counted)
    with pytest.raises(KeyboardInterrupt):
        runs_stress.run(str(run))
    assert not (run / "stress" / "stress.csv").exists()
    runs_stress.run(str(run))
    assert len(asked) == 10 + 1, "the pass that was stopped is run again, and no other"
    whole = read(run)
    runs_stress.run(str(run))
    assert len(asked) == 11 and read(run) == whole
    for k in (1, 2):  # of another checkpoint
        path = run / "stress" / f"fold_{k}.jsonl"
        path.write_text(path.read_text().replace(json.loads(path.read_text().split("\n")[0])[0][0], "0" * 64))
    runs_stress.run(str(run))
    assert len(asked) == 21 and read(run) == whole, "the same seed gives the same noise and turns"


def test_on_two_ranks_it_is_the_same(trained, tmp_path):
    """With all changes, as a user calls it."""
    run = copied(trained("classification"), tmp_path)
    runs_stress.run(str(run))
    alone = {(row["change"], row["grade"]): row for row in read(run)[0]["rows"]}
    shutil.rmtree(run / "stress")
    done = run_command("tools/stress.py", run, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "stress fold=1" in done.stdout.replace(" INFO", "") and "fold=2 change=unchanged" in done.stdout
    rows = {(row["change"], row["grade"]): row for row in read(run)[0]["rows"]}
    assert len(rows) == sum(len(shift.grades) for shift in SHIFTS.values())
    for place, row in alone.items():
        assert rows[place] == row


def test_an_optional_channel_may_be_missing(tiny_config, tmp_path):
    from fomo.runs import crossval

    path = tiny_config(
        "classification",
        data={"optional_channels": ["adc"]},
        augment={"parameters": {"channel_dropout": {"p": 0.3}}},
        train={"epochs": 1},
    )
    config = kinds.load(path)
    crossval.run(config)
    runs_stress.run(f"{config.output}/{config.name}")
    rows = [row for row in read(tmp_path / "runs" / "run")[0]["rows"] if row["change"] == "without_adc"]
    assert [row["grade"] for row in rows] == [1.0]
    folder = RunFolder(f"{config.output}/{config.name}")
    lines = [json.loads(line) for line in open(folder.stress + "/fold_1.jsonl")]
    said = {line[1]: [row["probability"] for row in line[3]] for line in lines}
    assert said["without_adc"] != said["unchanged"]


def test_it_runs_at_the_end_of_a_cross_validation_and_the_report_begins_with_the_worst(tiny_config, tmp_path):
    from fomo.runs import crossval

    sections = {"eval": {"stress": True, "bootstrap": 50}, "audit": {"rivals": False}, "train": {"epochs": 1}}
    crossval.run(kinds.load(tiny_config("regression", **sections)))
    run = tmp_path / "runs" / "run"
    content, _ = read(run)
    page = (run / "report.html").read_text()
    assert content["worst"] and len(content["worst"]) <= 3
    for row in content["worst"]:
        assert f"{SHIFTS[row['change']].title} at {row['grade']:g}" in page.split('class="hero"')[1].split("<nav")[0]
    assert not (run / "audit").exists() and "Shortcuts" not in page
    config = kinds.load(tiny_config("mae", model={"name": "unet_b_lw_dec"}, eval={"stress": True}))
    with pytest.raises(UserError, match="stress: got task.type=mae"):
        crossval.run(config, one_split=True)


def test_what_cannot_be_tested_is_one_line(tiny_config, tmp_path, trained):
    one_line_error(run_command("tools/stress.py", tmp_path), "config.yaml")
    for type, sections in (("mae", {"model": {"name": "unet_b_lw_dec", "width": 2}}), ("multilabel", {})):
        if type == "multilabel":
            config = kinds.load(ROOT / "configs" / "demo_ct.yaml")
        else:
            config = kinds.load(tiny_config(type, **sections))
        with pytest.raises(UserError, match="stress: got task.type=.*wanted a classification"):
            stress.check(config, tasks.build(config))
    run = copied(trained("regression"), tmp_path)
    for k in (1, 2):
        (run / f"fold_{k}" / "results.csv").unlink()
    with pytest.raises(UserError, match="no finished fold"):
        runs_stress.run(str(run))


def rows_of_scores(scores, targets):
    return [
        {"id": f"{i:03}", "subject": f"s{i // 2}", "fold": 1 + i % 2, "target": int(t), "probability": float(p)}
        for i, (p, t) in enumerate(zip(scores, targets))
    ]


def test_the_interval_of_a_drop_is_delongs_and_of_no_difference_nothing(tiny_config):
    config = kinds.load(tiny_config("classification"))
    task, rng, targets = tasks.build(config), np.random.default_rng(0), np.arange(60) % 4 < 2
    first = rng.normal(size=60) + 2 * targets
    second = first + rng.normal(size=60) * 2
    before, after = rows_of_scores(first, targets), rows_of_scores(second, targets)
    found = stress.paired(config, task, before, after)
    groups, folds = np.arange(60) // 2, 1 + np.arange(60) % 2
    test = metrics.delong_test(targets.astype(int), first, second, groups=groups, folds=folds)
    assert (found.drop, found.low, found.high) == (test.difference, test.low, test.high)
    same = stress.paired(config, task, before, before)
    assert (same.drop, same.low, same.high) == (0, 0, 0)


def test_undefined_cases_are_left_out_of_both_sides(tiny_config):
    config = kinds.load(tiny_config("segmentation"))
    task = tasks.build(config)
    before = [{"id": str(i), "subject": str(i), "dice": value} for i, value in enumerate((0.8, np.nan, 0.6, 0.7))]
    after = [{**row, "dice": value} for row, value in zip(before, (0.5, 0.0, 0.6, 0.4))]
    found = stress.paired(config, task, before, after)
    assert found.left_out == 1 and found.cases == 3
    assert found.unchanged == pytest.approx(0.7) and found.drop == pytest.approx(0.2)
    assert found.low <= 0.2 <= found.high


def test_the_worst_are_different_changes_that_cost_something():
    rows = [
        {"change": name, "grade": grade, "drop": drop}
        for name, grade, drop in [("a", 1, 0.1), ("a", 2, 0.3), ("b", 1, 0.2), ("c", 1, -0.1), ("d", 1, float("nan"))]
    ]
    assert [(row["change"], row["grade"]) for row in stress.worst(rows)] == [("a", 2), ("b", 1)]
