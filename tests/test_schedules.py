"""How long a training is: in steps, or in seconds, to which its schedule fits itself; and whether it learns."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_command
from test_crossval import finished

from fomo import checkpoint, kinds, nets, report, tasks
from fomo.config import UserError
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runs.splits import make_splits
from fomo.runtime import interrupt
from fomo.tasks.regression import Regression
from fomo.tasks.segmentation import Segmentation
from fomo.training import clock as clock_module
from fomo.training import optimization, selection
from fomo.training.clock import Clock


def config_of(tiny_config, overrides=(), task="regression", **sections):
    return kinds.load(tiny_config(task, **sections), overrides)


def history(tmp_path):
    with open(tmp_path / "runs" / "run" / "fold_1" / "history.csv") as file:
        return list(csv.DictReader(file))


def test_steps_are_the_length_whatever_an_epoch_is(tiny_config, tmp_path):
    crossval.run(config_of(tiny_config, ["train.steps=7"]), one_split=True)
    assert [row["step"] for row in history(tmp_path)] == ["3", "6", "7"], "the last epoch is shorter"
    rates = [float(row["lr"]) for row in history(tmp_path)]
    assert rates[-1] == pytest.approx(1e-9 + (1e-3 - 1e-9) * (1 + math.cos(math.pi * 6 / 7)) / 2)


def test_the_recommended_rate_is_a_number_in_log_config_and_checkpoint(tiny_config, tmp_path):
    path = tiny_config("regression")
    done = finished(run_command("train.py", path, "optim.lr=auto", "train.steps=1"))
    lr = 16 * Regression.rates.scratch * 0.03  # of width 2, not 32, and a head that is fitted first
    assert f'optim lr={lr:g} recommended="regression, scratch, adamw"' in done.stdout
    kept = RunFolder(tmp_path / "runs" / "run")
    assert kept.config().optim.lr == lr == checkpoint.load(kept.fold(1).best)["config"]["optim"]["lr"]
    config = kinds.load(path, ["optim.lr=auto", "optim.name=sgd", f"weights.path={kept.fold(1).best}"])
    assert kinds.settle(config)[0].optim.lr == 4 * 16 * Regression.rates.pretrained / 10
    linear = kinds.load(path, ["optim.lr=auto", "model.head=linear"])
    assert kinds.settle(linear)[0].optim.lr == 16 * Regression.rates.scratch
    assert kinds.settle(kinds.load(path))[0].optim.lr == 1e-3, "what is given is kept"


@pytest.mark.parametrize("channels, share, start", [(3, 0.5, "pretrained"), (1, 1, "adapted"), (None, 1, "scratch")])
def test_masks_have_half_the_rate_where_the_weights_know_their_channels(tiny_config, tmp_path, channels, share, start):
    overrides = ["optim.lr=auto", "model.width=8"]
    if channels:
        network = nets.build("unet_b", channels, channels, mode="segmentation", width=8)
        checkpoint.save(tmp_path / "mae.pt", {"model": network.state_dict()})
        overrides.append(f"weights.path={tmp_path / 'mae.pt'}")
    settled, decided = kinds.settle(kinds.load(tiny_config("segmentation"), overrides))
    assert settled.optim.lr == 4 * share * Segmentation.rates.scratch
    assert decided["optim"]["recommended"] == f"segmentation, {start}, adamw"


def test_steps_that_were_interrupted_give_the_same_weights(tiny_config, tmp_path, monkeypatch):
    crossval.run(config_of(tiny_config, ["train.steps=7", "name=whole"]), one_split=True)
    config, steps = config_of(tiny_config, ["train.steps=7"]), iter([False] * 4 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(steps, True))
        with pytest.raises(interrupt.Interrupted):
            crossval.run(config, one_split=True)
    crossval.run(config, one_split=True)
    whole, stopped = (checkpoint.load(tmp_path / name / "fold_1" / "last.pt") for name in ("runs/whole", "runs/run"))
    assert stopped["step"] == 7
    assert all((whole["model"][name] == value).all() for name, value in stopped["model"].items())


class Time:
    """A clock that stands still, unless it is set."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(clock_module.time, "perf_counter", lambda: self.now)

    def step(self, clock, seconds):
        self.now += seconds
        clock.stepped()


