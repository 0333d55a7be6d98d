"""Regression of several numbers at once: an output each, and a `Regression` each that scales, corrects and scores it.

What a table of results calls `prediction` of one number is `prediction_T` of each target T, and metrics are `T_mae`.
`standardised_mae`, the mean over the targets of the absolute error in standard deviations of the training targets,
chooses the epoch.
"""

from types import SimpleNamespace

import numpy as np

from .regression import Regression
from .results import Answer, Output, Results
from .task import ONE_OR_MORE, Task
from .views import multiregression as view
from .views.multiregression import results_of, standardised_errors

_SELECT = "standardised_mae"


class Multiregression(Task):
    mode = "regression"
    losses = Regression.losses
    reads, columns = "number", ONE_OR_MORE
    select, higher_is_better = _SELECT, False
    stratum_kind = "continuous"
    training_state = (*Regression.training_state, "training_sd")
    keys = Regression.keys
    options = Regression.options
    instead = Regression.instead
    view = view.VIEW

    def __init__(self, config):
        super().__init__(config)
        self.names = [name.replace(" ", "_") for name in config.task.targets]
        self.out_channels = len(self.names)
        self._regressions = [Regression(config) for _ in self.names]
        self._keep(training_sd=[1.0] * len(self.names))  # state: of each key a list, with a value per target

    def _each(self):
        """[(place, name, Regression)] of the targets, each with its part of the state."""
        for place, regression in enumerate(self._regressions):
            regression.state = _of_target(self.state, place)
        return list(zip(range(len(self.names)), self.names, self._regressions))

    def _keep(self, **more):
        """Take over what the Regressions have put into their states."""
        own = [regression.state for regression in self._regressions]
        self.state = {**{name: [state[name] for state in own] for name in own[0]}, **more}

    def strata(self, cases):
        """The first principal component of the standardised targets."""
        targets = np.array([case.target for case in cases], float)
        deviations = targets.std(0)
        scaled = (targets - targets.mean(0)) / np.where(deviations > 0, deviations, 1)
        return (scaled @ np.linalg.svd(scaled, full_matrices=False)[2][0]).tolist()

    def fit(self, train, val):
        """As `Regression.fit` for each target; equal targets have the deviation 1."""
        messages = []
        for place, name, regression in self._each():
            said = regression.fit(_cases_of(train, place), _cases_of(val, place))
            messages += [f"{name}: {message}" for message in said]
        deviations = np.std([case.target for case in train], axis=0)
        self._keep(training_sd=np.where(deviations > 0, deviations, 1.0).tolist())
        return messages

    def head_targets(self, cases):
        return np.hstack([regression.head_targets(_cases_of(cases, place)) for place, _, regression in self._each()])

    def rival_targets(self, cases):
        return [case.target for case in cases]

    def rival_row(self, row, said):
        return {**row, **{f"prediction_{name}": float(value) for name, value in zip(self.names, said)}}

    def rival_outputs(self):
        names = enumerate(zip(self.names, self.config.task.targets))
        return [Output(k, f"prediction_{name}", f"target_{name}", None, title) for k, (name, title) in names]

    def loss(self, outputs, batch):
        """(B,): the mean over the targets."""
        parts = [
            regression.loss(outputs[:, place, None], {"target": batch["target"][:, place]})
            for place, _, regression in self._each()
        ]
        return sum(parts) / len(parts)

    def infer(self, network, image, background, windows):
        """(targets,) the numbers, in the targets' units."""
        return self._in_units(self._scaled(network, image, background, windows))

    def _scaled(self, network, image, background, windows):
        return self.pooled(windows.each(network, image, background))

    def _in_units(self, scaled):
        return np.array([regression._in_unit(scaled[place]) for place, _, regression in self._each()])

    @staticmethod
    def answer(tasks, parts, geometry):
        """Of each target what `Regression.answer` says."""
        row, each = {}, [task._each() for task in tasks]
        for place, name in enumerate(tasks[0].names):
            regressions = [of_task[place][2] for of_task in each]
            said, _ = Regression.answer(regressions, [float(part[place]) for part in parts], geometry)
            row.update({f"{column}_{name}": value for column, value in said.items()})
        return row, {}

    def predict(self, network, case, windows, fold=None):
        scaled = self._scaled(network, case.image(), case.background, windows)
        loss = self.loss(scaled[None], {"target": scaled.new_tensor([case.target])})
        row = {"loss": float(loss)}
        for place, predicted in enumerate(self._in_units(scaled).tolist()):
            said = {"target": case.target[place], "prediction": predicted}
            said.update({name: self.state[name][place] for name in ("training_mean", "training_sd")})
            row.update({f"{column}_{self.names[place]}": value for column, value in said.items()})
        return Answer.of(case, **row)

    def spread(self, results):
        found = np.array([regression.spread(own) for _, regression, own in self._split(results)])
        return tuple((found / np.array(self.state["training_sd"])[:, None]).mean(0).tolist())

    def calibrate(self, evaluate):
        """As `Regression.calibrate` for each target."""
        messages = []
        for name, regression, own in self._split(evaluate()):
            messages += [f"{name}: {message}" for message in regression.calibrate(lambda own=own: own)]
        self._keep(training_sd=self.state["training_sd"])
        return messages

    def finish(self, answers, fold=None):
        rows = [answer.row for answer in answers]
        for name, regression, own in self._split(Results(rows)):
            corrected = regression.finish([Answer(row) for row in own.rows]).rows
            if "corrected" in corrected[0]:
                rows = [{**row, f"corrected_{name}": new["corrected"]} for row, new in zip(rows, corrected)]
        return Results(rows)

    def _split(self, results):
        """[(name, Regression, its own Results)] of the targets."""
        return [(name, regression, results_of(results, name)) for _, name, regression in self._each()]

    def score(self, results):
        """`standardised_mae`, and of each target T what `Regression.score` has, as `T_...`."""
        errors, found = standardised_errors(results.rows, self.names), {}
        if errors is not None:  # not where only files are evaluated
            found[_SELECT] = float(errors.mean())
        for name, regression, own in self._split(results):
            found.update({f"{name}_{metric}": value for metric, value in regression.score(own).items()})
        return found

    def intervals(self, results, resamples, seed):
        errors, found = standardised_errors(results.rows, self.names), {}
        if errors is not None:
            found[_SELECT] = results.bootstrap(resamples, seed)(np.mean, errors)
        for name, regression, own in self._split(results):
            of_target = regression.intervals(own, resamples, seed)
            found.update({f"{name}_{metric}": interval for metric, interval in of_target.items()})
        return found

    def shifts(self, results, seed):
        split = self._split(results)
        return [f"{name}: {said}" for name, regression, own in split for said in regression.shifts(own, seed)]

    @staticmethod
    def merge(states):
        """As `Regression.merge` of each target."""
        count = len(states[0]["mean"])
        merged = [Regression.merge([_of_target(state, place) for state in states]) for place in range(count)]
        return {name: [one[name] for one in merged] for name in merged[0]}

    @staticmethod
    def units(state):
        """(means, scales), with a value per output."""
        return state["mean"], state["scale"]


def _cases_of(cases, place):
    return [SimpleNamespace(target=case.target[place]) for case in cases]


def _of_target(state, place):
    return {name: values[place] for name, values in state.items()}
