"""Several tasks on one encoder: a mask, classes, labels and numbers of one table, each learned and scored as its own.

task.parts names them. A part is a task of its own, with its section `task`: of a row it has the columns that begin with
its name, as `lesion_dice` of the part lesion, and so of the metrics. The loss is the sum of the parts' losses by their
weights; with task.weighting=uncertainty each is divided by a variance that is learned (Kendall et al., CVPR 2018). The
first part is the main one: its metric chooses the epoch, and by its targets the folds are balanced.
"""

import dataclasses
import functools

import numpy as np

from ..config import UserError, as_user_error
from ..runtime import lazy
from ..runtime.lazy import torch
from . import parts as parts_module
from .multilabel import Multilabel
from .regression import Regression
from .results import Answer, Results, finished
from .segmentation import Segmentation
from .task import Columns, Task
from .views import multitask as view

multihead = lazy.Module("..nets.multihead", __package__)

_OF_ALL = ("id", "subject", "fold", "missing")  # columns of a row that are no part's


def _tasks():
    from . import TASKS  # of which this one is

    return TASKS


class Multitask(Task):
    mode = "segmentation"  # the U-Net whose encoder all share
    losses = ()
    reads, columns = "several", Columns(0, 0, "none: each of task.parts has its own")
    rates = Segmentation.rates
    select, higher_is_better = "the main part's", True  # of the class; each object has its main part's
    stratum_kind = "class"
    keys = tuple(
        dict.fromkeys(
            ("task.parts", "task.weighting", *Segmentation.keys, *Regression.keys, *Multilabel.keys, "eval.threshold")
        )
    )
    options = ("model.head", "model.channel_dropout", "model.deep_supervision", "eval.postprocess", "eval.calibrate")
    if_constant = (
        f"{Task.if_constant}; or raise the weight of the part that learns nothing (val_PART_... of the epochs)"
    )
    volumes, optional_volumes = Segmentation.volumes, Segmentation.optional_volumes

    @classmethod
    def check(cls, config, refuse):
        found = parts_module.read(config.task, _tasks())
        if "head" not in cls._network(config).options:
            names = ", ".join(name for name, one in cls._networks().items() if {"head"} <= set(one.options))
            refuse("model.name", config.model.name, f"one of {names} for task.type=multitask, which shares an encoder")
        if config.cv.final in ("soup", "refit"):
            refuse("cv.final", config.cv.final, "none or ensemble for task.type=multitask: parts are not averaged")
        if config.augment.mix != "none":
            refuse("augment.mix", config.augment.mix, "none for task.type=multitask")
        multistage = cls._head(config.model) == "multistage" and not all(part.dense for part in found)
        if config.model.channel_dropout and multistage:
            wanted = "0 for model.head=multistage, whose statistics dropped maps would change: or set model.head=linear"
            refuse("model.channel_dropout", config.model.channel_dropout, wanted)
        if config.model.deep_supervision is True and not any(part.dense for part in found):
            refuse("model.deep_supervision", True, "auto or false without a part of type segmentation")
        for part in found:
            own = dataclasses.replace(config, task=part.section)
            prefix = f"task.parts.{part.name}."
            part.kind.check(own, lambda key, *more, at=prefix: refuse(key.replace("task.", at, 1), *more))

    @staticmethod
    def _networks():
        from ..nets import NETWORKS

        return NETWORKS

    @classmethod
    def _network(cls, config):
        return cls._networks()[config.model.name]

    @classmethod
    def _head(cls, model):
        return cls._networks()[model.name].best_head if model.head == "auto" else model.head

    @classmethod
    def head_of(cls, model):
        """Of the U-Net inside, which has none: the head is that of `wrap`."""
        return "linear"

    @classmethod
    def rate(cls, config):
        """That of a segmentation or, without a mask, of the main part."""
        found = parts_module.read(config.task, _tasks())
        if any(part.dense for part in found):
            return super().rate(config)
        return found[0].kind.rate(dataclasses.replace(config, task=found[0].section))

    @classmethod
    def wanted(cls, section):
        return parts_module.wanted(parts_module.read(section, _tasks()))

    def __init__(self, config):
        self.parts = parts_module.read(config.task, _tasks())
        self.tasks = {part.name: part.kind(dataclasses.replace(config, task=part.section)) for part in self.parts}
        super().__init__(config)
        self.main = self.parts[0]
        first = self.tasks[self.main.name]
        self.select, self.higher_is_better = f"{self.main.name}_{first.select}", first.higher_is_better
        self.stratum_kind = first.stratum_kind
        self.view = view.of_parts(self)
        masked = [task for part, task in self._each() if part.dense]
        self.out_channels = masked[0].out_channels if masked else 1  # of the U-Net, whose decoder is left out then
        self.rare = masked[0].rare if masked else None
        if not masked:
            self.volumes = self.optional_volumes = ()

    def _each(self):
        return [(part, self.tasks[part.name]) for part in self.parts]

    def ask(self, volumes):
        for task in self.tasks.values():
            task.ask(volumes)

    @property
    def state(self):
        """{part: the state of its task}."""
        return {name: task.state for name, task in self.tasks.items()}

    @state.setter
    def state(self, states):
        for name, state in states.items():
            self.tasks[name].state = state

    def strata(self, cases):
        return self.tasks[self.main.name].strata([self.main.case(case) for case in cases])

    def inspect(self, cases):
        for part, task in self._each():
            with as_user_error(f"task.parts.{part.name}", UserError):
                task.inspect([part.case(case) for case in cases])

    def check_parts(self, train, val):
        for part, task in self._each():
            with as_user_error(f"task.parts.{part.name}", UserError):
                task.check_parts(*([part.case(case) for case in cases] for cases in (train, val)))

    def fit(self, train, val):
        messages = []
        for part, task in self._each():
            with as_user_error(f"task.parts.{part.name}", UserError):
                said = task.fit(*([part.case(case) for case in cases] for cases in (train, val)))
            messages += [f"{part.name}: {message}" for message in said]
        return messages

    def _outputs(self):
        """[(Part, task, the slice of its outputs for the whole case; None of a mask)]."""
        found, begin = [], 0
        for part, task in self._each():
            end = begin if part.dense else begin + task.out_channels
            found.append((part, task, None if part.dense else slice(begin, end)))
            begin = end
        return found

    def wrap(self, network):
        outputs = sum(one.stop - one.start for _, _, one in self._outputs() if one is not None)
        learned = len(self.parts) if self.config.task.weighting == "uncertainty" else 0
        masked = any(part.dense for part in self.parts)
        kind, channels = self._head(self.config.model), len(self.config.data.channels)
        return multihead.MultiHead(network, channels, outputs, kind, masked, learned)

    def head_targets(self, cases):
        return np.hstack([task.head_targets(own) for task, _, own in self.head_parts(cases)])

    def head_parts(self, cases):
        found = [(part, task, place) for part, task, place in self._outputs() if place is not None]
        return [(task, place, [part.case(case) for case in cases]) for part, task, place in found]

    @classmethod
    def is_audited(cls):
        """One of two parts or more is no mask."""
        return True

    def audited(self, cases, results):
        split = self._split(results)
        return [
            (part.name, task, [part.case(case) for case in cases], split[part.name])
            for part, task in self._each()
            if task.is_audited()
        ]

    def loss(self, outputs, batch):
        """(B,): the sum of the parts' losses by their weights, each divided by its variance where that is learned."""
        dense, whole, log_variances = outputs
        total = 0
        for number, (part, task, place) in enumerate(self._outputs()):
            own = batch if part.dense else {**batch, "target": part.target(batch["target"])}
            value = task.loss(dense if part.dense else whole[:, place], own)
            if log_variances is not None:
                log_variance = log_variances[number].float()
                value = value * torch.exp(-log_variance) + log_variance
            total = total + part.weight * value
        return total

    def predict(self, network, case, windows, fold=None):
        """`loss`: the sum of the parts' losses by the weights of the config."""
        answers = [
            (part, task.predict(multihead.one_task(network, place), part.case(case), windows, fold))
            for part, task, place in self._outputs()
        ]
        return functools.partial(self._together, case, answers)

    @staticmethod
    def _together(case, answers):
        row, kept, loss = {}, {}, 0.0
        for part, answer in answers:
            answer = finished(answer)
            kept[part.name] = answer.kept
            loss += part.weight * answer.row["loss"]
            row |= {f"{part.name}_{key}": value for key, value in answer.row.items() if key not in _OF_ALL}
        return Answer.of(case, kept, loss=loss, **row)

    def infer(self, network, image, background, windows):
        """{part: what its task says}."""
        return {
            part.name: task.infer(multihead.one_task(network, place), image, background, windows)
            for part, task, place in self._outputs()
        }

    def gather(self, parts):
        said = list(parts)
        return {name: task.gather(iter([one[name] for one in said])) for name, task in self.tasks.items()}

    @staticmethod
    def answer(tasks, parts, geometry):
        row, volumes = {}, {}
        for name, task in tasks[0].tasks.items():
            own, found = task.answer([one.tasks[name] for one in tasks], parts[name], geometry)
            row |= {f"{name}_{key}": value for key, value in own.items()}
            volumes |= found
        return row, volumes

    def finish(self, answers, fold=None):
        rows = [{key: answer.row[key] for key in (*_OF_ALL, "loss") if key in answer.row} for answer in answers]
        for name, own in self._split(Results([one.row for one in answers], kept=[one.kept for one in answers])).items():
            done = self.tasks[name].finish([Answer(*pair) for pair in zip(own.rows, own.kept)], fold).rows
            for row, new in zip(rows, done):
                row |= {f"{name}_{key}": value for key, value in new.items() if key not in _OF_ALL}
        return Results(rows, kept=[answer.kept for answer in answers])

    def _split(self, results):
        """{part: its Results}."""
        found = {}
        for name in self.tasks:
            kept = [one[name] for one in results.kept]
            found[name] = Results([view.row_of(name, row) for row in results.rows], kept=kept)
        return found

    def spread(self, results):
        """Of the part whose answers vary least, in standard deviations of its targets."""
        found = [self.tasks[name].spread(own) for name, own in self._split(results).items()]
        shares = [outputs / targets for outputs, targets in filter(None, found) if targets > 0]
        return (min(shares), 1.0) if shares else None

    def calibrate(self, evaluate):
        """As the task of each part; one that looks at masks again and again asks for new answers each time."""
        messages, answers = [], {}
        for part, task in self._each():

            def own(name=part.name, again=part.dense):
                if again:
                    return self._split(evaluate())[name]
                answers.setdefault("all", None)
                answers["all"] = answers["all"] or self._split(evaluate())
                return answers["all"][name]

            messages += [f"{part.name}: {message}" for message in task.calibrate(own)]
        return messages

    def score(self, results):
        found = {}
        for name, own in self._split(results).items():
            found |= {f"{name}_{metric}": value for metric, value in self.tasks[name].score(own).items()}
        return found

    def intervals(self, results, resamples, seed):
        found = {}
        for name, own in self._split(results).items():
            of_part = self.tasks[name].intervals(own, resamples, seed)
            found |= {f"{name}_{metric}": interval for metric, interval in of_part.items()}
        return found

    def shifts(self, results, seed):
        split = self._split(results).items()
        return [f"{name}: {said}" for name, own in split for said in self.tasks[name].shifts(own, seed)]

    def doubts(self, scores, rows):
        for name, task in self.tasks.items():
            own = {key.removeprefix(f"{name}_"): value for key, value in scores.items() if key.startswith(f"{name}_")}
            for said, count in task.doubts(own, [view.row_of(name, row) for row in rows]):
                yield f"{name}: {said}", count

    def tables(self, results):
        found = {}
        for name, own in self._split(results).items():
            found |= {f"{name}_{table}": rows for table, rows in self.tasks[name].tables(own).items()}
        return found

    def meaning(self):
        found = {"task.type": self.config.task.type}
        for name, task in self.tasks.items():
            own = {key.replace("task.", f"task.parts.{name}.", 1): value for key, value in task.meaning().items()}
            found |= own
        return found

    def learned(self):
        own = {}
        for part, task in self._each():
            said = {"task": part.section.type, "targets": list(part.section.targets)}
            # a class that nothing was fitted on has no names yet
            own[part.name] = {**said, **(task.learned() if part.dense or task.state.get("classes") else {})}
        return {"parts": own}
