"""TensorBoard event files of a fold: a sink of its log (`Log.bind(sink=...)`) that stores the numbers of its lines."""

import contextlib
import os

from ..config import UserError


def check(config):
    """Raise UserError where event files are asked for and cannot be written."""
    if config.tensorboard:
        _writer_class()


def _writer_class():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        wanted = "pip install tensorboard, or leave it false"
        raise UserError(f"tensorboard: got true, and the package cannot be imported ({error}): {wanted}") from error
    return SummaryWriter


def event_files(config, fold):
    """A context that gives the sink of a fold's log, which writes below fold.tensorboard; None where none is wanted."""
    return contextlib.closing(_EventFiles(fold.tensorboard)) if config.tensorboard else contextlib.nullcontext()


class _EventFiles:
    """`train` lines become scalars over steps, in the folder train/, and `epoch` lines over epochs, in epoch/.

    No step is there twice: what an earlier run wrote after the point where this one begins, which the `resume` line
    says, is marked as void.
    """

    def __init__(self, folder):
        self._folder = folder
        self._first = {"train": 1, "epoch": 1}  # step or epoch from which this process writes
        self._writers = {}

    def __call__(self, event, values):
        if event == "resume":
            self._first = {"train": values["step"] + 1, "epoch": values["epoch"]}
        if event not in self._first:
            return
        if event not in self._writers:
            folder = os.path.join(self._folder, event)
            self._writers[event] = _writer_class()(folder, purge_step=self._first[event])
        writer, at = self._writers[event], values["step" if event == "train" else "epoch"]
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("fold", "epoch", "step"):
                writer.add_scalar(name, float(value), at)
        writer.flush()

    def close(self):
        for writer in self._writers.values():
            writer.close()
