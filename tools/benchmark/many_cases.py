"""What a report, a comparison, an evaluation and the making of folds take of many cases; `growth` prints it."""

import os
import tempfile

import numpy as np
import yaml

from fomo import config, folds, kinds, report, tasks
from fomo.evaluation import evaluate
from fomo.run_folder import RunFolder
from fomo.runs import pooled
from fomo.runtime import files
from fomo.runtime.log import Log
from fomo.tasks import Results

from .timing import timed

SECTIONS = {"task": {"type": "classification"}, "data": {"source": "fomo1", "root": "nowhere", "channels": ["flair"]}}


def seconds(cases, rows):
    """{what: seconds} of the report and the comparison of runs of so many cases, and of a table and folds of `rows`."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [make_run(os.path.join(folder, name), cases, seed) for seed, name in enumerate("ab")]
        table, references = os.path.join(folder, "table.csv"), os.path.join(folder, "references.csv")
        made = case_rows(rows, 0)
        files.write_csv(table, [{name: value for name, value in row.items() if name != "target"} for row in made])
        files.write_csv(references, [{"id": row["id"], "target": row["target"]} for row in made])
        work = {
            "report": lambda: report.write(runs[0]),
            "comparison": lambda: report.write_comparison(
                *report.compare(runs, 1000), os.path.join(folder, "compared")
            ),
            "evaluation": lambda: evaluate.evaluate(table, references),
            **{f"folds_{kind}": make_folds(kind, rows) for kind in ("class", "continuous", "multilabel")},
        }
        return {name: timed(function)[0] for name, function in work.items()}


def make_folds(kind, count):
    """A function that makes the folds of so many subjects; of "multilabel" each has 18 labels."""
    rng, ids = np.random.default_rng(0), [f"{number:06d}" for number in range(count)]
    if kind == "multilabel":
        labels = list(map(tuple, rng.binomial(1, 0.15, (count, 18)).tolist()))
    else:
        labels = (rng.integers(2, size=count) if kind == "class" else rng.normal(60, 12, count)).tolist()
    return lambda: folds.kfold(ids, ids, labels, 5, 0.2, 0, kind=kind)


def make_run(path, cases, seed):
    """The path of a finished run of one fold, without networks."""
    content = {**SECTIONS, "name": os.path.basename(path), "output": os.path.dirname(path)}
    chosen, folder = kinds.from_dict(content, "the benchmark"), RunFolder(path)
    os.makedirs(path)
    files.write_text(folder.config_path, yaml.safe_dump(config.to_dict(chosen)))
    found = Results([{**row, "fold": 1} for row in case_rows(cases, seed)])
    task, fold = tasks.build(chosen), folder.fold(1)
    folder.record(cases={}, folds=[{"train": [], "val": [], "test": [row["id"] for row in found.rows]}])
    fold.make()
    fold.write_results(found, {}, task.score(found))
    pooled.aggregate(chosen, folder, Log(active=False))
    return path


def case_rows(count, seed):
    """Of two classes; two cases a subject."""
    rng, target = np.random.default_rng(seed), np.arange(count) // 2 % 2
    probability = 1 / (1 + np.exp(-rng.normal(target - 0.5)))
    return [
        {"id": f"{n:06d}", "subject": f"s{n // 2}", "loss": 1.0, "target": int(y), "probability": float(p)}
        | {"decision": int(p > 0.5)}
        for n, (y, p) in enumerate(zip(target, probability))
    ]
