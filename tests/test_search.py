"""The search for a setting: what is parsed and refused, halving by hand, and whole searches that see no test case."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import one_line_error, run_command, tool, write_table

from fomo import kinds
from fomo.config import UserError
from fomo.data import cache
from fomo.pages import figures
from fomo.run_folder import RunFolder
from fomo.runs import crossval, search, settings
from fomo.runtime import files


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """Those of all runs would take half of the time."""
    monkeypatch.setattr(figures, "available", lambda: False)


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    assert settings.split_values("1e-4,3e-4") == ["1e-4", "3e-4"]
    assert settings.split_values("[64,64,64],[96,96,96]") == ["[64,64,64]", "[96,96,96]"]
    assert settings.split_values("[64,64,64]") == ["[64,64,64]"]
    assert settings.split_values("'a, b',c") == ["'a, b'", "c"]
    assert settings.split_values("{a: {p: 1, q: 2}}, none") == ["{a: {p: 1, q: 2}}", "none"]


def test_all_combinations_are_settings_and_one_value_is_that_of_all(tiny_config):
    keys = ["optim.lr=1e-3,1e-2", "data.patch=[48,48,48],[32,32,32]", "train.epochs=9"]
    found = settings.read(tiny_config(), keys)
    assert [(one.config.optim.lr, one.config.data.patch[0]) for one in found] == [
        (1e-3, 48),
        (1e-3, 32),
        (1e-2, 48),
        (1e-2, 32),
    ]
    assert {one.config.train.epochs for one in found} == {9} and [one.number for one in found] == [1, 2, 3, 4]
    assert found[3].values == {"optim.lr": "0.01", "data.patch": "[32,32,32]"}


def test_values_within_another_keys_mapping_are_searched(tiny_config, tmp_path):
    key = "augment.parameters.rotate.p"
    path = tiny_config(train={"epochs": 1, "steps_per_epoch": 1}, augment={"preset": "light"})
    found = settings.read(path, [f"{key}=0.5,0.1", "augment.parameters.rotate.degrees=[-5,5]"])
    assert [one.values for one in found] == [{key: "0.5"}, {key: "0.1"}]
    assert [one.config.augment.parameters["rotate"]["p"] for one in found] == [0.5, 0.1]
    tool("search", path, f"{key}=0.5,0.1", "--folds", "1")
    tool("search", path, f"{key}=0.5,0.1", "--folds", "1")
    chosen = read(tmp_path)[1]["chosen"][key]
    assert kinds.load(tmp_path / "runs" / "run" / "config.yaml").augment.parameters == {"rotate": {"p": float(chosen)}}
    with pytest.raises(UserError, match=f"has chosen {key}={chosen}, got none"):
        crossval.run(kinds.load(path))


def test_settings_that_differ_only_in_what_is_not_read_are_one(tiny_config):
    found = settings.read(tiny_config(), ["task.loss=cross_entropy,focal", "task.focal_gamma=1,2"])
    assert [one.values for one in found] == [
        {"task.loss": "cross_entropy", "task.focal_gamma": "1"},
        {"task.loss": "focal", "task.focal_gamma": "1"},
        {"task.loss": "focal", "task.focal_gamma": "2"},
    ]


REFUSED = {
    "optim.lr=1e-3": "no key with several values",
    "optim.lr=1e-3,fast": "optim.lr: got 'fast' (str), wanted a number",
    "optim.lr=1e-3,": "optim.lr: got an empty value",
    "optim.rl=1e-3,1e-4": "did you mean 'optim.lr'?",
    "optim.lr=1e-3,1e-3": "all values make one and the same setting",
    "seed=1,2": "seed: got 2 values, wanted one value: settings are compared on the same cases",
    "train.epochs=1,2": "train.epochs: got 2 values, wanted one value",
    "cv.folds=2,3": "cv.folds: got 2 values, wanted one value",
    "eval.threshold=half,youden": "eval.threshold: got 2 values, wanted one value",
    "train.workers=0,1": "it does not change what is learned",
    "task.parts.age.classes=2,3": "task.parts.age.classes: got 2 values, wanted one value",
    "task.focal_gamma=1,3": "task.focal_gamma: no setting reads it",
    "model.width=" + ",".join(map(str, range(1, 1003))): "got 1002 settings, wanted at most 1000",
    "data.patch=[32,32,32],[20,20,20]": "data.patch: got [20,20,20]",
}


@pytest.mark.parametrize("key", REFUSED, ids=lambda key: key[:30])
def test_what_cannot_be_searched_is_refused(key, tiny_config):
    with pytest.raises(UserError) as caught:
        settings.read(tiny_config(), [key])
    assert REFUSED[key] in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_stands_once_and_a_pretraining_is_refused(tiny_config):
    with pytest.raises(UserError, match="got optim.lr twice"):
        settings.read(tiny_config(), ["optim.lr=1,2", "optim.lr=3"])
    config = tiny_config("mae", model={"name": "unet_b_lw_dec"}, data={"channels": ["t1"]})
    with pytest.raises(UserError, match="task.type=mae, wanted a task that is tested"):
        settings.read(config, ["optim.lr=1e-3,1e-2"])
    with pytest.raises(UserError, match="train.mode: got evaluate"):
        settings.read(tiny_config(), ["optim.lr=1e-3,1e-2", "train.mode=evaluate"])


def test_a_third_goes_on_to_three_times_the_length():
    assert settings.plan(9, 3) == [settings.Rung(1, 9, 1 / 3), settings.Rung(2, 3, 1.0)]
    assert [(rung.settings, rung.share) for rung in settings.plan(10, 2)] == [
        (10, 1 / 8),
        (5, 1 / 4),
        (3, 1 / 2),
        (2, 1),
    ]
    assert settings.plan(2, 3) == [settings.Rung(1, 2, 1.0)]
    assert settings.cost(settings.plan(9, 3), 5) == pytest.approx((9 / 3 + 3) * 5)


def test_what_is_counted_in_epochs_shrinks_with_the_length(tiny_config):
    finetune = {"strategy": "gradual", "unfreeze_epoch": 12, "unfreeze_every": 4}
    train = {"epochs": 30, "patience": 9, "keep_best": 3}
    config = kinds.load(
        tiny_config(finetune=finetune, train=train, optim={"warmup_epochs": 6.0}, tracker="tensorboard")
    )
    short = settings.shortened(config, 1 / 3)
    assert (short.train.epochs, short.train.patience, short.train.keep_best, short.tracker) == (10, 3, 1, "none")
    assert (short.finetune.unfreeze_epoch, short.finetune.unfreeze_every) == (4, 1)
    assert short.optim.warmup_epochs == pytest.approx(2)
    assert settings.shortened(config, 1.0).train.epochs == 30
    steps = kinds.load(tiny_config(train={"steps": 100}))
    assert settings.shortened(steps, 0.25).train.steps == 25
    budget = kinds.load(tiny_config(train={"budget_s": 60.0}))
    assert settings.shortened(budget, 0.25).train.budget_s == 15


LR = "optim.lr=1e-3,1e-2,3e-2,1e-4"


def searched(config, *more, keep=2):
    tool("search", config, LR, "--keep", keep, *more)


def read(tmp_path):
    folder = tmp_path / "runs" / "run"
    return folder, json.loads((folder / "search" / "search.json").read_text())


def test_a_search_chooses_by_validation_and_reads_no_test_case(tiny_config, tmp_path, monkeypatch):
    """Each trial may open its fold's training and validation cases; to open one of its test part fails this test."""
    config = tiny_config()
    of_trial, opened, train = [], {}, search.train_fold

    def watched(config, parts, fold, log):
        assert set(parts) == {"train", "val"}
        of_trial.append(fold.path)
        found = train(config, parts, fold, log)
        of_trial.pop()
        return found

    owner = next(one for one in vars(cache).values() if isinstance(one, type) and "image" in vars(one))
    image = owner.image

    def watched_image(self):
        if of_trial:
            opened.setdefault(of_trial[-1], set()).add(self.id)
        return image(self)

    monkeypatch.setattr(search, "train_fold", watched)
    monkeypatch.setattr(owner, "image", watched_image)
    searched(config)
    folder, record = read(tmp_path)
    splits = json.loads((folder / "splits.json").read_text())["folds"]
    assert len(opened) == (4 + 2) * 2
    for path, ids in opened.items():
        split = splits[int(path.rsplit("_", 1)[1]) - 1]
        assert ids == set(split["train"]) | set(split["val"]) and not ids & set(split["test"])
    first, last = record["rungs"]
    table = files.read_csv(folder / "search" / "search.csv")
    assert table == [files.as_text(row) for row in (*first, *last)]
    assert [row["length"] for row in (first[0], last[0])] == ["1 epoch", "2 epochs"]
    order = sorted(first, key=lambda row: (-row["score"], row["loss"]))
    assert {row["setting"] for row in last} == {row["setting"] for row in order[:2]}
    best = min(last, key=lambda row: (-row["score"], row["loss"]))
    assert record["setting"] == best["setting"] and record["chosen"] == {"optim.lr": best["optim.lr"]}
    for row in last:
        assert row["score"] == pytest.approx(np.mean([of_history(folder, row, k) for k in (1, 2)]))
    assert not list((folder / "search").rglob("*.pt"))
    run = RunFolder(folder)
    assert run.config().optim.lr == float(best["optim.lr"]) and run.finished() == [1, 2]
    assert run.summary()["settings_tried"] == 4
    page = (folder / "report.html").read_text()
    assert "best of 4 that were tried" in page and "test cases of other folds" in page
    page = (folder / "search" / "search.html").read_text()
    assert f"Setting {best['setting']} is chosen: optim.lr={best['optim.lr']}." in page
    log = (folder / "search" / "log.txt").read_text()
    assert "settings=4 rungs=2 folds=1,2 trainings=12 cost_in_cross_validations=4 metric=auroc" in log


