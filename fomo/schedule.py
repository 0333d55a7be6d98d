"""Learning rate and early stopping: pure functions of the step and of the losses so far, so nothing is to be saved."""

import math


def learning_rate(step, *, peak, total_steps, warmup_steps=0, kind="cosine", stretch=1.0, minimum=1e-9):
    """Learning rate of optimizer step `step` (from 0).

    warmup_steps: the rate rises linearly from peak/1000 at step 0 to the peak at this step.
    kind: "cosine" then falls along half a cosine, "constant" keeps the peak (callers may multiply by `plateau_factor`).
    stretch: the cosine ends at step stretch x total_steps; at 1.15, as in the FOMO25 baseline, training stops before.
    minimum: the end of the cosine; no rate is below it.
    """
    if kind not in ("cosine", "constant"):
        raise ValueError(f"kind: got {kind!r}, wanted 'cosine' or 'constant'")
    if total_steps < 1 or stretch < 1:
        raise ValueError(f"total_steps, stretch: got {total_steps}, {stretch}, wanted at least 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: got {warmup_steps}, wanted 0 to total_steps={total_steps}")
    if step < warmup_steps:
        return max(minimum, peak * (0.001 + 0.999 * step / warmup_steps))
    if kind != "cosine":
        return max(minimum, peak)
    end = stretch * total_steps
    if step >= end:
        return minimum
    progress = (step - warmup_steps) / (end - warmup_steps)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * progress)) / 2


def half_cosine(step, start, end, total_steps):
    """The value at `step` on half a cosine from `start` at step 0 to `end` at step total_steps."""
    return end + (start - end) * (1 + math.cos(math.pi * min(step, total_steps) / total_steps)) / 2


def plateau_factor(val_losses, factor, patience, min_delta=0.0):
    """One `factor` for each `patience` epochs in a row without a loss that is `min_delta` below the best, multiplied.

    val_losses: one per epoch so far, oldest first. The count starts again after each factor. NaN is no improvement.
    """
    scale = 1.0
    for waited in _waits(val_losses, min_delta):
        if waited and waited % patience == 0:
            scale *= factor
    return scale


def epochs_without_improvement(val_losses, min_delta=0.0):
    """Epochs since a loss was last more than `min_delta` below the best before it; NaN is no improvement."""
    return _waits(val_losses, min_delta)[-1]


def _waits(val_losses, min_delta):
    """`epochs_without_improvement` before the first epoch and after each."""
    waits, best = [0], math.inf
    for loss in val_losses:
        better = loss < best - min_delta
        best = loss if better else best
        waits.append(0 if better else waits[-1] + 1)
    return waits