def test_the_cosine_fits_itself_to_the_seconds(tiny_config, monkeypatch):
    time = Time(monkeypatch)
    config = config_of(tiny_config, ["train.budget_s=100", "optim.cosine_stretch=1", "optim.lr=1"])
    clock, rates = Clock(config, steps_per_epoch=10), []
    for step in range(50):
        rates.append(optimization.current_lr(config, step, clock, []))
        assert not clock.is_over(step)
        time.step(clock, 2.0)
        if clock.is_over(step + 1):
            break
    assert step == 48, "a step of 2 s fits in 49 times, and then another one would end at the very last second"
    wanted = [(1 + math.cos(math.pi * 2 * step / 100)) / 2 for step in range(49)]
    assert rates == pytest.approx(wanted, abs=1e-6)


def test_the_last_validation_fits_in(tiny_config, monkeypatch):
    time = Time(monkeypatch)
    clock = Clock(config_of(tiny_config, ["train.budget_s=100"]), steps_per_epoch=10)
    time.step(clock, 10.0)
    time.now += 30
    clock.validated(30.0)
    assert clock.spent_s == 40 and clock.left_s() == 60 and not clock.is_over(1)
    time.step(clock, 11.0)
    assert not clock.is_over(2)
    time.step(clock, 10.0)
    assert clock.is_over(3), "61 s, a step of 10 and a validation of 30"


def test_time_that_an_earlier_process_has_used_counts(tiny_config, monkeypatch):
    time = Time(monkeypatch)
    config = config_of(tiny_config, ["train.budget_s=100", "optim.warmup_epochs=5"])
    first = Clock(config, steps_per_epoch=10)
    time.step(first, 60.0)
    time.now += 1000
    second = Clock(config, steps_per_epoch=10)
    second.resume(first.state())
    assert second.spent_s == 60 and second.left_s() == 40
    time.step(second, 10.0)
    assert second.steps(30) == pytest.approx(30 * 100 / 70), "30 steps in 70 s"
    assert second.warmup(30) == pytest.approx(30 * 100 / 70 / 4), "a quarter of them instead of 50"


