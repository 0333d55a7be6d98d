"""Several findings of studies whose series may be missing: a table of volumes, a column per series, blank cells."""

import json

import numpy as np
import pytest
from conftest import ROOT, tool, write_table

from fomo import kinds
from fomo.config import UserError
from fomo.data import loader
from fomo.evaluation import evaluate
from fomo.runs import crossval
from fomo.runtime import files

SERIES, FINDINGS = ("t1", "t2", "flair"), ["infarct", "tumour", "atrophy"]


@pytest.fixture
def studies(tmp_path):
    """Function that writes 36 studies, of which a third lacks t2 and a third flair; (config, path of the table)."""
    rng, rows = np.random.default_rng(0), []
    for i in range(36):
        row = {"id": f"study{i}", "subject": f"s{i // 2}"}
        found = [int(i // 2 % 2 == 0), int(i % 3 == 0), int(i % 4 < 2)]
        for place, name in enumerate(SERIES):
            image = rng.normal(size=(16, 16, 16)).astype(np.float32)
            for k, there in enumerate(found):
                image[2 + 4 * k : 5 + 4 * k, 4:10, 4:10] += (2 + place) * there
            np.save(tmp_path / f"{i}_{name}.npy", image)
            row[name] = f"{i}_{name}.npy"
        row["t2"] = "" if i % 3 == 1 else row["t2"]
        row["flair"] = "" if i % 3 == 2 else row["flair"]
        rows.append(row | dict(zip(FINDINGS, found)))
    table = write_table(tmp_path / "studies.csv", rows)

    def write(**sections):
        content = {
            "name": "run",
            "output": str(tmp_path / "runs"),
            "task": {"type": "multilabel", "targets": FINDINGS},
            "data": {
                "source": "table", "csv": table, "channels": list(SERIES), "optional_channels": ["t2", "flair"],
                "patch": [32, 32, 32], "spacing_mm": None, "cache": str(tmp_path / "cache"), "prepare_workers": 0,
            },
            "model": {"width": 2},
            "train": {"epochs": 2, "batch_size": 4, "workers": 0, "amp": "off", "balanced": True},
            "augment": {"preset": "none", "parameters": {"channel_dropout": {"p": 0.5}}},
            "cv": {"folds": 2, "val_fraction": 0.3},
            "eval": {"bootstrap": 20},
        }  # fmt: skip
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section}
        return kinds.from_dict(content, "here"), table

    return write


def test_findings_are_learned_from_studies_that_lack_series_and_predicted_likewise(studies, tmp_path):
    config, table = studies()
    crossval.run(config)
    run = tmp_path / "runs" / "run"
    rows = files.read_csv(run / "predictions.csv")
    assert len(rows) == 36
    missing = [row["missing"] for row in sorted(rows, key=lambda row: int(row["id"].removeprefix("study")))]
    assert missing == ["", "t2", "flair"] * 12
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    assert {"volume_auroc_macro", "volume_f1_macro", "volume_crg"} <= set(summary)
    labels = {row["label"] for row in files.read_csv(run / "labels.csv")}
    assert labels == set(FINDINGS)
    assert "missing=t2:12,flair:12" in (run / "log.txt").read_text()
    tool("predict", run, "--cases", table, "--output", tmp_path / "answers")
    said = files.read_csv(tmp_path / "answers" / "predictions.csv")
    assert len(said) == 36 and sum(row["missing"] == "t2" for row in said) == 12
    _, own, summary = evaluate.evaluate(tmp_path / "answers", table, resamples=0)
    assert len(own) == 36 and summary["lacking_a_channel"]["value"] == 24 and "auroc_macro" in summary


def test_the_recipe_takes_series_that_may_be_missing():
    config = kinds.load(ROOT / "configs" / "table_studies.yaml")
    assert set(config.data.optional_channels) < set(config.data.channels)
    assert loader.drops_channels(config) and config.task.type == "multilabel"


def test_a_series_that_is_not_optional_is_wanted_in_each_study(studies):
    config, _ = studies(data={"optional_channels": ["t2"]})
    with pytest.raises(UserError, match="line 4: column 'flair': got a blank cell"):
        crossval.run(config)
