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

from . import checkpoint, dist, interrupt, memory, schedule, seeds, tables
from .config import UserError, to_dict
from .data import loader
from .progress import Progress


class NonFiniteLoss(RuntimeError):
    exit_code = 1
    collective = True  # every rank raises it


def fit(config, task, network, train_cases, val_cases, folder, fold, log, progress=None):
    """Train `network` on train_cases, select on val_cases; leaves best.pt, last.pt and history.csv in `folder`.

    Continues from last.pt where there is one. Every rank calls it; the weights end up equal on all of them.
    progress: the clock of the run that the fold is part of.
    """
    device = dist.device()
    to_channels_last(network.to(device))
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
    optimizer = build_optimizer(config, network, device)
    autocast, scaler = precision(train.amp, device)
    average = build_average(network, train.ema)

    # ---- resume
    step, history, epoch_losses = 0, [], []
    best_path = os.path.join(folder, "best.pt")
    saved = load_last(folder, log)
    if saved is not None:
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        if average is not None:
            average.module.load_state_dict(saved["average"])
            average.n_averaged.fill_(saved["step"])
        step, history, epoch_losses = saved["step"], saved["history"], saved["epoch_losses"]
        log("resume", epoch=len(history) + 1, step=step)

    subjects = sorted({case.case.subject for case in train_cases})  # so that they are known when it is tested elsewhere

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

    draw, prepare = getattr(task, "draw", None), getattr(task, "prepare", lambda batch: batch)
    after_step, watch = getattr(task, "after_step", None), getattr(task, "watch", dict)
    also_frozen = getattr(task, "frozen", lambda network, epoch: ())
    batches = loader.batches(config, train_cases, fold, plan, step, last_step, pin_memory=device.type == "cuda", draw=draw)

    def one_batch(config, slots):
        """To measure with when the memory is not enough."""
        batch = loader.read_batch(config, train_cases, fold, slots, draw)
        return prepare(to_device(batch, device, loader.augmentation(config)))

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
                row = {"epoch": len(history) + 1, "step": step, "lr": current_lr(config, step - 1, steps_per_epoch, history)}
                row["train_loss"] = sum(epoch_losses) / len(epoch_losses)
                row["val_loss"] = sum(row_["loss"] for row_ in rows) / len(rows)
                row.update({f"val_{name}": value for name, value in task.score(rows).items()})
                best = task.is_best(row, history) if hasattr(task, "is_best") else is_best(task, row, history)
                place = 1 if best else math.inf if hasattr(task, "is_best") else place_of(task, row, history)
                history.append(row)
                epoch_losses = []
                log("epoch", **row, best=best, seconds=time.perf_counter() - epoch_start)
                for message in task.warnings(row) if hasattr(task, "warnings") else ():
                    log.warn(message, epoch=len(history))
                if dist.is_main():
                    if place <= train.keep_best:
                        path = make_place(folder, place, train.keep_best)
                        checkpoint.save(path, {"model": evaluated.state_dict(), **state(), "scores": row})
                        log("checkpoint", epoch=len(history), path=path)
                    save_last()
                    tables.write_csv(os.path.join(folder, "history.csv"), history)
                epoch_start = clock = last_saved = time.perf_counter()
            if step == last_step or stop_early(train, history):
                break

            # ---- what is trained in this epoch
            wanted = (*frozen_prefixes(config, network, len(history)), *also_frozen(network, len(history)))
            if wanted != frozen or not network.training:
                set_train_mode(network, wanted)
            if wanted != frozen:
                frozen = wanted
                freeze(network, frozen)
                trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
                log("freeze", epoch=len(history) + 1, frozen=frozen, trained_parameters=trained)
                forward = wrap(network, train.compile, device)  # anew: DDP's buckets hold the old set of parameters

            # ---- learning rate, a function of the step and of the validation losses so far
            lr = current_lr(config, step, steps_per_epoch, history)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
                group["weight_decay"] = current_weight_decay(config.optim, step, last_step) * group["decay_scale"]

            # ---- step
            waiting = time.perf_counter()
            with memory.explained(lambda: memory.advise_training(config, task, network, optimizer, autocast, plan, one_batch)):
                micro_batches = [to_device(next(batches), device, augment) for _ in range(plan.micro_batches)]
                data_s = time.perf_counter() - waiting
                micro_batches = [prepare(batch) for batch in micro_batches]
                torch.manual_seed(seeds.integer(config.seed, "dropout", fold, step, dist.rank()))
                pending.append(train_step(forward, task, micro_batches, optimizer, scaler, autocast, config.optim.clip_norm))
            if average is not None:
                average.update_parameters(network)
            step += 1
            if after_step is not None:
                after_step(network, step, last_step)
            logged = step % train.log_every == 0 or step % steps_per_epoch == 0
            read_losses(keep=0 if logged else 1)  # that of the step before: the device has the next one to work on
            clock, step_s = time.perf_counter(), time.perf_counter() - clock
            window.append((data_s, step_s))
            progress.step_took(step_s)
            doing = "validation" if step % steps_per_epoch == 0 else None
            log.status(progress.line(fold, step, doing), every_s=0.0 if doing else 0.5)

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
                    **watch(),
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

    if step < last_step:
        log("early_stop", epoch=len(history), step=step, patience=train.patience)
    if dist.on_main(lambda: not os.path.exists(best_path)):
        raise UserError(
            f"{folder}: val_{task.select} was undefined in every epoch, so no best epoch exists; "
            "its validation cases lack a class: raise cv.val_fraction or lower cv.folds"
        )


