"""Which epochs are kept, and when there is no use in going on. Decided by the history alone."""

import math
import os

from .. import schedule


def place_of(task, row, history):
    """The place of an epoch among those before it, from 1: by the task's metric, at equal metric by val_loss, at equal loss
    the earlier one; infinite where the metric is undefined, and for all but the best where the task decides itself.
    """
    if task.is_best is not None:
        return 1 if task.is_best(row, history) else math.inf

    def rank(row):
        value = row[f"val_{task.select}"]
        return (value if task.higher_is_better else -value, -row["val_loss"])

    if math.isnan(row[f"val_{task.select}"]):
        return math.inf
    defined = [rank(old) for old in history if not math.isnan(old[f"val_{task.select}"])]
    return 1 + sum(old >= rank(row) for old in defined)


def best_row(task, history):
    """The row of the epoch that is kept at last; None before one."""
    return next(
        (history[i] for i in reversed(range(len(history))) if place_of(task, history[i], history[:i]) == 1), None
    )


def places(folder, count):
    """Paths of the checkpoints of the `count` best epochs, best first."""
    return [os.path.join(folder, f"best_{n}.pt" if n > 1 else "best.pt") for n in range(1, count + 1)]


def make_place(folder, place, count):
    """The path of the checkpoint at a place among the `count` best, freed of what is there; the ones behind move back."""
    paths = places(folder, count)
    for n in reversed(range(place, count)):
        if os.path.exists(paths[n - 1]):
            os.replace(paths[n - 1], paths[n])
    return paths[place - 1]


def forget_after(folder, count, epoch, epoch_of):
    """Delete the kept checkpoints of epochs after `epoch`, which are trained once more; those behind move up.

    They are there when a run ended between best.pt and last.pt. epoch_of: path -> its epoch. Of one place alone nothing
    would be left, and the epoch takes it again.
    """
    paths = [path for path in places(folder, count) if os.path.exists(path)]
    if count > 1:
        kept = [path for path in paths if epoch_of(path) <= epoch]
        for path in set(paths) - set(kept):
            os.remove(path)
        for source, target in zip(kept, paths):
            os.replace(source, target)


def stop_early(train, history):
    if train.patience is None or not history:
        return False
    waited = schedule.epochs_without_improvement([row["val_loss"] for row in history], min_delta=train.min_delta)
    return waited >= train.patience
