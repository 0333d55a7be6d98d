"""Trackers of a fold: a sink of its log (`Log.bind(sink=...)`) hands the numbers of its lines to the chosen one.

`train` lines are over steps, `epoch` lines over epochs, and no step is there twice, however often the run was stopped.
All of them write below the fold's folder and need no network. Their packages are optional.
"""

import contextlib
import importlib
import math
import os
import pathlib
import time

from ..config import UserError, to_dict
from ..runtime import files

_PROJECT = "fomo"


def check(config):
    """Raise UserError where a tracker is asked for and its package cannot be imported."""
    if config.tracker != "none":
        _TRACKERS[config.tracker].package()


def sink(config, fold):
    """A context that gives the sink of a fold's log, which writes into fold.tracked(...); None where none is wanted."""
    if config.tracker == "none":
        return contextlib.nullcontext()
    return contextlib.closing(_Sink(_TRACKERS[config.tracker], config, fold))


def _imported(tracker, module):
    """An optional module; UserError without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f"pip install {tracker}, or set tracker=none"
        raise UserError(f"tracker: got {tracker}, and the package cannot be imported ({error}): {wanted}") from error


class _Sink:
    """Opens a tracker at the first line with numbers, and gives it those."""

    def __init__(self, tracker, config, fold):
        self._open = lambda: tracker(config, fold, self._first)
        self._tracker = None
        self._first = {"train": 1, "epoch": 1}  # step or epoch from which this process writes

    def __call__(self, event, values):
        if event == "resume":
            self._first = {"train": values["step"] + 1, "epoch": values["epoch"]}
        if event not in self._first:
            return
        if self._tracker is None:
            self._tracker = self._open()
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("fold", "epoch", "step")
        }
        self._tracker.write(event, values["step" if event == "train" else "epoch"], numbers)

    def close(self):
        if self._tracker is not None:
            self._tracker.close()


class _TensorBoard:
    """Event files in the folders train/ and epoch/; what an earlier run wrote from `first` on is marked as void."""

    def __init__(self, config, fold, first):
        self._folder, self._first, self._writers = fold.tracked("tensorboard"), first, {}

    @staticmethod
    def package():
        return _imported("tensorboard", "torch.utils.tensorboard")

    def write(self, event, at, numbers):
        if event not in self._writers:
            folder = os.path.join(self._folder, event)
            self._writers[event] = self.package().SummaryWriter(folder, purge_step=self._first[event])
        for name, value in numbers.items():
            self._writers[event].add_scalar(name, value, at)
        self._writers[event].flush()

    def close(self):
        for writer in self._writers.values():
            writer.close()


class _Once:
    """What trackers share that keep all they get: a file says which run it is, and up to where it has everything.

    A step that is trained again, after what was saved, is not sent again: it has the same numbers.
    """

    def __init__(self, folder):
        self._path = os.path.join(folder, "sent.json")
        os.makedirs(folder, exist_ok=True)
        self._sent = files.read_json(self._path) if os.path.exists(self._path) else {}

    @property
    def run(self):
        """The id of the run that an earlier process has begun; None for the first one."""
        return self._sent.get("run")

    def begin(self, run):
        self._note(run=run)

    def takes(self, event, at):
        """Whether this step or epoch is new; then it is noted as sent."""
        if at <= self._sent.get(event, 0):
            return False
        self._note(**{event: at})
        return True

    def _note(self, **values):
        self._sent.update(values)
        files.write_json(self._path, self._sent)


class _Wandb:
    """Weights & Biases, offline: one run, which `wandb sync --append` uploads from the folders of all starts."""

    def __init__(self, config, fold, first):
        folder, wandb = fold.tracked("wandb"), self.package()
        self._once = _Once(folder)
        run = self._once.run or f"{config.name}-{fold.number}-{time.time_ns()}"
        self._once.begin(run)
        named = {"project": _PROJECT, "group": config.name, "name": f"{config.name} fold {fold.number}"}
        quiet = {"silent": True, "console": "off"}  # the terminal is the log's
        options = {"id": run, "resume": "allow", "mode": "offline", "dir": folder, "settings": quiet}
        self._run = wandb.init(**named, **options, config=to_dict(config))
        for event in first:  # not over calls of log(), which two kinds of lines share
            self._run.define_metric(f"{event}/at")
            self._run.define_metric(f"{event}/*", step_metric=f"{event}/at")

    @staticmethod
    def package():
        return _imported("wandb", "wandb")

    def write(self, event, at, numbers):
        if self._once.takes(event, at):
            self._run.log({f"{event}/at": at, **{f"{event}/{name}": value for name, value in numbers.items()}})

    def close(self):
        self._run.finish()


class _Mlflow:
    """MLflow, in a database of the fold's folder: `mlflow ui --backend-store-uri sqlite:///FOLD/mlflow/mlflow.db`."""

    def __init__(self, config, fold, first):
        folder = os.path.abspath(fold.tracked("mlflow"))
        self._once = _Once(folder)
        self._client = self.package().MlflowClient(tracking_uri=f"sqlite:///{os.path.join(folder, 'mlflow.db')}")
        if self._once.run is None:
            found = self._client.get_experiment_by_name(config.name)  # of a start that was stopped at once
            place = pathlib.Path(folder, "artifacts").as_uri()
            experiment = found.experiment_id if found else self._client.create_experiment(config.name, place)
            run = self._client.create_run(experiment, run_name=f"{config.name} fold {fold.number}").info.run_id
            self._client.log_dict(run, to_dict(config), "config.yaml")
            self._once.begin(run)

    @staticmethod
    def package():
        return _imported("mlflow", "mlflow")

    def write(self, event, at, numbers):
        if self._once.takes(event, at):
            for name, value in numbers.items():
                self._client.log_metric(self._once.run, f"{event}/{name}", value, step=at)

    def close(self):
        self._client.set_terminated(self._once.run)


class _Clearml:
    """ClearML, offline: a session for each start, which Task.import_offline_session uploads.

    It would make 0 of an undefined number: such ones are left out.
    """

    def __init__(self, config, fold, first):
        folder = os.path.abspath(fold.tracked("clearml"))
        self._once = _Once(folder)
        os.environ["CLEARML_CACHE_DIR"] = folder  # where it keeps offline sessions
        task = self.package().Task
        task.set_offline(offline_mode=True)
        quiet = dict.fromkeys(("auto_connect_frameworks", "auto_connect_arg_parser", "auto_resource_monitoring"), False)
        name = f"{config.name} fold {fold.number}"
        self._task = task.init(project_name=_PROJECT, task_name=name, reuse_last_task_id=False, **quiet)
        self._task.connect_configuration(to_dict(config), name="config")
        self._logger = self._task.get_logger()

    @staticmethod
    def package():
        return _imported("clearml", "clearml")

    def write(self, event, at, numbers):
        if self._once.takes(event, at):
            for name, value in numbers.items():
                if math.isfinite(value):
                    self._logger.report_scalar(title=name, series=event, value=value, iteration=at)

    def close(self):
        self._task.close()


_TRACKERS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow, "clearml": _Clearml}