@dataclass
class Step:
    """What a step has computed, while it may still lie ahead of the device."""

    loss: torch.Tensor  # mean over the global batch
    norm: torch.Tensor  # of the gradients, averaged over the ranks; None under fp16, whose overflows are the scaler's to handle
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
    autocast, _ = precision(config.train.amp, device)
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
    alone = all(getattr(module, "track_running_stats", None) is not False for module in network.modules() if _is_batch_norm(module))
    return hasattr(task, "predict_batch") and alone and all(loader.in_one_window(case, config.data.patch) for case in cases)


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
    images = loader.whole_cases(config, cases, batches, pin_memory=device.type == "cuda")
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
        raise UserError(f"train.micro_batch: got {micro}, wanted a divisor of the {per_rank} samples of each of {world} ranks")
    return loader.Plan(train.batch_size, dist.rank(), world, micro)


def load_last(folder, log):
    """What last.pt holds, or its predecessor where a crash or a bad disk has left it unreadable; None: a fresh start."""
    names = dist.on_main(lambda: [name for name in ("last.pt", "last.previous.pt") if os.path.exists(os.path.join(folder, name))])
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


def build_optimizer(config, network, device):
    """AdamW with one group per (stage, decayed or not); norms and biases are not decayed, earlier stages learn slower."""
    groups = {}
    stages = network.stages
    for name, parameter in network.named_parameters():
        depth = next(i for i, prefixes in enumerate(stages) if name.startswith(prefixes))
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr_scale": config.finetune.layer_decay ** (len(stages) - 1 - depth),
                "decay_scale": float(decayed),
                "weight_decay": config.optim.weight_decay if decayed else 0.0,
            }
            for (depth, decayed), parameters in sorted(groups.items())
        ],
        lr=config.optim.lr,
        betas=config.optim.betas,
        fused=device.type == "cuda",
    )


def build_average(network, decay):
    """Exponential moving average of the weights (None when decay is 0)."""
    if not decay:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def precision(amp, device):
    """(autocast context, gradient scaler) of `train.amp` on a device; the scaler does nothing unless it is fp16."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if amp == "fp16" and device.type == "cpu":
        raise UserError("train.amp: got fp16 on the CPU, wanted bf16, off or auto")
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    autocast = torch.autocast(device.type, dtype=dtype, enabled=amp != "off")
    return autocast, torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def frozen_prefixes(config, network, epoch):
    """Parameter prefixes that are not trained in an epoch (from 0)."""
    strategy = config.finetune.strategy
    if strategy == "gradual" and epoch + 1 < config.finetune.unfreeze_epoch:
        return tuple(network.encoder_prefixes)
    if strategy == "stagewise":
        late = epoch + 1 - config.finetune.unfreeze_epoch
        trained = 1 if late < 0 else 2 + late // config.finetune.unfreeze_every  # stages, from the head down
        return tuple(prefix for stage in network.stages[:-trained] for prefix in stage)
    if strategy == "head_only":
        head = tuple(network.head_prefixes)
        return tuple(prefix for stage in network.stages for prefix in stage if not prefix.startswith(head))
    return ()


def to_channels_last(network):
    """Convolutions are faster with the channels last in memory, on GPUs and on the CPU.

    3D kernels of one voxel stay: their gradients come in the usual order, and DDP would copy them at each step.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d) and max(module.kernel_size) > 1:
            module.to(memory_format=torch.channels_last_3d)
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def freeze(network, prefixes):
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))


