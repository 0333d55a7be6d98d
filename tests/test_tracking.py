"""A tracker holds each number of the log once, however often the run was stopped, and needs no network."""

import math
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
from fomo.runs import crossval
from fomo.runtime import files
from fomo.training import loop, tracking

CHANNELS = "data: {channels: [t1]}\n"


def scalars(folder):
    """{name: [(step or epoch, value)]} of a folder of event files."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def config_with(tmp_path, tracker):
    (tmp_path / "c.yaml").write_text(CHANNELS)
    return kinds.load(tmp_path / "c.yaml", [f"tracker={tracker}"])


def test_what_is_written_again_after_a_resume_replaces_what_was_there(tmp_path):
    pytest.importorskip("tensorboard")
    config = config_with(tmp_path, "tensorboard")

    def session(*lines):
        with tracking.sink(config, FoldFolder(tmp_path, 1)) as sink:
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


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "clearml"])
def test_without_the_package_it_is_an_error_before_anything_else(tmp_path, tiny_config, monkeypatch, tracker):
    module = {"tensorboard": "torch.utils.tensorboard"}.get(tracker, tracker)
    monkeypatch.setitem(sys.modules, module, None)
    wanted = (
        f"tracker: got {tracker}, and the package cannot be imported .*: pip install {tracker}, or set tracker=none"
    )
    with pytest.raises(UserError, match=wanted) as raised:
        tracking.check(config_with(tmp_path, tracker))
    assert "\n" not in str(raised.value)
    config = kinds.load(tiny_config("classification", tracker=tracker))
    with pytest.raises(UserError, match=wanted):
        crossval.run(config, one_split=True)
    assert not (tmp_path / "runs").exists()


def test_none_is_none(tmp_path):
    tracking.check(config_with(tmp_path, "none"))
    with tracking.sink(config_with(tmp_path, "none"), FoldFolder(tmp_path, 1)) as sink:
        assert sink is None
    with pytest.raises(UserError, match="tracker: got 'neptune', wanted one of none, tensorboard, wandb"):
        config_with(tmp_path, "neptune")


class Fakes:
    """Modules with the parts of the trackers' interfaces that are used; `sent` is [(event, name, at, value)]."""

    def __init__(self):
        self.sent, self.opened, self.closed, self.rules = [], [], 0, []

    def finish(self, *_):
        self.closed += 1

    @property
    def wandb(self):
        def log(values):
            [at] = [int(value) for name, value in values.items() if name.endswith("/at")]
            pairs = [(name.split("/"), value) for name, value in values.items() if not name.endswith("/at")]
            self.sent += [(event, name, at, value) for (event, name), value in pairs]

        def init(**options):
            self.opened.append(options)
            rule = lambda *given, **more: self.rules.append((given, more))  # noqa: E731
            return types.SimpleNamespace(log=log, finish=self.finish, define_metric=rule)

        return types.SimpleNamespace(init=init)

    @property
    def mlflow(self):
        def metric(run, name, value, step):
            assert run == "the run"
            self.sent.append((*name.split("/"), step, value))

        created = types.SimpleNamespace(info=types.SimpleNamespace(run_id="the run"))

        def client(tracking_uri):
            self.opened.append({"uri": tracking_uri})
            return types.SimpleNamespace(
                get_experiment_by_name=lambda name: None,
                create_experiment=lambda name, place: "1",
                create_run=lambda experiment, run_name: self.rules.append(run_name) or created,
                log_dict=lambda run, values, name: self.rules.append(values),
                log_metric=metric,
                set_terminated=self.finish,
            )

        return types.SimpleNamespace(MlflowClient=client)

    @property
    def clearml(self):
        def scalar(title, series, value, iteration):
            self.sent.append((series, title, iteration, value))

        task = types.SimpleNamespace(
            connect_configuration=lambda values, name: self.rules.append(values),
            get_logger=lambda: types.SimpleNamespace(report_scalar=scalar),
            close=self.finish,
        )
        offline = {}

        def init(**options):
            self.opened.append({**options, **offline, "cache": os.environ["CLEARML_CACHE_DIR"]})
            return task

        return types.SimpleNamespace(
            Task=types.SimpleNamespace(init=init, set_offline=lambda offline_mode: offline.update(offline=offline_mode))
        )


