"""The loop of a training, read from top to bottom: `fit`, and below it its pieces in the order in which it takes them.

One counter, `training.step`, drives everything: the epoch, the rates, the samples and what is frozen are functions of
it. A training that was stopped therefore goes on when the same command is run again.
"""

import contextlib
import math
import os
import time

import torch

from ..config import UserError
from ..data import loader
from ..runtime import dist, interrupt, seeds
from ..runtime.progress import Progress
from . import memory, optimization, selection
from .evaluate import evaluate
from .graphs import Graphed
from .state import Training
from .step import to_device, train_step


def fit(config, task, network, train_cases, val_cases, fold, log, progress=None):
    """Train `network` on train_cases and select on val_cases; leaves best.pt, last.pt and history.csv in the folder.

    Every rank calls it, and has the same weights in the end. Without val_cases the last epoch is the best.
    fold: the FoldFolder; progress: the clock of the run.
    """
    # ---- what is trained, from the start or from where it was left
    train, progress = config.train, progress or Progress()
    training = Training(config, task, network, train_cases, val_cases, fold)
    clock = training.clock
    progress.begin_training(clock.last_step, training.steps_per_epoch, clock.left_s, clock.budget_s)
    loader.check_shared_memory(config, task, training.plan)
    training.resume(log)
    to_do, pinned = (training.step, clock.last_step), training.device.type == "cuda"
    batches = loader.batches(config, task, train_cases, fold.number, training.plan, *to_do, pin_memory=pinned)

    times = []  # of each step since the last `train` line: (seconds it waited for its batches, seconds in all)
    epoch_begun = step_ended = time.perf_counter()
    with contextlib.closing(batches), saved_when_stopped(training, log):
        while True:
            # ---- the end of an epoch: validate, select; the end of the training: save
            if training.epoch_is_over:
                end_epoch(training, val_cases, epoch_begun, log, progress)
                epoch_begun = step_ended = time.perf_counter()
            if training.is_over or selection.stop_early(train, training.history):
                if dist.is_main() and not training.is_saved:
                    training.save(log)
                break

            # ---- what is trained in this epoch, and at which rates
            anew = training.freeze(log)
            lr = optimization.current_lr(config, training.step, clock, training.history)
            optimization.set_rates(training.optimizer, config.optim, lr, training.step, clock.steps(training.step))

            # ---- step; then the loss of the one before is read, while the device works on this one
            with memory.explained(lambda: memory.advise_training(training, train_cases)):
                step, data_s = take_step(training, batches)
            training.advance(step)
            logged = training.epoch_is_over or training.step % train.log_every == 0
            training.read_losses(keep=0 if logged else 1)
            step_ended, step_s = time.perf_counter(), time.perf_counter() - step_ended

            # ---- log; save now and then
            times.append((data_s, step_s))
            progress.step_took(step_s)
            if anew:
                log_start(training, step_s, log)
            show_progress(training, log, progress)
            if logged:
                log_steps(training, times, lr, log, progress)
                times = []
                if dist.is_main() and training.save_is_due and not training.epoch_is_over:
                    training.save(log)

            # ---- stop on request
            if dist.any(interrupt.requested()):
                training.read_losses(keep=0)
                raise interrupt.Interrupted("stopped by a signal")
    check_end(training, log)


@contextlib.contextmanager
def saved_when_stopped(training, log):
    """Save the training where a signal stops it."""
    try:
        yield
    except interrupt.Interrupted:
        if dist.is_main():
            training.save(log, interrupted=True)
        raise


