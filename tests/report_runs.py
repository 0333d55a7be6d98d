"""Run folders with made-up predictions, as cv.py would leave them, and a reader of their pages."""

import dataclasses
import html.parser
import os

import numpy as np
import pytest
import yaml

from fomo import kinds, metrics, report, tasks
from fomo.pages import figures
from fomo.run_folder import RunFolder
from fomo.runs import pooled
from fomo.runtime.log import Log
from fomo.tasks import Answer, Results

needs_figures = pytest.mark.skipif(not figures.available(), reason="matplotlib is not installed")

# of each task: its own sections of the config
SECTIONS = {
    "classification": {"data": {"source": "fomo1", "channels": ["dwi_b1000", "flair", "adc", "swi|t2s"]}},
    "segmentation": {"data": {"source": "fomo2", "channels": ["dwi_b1000", "flair", "swi|t2s"]}},
    "regression": {"data": {"source": "fomo3", "channels": ["t1", "t2"]}},
    "targets": {
        "task": {"type": "classification", "targets": ["grade", "sex"]},
        "data": {"source": "table", "csv": "table.csv", "channels": ["t1"]},
    },
    "multilabel": {
        "task": {"targets": ["Lung nodule", "Cardiomegaly", "Pleural effusion"]},
        "data": {"source": "table", "csv": "table.csv", "channels": ["ct"], "patch": [64, 64, 1]},
        "model": {"name": "resnet50", "attention": "cbam"},
        "eval": {"saliency": 2},
    },
    "dino": {
        "task": {"out_dim": 64},
        "data": {"source": "volumes", "channels": ["t1"]},
        "finetune": {"strategy": "full"},
        "train": {"patience": None},
    },
    "mae": {
        "task": {"keep_epoch": "best"},
        "data": {"source": "volumes", "channels": ["t1"]},
        "model": {"name": "unet_b_lw_dec"},
        "finetune": {"strategy": "full"},
    },
}
LOG = """2026-01-01T10:00:00 INFO run name=run task=x ranks=2 device=cuda:0 torch=2.9.0 code=abc123 seed=0
2026-01-01T10:00:10 INFO train fold=1 epoch=1 step=2 loss=1 lr=0.1 data_s=0.1 step_s=1
2026-01-01T10:01:00 INFO train fold=1 epoch=1 step=3 loss=1 lr=0.1 data_s=0.8 step_s=1
2026-01-01T12:00:00 INFO run name=run task=x ranks=1 device=cpu torch=2.9.0 code=abc124 seed=0
2026-01-01T12:00:05 INFO train fold=2 epoch=1 step=1 loss=1 lr=0.1 data_s=0 step_s=2
2026-01-01T12:00:30 WARN warn message="case \\"x\\" <odd>" fold=2
"""


def case_rows(task, index, rng, skill=1.0):
    """The rows of a case: one, or those of five slices of a scan, for multilabel."""
    if task != "multilabel":
        return [case_row(task, index, rng, skill)]
    scan, rows = case_row("scan", index, rng), []
    present = rng.random(3) < (0.5, 0.2, 0.1)
    names = [name.replace(" ", "_") for name in SECTIONS["multilabel"]["task"]["targets"]]
    for place in range(5):
        scores = 1 / (1 + np.exp(-rng.normal(skill * (2 * present - 1) / 2 - 1, 1)))
        row = {
            **scan,
            "id": f"{scan['id']}_{place}",
            "scan": scan["id"],
            "loss": float(np.mean((scores - present) ** 2)),
        }
        row.update({f"target_{name}": int(value) for name, value in zip(names, present)})
        rows.append({**row, **{f"probability_{name}": float(value) for name, value in zip(names, scores)}})
    return rows