@pytest.fixture
def fakes(monkeypatch):
    fakes = Fakes()
    for name in ("wandb", "mlflow", "clearml"):
        monkeypatch.setitem(sys.modules, name, getattr(fakes, name))
    monkeypatch.setenv("CLEARML_CACHE_DIR", "elsewhere")
    return fakes


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "clearml"])
def test_a_run_that_is_stopped_and_continued_sends_each_step_once(tmp_path, tiny_config, fakes, monkeypatch, tracker):
    config = kinds.load(tiny_config("classification", tracker=tracker, train={"epochs": 3}, cv={"final": "none"}))
    whole_step, stopped = loop.take_step, []

    def stop_once(training, batches):
        if training.step == 5 and not stopped:  # in the second epoch, before anything was saved
            stopped.append(training.step)
            raise RuntimeError("power cut")
        return whole_step(training, batches)

    monkeypatch.setattr(loop, "take_step", stop_once)
    with pytest.raises(RuntimeError, match="power cut"):
        crossval.run(config, one_split=True)
    first = list(fakes.sent)
    crossval.run(config, one_split=True)
    folder = tmp_path / "runs" / "run" / "fold_1"
    log = [event for event in read_log(tmp_path / "runs" / "run" / "log.txt")]
    assert [event["step"] for event in log if event["event"] == "train"].count("4") == 2, "trained twice"
    assert len({one[:3] for one in fakes.sent}) == len(fakes.sent) > len(first) > 0, "sent once"
    for event, at in (("train", "step"), ("epoch", "epoch")):
        last = {int(line[at]): line for line in log if line["event"] == event}
        sent = {(name, step): value for kind, name, step, value in fakes.sent if kind == event}
        assert {step for _, step in sent} == set(last)
        for name in ("lr", "loss") if event == "train" else ("train_loss", "val_auroc"):
            for step, line in last.items():
                assert sent[name, step] == pytest.approx(float(line[name]), rel=1e-4, nan_ok=True)
    assert len(fakes.opened) == fakes.closed == 2, "each start opens and closes it"
    assert (folder / tracker / "sent.json").exists()
    where = {"wandb": "dir", "mlflow": "uri", "clearml": "cache"}[tracker]
    assert all(str(folder / tracker) in opened[where] for opened in fakes.opened)
    if tracker == "wandb":
        assert all(opened["mode"] == "offline" for opened in fakes.opened)
        assert fakes.opened[0]["id"] == fakes.opened[1]["id"] and fakes.opened[0]["config"]["name"] == "run"
        assert (("train/*",), {"step_metric": "train/at"}) in fakes.rules
    if tracker == "mlflow":
        assert fakes.rules.count("run fold 1") == 1, "one run"
    if tracker == "clearml":
        assert all(opened["offline"] is True for opened in fakes.opened)


def test_each_fold_has_a_run_of_its_own(tmp_path, tiny_config, fakes):
    tracker = "wandb"
    crossval.run(kinds.load(tiny_config("classification", tracker=tracker, train={"epochs": 1})))
    folds = [tmp_path / "runs" / "run" / f"fold_{number}" / tracker / "sent.json" for number in (1, 2)]
    assert [files.read_json(path)["epoch"] for path in folds] == [1, 1] and len(fakes.opened) == fakes.closed == 2
    assert len([one for one in fakes.sent if one[1] == "train_loss"]) == 2


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "clearml"])
def test_an_undefined_number_is_never_a_number(tmp_path, fakes, tracker):
    with tracking.sink(config_with(tmp_path, tracker), FoldFolder(tmp_path, 1)) as sink:
        sink("epoch", {"fold": 1, "epoch": 1, "step": 3, "val_loss": 0.5, "val_auroc": float("nan"), "best": True})
        sink("checkpoint", {"epoch": 1, "path": "best.pt"})
    sent = {name: value for _, name, _, value in fakes.sent}
    assert sent.pop("val_loss") == 0.5 and sent.pop("best") == 1
    undefined = sent.pop("val_auroc", math.nan)  # ClearML would make 0 of it: it does not get it
    assert math.isnan(undefined) and not sent


def test_a_run_that_is_killed_and_continued(tmp_path, tiny_config):
    pytest.importorskip("tensorboard")
    path = tiny_config("classification", tracker="tensorboard", train={"epochs": 3})
    command = [sys.executable, str(ROOT / "train.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for line in first.stdout:
        if " train " in line and "step=5" in line:  # in the second epoch, before anything was saved
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