def end_epoch(training, val_cases, begun, log, progress):
    """Validate the epoch, add it to the history, keep it if it is one of the best, and save if it is time.

    begun: when it has begun.
    """
    config, task, fold = training.config, training.task, training.fold
    dist.from_main(training.evaluated.buffers())  # each rank's batch norms have seen its own samples
    row = {"epoch": training.epoch, "step": training.step, "lr": training.optimizer.param_groups[-1]["lr"]}
    row["train_loss"] = sum(training.epoch_losses) / len(training.epoch_losses)
    if val_cases:
        row |= validate(training, val_cases, progress)
        place = selection.place_of(task, row, training.history)
    else:
        place = 1 if training.is_over else math.inf
    training.history.append(row)
    training.epoch_losses = []
    log("epoch", **row, best=place == 1, seconds=time.perf_counter() - begun)
    for message in task.warnings(row):
        log.warn(message, epoch=row["epoch"])
    for message in selection.collapse(task, training.history):
        log.warn(message, epoch=row["epoch"], val_spread=row["val_spread"])
    if dist.is_main():
        if place <= config.train.keep_best:
            training.keep(place, scores=row)
        fold.write_history(training.history)
        if training.save_is_due:
            training.save(log)


def validate(training, val_cases, progress):
    """{name: value} of the validation cases, for the row of an epoch."""
    config, task, begun = training.config, training.task, time.perf_counter()
    results = evaluate(config, task, training.evaluated, val_cases)
    progress.validate_s = time.perf_counter() - begun
    training.clock.validated(progress.validate_s)
    loss = sum(case["loss"] for case in results.rows) / len(results.rows)
    scores = {f"val_{name}": value for name, value in task.score(results).items()}
    outputs, targets = task.spread(results) or (math.nan, math.nan)
    spread = {"val_spread": outputs / targets} if targets > 0 else {}
    return {"val_loss": loss, **scores, **spread}


def take_step(training, batches):
    """(the Step that comes next, the seconds that it waited for its batches)."""
    config, task = training.config, training.task
    waiting = time.perf_counter()
    loaded = [next(batches) for _ in range(training.plan.micro_batches)]
    data_s = time.perf_counter() - waiting
    where = training.device, training.augment, training.layout
    micro_batches = [task.prepare(to_device(batch, *where)) for batch in loaded]
    torch.manual_seed(seeds.integer(config.seed, "dropout", training.fold.number, training.step, dist.rank()))
    given = training.optimizer, training.scaler, training.autocast, config.optim.clip_norm
    return train_step(training.forward, task, micro_batches, *given), data_s


def log_start(training, seconds, log):
    """Say what the first step with other trained parts has taken, if that captured graphs."""
    if isinstance(training.forward, Graphed):
        problem = training.forward.problem
        where = {"epoch": training.epoch, "step": training.step, "seconds": seconds}
        log("graph", captured=problem is None, **where, **({} if problem is None else {"reason": problem}))


def show_progress(training, log, progress):
    """The status line; it is shown at once if a validation begins."""
    doing = "validation" if training.epoch_is_over else None
    log.status(lambda: progress.line(training.fold.number, training.step, doing), every_s=0.0 if doing else 0.5)


def log_steps(training, times, lr, log, progress):
    """Write the `train` line; times: of the steps since the last one, over which loss and seconds are means."""
    step, loss = training.step, sum(training.epoch_losses[-len(times) :]) / len(times)
    data_s, step_s = (sum(column) / len(times) for column in zip(*times))
    pace = {"data_s": data_s, "step_s": step_s, "samples_per_s": training.config.train.batch_size / step_s}
    left = {"eta_s": progress.fold_s(step), "run_eta_s": progress.run_s(step)}
    rest = {"mem_gb": memory.peak_gb(training.device), **left, **training.task.watch()}
    log("train", epoch=training.epoch, step=step, loss=loss, lr=lr, **pace, **rest)


def check_end(training, log):
    """Log an early stop. Raise UserError where no epoch was the best, or the file of the best one is gone."""
    task, history, fold = training.task, training.history, training.fold
    if not training.is_over:
        log("early_stop", epoch=len(history), step=training.step, patience=training.config.train.patience)
    if "val_loss" in history[-1] and selection.best_row(task, history) is None:
        why = "so no best epoch exists; its validation cases lack a class: raise cv.val_fraction or lower cv.folds"
        raise UserError(f"{fold.path}: val_{task.select} was undefined in every epoch, {why}")
    if dist.on_main(lambda: not os.path.exists(fold.best)):
        raise UserError(f"{fold.best}: is gone, and its epoch is trained: delete {fold.path} to train this fold again")