def case_row(task, index, rng, skill=1.0):
    """A plausible row of predictions.csv; two sessions for every fifth subject."""
    row = {"id": f"case_{index:04d}", "subject": f"sub_{index - (index % 5 == 4):04d}"}
    if task == "classification":
        target = index % 2
        probability = float(1 / (1 + np.exp(-(rng.normal() + skill * (2 * target - 1)))))
        return {**row, "target": target, "probability": probability, "loss": 1.0, "decision": int(probability >= 0.5)}
    if task == "regression":
        target = float(rng.uniform(20, 80))
        prediction = 50 + 0.6 * (target - 50) + float(rng.normal() * 5 / skill)
        return {
            **row,
            "target": target,
            "prediction": prediction,
            "training_mean": 50.0,
            "loss": 1.0,
            "corrected": 50 + (prediction - 50) / 0.6,
        }
    if task == "scan":
        return row
    if task == "mae":
        return {**row, "loss": float(rng.gamma(2.0, 0.1))}
    if task == "dino":
        score = float(1 / (1 + np.exp(-(rng.normal() + skill * (2 * (index % 2) - 1)))))
        probes = {"probe_0": 1 - score, "probe_1": score, "knn_0": 0.4, "knn_1": 0.6}
        return {**row, "loss": float(rng.normal(3, 0.2)), "target": index % 2, **probes}
    if task == "targets":
        row["loss"] = float(rng.gamma(2.0, 0.3))
        for name, classes in (("grade", ["I", "II", "III"]), ("sex", ["F", "M"])):
            target = index % len(classes)
            scores = np.exp(rng.normal(0, 1, len(classes)) + skill * np.eye(len(classes))[target])
            scores /= scores.sum()
            row[f"target_{name}"], row[f"decision_{name}"] = target, int(scores.argmax())
            row.update({f"probability_{name}_{text}": float(p) for text, p in zip(classes, scores)})
        return row
    reference, prediction = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    if index % 10:
        reference[2:6, 2:6, 2:6] = True
    if index % 7:
        start = int(rng.integers(1, 4))
        prediction[start:6, 2:6, 2:6] = True
    counts = {"predicted_voxels": int(prediction.sum()), "reference_voxels": int(reference.sum())}
    return {**row, "loss": 1.0, **counts, **metrics.segmentation_metrics(reference, prediction, (1.0, 1.0, 2.0))}


def make_run(folder, task, cases=40, folds=2, seed=0, skill=1.0, finished=None, **sections):
    """A run folder; finished: the folds that are (all). Its summary.json is written by pooled.aggregate."""
    folder, rng = str(folder), np.random.default_rng(seed)
    os.makedirs(folder)
    values = {
        "name": os.path.basename(folder),
        "output": os.path.dirname(folder),
        "task": {"type": "classification" if task == "targets" else task},
        "data": {"root": os.path.join(folder, "none")},
        "finetune": {"strategy": "gradual", "unfreeze_epoch": 2},
        "cv": {"folds": folds},
        "eval": {"bootstrap": 50},
    }
    for given in (SECTIONS[task], sections):
        for name, section in given.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    with open(os.path.join(folder, "config.yaml"), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)
    config = kinds.load(os.path.join(folder, "config.yaml"))
    rows = [row for index in range(cases) for row in case_rows(task, index, rng, skill)]
    folds = 1 if task in ("mae", "dino") else folds
    run_folder = RunFolder(folder)
    write_folds(config, run_folder, rows, folds, range(1, folds + 1) if finished is None else finished)
    if task == "multilabel":
        for fold in run_folder.folds():
            write_saliency(fold, rows[:10:5], rng)
    if task == "dino":
        write_neighbours(run_folder.fold(1).neighbours, rows, rng)
    if task == "mae":
        write_reconstructions(run_folder.fold(1), rows[::7], rng)
    return folder


