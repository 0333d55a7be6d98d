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
        raise UserError(
            f"tensorboard: got true, and the package cannot be imported ({error}): pip install tensorboard, or leave it false"
        ) from error
    return SummaryWriter


@contextlib.contextmanager
def event_files(config, folder):
    """The sink of a fold's log, which writes to folder/tensorboard; None where config.tensorboard is false."""
    if not config.tensorboard:
        yield None
        return
    sink = _EventFiles(os.path.join(folder, "tensorboard"))
    try:
        yield sink
    finally:
        sink.close()


class _EventFiles:
    """`train` lines become scalars over steps, in the folder train/, and `epoch` lines over epochs, in epoch/.

    Each line is on disk when the call returns. What an interrupted run had written after the point at which it
    continues (the `resume` line says where; without one everything) is marked as void, so that no step is there twice.
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
