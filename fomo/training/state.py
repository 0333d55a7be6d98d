"""What a training is: its parts and how far it has come, kept in the files last.pt and best.pt of its fold."""

import collections
import copy
import math
import os
import time

from .. import checkpoint
from ..config import UserError, one_line, to_dict
from ..runtime import dist
from . import optimization
from .clock import Clock
from .kept import Kept
from .step import make_plan


class Training:
    """The training of a network, at its start or where an earlier process has left it."""

    def __init__(self, config, task, network, train_cases, val_cases, fold):
        train = config.train
        self.config, self.task, self.network, self.fold = config, task, network, fold
        self.subjects = sorted({case.subject for case in (*train_cases, *val_cases)})  # no later test may be of them
        self.steps_per_epoch = train.steps_per_epoch or math.ceil(len(train_cases) / train.batch_size)
        self.clock = Clock(config, self.steps_per_epoch)
        self.plan, self.device = make_plan(config), dist.device()
        self.layout = optimization.lay_out(network, self.device)
        if train.checkpoint_activations:
            network.checkpoint_activations(True)
        self.augment = task.augmentation()
        self.autocast, self.scaler = optimization.precision(train.amp, self.device)
        self.optimizer = optimization.build_optimizer(config, network, self.device)
        self.average = optimization.Average(network, train.ema) if train.ema else None
        self.evaluated = network if self.average is None else self.average.module
        self.parts = {"model": network, "optimizer": self.optimizer, "scaler": self.scaler}  # in last.pt
        if self.average is not None:
            self.parts["average"] = self.average.module

        self.step = 0  # how many are done; epoch, rates, samples and what is frozen are functions of it
        self.history = []  # a row for each epoch that is done
        self.epoch_losses = []  # of the steps since then
        self.pending = collections.deque()  # the Steps whose losses are not read yet
        self.frozen = None  # prefixes of the parameters that are not trained now
        self.forward = None  # the network as a step calls it: captured, or spread over ranks
        self._kept = Kept(fold.kept(train.keep_best))
        self._saved, self._saved_at = None, time.perf_counter()  # (step, epochs) in last.pt, and when it was written

    @property
    def epoch(self):
        """The epoch that is trained, from 1."""
        return len(self.history) + 1

    @property
    def epoch_is_over(self):
        of_epoch = self.step - (self.history[-1]["step"] if self.history else 0)
        return of_epoch == self.steps_per_epoch or (of_epoch > 0 and self.is_over)

    @property
    def save_is_due(self):
        """Whether train.save_every_s have passed since the last time, or the start of this process."""
        return time.perf_counter() - self._saved_at >= self.config.train.save_every_s

    @property
    def is_saved(self):
        """Whether last.pt holds the training as it is now."""
        return self._saved == (self.step, len(self.history))

    @property
    def is_over(self):
        return self.clock.is_over(self.step)

    def resume(self, log):
        """Go on from last.pt, if there is one."""
        saved = self._read_last(log)
        done = 0 if saved is None else len(saved["history"])
        dist.on_main(lambda: self._kept.forget_after(done))
        if saved is None:
            return
        for group in saved["optimizer"]["param_groups"]:
            group["fused"] = self.device.type == "cuda"  # it may have been saved on another device
        try:
            for name, part in self.parts.items():
                if saved[name]:  # a scaler that does nothing has an empty state
                    part.load_state_dict(saved[name])
        except (RuntimeError, ValueError) as error:  # of a run that an earlier version began
            remedy = f"delete {self.fold.path} to train this fold again"
            raise UserError(
                f"{self.fold.last}: does not fit this version: {one_line(error)[:200]}: {remedy}"
            ) from error
        self.step, self.history, self.epoch_losses = saved["step"], saved["history"], saved["epoch_losses"]
        if "clock" in saved:  # not in those of older versions, which counted steps
            self.clock.resume(saved["clock"])
        if self.average is not None:
            self.average.begun = self.step > 0
        self._saved = (self.step, len(self.history))
        if self.history:  # its file may have rows of epochs that are trained once more
            dist.on_main(lambda: self.fold.write_history(self.history))
        log("resume", epoch=self.epoch, step=self.step)

    def _read_last(self, log):
        """The content of last.pt, or of its predecessor where a crash has left it unreadable; None without both."""
        paths, problem = (self.fold.last, self.fold.previous), None
        for path in dist.on_main(lambda: list(filter(os.path.exists, paths))):
            try:
                return checkpoint.load(path)
            except UserError as error:
                problem = problem or error
                log.warn(f"{error}; trying its predecessor")
        if problem is not None:
            raise UserError(f"{problem}, and so is its predecessor: delete {self.fold.path} to train this fold again")
        return None

    def save(self, log, **more):
        """Write the best epochs and then last.pt, beside which the one before stays, and say so; more: to say.

        All losses must have been read.
        """
        for path, epoch in self._kept.write().items():
            log("checkpoint", epoch=epoch, path=path)
        content = {**self._content(self.network), **{name: part.state_dict() for name, part in self.parts.items()}}
        content.update(history=self.history, epoch_losses=self.epoch_losses, clock=self.clock.state())
        checkpoint.save(self.fold.last, content, previous=self.fold.previous)
        self._saved, self._saved_at = (self.step, len(self.history)), time.perf_counter()
        log("checkpoint", step=self.step, path=self.fold.last, **more)

    def keep(self, place, scores):
        """Keep the network of the epoch that is done, with its scores, at a place among the best, from 1."""
        content = {**self._content(self.evaluated), "scores": scores}
        content["model"] = {name: value.to("cpu", copy=True) for name, value in content["model"].items()}
        self._kept.add(place, {**content, "task": copy.deepcopy(content["task"])})

    def _content(self, network):
        where = {"fold": self.fold.number, "step": self.step, "epoch": len(self.history)}
        made_of = {"task": self.task.state, "subjects": self.subjects}
        return {"model": network.state_dict(), "config": to_dict(self.config), **where, **made_of}

    def freeze(self, log):
        """Freeze what this epoch does not train; returns whether that has changed, so that `forward` is a new one."""
        network, done = self.network, len(self.history)
        wanted = (*optimization.frozen_prefixes(self.config, network, done), *self.task.frozen(network, done))
        changed, self.frozen = wanted != self.frozen, wanted
        if changed or not network.training:
            optimization.freeze(network, wanted)
        if changed:
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            log("freeze", epoch=self.epoch, frozen=wanted, trained_parameters=trained)
            # anew: the buckets of DDP hold the parameters that were trained before
            self.forward = optimization.wrap(network, self.config.train, self.plan, self.device)
        return changed

    def advance(self, step):
        """Count the Step that was made; the average and the task follow it."""
        self.pending.append(step)
        if self.average is not None:
            self.average.update(self.network)
        self.step += 1
        self.clock.stepped()
        self.task.after_step(self.network, self.step, self.clock.steps(self.step))

    def read_losses(self, keep):
        """Read the losses of the pending steps, except for the last `keep`."""
        while len(self.pending) > keep:
            self.epoch_losses.append(self.pending.popleft().read())