def of_history(folder, row, fold):
    place = folder / "search" / f"rung_{row['rung']}" / f"setting_{row['setting']}" / f"fold_{fold}"
    history = files.read_numbers(place / "history.csv")
    return max(epoch["val_auroc"] for epoch in history)


def table_with_broken_tests(folder):
    """A table whose fold 3 is for testing and has images that cannot be read."""
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        image = rng.normal(size=(16, 16, 16)).astype(np.float32)
        image[4:10, 4:10, 4:10] += 3 * (i % 2)
        np.save(folder / f"{i}.npy", image)
        fold = 1 + i // 2 % 3
        if fold == 3:
            (folder / f"{i}.npy").write_bytes(b"nothing that can be read")
        rows.append({"id": f"c{i}", "subject": f"s{i}", "t1": f"{i}.npy", "grade": i % 2, "fold": fold})
    return write_table(folder / "table.csv", rows)


def test_with_one_split_the_files_of_test_cases_are_not_even_opened(tiny_config, tmp_path, monkeypatch):
    data = {"source": "table", "csv": table_with_broken_tests(tmp_path), "channels": ["t1"], "root": None}
    data |= {"test_folds": ["3"], "patch": [32, 32, 32], "cache": str(tmp_path / "cache"), "spacing_mm": None}
    config = tiny_config(data=data, task={"targets": ["grade"]}, train={"epochs": 1, "steps_per_epoch": 1})
    with pytest.raises(UserError, match="npy"):
        tool("search", config, "optim.lr=1e-3,1e-2")  # the run behind it tests them
    folder, record = read(tmp_path)
    assert record["setting"] in (1, 2), "the search is finished"
    asked = []
    monkeypatch.setattr(crossval, "run", lambda config, **more: asked.append((config, more)))
    tool("search", config, "optim.lr=1e-3,1e-2")
    assert asked[0][0].optim.lr == (1e-3, 1e-2)[record["setting"] - 1] and asked[0][1] == {"one_split": True}


