"""A task that no file of fomo/ knows is evaluated as it says itself."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_table

from fomo import metrics, tasks
from fomo.config import UserError
from fomo.evaluation import evaluate
from fomo.tasks.task import Columns, Task


class Count(Task):
    """A task that no file of fomo/ knows: it counts, and says how sure it is."""

    mode, losses, reads, columns = "regression", (), "number", Columns(1, 1, "one column")
    select, higher_is_better, stratum_kind = "exact", True, "continuous"
    single = "count"

    def loss(self, *_):
        raise AssertionError("evaluation asks for none of these")

    predict = infer = answer = loss

    def score(self, results):
        right, sure = self._right(results.rows), [row["sure"] for row in results.rows]
        return {"exact": float(np.mean(right)), "sure_and_right": float(np.mean(right * np.array(sure)))}

    def intervals(self, results, resamples, seed):
        subjects = [row["subject"] for row in results.rows]
        right = self._right(results.rows)
        return {"exact": metrics.bootstrap_ci(np.mean, right, resamples=resamples, seed=seed, groups=subjects)}

    @staticmethod
    def _right(rows):
        return np.array([row["count"] == row["target"] for row in rows], float)


class Grade(Count):
    """Another one, of classes with names."""

    reads, single = "class", "grade"

    @classmethod
    def class_names(cls, recorded):
        return sorted({case["labels"][0] for case in recorded.values()} | {"two"})

    @staticmethod
    def _right(rows):
        return np.array([row["grade"] == row["target"] for row in rows], float)


@pytest.mark.parametrize("name, kind, single", [("count", Count, "count"), ("grading", Grade, "grade")])
def test_a_new_task_is_scored_as_it_says_by_its_own_columns(tmp_path, monkeypatch, name, kind, single):
    monkeypatch.setitem(tasks.TASKS, name, kind)
    found = [{"id": f"c{i}", single: i % 3, "sure": (i % 4) / 4, "note": "x", "subject": i // 2} for i in range(12)]
    predictions = write_table(tmp_path / "predictions.csv", found)
    texts = ["none", "one", "two"] if name == "grading" else [0, 1, 2]
    truth = [{"id": row["id"], "lesions": texts[i % 2]} for i, row in enumerate(found)]
    references = write_table(tmp_path / "t.csv", truth)
    settings = {"task": name, "targets": ["lesions"], "class_names": texts if name == "grading" else []}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    said, rows, summary = evaluate.evaluate(str(tmp_path), references, resamples=50)
    right = np.array([float(i % 3 == i % 2) for i in range(12)])
    assert said == kind.__name__.lower() and summary["exact"]["value"] == right.mean()
    assert summary["sure_and_right"]["value"] == np.mean(right * (np.arange(12) % 4) / 4)
    by_id = sorted(range(12), key=lambda i: f"c{i}")
    groups = [str(i // 2) for i in by_id]
    interval = metrics.bootstrap_ci(np.mean, right[by_id], resamples=50, groups=groups)
    assert summary["exact"] == {"value": right.mean(), "ci_low": interval.low, "ci_high": interval.high, "n": 12}
    own = ("error",) if name == "count" else ()
    assert sorted(rows[0]) == sorted(["id", "subject", "target", single, "sure", *own]), "no text"
    # a run folder knows its task, too
    run = tmp_path / "run"
    run.mkdir()
    data = "{source: table, root: /data, csv: t.csv, channels: [t1]}"
    (run / "config.yaml").write_text(f"task: {{type: {name}, targets: [lesions]}}\ndata: {data}\n")
    cases = {row["id"]: {"target": texts.index(row["lesions"]), "labels": [str(row["lesions"])]} for row in truth}
    splits = {"cases": cases, "folds": [{"train": [], "val": [], "test": list(cases)}]}
    (run / "splits.json").write_text(json.dumps(splits))
    shutil.copy(predictions, run)
    assert evaluate.evaluate(str(run), references, resamples=50)[1:] == (rows, summary)
    write_table(tmp_path / "predictions.csv", [{"id": row["id"], "prediction": 1} for row in found])
    with pytest.raises(UserError, match=f"got the columns id, prediction, wanted id and {single}$"):
        evaluate.evaluate(predictions, references)
    (tmp_path / "settings.json").write_text('{"task": "nothing"}')
    with pytest.raises(UserError, match="settings.json: task: got 'nothing', wanted one of classification, .*"):
        evaluate.evaluate(predictions, references)


def test_the_task_that_is_named_says_what_a_table_is_and_not_its_columns(tmp_path):
    found = [{"id": i, "probability": i / 9, "decision": int(i > 4), "prediction": 2 * i} for i in range(10)]
    write_table(tmp_path / "predictions.csv", found)
    references = write_table(tmp_path / "t.csv", [{"id": i, "target": i % 2} for i in range(10)])
    for task in ("classification", "regression"):
        (tmp_path / "settings.json").write_text(json.dumps({"task": task}))
        assert evaluate.evaluate(str(tmp_path), references, resamples=0)[0] == task
    (tmp_path / "settings.json").unlink()
    assert evaluate.evaluate(str(tmp_path), references, resamples=0)[0] == "classification"
