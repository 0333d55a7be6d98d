"""Scoring files: masks and tables, by hand; missing, extra and misplaced cases are errors."""

import csv
import importlib.util
import json
import os
import re

import nibabel
import numpy as np
import pytest

from conftest import ROOT
from fomo import evaluation, metrics
from fomo.config import UserError


def write_mask(path, voxels, value=1, shape=(12, 10, 8), affine=np.diag([1.0, 2.0, 3.0, 1.0])):
    array = np.zeros(shape, np.uint8)
    for x in voxels:
        array[x, 2:5, 2:5] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def masks(tmp_path):
    """Case a: one of two lesions found and one invented; case b: nothing there, nothing found. References by session."""
    write_mask(tmp_path / "answers/masks/s_1_ses_1.nii.gz", [1, 2, 9])
    write_mask(tmp_path / "answers/masks/s_2_ses_1.nii.gz", [])
    write_mask(tmp_path / "labels/s_1/ses_1/seg.nii.gz", [2, 3, 6])
    write_mask(tmp_path / "labels/s_2/ses_1/seg.nii.gz", [])
    return str(tmp_path / "answers"), str(tmp_path / "labels")


def test_masks_are_scored_case_by_case(masks, tmp_path):
    kind, rows, summary = evaluation.evaluate(*masks)
    assert kind == "segmentation" and [row["id"] for row in rows] == ["s_1_ses_1", "s_2_ses_1"]
    first, empty = rows
    assert (first["predicted_voxels"], first["reference_voxels"]) == (27, 27)
    assert first["dice"] == pytest.approx(2 * 9 / 54)
    assert (first["lesions"], first["lesions_detected"], first["lesions_missed"], first["lesions_false"]) == (
        2,
        1,
        1,
        1,
    )
    assert np.isnan(empty["dice"]) and empty["lesions"] == 0
    assert summary["dice"]["value"] == first["dice"] and summary["dice"]["undefined"] == 1 and summary["dice"]["n"] == 2
    evaluation.write(kind, rows, summary, str(tmp_path / "scores"))
    written = json.loads((tmp_path / "scores/evaluation.json").read_text())
    assert written["cases"] == 2 and written["metrics"]["dice"]["value"] == first["dice"]
    with open(tmp_path / "scores/evaluation_cases.csv") as file:
        assert float(list(csv.DictReader(file))[0]["dice"]) == first["dice"]


def test_more_classes_have_their_own_columns(masks, tmp_path):
    write_mask(tmp_path / "answers/masks/s_3.nii.gz", [2], value=2)
    write_mask(tmp_path / "labels/s_3/seg.nii.gz", [2], value=2)
    _, rows, summary = evaluation.evaluate(*masks)
    assert rows[2]["dice_2"] == 1 and np.isnan(rows[2]["dice_1"]) and np.isnan(rows[0]["dice_2"])
    assert summary["dice_2"]["value"] == 1 and summary["dice_2"]["undefined"] == 2


def test_missing_extra_and_misplaced_masks_are_errors(masks, tmp_path):
    write_mask(tmp_path / "labels/s_4/seg.nii.gz", [])
    with pytest.raises(UserError, match="1 cases of .* are missing: s_4"):
        evaluation.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [], shape=(12, 10, 9))
    with pytest.raises(UserError, match="case s_4: .*wanted equal ones"):
        evaluation.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [], affine=np.diag([1.0, 2.0, 3.5, 1.0]))
    with pytest.raises(UserError, match="case s_4: .* mm off .*wanted the same affine"):
        evaluation.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [])
    write_mask(tmp_path / "answers/masks/s_5.nii.gz", [])
    with pytest.raises(UserError, match="1 cases are not in .*: s_5"):
        evaluation.evaluate(*masks)
    (tmp_path / "answers/masks/s_5.nii.gz").write_bytes(b"nothing")
    write_mask(tmp_path / "labels/s_5/seg.nii.gz", [])
    with pytest.raises(UserError, match="case s_5: .*cannot read it as NIfTI"):
        evaluation.evaluate(*masks)
    with pytest.raises(UserError, match="no masks"):
        evaluation.evaluate(masks[0], str(tmp_path / "nowhere"))


def test_tables_are_scored_as_the_metrics_say(tmp_path):
    generator = np.random.default_rng(0)
    y, p = np.arange(20) % 2, generator.random(20)
    found = [{"id": f"c{i}", "probability": repr(float(v)), "decision": int(v > 0.3)} for i, v in enumerate(p)]
    predictions = write_table(tmp_path / "predictions.csv", found)
    references = write_table(tmp_path / "targets.csv", [{"id": f"c{i}", "target": v} for i, v in enumerate(y)])
    kind, rows, summary = evaluation.evaluate(predictions, references)
    assert kind == "classification" and len(rows) == 20
    assert summary["auroc"]["value"] == metrics.auroc(y, p) and summary["auroc"]["ci_low"] < summary["auroc"]["value"]
    assert summary["accuracy"]["value"] == np.mean((p > 0.3) == y), "the table's own decisions"

    ages = generator.uniform(20, 80, 20)
    found = [
        {"id": f"c{i}", "prediction": repr(float(v)), "corrected": repr(float(v + 1))} for i, v in enumerate(ages + 3)
    ]
    predictions = write_table(tmp_path / "ages.csv", found)
    for i, age in enumerate(ages):
        (tmp_path / f"labels/c{i}").mkdir(parents=True)
        (tmp_path / f"labels/c{i}/label.txt").write_text(f"{float(age)!r}\n")
    kind, rows, summary = evaluation.evaluate(predictions, str(tmp_path / "labels"))
    assert (
        kind == "regression"
        and summary["mae"]["value"] == pytest.approx(3)
        and summary["corrected_mae"]["value"] == pytest.approx(4)
    )
    assert rows[0]["error"] == pytest.approx(3)


def test_bad_tables_are_errors(tmp_path):
    references = write_table(tmp_path / "targets.csv", [{"id": "a", "target": 0}, {"id": "b", "target": 1}])
    for rows, said in (
        ([{"id": "a", "probability": 0.1}], "1 cases of .* are missing: b"),
        ([{"id": i, "probability": 0.1} for i in "abc"], "1 cases are not in .*: c"),
        ([{"id": i, "probability": 0.1} for i in "aba"], "two rows for the case a"),
        ([{"id": "a", "probability": "x"}, {"id": "b", "probability": 1}], "case a: got 'x', wanted a number"),
        ([{"id": "a", "score": 1}], "wanted id and probability, or id and prediction"),
        ([{"name": "a", "probability": 1}], "wanted id"),
    ):
        with pytest.raises(UserError, match=said):
            evaluation.evaluate(write_table(tmp_path / "p.csv", rows), references)
    with pytest.raises(UserError, match="wanted id and target"):
        evaluation.evaluate(write_table(tmp_path / "p.csv", [{"id": "a", "probability": 1}]), str(tmp_path / "p.csv"))
    with pytest.raises(UserError, match="no masks"):
        evaluation.evaluate(str(tmp_path / "nowhere"), references)


def test_the_command_writes_and_logs(masks, capsys):
    spec = importlib.util.spec_from_file_location("tool_evaluate", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--predictions", masks[0], "--references", masks[1], "--bootstrap", "50"])
    assert re.search(r" evaluate metric=dice value=0.333333 ", capsys.readouterr().out)
    assert {"evaluation.csv", "evaluation_cases.csv", "evaluation.json"} <= set(os.listdir(masks[0]))
