"""train.py: one split, named by the config or the first fold; train, evaluate or both; one checkpoint, never two."""

import csv
import json
import os
import pathlib
import re

import pytest
import yaml
from conftest import run_command

from fomo import checkpoint as checkpoints
from fomo import kinds
from fomo.config import UserError
from fomo.folds import check_split, holdout


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def folder_of(path):
    content = yaml.safe_load(pathlib.Path(path).read_text())
    return pathlib.Path(content["output"]) / content["name"]


def finished(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def table(tmp_path, phantom_root, tiny_config):
    """A tiny regression config over a table of phantoms, with the folds 1 to 4 and the fold column's text."""
    first = tiny_config("regression")
    finished(run_command("train.py", first, "--dry-run"))
    root = next(phantom_root.glob("task3_16x24*"))
    ages = {path.parent.name: path.read_text().strip() for path in root.glob("labels/*/label.txt")}
    ages |= {path.parents[1].name: path.read_text().strip() for path in root.glob("labels/*/*/label.txt")}
    lines = ["id,subject,t1,t2,age,fold"]
    for session in sorted(root.glob("preprocessed/*/*")):
        subject = session.parent.name
        images = [os.path.relpath(session / f"{name}.nii.gz", tmp_path) for name in ("t1", "t2")]
        fold = 1 + int(subject[-3:]) % 4
        lines.append(",".join([f"{subject}_{session.name}", subject, *images, ages[subject], str(fold)]))
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    data = {"source": "table", "csv": str(tmp_path / "table.csv"), "root": None}

    def write(**sections):
        merged = {"task": {"targets": ["age"]}, **sections, "data": {**data, **sections.get("data", {})}}
        return tiny_config("regression", **merged)

    return write


def test_the_parts_are_the_folds_that_the_config_names(table):
    path = table(data={"train_folds": [1], "val_folds": [3], "test_folds": [4]})
    log = finished(run_command("train.py", path))
    folder = folder_of(path)
    split = json.loads((folder / "splits.json").read_text())["folds"]
    fold_of = {row["id"]: row["fold"] for row in read(path.parent / "table.csv")}
    assert len(split) == 1
    left_out = list(fold_of.values()).count("2")
    assert re.search(rf' WARN warn message="cases are left out: .*" cases={left_out} of={len(fold_of)}\b', log)
    for part, values in (("train", {"1"}), ("val", {"3"}), ("test", {"4"})):
        assert {fold_of[name] for name in split[0][part]} == values
    assert [row["id"] for row in read(folder / "predictions.csv")] == sorted(split[0]["test"])
    refused = run_command("cv.py", path)
    assert refused.returncode == 2 and "run train.py" in refused.stderr


def test_cv_over_the_values_of_the_fold_column(table):
    path = table(cv={"kind": "fold_column"}, train={"epochs": 1, "steps_per_epoch": 1})
    assert "cases are left out" not in finished(run_command("cv.py", path))
    folder = folder_of(path)
    fold_of = {row["id"]: row["fold"] for row in read(path.parent / "table.csv")}
    splits = json.loads((folder / "splits.json").read_text())["folds"]
    assert [{fold_of[name] for name in split["test"]} for split in splits] == [{"1"}, {"2"}, {"3"}, {"4"}]
    assert len(read(folder / "predictions.csv")) == len(fold_of)


def test_unknown_folds_and_a_subject_in_two_folds_are_refused(table):
    path = table(data={"test_folds": [7]})
    refused = run_command("train.py", path, "--dry-run")
    assert (
        refused.returncode == 2
        and "data.test_folds: got '7', wanted values of the fold column: 1, 2, 3, 4" in refused.stderr
    )
    csv_path = path.parent / "table.csv"
    lines = csv_path.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    one, other = (next(i for i, row in enumerate(rows) if row[-1] == fold) for fold in "12")
    subject = rows[other][1] = rows[one][1]  # the same person in folds 1 and 2
    lines[1 + other] = ",".join(rows[other])
    csv_path.write_text("\n".join(lines) + "\n")
    path = table(data={"val_folds": [2], "test_folds": [1]})
    refused = run_command("train.py", path, "--dry-run")
    assert refused.returncode == 2 and re.search(
        rf"group {subject} is in (val and in test|test and in val)", refused.stderr
    )


def test_train_then_evaluate_equals_both(tiny_config):
    path = tiny_config("classification")
    folder = folder_of(path)
    finished(run_command("train.py", path, "train.mode=train"))
    assert (folder / "fold_1" / "best.pt").exists() and not (folder / "fold_1" / "results.csv").exists()
    finished(run_command("train.py", path, "train.mode=evaluate"))
    finished(run_command("train.py", path, "name=both"))
    apart, both = (read(folder.parent / name / "fold_1" / "predictions.csv") for name in (folder.name, "both"))
    assert apart == both and len(both) > 0


def test_a_given_checkpoint_is_what_is_tested(tiny_config):
    path = tiny_config("classification")
    folder = folder_of(path)
    refused = run_command("train.py", path, "train.mode=evaluate")
    assert refused.returncode == 2 and "best.pt: no such file" in refused.stderr.replace(
        "not a readable checkpoint", "no such file"
    )
    finished(run_command("train.py", path))
    best = folder / "fold_1" / "best.pt"
    said = finished(run_command("train.py", path, "name=again", "train.mode=evaluate", f"train.checkpoint={best}"))
    again = folder.parent / "again" / "fold_1"
    assert read(again / "predictions.csv") == read(folder / "fold_1" / "predictions.csv")
    assert not (again / "last.pt").exists() and "trained on" not in said
    # another split: its test cases were the checkpoint's training cases, and that is said
    said = finished(
        run_command("train.py", path, "name=leak", "seed=5", "train.mode=evaluate", f"train.checkpoint={best}")
    )
    assert "WARN" in said.upper() and "that the checkpoint was trained on" in said


def test_only_what_is_calibrated_and_means_the_same_is_tested(tiny_config):
    path = tiny_config("regression", train={"keep_best": 2, "name_best": True})
    folder = folder_of(path) / "fold_1"
    finished(run_command("train.py", path))

    def evaluate(name, checkpoint, *arguments):
        return run_command(
            "train.py",
            path,
            f"name={name}",
            "train.mode=evaluate",
            f"train.checkpoint={folder / checkpoint}",
            *arguments,
        )

    cases = (
        ("last.pt", [], "nothing was fitted on validation cases for it yet"),
        (
            "best.pt",
            ["data.channels=[t2,t1]"],
            "was trained with data.channels=('t1', 't2'), and the config has ('t2', 't1')",
        ),
        ("best.pt", ["data.normalize=none"], "data.normalize"),
        ("best_2.pt", [], None),
    )
    for number, (checkpoint, arguments, words) in enumerate(cases):
        done = evaluate(f"again_{number}", checkpoint, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == ((2, 1) if words else (0, 0)), done.stderr
        assert words is None or words in done.stderr
    assert "corrected_mae" in (folder.parent.parent / "again_3" / "fold_1" / "results.csv").read_text()
    links = {place.readlink().name: place.name for place in folder.glob("epoch_*.pt")}
    assert set(links) == {"best.pt", "best_2.pt"}
    for name, link in links.items():
        best = checkpoints.load(folder / name)
        assert link == f"epoch_{best['epoch']:03d}_val_mae_{best['scores']['val_mae']:.4f}.pt"
    said = finished(run_command("train.py", path, "train.mode=evaluate"))
    assert "nothing to test: these folds have their results" in said


def test_weights_are_looked_at_before_the_data_and_what_they_know_is_said(tiny_config):
    path = tiny_config("regression")
    finished(run_command("train.py", path))
    best = folder_of(path) / "fold_1" / "best.pt"
    refused = run_command("cv.py", path, "name=other", "weights.path=nowhere.pt", "--dry-run")
    assert refused.returncode == 2 and "nowhere.pt: no such file" in refused.stderr
    assert " weights loaded=" in finished(run_command("cv.py", path, "name=other", f"weights.path={best}", "--dry-run"))
    said = finished(run_command("cv.py", path, "name=other", f"weights.path={best}", "train.epochs=1"))
    warned = [line for line in said.splitlines() if "that the checkpoint was trained on" in line]
    assert len(warned) == 1 and " fold=2 " in warned[0], "fold 1 has the test cases that the checkpoint had"


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"train": {"checkpoint": "a.pt"}}, "none for train.mode=both"),
        (
            {"train": {"checkpoint": "a.pt", "mode": "evaluate"}, "weights": {"path": "b.pt"}},
            "one of them is what is evaluated",
        ),
        ({"data": {"train_folds": ["1"]}}, "the folds to test on"),
        ({"data": {"val_folds": ["1"], "test_folds": ["1"]}}, "each fold in one part"),
    ],
)
def test_impossible_combinations(sections, words):
    data = {"channels": ["t1", "t2"], **sections.get("data", {})}
    with pytest.raises(UserError, match=words):
        kinds.from_dict({"task": {"type": "regression"}, **sections, "data": data}, "a test")


def test_holdout_keeps_groups_whole_and_balances_what_it_is_given():
    ids, groups = [f"c{i:02}" for i in range(40)], [f"s{i // 2:02}" for i in range(40)]
    labels = [int(i // 2 % 4 == 0) for i in range(40)]
    for labelled in (labels, None):
        split = holdout(ids, groups, labelled, 0.25, seed=1, test=ids[:8])
        check_split(split, dict(zip(ids, groups)))
        assert split["test"] == ids[:8] and len(split["val"]) == 8
        assert sorted(split["train"] + split["val"]) == ids[8:]
        assert split == holdout(ids[::-1], groups[::-1], labelled and labelled[::-1], 0.25, seed=1, test=ids[:8])
    assert sum(labels[ids.index(name)] for name in holdout(ids, groups, labels, 0.25, seed=1)["val"]) in (2, 4)
    with pytest.raises(ValueError, match="group s00 is in"):
        holdout(ids, groups, labels, 0.25, seed=1, test=ids[:1])
    with pytest.raises(ValueError, match="train: got no ids"):
        holdout(ids, groups, labels, 0.25, seed=1, val=ids[:8], test=ids[8:])
