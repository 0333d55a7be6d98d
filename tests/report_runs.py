"""Run folders with made-up predictions, as cv.py would leave them, and a reader of the pages' tables."""

import dataclasses
import html.parser
import os

import numpy as np
import yaml

from fomo import config as config_module, metrics, results, tables, tasks
from fomo.log import Log

CHANNELS = {
    "classification": ["dwi_b1000", "flair", "adc", "swi|t2s"],
    "segmentation": ["dwi_b1000", "flair", "swi|t2s"],
    "regression": ["t1", "t2"],
}
LOG = """2026-01-01T10:00:00 INFO run name=run task=x ranks=2 device=cuda:0 torch=2.9.0 code=abc123 seed=0
2026-01-01T10:00:10 INFO train fold=1 epoch=1 step=2 loss=1 lr=0.1 data_s=0.1 step_s=1
2026-01-01T10:01:00 INFO train fold=1 epoch=1 step=3 loss=1 lr=0.1 data_s=0.8 step_s=1
2026-01-01T12:00:00 INFO run name=run task=x ranks=1 device=cpu torch=2.9.0 code=abc124 seed=0
2026-01-01T12:00:05 INFO train fold=2 epoch=1 step=1 loss=1 lr=0.1 data_s=0 step_s=2
2026-01-01T12:00:30 WARN warn message="case \\"x\\" <odd>" fold=2
"""


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
    reference, prediction = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    if index % 10:
        reference[2:6, 2:6, 2:6] = True
    if index % 7:
        start = int(rng.integers(1, 4))
        prediction[start:6, 2:6, 2:6] = True
    counts = {"predicted_voxels": int(prediction.sum()), "reference_voxels": int(reference.sum())}
    return {**row, "loss": 1.0, **counts, **metrics.segmentation_metrics(reference, prediction, (1.0, 1.0, 2.0))}


def make_run(folder, task, cases=40, folds=2, seed=0, skill=1.0, finished=None, **sections):
    """A run folder; finished: the folds that are (all). Its summary.json is written by results.aggregate."""
    folder, rng = str(folder), np.random.default_rng(seed)
    os.makedirs(folder)
    values = {
        "name": os.path.basename(folder),
        "output": os.path.dirname(folder),
        "task": {"type": task},
        "data": {
            "source": {"classification": "fomo1", "segmentation": "fomo2", "regression": "fomo3"}[task],
            "root": os.path.join(folder, "none"),
            "channels": CHANNELS[task],
        },
        "finetune": {"strategy": "gradual", "unfreeze_epoch": 2},
        "cv": {"folds": folds},
        "eval": {"bootstrap": 50},
    }
    values = {
        name: {**values.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in {**values, **sections}.items()
    }
    with open(os.path.join(folder, "config.yaml"), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)
    config = config_module.load(os.path.join(folder, "config.yaml"))
    rows = [case_row(task, index, rng, skill) for index in range(cases)]
    write_folds(config, folder, rows, folds, range(1, folds + 1) if finished is None else finished)
    return folder


def write_folds(config, folder, rows, folds, finished):
    """Subjects go round the folds; the unfinished ones have a history only."""
    task = tasks.build(config)
    subjects = sorted({row["subject"] for row in rows})
    of = {subject: index % folds + 1 for index, subject in enumerate(subjects)}
    splits = []
    for fold in range(1, folds + 1):
        part = [
            {"id": row["id"], "subject": row["subject"], "fold": fold, **row}
            for row in rows
            if of[row["subject"]] == fold
        ]
        splits.append({"train": [], "val": [], "test": [row["id"] for row in part]})
        fold_folder = os.path.join(folder, f"fold_{fold}")
        os.makedirs(fold_folder, exist_ok=True)
        history = [
            {
                "epoch": e,
                "step": e,
                "lr": 1e-3 / e,
                "train_loss": 1 / e,
                "val_loss": 1.1 / e,
                f"val_{task.select}": 0.5 + 0.1 * (e == 3),
            }
            for e in range(1, 5)
        ]
        tables.write_csv(os.path.join(fold_folder, "history.csv"), history)
        if fold in finished:
            tables.write_csv(os.path.join(fold_folder, "predictions.csv"), part)
            scores = [{"metric": name, "value": value} for name, value in task.score(part).items()]
            tables.write_csv(os.path.join(fold_folder, "results.csv"), scores)
    tables.write_json(os.path.join(folder, "splits.json"), {"cases": {}, "folds": splits})
    with open(os.path.join(folder, "log.txt"), "w", encoding="utf-8") as file:
        file.write(LOG)
    if finished:
        results.aggregate(config, folder, splits, sorted(finished), Log(active=False))


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
