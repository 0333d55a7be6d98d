"""The loop, read from top to bottom: fit(), train_step(), evaluate().

One counter, `step`, drives everything: the epoch, the learning rate, the samples and what is frozen are functions of
it, so a run continues from `last.pt` by running the same command again.
"""

import collections
import contextlib
import math
import os
import time
from dataclasses import dataclass

import torch

from .. import checkpoint
from ..config import UserError, to_dict
from ..data import loader
from ..runtime import dist, files, interrupt, seeds
from ..runtime.progress import Progress
from . import memory, optimization, selection


class NonFiniteLoss(RuntimeError):
    exit_code = 1
    collective = True  # every rank raises it


def fit(config, task, network, train_cases, val_cases, folder, fold, log, progress=None):
    """Train `network` on train_cases, select on val_cases; leaves best.pt, last.pt and history.csv in `folder`.

    Continues from last.pt where there is one. Every rank calls it; the weights end up equal on all of them.
    progress: the clock of the run that the fold is part of.
    """
    device = dist.device()
    layout = optimization.lay_out(network, device)
    train = config.train
    if train.checkpoint_activations:
        network.checkpoint_activations(True)
    steps_per_epoch = train.steps_per_epoch or math.ceil(len(train_cases) / train.batch_size)
    last_step = train.epochs * steps_per_epoch
    progress = progress or Progress()
    progress.begin_training(train.epochs, steps_per_epoch)
    plan = make_plan(config)
    loader.check_shared_memory(config, plan)
    augment = loader.augmentation(config)
    optimizer = optimization.build_optimizer(config, network, device)
    autocast, scaler = optimization.precision(train.amp, device)
    average = optimization.Average(network, train.ema) if train.ema else None

    # ---- resume
    step, history, epoch_losses = 0, [], []
    best_path = os.path.join(folder, "best.pt")
    saved = load_last(folder, log)
    if saved is not None:
        network.load_state_dict(saved["model"])
        for group in saved["optimizer"]["param_groups"]:
            group["fused"] = device.type == "cuda"  # it may have been saved on another device
        optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        if average is not None:
            average.module.load_state_dict(saved["average"])
            average.begun = saved["step"] > 0
        step, history, epoch_losses = saved["step"], saved["history"], saved["epoch_losses"]
        dist.on_main(
            lambda: selection.forget_after(
                folder, train.keep_best, len(history), lambda path: checkpoint.load(path)["epoch"]
            )
        )
        log("resume", epoch=len(history) + 1, step=step)

    subjects = sorted(
        {case.case.subject for case in (*train_cases, *val_cases)}
    )  # so that they are known when it is tested elsewhere

    def state():
        own = {"config": to_dict(config), "fold": fold, "step": step, "epoch": len(history), "task": task.state}
        return {**own, "subjects": subjects}

    def save_last():
        states = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        if average is not None:
            states["average"] = average.module.state_dict()
        content = {"model": network.state_dict(), **state(), **states, "history": history, "epoch_losses": epoch_losses}
        path = os.path.join(folder, "last.pt")
        checkpoint.save(path, content, previous=os.path.join(folder, "last.previous.pt"))

    pin_memory = device.type == "cuda"
    batches = loader.batches(config, train_cases, fold, plan, step, last_step, pin_memory=pin_memory, draw=task.draw)

    def one_batch(config, slots):
        """To measure with when the memory is not enough."""
        batch = loader.read_batch(config, train_cases, fold, slots, task.draw)
        return task.prepare(to_device(batch, device, loader.augmentation(config), layout))

    pending = collections.deque()  # steps whose losses are not read yet

    def read_losses(keep):
        while len(pending) > keep:
            epoch_losses.append(pending.popleft().read())

    forward, frozen = None, None
    epoch_start = clock = last_saved = time.perf_counter()
    window = []
    try:
        while True:
            # ---- the end of an epoch: validate, select, save
            if step == (len(history) + 1) * steps_per_epoch:
                evaluated = network if average is None else average.module
                dist.from_main(evaluated.buffers())  # each rank's batch norms have seen its own samples
                validating = time.perf_counter()
                rows = evaluate(config, task, evaluated, val_cases)
                progress.validation_took(time.perf_counter() - validating)
                row = {
                    "epoch": len(history) + 1,
                    "step": step,
                    "lr": optimization.current_lr(config, step - 1, steps_per_epoch, history),
                }
                row["train_loss"] = sum(epoch_losses) / len(epoch_losses)
                row["val_loss"] = sum(row_["loss"] for row_ in rows) / len(rows)
                row.update({f"val_{name}": value for name, value in task.score(rows).items()})
                place = selection.place_of(task, row, history)
                history.append(row)
                epoch_losses = []
                log("epoch", **row, best=place == 1, seconds=time.perf_counter() - epoch_start)
                for message in task.warnings(row):
                    log.warn(message, epoch=len(history))
                if dist.is_main():
                    if place <= train.keep_best:
                        path = selection.make_place(folder, place, train.keep_best)
                        checkpoint.save(path, {"model": evaluated.state_dict(), **state(), "scores": row})
                        log("checkpoint", epoch=len(history), path=path)
                    save_last()
                    files.write_csv(os.path.join(folder, "history.csv"), history)
                epoch_start = clock = last_saved = time.perf_counter()
            if step == last_step or selection.stop_early(train, history):
                break

            # ---- what is trained in this epoch
            wanted = (*optimization.frozen_prefixes(config, network, len(history)), *task.frozen(network, len(history)))
            if wanted != frozen or not network.training:
                optimization.set_train_mode(network, wanted)
            compiling = train.compile and wanted != frozen
            if wanted != frozen:
                frozen = wanted
                optimization.freeze(network, frozen)
                trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
                log("freeze", epoch=len(history) + 1, frozen=frozen, trained_parameters=trained)
                forward = optimization.wrap(
                    network, train.compile, device
                )  # anew: DDP's buckets hold the old set of parameters

            # ---- the rates, functions of the step and of the validation losses so far
            lr = optimization.current_lr(config, step, steps_per_epoch, history)
            optimization.set_rates(optimizer, lr, optimization.current_weight_decay(config.optim, step, last_step))

            # ---- step
            waiting = time.perf_counter()
            with memory.explained(
                lambda: memory.advise_training(config, task, network, optimizer, autocast, plan, one_batch)
            ):
                micro_batches = [next(batches) for _ in range(plan.micro_batches)]
                data_s = time.perf_counter() - waiting
                micro_batches = [task.prepare(to_device(batch, device, augment, layout)) for batch in micro_batches]
                torch.manual_seed(seeds.integer(config.seed, "dropout", fold, step, dist.rank()))
                pending.append(
                    train_step(forward, task, micro_batches, optimizer, scaler, autocast, config.optim.clip_norm)
                )
            if average is not None:
                average.update(network)
            step += 1
            task.after_step(network, step, last_step)
            logged = step % train.log_every == 0 or step % steps_per_epoch == 0
            read_losses(keep=0 if logged else 1)  # that of the step before: the device has the next one to work on
            clock, step_s = time.perf_counter(), time.perf_counter() - clock
            window.append((data_s, step_s))
            if compiling:
                log("compile", epoch=len(history) + 1, step=step, seconds=step_s)
            progress.step_took(step_s)
            doing = "validation" if step % steps_per_epoch == 0 else None
            log.status(lambda: progress.line(fold, step, doing), every_s=0.0 if doing else 0.5)

            # ---- log; save now and then
            if logged:
                data_s, step_s = (sum(column) / len(window) for column in zip(*window))
                log(
                    "train",
                    epoch=len(history) + 1,
                    step=step,
                    loss=sum(epoch_losses[-len(window) :]) / len(window),
                    lr=lr,
                    data_s=data_s,
                    step_s=step_s,
                    samples_per_s=train.batch_size / step_s,
                    mem_gb=memory.peak_gb(device),
                    eta_s=progress.fold_s(step),
                    run_eta_s=progress.run_s(step),
                    **task.watch(),
                )
                window = []
                if dist.is_main() and clock - last_saved > train.save_every_s:
                    save_last()
                    last_saved = time.perf_counter()

            # ---- stop on request
            if dist.any(interrupt.requested()):
                read_losses(keep=0)
                raise interrupt.Interrupted("stopped by a signal")
    except interrupt.Interrupted:
        if dist.is_main():
            save_last()
            log("checkpoint", epoch=len(history) + 1, step=step, path=os.path.join(folder, "last.pt"), interrupted=True)
        raise
    finally:
        batches.close()  # its workers end now, not when Python finds that nobody asks them any more

    if step < last_step:
        log("early_stop", epoch=len(history), step=step, patience=train.patience)
    if selection.best_row(task, history) is None:
        raise UserError(
            f"{folder}: val_{task.select} was undefined in every epoch, so no best epoch exists; "
            "its validation cases lack a class: raise cv.val_fraction or lower cv.folds"
        )
    if dist.on_main(lambda: not os.path.exists(best_path)):
        raise UserError(f"{best_path}: is gone, and its epoch is trained: delete {folder} to train this fold again")