def test_a_search_that_was_killed_goes_on_and_gives_the_same(tiny_config, tmp_path, monkeypatch):
    searched(tiny_config())
    folder, whole = read(tmp_path)
    shutil.move(folder, tmp_path / "whole")
    trained, original = [], search.train_fold

    def killed(*arguments):
        trained.append(arguments[2].path)
        if len(trained) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(search, "train_fold", killed)
    for _ in range(2):
        if len(trained) < 5:
            with pytest.raises(KeyboardInterrupt):
                searched(tiny_config())
            with pytest.raises(UserError, match="the search is not finished: run tools/search.py again"):
                crossval.run(kinds.load(tiny_config()))
    searched(tiny_config())
    assert len(trained) == 12 + 1 and trained[4] == trained[5], "only the training that was stopped is there twice"
    _, again = read(tmp_path)

    def without_times(record):
        return [[{**row, "seconds": 0} for row in rung] for rung in record["rungs"]]

    assert again["chosen"] == whole["chosen"] and without_times(again) == without_times(whole)
    searched(tiny_config())
    assert len(trained) == 13, "a finished search trains nothing"


def test_another_search_and_another_setting_are_refused_in_its_folder(tiny_config, tmp_path):
    config = tiny_config(train={"epochs": 1, "steps_per_epoch": 1})
    tool("search", config, "optim.lr=1e-3,1e-2", "--folds", "1")
    folder, record = read(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for more, said in (
        (["optim.lr=1e-3,3e-3", "--folds", "1"], "holds a search of other settings (settings)"),
        (["optim.lr=1e-3,1e-2", "model.width=3", "--folds", "1"], "holds a search of other settings (model.width)"),
        (["optim.lr=1e-3,1e-2", "--folds", "2"], "holds a search of other settings (folds)"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            tool("search", config, *more)
    other = next(lr for lr in ("1e-3", "1e-2") if float(lr) != float(record["chosen"]["optim.lr"]))
    with pytest.raises(UserError, match="has chosen optim.lr="):
        crossval.run(kinds.load(config, [f"optim.lr={other}"]))
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == {path: data for path, data in before.items() if path.name != "log.txt"}


def test_a_folder_of_a_run_is_no_place_for_a_search(trained, tiny_config, tmp_path):
    shutil.copytree(trained("classification"), tmp_path / "runs" / "run")
    with pytest.raises(UserError, match="holds something that no search has begun"):
        searched(tiny_config())
    assert not (tmp_path / "runs" / "run" / "search").exists()


def test_a_setting_that_fails_comes_last_and_is_said(tiny_config, tmp_path, monkeypatch):
    original = search.train_fold

    def failing(config, parts, fold, log):
        if config.optim.lr == 1e-2:
            raise torch.OutOfMemoryError("no room")
        return original(config, parts, fold, log)

    monkeypatch.setattr(search, "train_fold", failing)
    config = tiny_config(train={"epochs": 1, "steps_per_epoch": 1})
    tool("search", config, "optim.lr=1e-2,1e-3", "--folds", "1")
    folder, record = read(tmp_path)
    assert record["setting"] == 2 and "Setting 1 has failed, and comes last: no room" in (
        folder / "search" / "search.html"
    ).read_text().replace("<wbr>", "")
    monkeypatch.setattr(search, "train_fold", lambda *arguments: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(search.SearchFailed, match="no setting of rung 1 has a score.*broken"):
        tool("search", config, "optim.lr=1e-2,1e-3", "name=other")


def test_on_two_ranks_it_is_the_same_and_a_dry_run_says_the_cost(tiny_config, tmp_path):
    config = tiny_config(cv={"parallel": "folds"})
    done = run_command("tools/search.py", config, LR, "--keep", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "trainings=12 cost_in_cross_validations=4" in done.stdout and "setting 4: optim.lr=0.0001" in done.stdout
    assert not (tmp_path / "runs" / "run").exists()
    one_line_error(run_command("tools/search.py", config, "optim.lr=1e-3,x"), "optim.lr: got 'x' (str)")
    one_line_error(run_command("tools/search.py", config, LR, "--keep", "1"), "--keep: got 1, wanted 2 or more")
    one_line_error(run_command("tools/search.py", config, LR, "--folds", "3"), "--folds: got 3, wanted 1 to 2")
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    searched(config)
    folder, alone = read(tmp_path)
    shutil.rmtree(folder)
    done = run_command("tools/search.py", config, LR, "--keep", "2", ranks=2)
    assert done.returncode == 0, done.stderr
    _, two = read(tmp_path)
    assert two["chosen"] == alone["chosen"]
    for one, other in zip(alone["rungs"][0], two["rungs"][0]):
        assert one["setting"] == other["setting"] and one["loss"] == pytest.approx(other["loss"], abs=1e-9)