def test_a_run_of_some_seconds_ends_in_time_and_goes_on_with_what_is_left(tiny_config, tmp_path):
    config = config_of(tiny_config, ["train.budget_s=6", "train.steps_per_epoch=2"])
    crossval.run(config, one_split=True)
    last = checkpoint.load(tmp_path / "runs" / "run" / "fold_1" / "last.pt")
    assert 0 < last["clock"]["spent_s"] < 12 and last["step"] >= 2
    steps = last["step"]
    (tmp_path / "runs" / "run" / "fold_1" / "results.csv").unlink()
    crossval.run(config, one_split=True)
    last = checkpoint.load(tmp_path / "runs" / "run" / "fold_1" / "last.pt")
    assert last["step"] == steps, "the time is over"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.steps=5", "train.budget_s=10"], "train.budget_s: got 10, wanted none beside train.steps=5"),
        (["train.budget_s=0"], "train.budget_s: got 0, wanted more than 0"),
        (["train.steps=0"], "train.steps: got 0"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(tiny_config, overrides)


def test_a_warm_up_longer_than_the_steps_is_refused(tiny_config):
    config = config_of(tiny_config, ["train.steps=5", "optim.warmup_epochs=2"])
    with pytest.raises(UserError, match="optim.warmup_epochs: got 2, wanted at most the 5 steps"):
        Clock(config, steps_per_epoch=3)


def rows_of(*spread):
    return [{"val_spread": value} for value in spread]


def test_constant_answers_are_said_once_after_three_epochs(tiny_config):
    task = tasks.build(config_of(tiny_config))
    for spread, said in (
        ((0.01, 0.01), False),
        ((0.01, 0.02, 0.01), True),
        ((0.01, 0.02, 0.01, 0.01), False),
        ((0.5, 0.02, 0.01, 0.01), True),
        ((0.01, 0.3, 0.01), False),
        ((math.nan, math.nan, math.nan), False),
    ):
        assert bool(list(selection.collapse(task, rows_of(*spread)))) == said, spread
    [message] = selection.collapse(task, rows_of(0.01, 0.01, 0.012))
    assert message.startswith("the answers vary by 1.2% of what the targets") and "raise optim.lr" in message


def results_of(**columns):
    return tasks.Results([dict(zip(columns, values)) for values in zip(*columns.values())])


def test_the_spread_of_answers_and_targets(tiny_config):
    regression = tasks.build(config_of(tiny_config))
    found = regression.spread(results_of(prediction=[50.0, 52.0], target=[30.0, 70.0]))
    assert found == (1.0, 20.0)
    classification = tasks.build(config_of(tiny_config, task="classification"))
    assert classification.spread(results_of(probability=[0.4, 0.6], target=[1, 0])) == pytest.approx((0.1, 0.5))
    assert "task.evidence" in classification.if_constant
    segmentation = tasks.build(config_of(tiny_config, task="segmentation"))
    assert segmentation.spread(results_of(predicted_voxels=[0, 0], reference_voxels=[10, 30])) == (0.0, 10.0)


def test_a_network_that_does_not_learn_is_warned_of(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "spread", lambda self, results: (0.01, 1.0))
    crossval.run(config_of(tiny_config, ["train.epochs=4", "train.steps_per_epoch=1"]), one_split=True)
    log = (tmp_path / "runs" / "run" / "log.txt").read_text()
    [warned] = [line for line in log.splitlines() if "the answers vary by" in line]
    assert "epoch=3" in warned and float(history(tmp_path)[2]["val_spread"]) < 0.05
    folder = tmp_path / "runs" / "run"
    assert "the answers vary by" in (folder / "report.html").read_text()
    table = folder / "fold_1" / "history.csv"
    first, last = table.read_text().rstrip().rsplit("\n", 1)
    place = first.split("\n")[0].split(",").index("val_spread")
    table.write_text(first + "\n" + ",".join("0.6" if i == place else v for i, v in enumerate(last.split(","))) + "\n")
    report.write(str(folder))
    assert "the answers vary by" not in (folder / "report.html").read_text(), "in the end they do vary"


def test_a_split_without_a_test_part_is_trained(tiny_config, tmp_path):
    table = {
        "source": "phantom",
        "phantom_layout": "table",
        "channels": ["t1"],
        "train_folds": ["1"],
        "val_folds": ["2"],
    }
    task = {"type": "regression", "targets": ["age"]}
    path = tiny_config("regression", data=table, task=task, train={"mode": "train"})
    crossval.run(kinds.load(path), one_split=True)
    folder = RunFolder(tmp_path / "runs" / "run")
    [split] = folder.recorded()["folds"]
    assert split["test"] == [] and split["train"] and split["val"]
    assert checkpoint.load(folder.fold(1).best)["calibrated"] and not folder.finished()
    with pytest.raises(UserError, match="data.test_folds: got .*, wanted the folds to test on, .* or train.mode=train"):
        kinds.load(path, ["train.mode=both"])


def test_a_refit_has_no_loss_to_follow(tiny_config):
    with pytest.raises(UserError, match="cv.final: got refit, wanted another value for optim.schedule=plateau"):
        config_of(tiny_config, ["cv.final=refit", "optim.schedule=plateau"])


def test_masks_of_all_sizes_are_in_all_folds(tiny_config):
    config = config_of(tiny_config, ["cv.folds=4", "cv.stratify=true"], task="segmentation")
    sizes = np.random.default_rng(0).lognormal(6, 1.5, 40)
    cases = [
        SimpleNamespace(id=f"c{i:02}", subject=f"c{i:02}", target=1.0, foreground_mm3=s) for i, s in enumerate(sizes)
    ]
    made = make_splits(config, tasks.build(config), cases)
    large = {case.id for case in cases if case.foreground_mm3 > np.median(sizes)}
    for split in made:
        shares = [len(large & set(split[part])) / len(split[part]) for part in ("train", "val", "test")]
        assert shares == pytest.approx([0.5] * 3, abs=0.13), "a validation part of 7 or 8 is off by half a case at most"