@dataclass
class Step:
    """What a step has computed, while it may still lie ahead of the device."""

    loss: torch.Tensor  # mean over the global batch
    norm: (
        torch.Tensor
    )  # of the gradients, averaged over the ranks; None under fp16, whose overflows are the scaler's to handle
    losses: torch.Tensor  # (B,) of this rank
    ids: list

    def read(self):
        """The loss; waits for the device. On every rank at once: one that is not finite ends all of them with its cases."""
        mean, norm = float(self.loss), 0.0 if self.norm is None else float(self.norm)
        if math.isfinite(mean) and math.isfinite(norm):
            return mean
        pairs = [pair for part in dist.gather(list(zip(self.ids, self.losses.tolist()))) for pair in part]
        bad = [case_id for case_id, value in pairs if not math.isfinite(value)]
        error = NonFiniteLoss(
            f"loss={mean:g} grad_norm={norm:g} is not finite; cases {', '.join(bad or [i for i, _ in pairs])}: "
            "look at them, lower optim.lr, set optim.clip_norm or train.amp=off"
        )
        error.reported = not dist.is_main()  # all ranks raise it, one says it
        raise error


def train_step(forward, task, micro_batches, optimizer, scaler, autocast, clip_norm):
    """One optimizer step, as a Step; nothing in it waits for the device.

    Each micro-batch is {image, id, ...}; task.loss gives one float32 loss per sample, so that the mean over equal
    micro-batches and ranks is the mean over the global batch.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last or not hasattr(forward, "no_sync") else forward.no_sync():
            with autocast:
                outputs = forward(batch["image"])
            per_sample = loss_of(task, outputs, batch)
            losses.append(per_sample.detach())
            scaler.scale(per_sample.mean() / len(micro_batches)).backward()
    local = torch.cat(losses)
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
    scaler.step(optimizer)
    scaler.update()
    ids = [case_id for batch in micro_batches for case_id in batch["id"]]
    return Step(dist.mean(local.mean()), None if scaler.is_enabled() else norm, local, ids)


def evaluate(config, task, network, cases, folder=None):
    """One row per case, sorted by id, on every rank; each case is evaluated exactly once, on one rank.

    With `folder` it is the final evaluation: in native space, and masks are written there.
    """
    device = dist.device()
    autocast, _ = optimization.precision(config.train.amp, device)
    options = dict(
        patch=config.data.patch,
        overlap=config.eval.overlap,
        windows=config.eval.windows,
        device=device,
        autocast=autocast,
    )
    network.eval()

    def predict(case):
        with memory.explained(lambda: memory.advise_evaluation(task, network, case, options)):
            return task.predict(network, case, options, folder)

    def one_by_one():
        return [predict(case) for case in cases[dist.rank() :: dist.world_size()] if not interrupt.requested()]

    batched = can_batch(config, task, network, cases)
    rows = dist.together(lambda: _in_batches(config, task, network, cases, autocast) if batched else one_by_one())
    if dist.any(interrupt.requested()):
        raise interrupt.Interrupted("stopped by a signal")
    rows = sorted((row for part in dist.gather(rows) for row in part), key=lambda row: row["id"])
    expected = sorted(case.case.id for case in cases)
    if [row["id"] for row in rows] != expected:
        raise RuntimeError(f"evaluated {len(rows)} rows for {len(expected)} cases: {[row['id'] for row in rows]}")
    return task.finish(rows)


def can_batch(config, task, network, cases):
    """Whether cases are evaluated in batches: one window each, by a network that sees each sample of a batch alone."""
    alone = all(
        getattr(module, "track_running_stats", None) is not False
        for module in network.modules()
        if _is_batch_norm(module)
    )
    return (
        task.predict_batch is not None
        and alone
        and all(loader.in_one_window(case, config.data.patch) for case in cases)
    )


def _is_batch_norm(module):
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def _in_batches(config, task, network, cases, autocast):
    """This rank's rows. The batches are the same whatever the ranks, the workers and the order of the cases."""
    device, rows = dist.device(), []
    ordered = sorted(cases, key=lambda case: case.case.id)
    size = max(config.eval.windows, config.train.micro_batch or config.train.batch_size)
    batches = [range(start, min(start + size, len(ordered))) for start in range(0, len(ordered), size)]
    batches = batches[dist.rank() :: dist.world_size()]
    with memory.explained(lambda: memory.advise_batches(config, device, size)):
        for chosen, outputs in batch_outputs(config, network, ordered, batches, device, autocast):
            rows += task.predict_batch(outputs, [ordered[i] for i in chosen])
            if interrupt.requested():
                break
    return rows


