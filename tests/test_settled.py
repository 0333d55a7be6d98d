"""What a run decides once, by its cases and weights, and what its folds, soups, tests and continuations then share."""

import json

import yaml
from conftest import run_command
from test_crossval import finished, run_folder

from fomo import checkpoint, kinds, nets
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runs.final import make_soup


def test_a_patch_larger_than_every_case_is_made_smaller_and_the_checkpoint_knows(tiny_config):
    path = tiny_config(data={"patch": [64, 80, 64]}, cv={"folds": 2})
    log = finished(run_command("train.py", path)).stdout
    assert " patch=32,32,32 asked=64,80,64 " in log
    folder = run_folder(path)
    assert checkpoint.load(folder / "fold_1" / "best.pt")["config"]["data"]["patch"] == [32, 32, 32]
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["patch"] == [64, 80, 64]
    assert "finished=1" in finished(run_command("train.py", path)).stdout
    recorded = json.loads((folder / "splits.json").read_text())
    assert recorded.pop("patch") == [32, 32, 32]
    (folder / "splits.json").write_text(json.dumps(recorded))  # as a run that an older version has begun
    assert " asked=" not in finished(run_command("cv.py", path)).stdout
    assert checkpoint.load(folder / "fold_2" / "best.pt")["config"]["data"]["patch"] == [64, 80, 64]


def test_what_was_decided_in_training_holds_when_the_checkpoint_is_tested(tiny_config, tmp_path):
    checkpoint.save(tmp_path / "one.pt", {"model": nets.build("unet_b_lw_dec", 1, 1, width=2).state_dict()})
    path = tiny_config("regression", data={"patch": [64, 64, 64]})
    weights = f"weights.path={tmp_path / 'one.pt'}"
    crossval.run(kinds.load(path, [weights, "name=trained"]), one_split=True)
    fold = RunFolder(tmp_path / "runs" / "trained").fold(1)
    assert checkpoint.load(fold.best)["config"]["model"]["fusion"] == "late"
    tests = [f"train.checkpoint={fold.best}", "train.mode=evaluate", "name=tested"]
    crossval.run(kinds.load(path, tests), one_split=True)
    tested = RunFolder(tmp_path / "runs" / "tested").fold(1)
    assert tested.scores() == fold.scores()


def test_weights_that_are_replaced_between_folds_are_warned_of(tiny_config, tmp_path):
    weights = tmp_path / "one.pt"
    path = tiny_config("regression", weights={"path": str(weights)}, train={"epochs": 1})
    for fold, changed in ((1, False), (2, True)):
        checkpoint.save(weights, {"model": nets.build("unet_b_lw_dec", 1, 1, width=2).state_dict()})
        log = finished(run_command("cv.py", path, f"cv.folds_to_run=[{fold}]")).stdout
        assert ("weights.path has changed since this run began" in log) == changed


def test_a_greedy_soup_sees_the_patch_of_its_folds(tiny_config, tmp_path):
    found, weights = [], tmp_path / "one.pt"
    checkpoint.save(weights, {"model": nets.build("unet_b_lw_dec", 1, 1, width=2).state_dict()})
    for name, patch in (("large", "[96,96,96]"), ("fits", "[32,32,32]")):
        given = [f"data.patch={patch}", f"name={name}", f"weights.path={weights}", "train.epochs=1"]
        crossval.run(kinds.load(tiny_config("regression"), given))
        make_soup(tmp_path / "runs" / name, "greedy", lambda event, **what: found.append(what.get("val_mae")))
    scores = [score for score in found if score is not None]
    assert scores[: len(scores) // 2] == scores[len(scores) // 2 :]
