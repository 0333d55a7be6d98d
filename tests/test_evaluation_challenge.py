"""tools/evaluate.py --challenge fomo26: the challenge's numbers beside this project's, never in their place."""

import csv
import json

import nibabel
import numpy as np
import pytest
from conftest import tool, write_table

from fomo import config, metrics, tasks
from fomo.evaluation import evaluate


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), np.diag([0.5, 0.5, 1.0, 1.0])), path)


@pytest.fixture
def places(tmp_path):
    """Three classes. Case a: both structures. Case b: no vessels in either. Case c: nothing in either."""
    masks = {}
    for case in "abc":
        masks[case] = np.zeros((2, 12, 12, 8), np.uint8)
    masks["a"][0, 2:8, 3:5, 3:5], masks["a"][1, 3:8, 3:5, 3:6] = 1, 1
    masks["a"][0, 2:9, 8:10, 3:5], masks["a"][1, 2:9, 9:11, 3:5] = 2, 2
    masks["b"][0, 2:8, 3:5, 3:5], masks["b"][1, 2:8, 3:5, 3:5] = 1, 1
    for case, (reference, answer) in masks.items():
        save(tmp_path / "labels" / case / "ses-01" / "seg.nii.gz", reference)
        save(tmp_path / "answers" / "masks" / f"{case}_ses-01.nii.gz", answer)
    settings = {"task": "segmentation", "targets": [], "classes": 3, "class_names": ["nerve", "vessels"]}
    (tmp_path / "answers" / "settings.json").write_text(json.dumps(settings))
    return masks, tmp_path / "answers", tmp_path / "labels"


def test_both_stand_in_columns_of_their_own(places):
    masks, answers, labels = places
    _, rows, summary = evaluate.evaluate(str(answers), str(labels), challenge="fomo26", resamples=0)
    by_id = {row["id"][0]: row for row in rows}
    for k, name in enumerate(("nerve", "vessels"), start=1):
        pair = [mask == k for mask in masks["a"]]
        row = by_id["a"]
        assert row[f"dice_{name}"] == row[f"fomo26_dice_{name}"] == metrics.dice(*pair)
        assert row[f"surface_dice_{name}"] == metrics.surface_dice(*pair, (0.5, 0.5, 1.0), 1.0)
        assert row[f"fomo26_nsd_{name}"] == metrics.fomo26_nsd(*pair, (0.5, 0.5, 1.0))
    assert np.isnan(by_id["b"]["dice_vessels"]) and by_id["b"]["fomo26_dice_vessels"] == 1
    assert by_id["b"]["fomo26_nsd_vessels"] == 0 and by_id["b"]["fomo26_nsd"] == 0.5 and by_id["b"]["fomo26_dice"] == 1
    assert np.isnan(by_id["c"]["dice_nerve"]) and (by_id["c"]["fomo26_dice"], by_id["c"]["fomo26_nsd"]) == (1, 0)
    a = by_id["a"]
    assert summary["dice_vessels"]["value"] == a["dice_vessels"] and summary["dice_vessels"]["undefined"] == 2
    assert summary["fomo26_dice_vessels"]["value"] == pytest.approx((a["dice_vessels"] + 2) / 3)
    assert summary["fomo26_nsd"]["value"] == pytest.approx((a["fomo26_nsd"] + 0.5 + 0) / 3)


def test_the_command_writes_them_and_without_the_option_none(places, tmp_path):
    _, answers, labels = places
    for more, there in ((("--challenge", "fomo26"), True), ((), False)):
        arguments = ("--predictions", answers, "--references", labels, "--output", tmp_path / "out", "--bootstrap", 20)
        tool("evaluate", *arguments, *more)
        with open(tmp_path / "out" / "evaluation.csv") as file:
            lines = {line["metric"]: line for line in csv.DictReader(file)}
        assert ("fomo26_dice_nerve" in lines) == there and "dice_nerve" in lines
        if there:
            assert float(lines["fomo26_dice"]["ci_low"]) <= float(lines["fomo26_dice"]["value"])


def test_a_class_that_nobody_has_is_scored_as_the_challenge_does(places):
    _, answers, labels = places
    for path in [*answers.rglob("*.nii.gz"), *labels.rglob("*.nii.gz")]:
        save(path, np.asarray(nibabel.load(path).dataobj) == 1)
    _, rows, _ = evaluate.evaluate(str(answers), str(labels), challenge="fomo26", resamples=0)
    assert all((row["fomo26_dice_vessels"], row["fomo26_nsd_vessels"]) == (1, 0) for row in rows)


def test_of_tables_the_challenge_has_nothing_of_its_own(tmp_path, capsys):
    rows = [{"id": name, "probability": value, "target": int(value > 0.5)} for name, value in (("a", 0.9), ("b", 0.1))]
    answers = write_table(tmp_path / "answers.csv", rows)
    tool("evaluate", "--predictions", answers, "--references", answers, "--challenge", "fomo26", "--bootstrap", 0)
    assert "challenge=fomo26 own_metrics=none" in capsys.readouterr().out


def test_shares_have_the_limits_of_shares_and_counts_without_spread_none(places):
    """From a folder of masks and from a run, whose rows have folds: both names of a metric are of one kind."""
    _, answers, labels = places
    for path in answers.rglob("*.nii.gz"):
        save(path, np.zeros(np.asarray(nibabel.load(path).dataobj).shape))
    _, rows, summary = evaluate.evaluate(str(answers), str(labels), challenge="fomo26", resamples=200)
    folds = tasks.Results([{**row, "subject": row["id"], "fold": 1 + number % 2} for number, row in enumerate(rows)])
    task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=3)))
    of_run = task.intervals(folds, 200, 0)
    for name in ("fomo26_nsd", "fomo26_nsd_nerve", "surface_dice_nerve", "volume_similarity_nerve"):
        assert summary[name]["value"] == 0 == summary[name]["ci_low"] < summary[name]["ci_high"] < 1, name
        assert 0 == of_run[name].low < of_run[name].high <= 1, name
    for name in ("lesions_detected_nerve", "lesions_false_nerve"):
        assert summary[name]["value"] == 0 and np.isnan([summary[name]["ci_low"], summary[name]["ci_high"]]).all()
        assert np.isnan([of_run[name].low, of_run[name].high]).all()
