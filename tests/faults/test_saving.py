"""When a training is saved, and that a process which ends at any moment costs nothing but time.

What a killed process leaves behind are its files. Therefore a training is ended before each of its changes to them in
turn and continued, and it is killed from outside at several steps.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_command

from fomo import checkpoint, kinds
from fomo.runs import crossval
from fomo.runtime import interrupt


class Killed(BaseException):
    """Nothing in the project catches it."""


@contextlib.contextmanager
def killed_at(change, place):
    """Raise Killed in the place of the change number `change`, from 0, of files below `place`; yields all changes.

    A file that is only half written has a name of its own: it is the same as none.
    """
    done, own = [], {name: getattr(os, name) for name in ("replace", "remove")}

    def counting(name):
        def call(path, *more):
            if str(place) in str(path):
                done.append((name, os.path.basename(path)))
                if len(done) > change:
                    raise Killed
            return own[name](path, *more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in own:
            patch.setattr(os, name, counting(name))
        with contextlib.suppress(Killed):
            yield done


def run(path, folder, *overrides):
    crossval.run(kinds.load(path, [f"output={folder}", *overrides]), one_split=True)


def content(folder):
    """{file: what is in it} of a fold: its checkpoints but for the predecessor, and its history."""
    fold = folder / "run" / "fold_1"
    names = sorted(path.name for path in fold.glob("*.pt") if path.name != "last.previous.pt")
    found = {name: checkpoint.load(fold / name) for name in names}
    for one in found.values():
        del one["config"]["output"]
        one.pop("clock", None)
        for group in one.get("optimizer", {}).get("param_groups", ()):
            group.pop("fused", None)  # how it is computed on the device at hand
    return {**found, "history.csv": (fold / "history.csv").read_text()}


def assert_equal(one, two, where=""):
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for name in one:
            assert_equal(one[name], two[name], f"{where} {name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two)):
            assert_equal(*pair, f"{where} {number}")
    else:
        same = torch.equal(one, two) if torch.is_tensor(one) else one == two or (one != one and two != two)
        assert same, where


@pytest.fixture
def config(tiny_config):
    train = {"epochs": 5, "steps_per_epoch": 2, "batch_size": 2, "ema": 0.5, "mode": "train"}
    return tiny_config("regression", train=train, optim={"lr": 3e-2}, data={"patch": [32, 16, 16]})


@pytest.mark.parametrize("seconds, every", [(0, 7), (600, 2)])
@pytest.mark.parametrize("keep_best", [1, 3])
def test_a_process_that_ends_at_any_change_of_a_file_is_continued_to_the_same_bits(
    config, tmp_path, seconds, every, keep_best
):
    options = [f"train.save_every_s={seconds}", f"train.keep_best={keep_best}"]
    with killed_at(10**6, "fold_1") as done:
        run(config, tmp_path / "whole", *options)
    whole = content(tmp_path / "whole")
    assert len(whole) == keep_best + 2 and len({whole[name]["epoch"] for name in whole if "best" in name}) == keep_best
    saves = done.count(("replace", ".last.pt.tmp"))
    assert saves == (1 if seconds else 10), "steps in the middle of an epoch, and epochs"
    for change in range(keep_best % every, len(done), every):
        folder = tmp_path / f"cut_{change}"
        for later in (0, 3):  # what goes on is killed, too
            with killed_at(change + later, folder / "run" / "fold_1"):
                run(config, folder, *options)
        run(config, folder, *options)
        assert_equal(whole, content(folder), f"change {change}, {done[change]}:")


@pytest.mark.parametrize("seconds, step", [(0, 5), (600, 8)])
def test_a_process_that_is_killed_at_a_step_is_continued_to_the_same_bits(config, tmp_path, seconds, step):
    options = [f"train.save_every_s={seconds}", "train.mode=both", "train.keep_best=2"]
    run(config, tmp_path / "whole", *options)
    command = [sys.executable, str(ROOT / "train.py"), str(config), f"output={tmp_path}/cut", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        next(line for line in process.stdout if re.search(rf" train .* step={step} ", line))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not list((tmp_path / "cut/run/fold_1").glob("*.pt")) or not seconds, "nothing is written before it is time"
    done = run_command("train.py", config, f"output={tmp_path}/cut", *options)
    assert done.returncode == 0 and (" resume " in done.stdout) == (seconds == 0), done.stderr
    assert_equal(content(tmp_path / "whole"), content(tmp_path / "cut"))
    for name in ("results.csv", "predictions.csv"):
        one, two = (tmp_path / folder / "run/fold_1" / name for folder in ("whole", "cut"))
        assert one.read_text() == two.read_text()


def test_a_history_that_is_ahead_is_cut_when_the_training_goes_on(config, tmp_path, monkeypatch):
    """A signal stops what goes on before its first epoch ends."""
    fold = tmp_path / "run" / "fold_1"
    with killed_at(12, fold):
        run(config, tmp_path, "train.save_every_s=0")
    [last] = [checkpoint.load(path) for path in (fold / "last.pt", fold / "last.previous.pt") if path.exists()][:1]
    assert len(last["history"]) >= 1
    history = fold / "history.csv"
    history.write_text(history.read_text() + history.read_text().splitlines()[-1] + "\n")
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    with pytest.raises(interrupt.Interrupted):
        run(config, tmp_path)
    assert len(history.read_text().splitlines()) == 1 + len(last["history"])


def test_by_wall_time_what_a_kill_has_cost_does_not_count(config, tmp_path):
    """Killed at the second epoch's end, before anything was saved: the training has its seconds once more."""
    timed = ["train.budget_s=3", "train.epochs=5", "train.log_every=1000"]
    with killed_at(2, "fold_1"):
        run(config, tmp_path, *timed)
    assert (tmp_path / "run/fold_1/history.csv").exists()
    assert not (tmp_path / "run/fold_1/last.pt").exists()
    run(config, tmp_path, *timed)
    clock = checkpoint.load(tmp_path / "run/fold_1/last.pt")["clock"]
    assert 3 - 3 * (clock["validate_s"] + clock["step_s"]) < clock["spent_s"] < 3.5
