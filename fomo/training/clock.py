"""How long a training is: by its steps, or by wall time (train.budget_s), to which the schedule then fits itself."""

import sys
import time

import torch

from ..config import UserError
from ..runtime import dist

_STATE = ("spent_s", "step_s", "validate_s")


class Clock:
    """The length of a training and how much of it is over; on all ranks alike."""

    def __init__(self, config, steps_per_epoch):
        train, optim = config.train, config.optim
        self.budget_s, self.spent_s = train.budget_s, 0.0  # seconds; spent: by all processes of this training
        self.step_s = self.validate_s = 0.0  # of the fastest step and the last validation: one more of each must fit in
        self._steps, self._read = train.steps or train.epochs * steps_per_epoch, time.perf_counter()
        self._steps_per_epoch, self._warmup_share = steps_per_epoch, optim.warmup_share
        self.warmup_steps = round(optim.warmup_epochs * steps_per_epoch + optim.warmup_share * self._steps)
        if self.budget_s is None and self.warmup_steps > self._steps:
            wanted = f"at most the {self._steps} steps of the training, of {steps_per_epoch} an epoch"
            raise UserError(f"optim.warmup_epochs: got {optim.warmup_epochs:g}, wanted {wanted}")

    def state(self):
        """What goes into last.pt."""
        return {name: getattr(self, name) for name in _STATE}

    def resume(self, state):
        """Go on after the time of an earlier process."""
        for name in _STATE:
            setattr(self, name, state[name])

    def stepped(self):
        """Count the time of a step."""
        if self.budget_s is not None:
            took = self._passed()
            self.step_s = min(self.step_s or took, took)

    def validated(self, seconds):
        """Count the time of a validation, which took so many `seconds`, and of what came with it."""
        if self.budget_s is not None:
            self._passed()
            self.validate_s = _of_main(seconds)

    def _passed(self):
        """The seconds since the last count, by the clock of rank 0."""
        now = time.perf_counter()
        passed, self._read = _of_main(now - self._read), now
        self.spent_s += passed
        return passed

    @property
    def last_step(self):
        """The number of steps; by wall time more than there can be."""
        return self._steps if self.budget_s is None else sys.maxsize

    def is_over(self, step):
        """Whether the training ends after so many steps: the next one and a validation would not fit in."""
        if self.budget_s is None:
            return step == self._steps
        return step > 0 and self.spent_s + self.step_s + self.validate_s >= self.budget_s

    def left_s(self):
        """Seconds that are left; None where steps are counted."""
        return None if self.budget_s is None else max(0.0, self.budget_s - self.spent_s)

    def steps(self, step):
        """How many steps the training has; by wall time, a float: what the pace of the first `step` ones promises."""
        if self.budget_s is None:
            return self._steps
        return max(1, step) * max(1.0, (self.budget_s - self.validate_s) / max(self.spent_s, 1e-3))

    def warmup(self, step):
        """Steps of the warm-up; by wall time a quarter of the training at most."""
        if self.budget_s is None:
            return self.warmup_steps
        steps = self.steps(step)
        return steps * min(self._warmup_share, 0.25) if self._warmup_share else min(self.warmup_steps, steps / 4)

    def steps_of_epochs(self, epochs):
        """How many steps so many epochs have."""
        return epochs * self._steps_per_epoch


def _of_main(seconds):
    """The seconds that rank 0 has counted."""
    value = torch.tensor(seconds, dtype=torch.float64)
    dist.from_main([value])
    return float(value)
