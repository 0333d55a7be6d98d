"""DINO: without labels, a network learns to answer a view of a volume as its moving average answers another view.

Caron et al. (ICCV 2021), in 3D and on slices. The last epoch is kept, since a lower loss is not a better network. If
validation cases are labelled, the epoch with the best linear probe on the teacher's features is kept. Labels are used
for nothing else.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from .. import schedule
from ..config import show
from ..metrics import auroc, macro_auroc, probe
from ..nets import NETWORKS
from ..runtime import dist, lazy, seeds
from ..runtime.lazy import torch
from ..space import patches
from ..transforms import build_views
from .results import Answer, Results
from .task import Columns, Rates, Task
from .views import dino as view

losses = lazy.Module("..losses", __package__)
loader = lazy.Module("..data.loader", __package__)
teaching = lazy.Module("..nets.dino", __package__)
views = lazy.Module("..transforms.views", __package__)

_VIEW_KEYS = ("global_size", "global_scale", "local_views", "local_size", "local_scale")  # of the section `task`
_HEAD_KEYS = ("out_dim", "head_width", "freeze_last_layer_epochs")
_TEACHER_KEYS = ("teacher_temperature", "teacher_warmup_epochs", "teacher_momentum", "centre_momentum")
_QUERIES, _NEIGHBOURS = 8, 3  # cases that are shown with their nearest


class Dino(Task):
    mode = "classification"  # the backbone is a whole-case network; its output layer is taken off
    out_channels = 1
    losses = ()
    reads, columns = "class", Columns(0, 1, "at most one column, for the probe")
    rates = Rates(5e-4, 5e-4)
    select, higher_is_better = "dino_loss", False  # the headline of a run; see is_best
    stratum_kind = "class"
    pretrains = True
    keys = (*(f"task.{key}" for key in _VIEW_KEYS + _HEAD_KEYS + _TEACHER_KEYS), "data.crop_position")
    view = view.VIEW

    @classmethod
    def check(cls, config, refuse):
        task, train = config.task, config.train
        for name, size in (("task.global_size", task.global_size), ("task.local_size", task.local_size)):
            if wanted := NETWORKS[config.model.name].patch_problem(config.model.name, size):
                refuse(name, size, wanted)
        for name, scale in (("task.global_scale", task.global_scale), ("task.local_scale", task.local_scale)):
            if scale[0] > scale[1]:
                refuse(name, scale, "the lower one first")
        for name, value, plain, why in (
            ("finetune.strategy", config.finetune.strategy, "full", ": nothing is fine-tuned"),
            ("finetune.frozen_stages", config.finetune.frozen_stages, 0, ": nothing is fine-tuned"),
            ("train.ema", train.ema, 0.0, ": the teacher is the average"),
            ("train.patience", train.patience, None, ": a lower loss is not a better network"),
            ("train.checkpoint_activations", train.checkpoint_activations, False, ""),
        ):
            if value != plain:
                refuse(name, value, f"{show(plain).lower()} for task.type=dino{why}")

    def __init__(self, config):
        super().__init__(config)
        self._views = self.augmentation()
        self._steps_per_epoch = None
        self._sums = None  # over the views of one step, see _add
        self._watched = []  # (entropy, std) of each step since the last look

    def fit(self, train, val):
        """Note the length of an epoch; nothing is learned from labels."""
        section = self.config.train
        self._steps_per_epoch = section.steps_per_epoch or math.ceil(len(train) / section.batch_size)
        subjects = {case.subject: int(_label(case)) for case in reversed(val) if not math.isnan(_label(case))}
        counts = np.bincount(list(subjects.values()), minlength=2)
        if counts.min() > 1 or not (subjects or self.config.task.targets):
            return ()
        got = f"labelled subjects of each class among the {len(val)} validation cases: {', '.join(map(str, counts))}"
        return [f"{got}; wanted 2 or more of each for a probe: there is none, and the last epoch is kept"]

    def augmentation(self):
        """Views of each patch instead of the patch."""
        options = {name: getattr(self.config.task, name) for name in _VIEW_KEYS}
        return loader.augmentation(self.config, functools.partial(build_views, **options))

    def sample_voxels(self, augmented):
        task = self.config.task
        voxels = views.GLOBAL_VIEWS * math.prod(task.global_size) + task.local_views * math.prod(task.local_size)
        return voxels if augmented else super().sample_voxels(augmented)

    def wrap(self, network):
        return teaching.Dino(network, self.config.task.out_dim, self.config.task.head_width)

    def load(self, network, load):
        """Fill the student's backbone; the teacher starts with the same weights."""
        report = load(network.trunk)
        network.follow(0.0)
        return report

    def frozen(self, network, epoch):
        """The teacher is never trained, and the student's last layer not in the first epochs."""
        return network.fixed_prefixes + network.late_prefixes * (epoch < self.config.task.freeze_last_layer_epochs)

    def prepare(self, batch):
        """`image`: the batches of views, by size."""
        return {**batch, "image": [batch[name] for name in ("image", "local") if name in batch]}

    def loss(self, outputs, batch):
        student, teacher, features, centre = self._by_view(outputs, len(batch["slot"]))
        temperature = self._teacher_temperature(batch["slot"][0] // self.config.train.batch_size)
        self._add(teacher.flatten(0, 1), features, centre, temperature)
        return losses.dino(student, teacher, centre, teacher_temperature=temperature)

    @staticmethod
    def _by_view(outputs, samples):
        """(V, B, K), (G, B, K), (G B, F), (K,)."""
        student, teacher, features, centre = outputs
        return student.unflatten(0, (-1, samples)), teacher.unflatten(0, (-1, samples)), features, centre

    def _teacher_temperature(self, step):
        first, last = self.config.task.teacher_temperature
        warmup = self.config.task.teacher_warmup_epochs * self._steps_per_epoch
        return last if step >= warmup else first + (last - first) * step / warmup

    def _add(self, teacher, features, centre, temperature):
        """Add up what the step's update and the log need of the teacher's views of a micro-batch."""
        teacher, features = teacher.float(), features.double()  # whose variance is a small difference of its moments
        entropy = _entropy(losses.dino_target(teacher, centre, temperature))[:, None]
        parts = [
            features,
            features.square(),
            teacher,
            torch.nn.functional.normalize(teacher, dim=-1),
            entropy,
            torch.ones_like(entropy),
        ]
        sums = torch.cat([part.double().sum(0) for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def after_step(self, network, step, last_step):
        """Move the teacher towards the student, and its centre and statistics towards this step's, over all ranks."""
        task = self.config.task
        sums, self._sums = dist.mean(self._sums), None
        means, features = sums / sums[-1], len(network.feature_mean)
        mean, square, output, unit = means[:-2].split([features, features, task.out_dim, task.out_dim])
        network.move_statistics(mean, square, task.centre_momentum if step > 1 else 0.0)
        network.move_centre(output, task.centre_momentum)
        network.follow(schedule.half_cosine(step - 1, task.teacher_momentum, 1.0, last_step))
        self._watched.append(torch.stack([means[-2], _std(unit)]))  # on the device: read when it is shown

    def watch(self):
        entropy, std = torch.stack(self._watched).mean(0).tolist()
        self._watched = []
        return {"teacher_entropy": entropy, "teacher_std": std}

    def warnings(self, row):
        """Warn of signs of collapse: all inputs get the same answer, an even one or one single output."""
        entropy, std, most = row["val_teacher_entropy"], row["val_teacher_std"], math.log(self.config.task.out_dim)
        values = f"(teacher_entropy={entropy:.4g} of at most {most:.4g}, teacher_std={std:.4g})"
        remedy = "if it stays so, lower optim.lr, lengthen its warm-up or change task.teacher_temperature"
        if entropy > (1 - view.NEAR) * most:
            yield f"the teacher's answers are even over all outputs {values}: {remedy}"
        elif entropy < view.NEAR * most:
            yield f"the teacher's answers are single outputs {values}: {remedy}"
        if std < view.NEAR:
            yield f"the teacher answers all cases alike {values}: {remedy}"

    def is_best(self, row, history):
        """The epoch with the best probe; as long as none is defined, the latest."""
        earlier = [old["val_probe_auroc"] for old in history if not math.isnan(old.get("val_probe_auroc", math.nan))]
        value = row.get("val_probe_auroc", math.nan)
        return not earlier if math.isnan(value) else all(value >= other for other in earlier)

    def predict(self, network, case, windows, fold=None):
        """The loss on views that depend on the case alone, and the teacher's features, the mean over windows."""
        config = self.config
        patch = torch.from_numpy(self._central(case))
        outside = [case.outside] if case.scaling is None else None  # of several channels that are one
        batch = {"image": patch[None].to(windows.device), "outside": outside}
        batch = {**self._views(batch, [seeds.of_case(config.seed, case.id)]), "scaling": case.scaling}
        batch = self.prepare(loader.mixed(batch))
        with torch.no_grad(), windows.autocast:
            student, teacher, _, centre = self._by_view(network(batch["image"]), 1)
        temperature = config.task.teacher_temperature[1]
        features = windows.each(network.teacher["backbone"], case.image(), case.background)
        loss = losses.dino(student, teacher, centre, teacher_temperature=temperature)
        axis = patches.thinnest(config.data.patch)
        seen = _Seen(
            entropy=float(_entropy(losses.dino_target(teacher, centre, temperature)).mean()),
            unit=torch.nn.functional.normalize(teacher.float(), dim=-1).mean((0, 1)).cpu().numpy(),
            features=features.mean(0).cpu().numpy(),
            label=_label(case),
            plane=None if fold is None else patch[0].select(axis, patch.shape[1 + axis] // 2).numpy(),
        )
        return Answer.of(case, seen, loss=float(loss))

    def _central(self, case):
        """The patch (C, X, Y, Z) in the middle of a case, as a training sample begins."""
        if case.is_patch:
            return case.distinct()
        size = self.config.data.patch
        start = patches.draw_start(case.shape, size, None, "center")
        return patches.read(case.image(), start, size, case.background, np.float32)

    def finish(self, answers, fold=None):
        """Labelled cases get their class, and its probabilities by probes on the other labelled cases."""
        rows, kept = [answer.row for answer in answers], [answer.kept for answer in answers]
        if fold is not None and dist.is_main():
            _write_neighbours(fold.neighbours, rows, kept)
        known = [i for i, seen in enumerate(kept) if not math.isnan(seen.label)]
        labels = np.array([kept[i].label for i in known])
        classes = int(labels.max(initial=0)) + 1
        if classes < 2 or (labels % 1).any():  # none, or a number that is no class
            return Results(rows, kept=kept)
        features, subjects = np.stack([kept[i].features for i in known]), [rows[i]["subject"] for i in known]
        found = probe.cross_validated(features, labels, subjects, self.config.seed, classes=classes)
        empty = {f"{name}_{k}": math.nan for name in ("probe", "knn") for k in range(classes)}
        rows = [{**row, "target": seen.label, **empty} for row, seen in zip(rows, kept)]
        for place, i in enumerate(known):
            for name, kind in (("probe", "linear"), ("knn", "nearest")):
                rows[i].update({f"{name}_{k}": float(value) for k, value in enumerate(found[kind][place])})
        return Results(rows, kept=kept)

    def score(self, results):
        """The loss, signs of collapse and, where cases are labelled, what the features tell about their class.

        teacher_entropy: mean entropy of the teacher's answers, at most ln(out_dim). teacher_std: how much they vary.
        probe_auroc, knn_auroc: each case is predicted from the others; of several classes it is the mean of each
        against the rest. They are undefined where a class has fewer than two subjects.
        """
        found = {
            "dino_loss": float(np.mean(*results.arrays("loss"))),
            "teacher_entropy": float(np.mean([seen.entropy for seen in results.kept])),
            "teacher_std": float(_std(torch.from_numpy(np.mean([seen.unit for seen in results.kept], axis=0)))),
        }
        for name, labels, scores in _probed(_labelled(results)):
            one_hot = np.eye(scores.shape[1], dtype=int)[labels]
            found[f"{name}_auroc"] = macro_auroc(one_hot, scores) if np.isfinite(scores).all() else math.nan
        return found

    def intervals(self, results, resamples, seed):
        found = {"dino_loss": results.bootstrap(resamples, seed)(np.mean, *results.arrays("loss"))}
        labelled = _labelled(results)
        for name, labels, scores in _probed(labelled):
            if scores.shape[1] == 2 and np.isfinite(scores).all():
                found[f"{name}_auroc"] = labelled.bootstrap(resamples, seed)(auroc, labels, scores[:, 1])
        return found


class _Seen(NamedTuple):
    """What the teacher made of a case."""

    entropy: float  # of its answers, in nats
    unit: np.ndarray  # (out_dim,): the mean direction of its answers
    features: np.ndarray  # (F,)
    label: float  # NaN without one
    plane: np.ndarray | None  # (A, B): the central slice, for a picture


def _label(case):
    """The class of the first target; NaN without a label."""
    target = case.target[0] if isinstance(case.target, tuple) else case.target
    return math.nan if target is None else float(target)


def _entropy(p):
    """Of distributions (..., K), in nats."""
    return torch.special.entr(p).sum(-1)


def _std(mean_unit):
    """Spread of vectors of length 1 about their mean (K,): 0 all alike, 1 no common direction."""
    return (1 - mean_unit.square().sum()).clamp(min=0).sqrt()


def _labelled(results):
    return Results([row for row in results.rows if not math.isnan(row.get("target", math.nan))])


def _probed(labelled):
    """Yield (its name, labels (n,), scores (n, K)) of each probe on the labelled rows."""
    for name in ("probe", "knn") if labelled.rows else ():
        classes = sum(column.startswith(f"{name}_") for column in labelled.rows[0])
        scores = np.array([[row[f"{name}_{k}"] for k in range(classes)] for row in labelled.rows])
        yield name, labelled.arrays("target")[0].astype(int), scores


def _write_neighbours(path, rows, kept):
    """Write the central slices of some cases and of the cases whose features are nearest.

    ids (N, 4) text: the query and its neighbours; queries (N, A, B); neighbours (N, 3, A, B).
    similarity (N, 3): cosines of the teacher's standardised features. Fewer than four cases have fewer neighbours.
    """
    similarity = probe.cosines([seen.features for seen in kept])
    np.fill_diagonal(similarity, -np.inf)
    queries = np.unique(np.linspace(0, len(rows) - 1, min(_QUERIES, len(rows))).round().astype(int))
    nearest = np.argsort(-similarity[queries], axis=1, kind="stable")[:, : min(_NEIGHBOURS, len(rows) - 1)]
    slices = np.stack([seen.plane for seen in kept]).astype(np.float16)
    names = np.array([row["id"] for row in rows])
    ids = np.column_stack([names[queries], names[nearest]])
    cosines = np.take_along_axis(similarity[queries], nearest, axis=1)
    np.savez_compressed(path, ids=ids, queries=slices[queries], neighbours=slices[nearest], similarity=cosines)