def set_train_mode(network, frozen):
    """Training mode, except for what is frozen: its running statistics must not move, and it drops nothing."""
    network.train()
    for name, module in network.named_modules():
        if frozen and f"{name}.".startswith(frozen):
            module.eval()


def wrap(network, compiled, device):
    """The network as it is called in training; `network` itself keeps its parameter names free of prefixes."""
    forward = torch.compile(network) if compiled else network
    if dist.world_size() == 1:
        return forward
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True, process_group=dist.group())


def current_lr(config, step, steps_per_epoch, history):
    """The learning rate of a step, before the stages' factors."""
    optim = config.optim
    lr = schedule.learning_rate(
        step,
        peak=optim.lr,
        total_steps=config.train.epochs * steps_per_epoch,
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        kind="cosine" if optim.schedule == "cosine" else "constant",
        stretch=optim.cosine_stretch,
        minimum=optim.min_lr,
    )
    if optim.schedule == "plateau":
        val_losses = [row["val_loss"] for row in history]
        factor = schedule.plateau_factor(
            val_losses, factor=optim.plateau_factor, patience=optim.plateau_patience, min_delta=config.train.min_delta
        )
        lr = max(lr * factor, optim.min_lr)
    return lr


def current_weight_decay(optim, step, last_step):
    """The weight decay of a step, of the parameters that are decayed."""
    if optim.weight_decay_end is None:
        return optim.weight_decay
    return schedule.half_cosine(step, optim.weight_decay, optim.weight_decay_end, last_step)


def stop_early(train, history):
    if train.patience is None or not history:
        return False
    waited = schedule.epochs_without_improvement([row["val_loss"] for row in history], min_delta=train.min_delta)
    return waited >= train.patience


def is_best(task, row, history):
    """Whether an epoch beats all before it."""
    return place_of(task, row, history) == 1


def place_of(task, row, history):
    """The place of an epoch among those before it, from 1: by the task's metric, at equal metric by val_loss, at equal loss
    the earlier one; infinite where the metric is undefined.
    """

    def rank(row):
        value = row[f"val_{task.select}"]
        return (value if task.higher_is_better else -value, -row["val_loss"])

    if math.isnan(row[f"val_{task.select}"]):
        return math.inf
    defined = [rank(old) for old in history if not math.isnan(old[f"val_{task.select}"])]
    return 1 + sum(old >= rank(row) for old in defined)


def make_place(folder, place, count):
    """The path of the checkpoint at a place among the `count` best: best.pt, best_2.pt ...; the ones behind move back."""
    paths = [os.path.join(folder, f"best_{n}.pt" if n > 1 else "best.pt") for n in range(1, count + 1)]
    for n in reversed(range(place, count)):
        if os.path.exists(paths[n - 1]):
            os.replace(paths[n - 1], paths[n])
    return paths[place - 1]


def loss_of(task, outputs, batch):
    """(B,): the task's loss; of samples that are mixed with another one, with the share that each has of the image."""
    loss = task.loss(outputs, batch)
    if "own_share" not in batch:
        return loss
    return torch.lerp(task.loss(outputs, {**batch, "target": batch["partner_target"]}), loss, batch["own_share"])


def to_device(batch, device, augment):
    """The batch on the device, augmented and mixed there if the loader has left that to do."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if torch.is_tensor(value)}
    batch = {**batch, **moved}
    if "plans" in batch:
        batch = loader.mixed(augment.apply(batch, batch.pop("plans")))
    batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last_3d)
    return batch
