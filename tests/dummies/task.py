"""A task of one file: how many lesions a case has, learned from a table as a count."""

import numpy as np
import torch

from fomo import losses
from fomo.metrics import mae
from fomo.tasks.results import Answer
from fomo.tasks.task import Columns, Task


class Count(Task):
    mode = "regression"
    out_channels = 1
    losses = ()
    reads, columns = "number", Columns(1, 1, "one column of counts")
    select, higher_is_better = "mae", False
    stratum_kind = "continuous"
    single = "prediction"

    def loss(self, outputs, batch):
        return losses.huber(outputs[:, 0], torch.log1p(batch["target"]))

    def infer(self, network, image, background, windows):
        return float(windows.each(network, image, background).mean().clamp(min=0).expm1())

    @staticmethod
    def answer(tasks, parts, geometry):
        count = float(np.mean(parts))
        return {"prediction": count, "whole": round(count)}, {}

    def predict(self, network, case, windows, fold=None):
        row, _ = self.answer([self], [self.infer(network, case.image(), case.background, windows)], None)
        return Answer.of(case, target=case.target, **row, loss=abs(row["prediction"] - case.target))

    def score(self, results):
        targets, counts = results.arrays("target", "prediction")
        return {"mae": mae(targets, counts), "exact": float(np.mean([r["whole"] == r["target"] for r in results.rows]))}

    def intervals(self, results, resamples, seed):
        return {"mae": results.bootstrap(resamples, seed)(mae, *results.arrays("target", "prediction"))}


def register(monkeypatch):
    from fomo import tasks

    monkeypatch.setitem(tasks.TASKS, "count", Count)