def write_reconstructions(fold, rows, rng):
    """As tasks/mae.py stores them: central planes of an ellipsoid with a bright ball."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 36)), indexing="ij"))
    for row in rows:
        volume = (
            2.0 * ((grid**2).sum(0) < 0.8)
            + 3 * (((grid - 0.3) ** 2).sum(0) < 0.05)
            + rng.normal(size=grid.shape[1:]) / 4
        )
        hidden = np.kron(rng.random((10, 12, 9)) < 0.6, np.ones((4, 4, 4)))
        kinds = {"original": volume, "masked": volume * (1 - hidden), "reconstructed": volume * (1 - hidden / 3)}
        planes = {
            f"{name}_{axis}": np.take(values, values.shape[axis] // 2, axis).astype(np.float16)
            for name, values in kinds.items()
            for axis in range(3)
        }
        np.savez_compressed(fold.reconstruction(row["id"], new=True), **planes)


def write_saliency(fold, rows, rng):
    """As the maps of a fold are stored: a slice with two discs, and a hot spot on one of them."""
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    image = 0.4 * (x**2 + y**2 < 0.8) + 0.5 * ((x - 0.4) ** 2 + y**2 < 0.04) + 0.03 * rng.normal(size=x.shape)
    heat = [np.exp(-((x - 0.4) ** 2 + y**2) / 0.1), np.exp(-((x + 0.4) ** 2 + y**2) / 0.1)]
    for row in rows:
        stored = {"id": row["id"], "scan": row["scan"] or "", "labels": ["Lung nodule", "Cardiomegaly"], "axes": [2]}
        stored.update(
            probabilities=[0.9, 0.2], targets=[1, 0], image_2=image, grad_cam_2=heat, attention_2=0.5 + heat[0] / 9
        )
        np.savez_compressed(fold.saliency(row["id"], new=True), **stored)


def write_neighbours(path, rows, rng):
    """As tasks/dino.py stores them."""
    ids = np.array([[row["id"] for row in rows[start : start + 4]] for start in range(0, 24, 4)])
    pictures = rng.random((6, 4, 24, 30)).astype(np.float16)
    cosines = np.sort(rng.random((6, 3)), axis=1)[:, ::-1]
    np.savez_compressed(path, ids=ids, queries=pictures[:, 0], neighbours=pictures[:, 1:], similarity=cosines)


def write_folds(config, folder, rows, folds, finished):
    """Subjects go round the folds; the unfinished ones have a history only."""
    task = tasks.build(config)
    subjects = sorted({row["subject"] for row in rows})
    of = {subject: index % folds + 1 for index, subject in enumerate(subjects)}
    splits = []
    for number in range(1, folds + 1):
        part = sorted((row for row in rows if of[row["subject"]] == number), key=lambda row: row["id"])
        part = task.finish([Answer(row) for row in part]) if config.task.type == "multilabel" else Results(part)
        part = Results(*(with_fold(lines, number) for lines in (part.rows, part.scans)))
        splits.append({"train": [], "val": [], "test": [], task.tested_part(): [row["id"] for row in part.rows]})
        fold = folder.fold(number)
        fold.make()
        fold.write_history(history(task))
        if number in finished:
            found = {"dino_loss": 3.0, "teacher_entropy": 2.5, "teacher_std": 0.8, "probe_auroc": 0.7, "knn_auroc": 0.5}
            fold.write_results(part, {}, found if config.task.type == "dino" else task.score(part))
    folder.record(cases={}, folds=splits)
    with open(folder.log_path, "w", encoding="utf-8") as file:
        file.write(LOG)
    if finished:
        pooled.aggregate(config, folder, Log(active=False))


def with_fold(rows, number):
    return [{"id": row["id"], "subject": row["subject"], "fold": number, **row} for row in rows]


def history(task):
    """Four epochs, of which the third one is the best."""
    rows = []
    for e in range(1, 5):
        losses = {"epoch": e, "step": e, "lr": 1e-3 / e, "train_loss": 1 / e, "val_loss": 1.1 / e}
        rows.append({**losses, f"val_{task.select}": 0.5 + (0.1 if task.higher_is_better else -0.1) * (e == 3)})
        if task.config.task.type == "dino":
            rows[-1].update(val_teacher_entropy=4.1 - 0.4 * e, val_teacher_std=0.2 * e, val_probe_auroc=0.5)
    return rows


@dataclasses.dataclass
class Cell:
    text: str
    value: float | None


class Page(html.parser.HTMLParser):
    """tables: {label: [[Cell of each column] of each row, the header first]}; values: {id: data-value}; links; tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.values, self.links, self.tags, self.text = {}, {}, [], [], ""
        self._rows, self._cell, self._skip = None, None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self._skip = tag in ("style", "script")
        self.links += [given[name] for name in ("src", "href", "xlink:href", "action") if name in given]
        value = float(given["data-value"]) if "data-value" in given else None
        if "id" in given and value is not None:
            self.values[given["id"]] = value
        if tag == "table":
            self._rows = self.tables.setdefault(given.get("aria-label", "confusion"), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = Cell("", value)
            self._rows[-1].append(self._cell)

    def handle_endtag(self, tag):
        self._skip = False
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if not self._skip:
            self.text += data
        if self._cell is not None:
            self._cell.text += data

    def table(self, start):
        return next(rows for label, rows in self.tables.items() if label.startswith(start))


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def shown(folder):
    """The Page of a run folder, written anew."""
    return Page(read(report.write(folder)))


def verdict(run):
    return run.task.view.verdict(run)
