"""TensorBoard files hold each number of the log once, however often the run was stopped; others have a recipe."""

import os
import re
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT, run_command

from fomo import kinds
from fomo.config import UserError
from fomo.report.run import read_log
from fomo.run_folder import FoldFolder
from fomo.runtime import files
from fomo.training import tracking

CHANNELS = "data: {channels: [t1]}\n"


def scalars(folder):
    """{name: [(step or epoch, value)]} of a folder of event files."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def config_with(tmp_path, tensorboard):
    (tmp_path / "c.yaml").write_text(CHANNELS)
    return kinds.load(tmp_path / "c.yaml", [f"tensorboard={tensorboard}"])


def test_what_is_written_again_after_a_resume_replaces_what_was_there(tmp_path):
    pytest.importorskip("tensorboard")
    config = config_with(tmp_path, "true")

    def session(*lines):
        with tracking.event_files(config, FoldFolder(tmp_path, 1)) as sink:
            for event, values in lines:
                sink(event, values)

    train = [("train", {"fold": 1, "epoch": 1, "step": s, "loss": 0.5 * s, "note": "text"}) for s in range(1, 5)]
    session(*train[:2], ("epoch", {"epoch": 1, "step": 2, "val_loss": 1.0, "best": True}), *train[2:])
    # stopped at step 4; what was saved is step 2, before its epoch was evaluated, and the loss comes out otherwise
    again = [("train", {"fold": 1, "epoch": 2, "step": 3, "loss": 30.0})]
    session(
        ("resume", {"epoch": 1, "step": 2}), ("epoch", {"epoch": 1, "step": 2, "val_loss": 2.0, "best": False}), *again
    )
    assert scalars(tmp_path / "tensorboard" / "train") == {"loss": [(1, 0.5), (2, 1.0), (3, 30.0)]}
    assert scalars(tmp_path / "tensorboard" / "epoch") == {"val_loss": [(1, 2.0)], "best": [(1, 0.0)]}
    session(train[0])  # started anew: nothing had been saved
    assert scalars(tmp_path / "tensorboard" / "train") == {"loss": [(1, 0.5)]}


def test_without_the_package_it_is_an_error_before_anything_else(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        tracking.check(config_with(tmp_path, "true"))
    tracking.check(config_with(tmp_path, "false"))
    with tracking.event_files(config_with(tmp_path, "false"), FoldFolder(tmp_path, 1)) as sink:
        assert sink is None and not (tmp_path / "tensorboard").exists()


def test_a_run_that_is_killed_and_continued(tmp_path, tiny_config):
    pytest.importorskip("tensorboard")
    path = tiny_config("classification", tensorboard=True, train={"epochs": 3})
    command = [sys.executable, str(ROOT / "train.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for line in first.stdout:
        if " train " in line and "step=5" in line:  # in the second epoch: what is saved is the first
            first.send_signal(signal.SIGKILL)
    first.wait()
    done = run_command("train.py", path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "run"
    log = read_log(folder / "log.txt")
    assert [event["step"] for event in log if event["event"] == "train"].count("4") == 2  # written twice
    for name, at in (("train", "step"), ("epoch", "epoch")):
        last = {int(event[at]): event for event in log if event["event"] == name}
        stored = scalars(folder / "fold_1" / "tensorboard" / name)
        expected = {key for key, value in last[1].items() if re.fullmatch(r"[-\d.e+]+|nan|true|false", value)}
        assert set(stored) == expected - {"fold", "epoch", "step"}
        for key, values in stored.items():
            assert [x for x, _ in values] == sorted(last)
            for x, value in values:
                text = {"true": "1", "false": "0"}.get(last[x][key], last[x][key])
                assert value == pytest.approx(float(text), rel=1e-5, nan_ok=True), (key, x)


def test_the_recipe_for_other_trackers(tmp_path, monkeypatch):
    recipe = re.search(r"```python\n(import csv, .*?)```", (ROOT / "tools" / "README.md").read_text(), re.DOTALL).group(
        1
    )
    rows = [
        {"epoch": 1, "step": 3, "val_loss": 0.5, "val_auroc": float("nan")},
        {"epoch": 2, "step": 6, "val_loss": 0.25},
    ]
    sent, slept = [], []

    def sleep(seconds):  # meanwhile an epoch is done, and then the fold
        slept.append(seconds)
        files.write_csv(str(tmp_path / "history.csv"), rows[: len(slept)])
        if len(slept) == 2:
            files.write_csv(str(tmp_path / "results.csv"), [{"metric": "auroc", "value": 1}])

    wandb = types.SimpleNamespace(
        init=lambda **values: None, log=lambda values, step: sent.append((step, values["val_loss"]))
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(sys, "argv", ["track.py", str(tmp_path)])
    monkeypatch.setattr("time.sleep", sleep)
    exec(recipe, {})
    assert sent == [(3, 0.5), (6, 0.25)]