def batch_outputs(config, network, cases, batches, device, autocast):
    """Yield (indices of the cases, outputs (B, K) float32) of each of `batches` of cases of one window each."""
    with contextlib.closing(loader.whole_cases(config, cases, batches, pin_memory=device.type == "cuda")) as images:
        for chosen, image in zip(batches, images):
            with torch.no_grad(), autocast:
                outputs = network(image.to(device, non_blocking=True))
            yield chosen, outputs.float()


# ------------------------------------------------------------------------------------- the pieces


def make_plan(config):
    """How the batch divides over the ranks; it must divide exactly."""
    train, world = config.train, dist.world_size()
    if train.batch_size % world:
        raise UserError(f"train.batch_size: got {train.batch_size}, wanted a multiple of the {world} ranks")
    per_rank = train.batch_size // world
    micro = min(train.micro_batch or per_rank, per_rank)
    if per_rank % micro:
        raise UserError(
            f"train.micro_batch: got {micro}, wanted a divisor of the {per_rank} samples of each of {world} ranks"
        )
    return loader.Plan(train.batch_size, dist.rank(), world, micro)


def load_last(folder, log):
    """What last.pt holds, or its predecessor where a crash or a bad disk has left it unreadable; None: a fresh start."""
    names = dist.on_main(
        lambda: [name for name in ("last.pt", "last.previous.pt") if os.path.exists(os.path.join(folder, name))]
    )
    problems = []
    for name in names:
        try:
            return checkpoint.load(os.path.join(folder, name))
        except UserError as error:
            problems.append(str(error))
            log.warn(f"{error}; trying its predecessor")
    if problems:
        raise UserError(f"{problems[0]}, and so is its predecessor: delete {folder} to train this fold again")
    return None


def loss_of(task, outputs, batch):
    """(B,): the task's loss; of samples that are mixed with another one, with the share that each has of the image."""
    loss = task.loss(outputs, batch)
    if "own_share" not in batch:
        return loss
    return torch.lerp(task.loss(outputs, {**batch, "target": batch["partner_target"]}), loss, batch["own_share"])


def to_device(batch, device, augment, layout=torch.contiguous_format):
    """The batch on the device, augmented and mixed there if the loader has left that to do; layout: of `image`, a memory format."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if torch.is_tensor(value)}
    batch = {**batch, **moved}
    if "plans" in batch:
        batch = loader.mixed(augment.apply(batch, batch.pop("plans")))
    batch["image"] = batch["image"].contiguous(memory_format=layout)
    return batch
