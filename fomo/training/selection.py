"""Which epochs are kept, when training stops early, and whether it learns. All follow from the history alone."""

import math

from .. import schedule

_CONSTANT = 3  # epochs whose outputs hardly vary


def place_of(task, row, history):
    """The place of an epoch among those before it, from 1, or infinity where it has none.

    The task's metric decides, then val_loss; of equals the earlier one is first. Where the task itself says which epoch
    is the best, the others have no place.
    """
    if f"val_{task.select}" not in row:
        scores = ", ".join(name[4:] for name in row if name.startswith("val_"))
        raise ValueError(f"{type(task).__name__}.select: got {task.select!r}, wanted one of its scores: {scores}")
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
    """The row of the best epoch; None where there is none."""
    for i in reversed(range(len(history))):
        if place_of(task, history[i], history[:i]) == 1:
            return history[i]
    return None


def collapse(task, history):
    """Messages: that the outputs have hardly varied for some epochs, after the last of them."""
    spread = [row.get("val_spread", math.nan) for row in history[-_CONSTANT - 1 :]]
    flat = [value < task.flat for value in spread]
    if flat[-_CONSTANT:] == [True] * _CONSTANT and flat[:-_CONSTANT] != [True]:  # and once only
        share = f"{100 * spread[-1]:.2g}% of what the targets of the validation cases do"
        yield f"the answers vary by {share}: the network answers much the same whatever it sees: {task.if_constant}"


def stop_early(train, history):
    """Whether val_loss has not fallen for train.patience epochs."""
    if train.patience is None or not history:
        return False
    waited = schedule.epochs_without_improvement([row["val_loss"] for row in history], min_delta=train.min_delta)
    return waited >= train.patience
