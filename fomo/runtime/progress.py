"""How long a run will still take, from what its steps, validations and tests have taken so far."""

import collections


class Progress:
    """The clock of a run of one or more folds. Its estimates are upper bounds: an early stop ends a fold sooner."""

    def __init__(self):
        self.folds_after = 0  # how many folds this process will run after this one
        self.validate_s, self.test_s = 0.0, 0.0  # what the last validation and the last test took

    def begin_training(self, steps, steps_per_epoch, left_s=lambda: None, budget_s=None):
        """steps: how many there are. By wall time: left_s gives the seconds that are left of `budget_s`."""
        self._steps, self._steps_per_epoch, self._epochs = steps, steps_per_epoch, -(-steps // steps_per_epoch)
        self._left_s, self._budget_s = left_s, budget_s
        self._step_s, self._timed = collections.deque(maxlen=100), 0

    def step_took(self, seconds):
        self._timed += 1
        if self._timed == 2:
            self._step_s.clear()  # the first one started the loader and loaded kernels
        self._step_s.append(seconds)

    def fold_s(self, step):
        """Seconds of training and validation that are left in this fold after `step` steps, one or more."""
        if self._budget_s is not None:
            return self._left_s()
        epochs = self._epochs - (step - 1) // self._steps_per_epoch  # whose validation is to come
        return self._training_s(self._steps - step, epochs)

    def run_s(self, step):
        """Seconds that are left in the run: this fold, its test, and the folds after it, which take as long."""
        whole = self._training_s(self._steps, self._epochs) if self._budget_s is None else self._budget_s
        return self.fold_s(step) + self.folds_after * whole + (self.folds_after + 1) * self.test_s

    def _training_s(self, steps, epochs):
        return steps * sum(self._step_s) / len(self._step_s) + epochs * self.validate_s

    def line(self, fold, step, doing=None):
        """One line for a terminal; doing: what is done now, if it is not a step."""
        epoch = (step - 1) // self._steps_per_epoch + 1
        timed = self._budget_s is not None
        where = doing or (f"step {step}" if timed else f"step {step}/{self._steps}")
        what = f"fold {fold}" if fold else "the final model"  # which is fold 0
        left = f"{duration(self.fold_s(step))} left in {what}, {duration(self.run_s(step))} in all"
        return f"{left}; epoch {epoch}{'' if timed else f'/{self._epochs}'}, {where}"


def duration(seconds):
    """As precise as is useful: "3 d 4 h", "1 h 05 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 24 * 60:
        days, hours = divmod(round(minutes / 60), 24)
        return f"{days} d {hours} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"
