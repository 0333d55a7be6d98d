"""Scoring files: masks and tables, by hand; missing, extra and misplaced cases are errors."""

import csv
import json
import os
import re
import shutil

import nibabel
import numpy as np
import pytest
from conftest import tool, write_table

from fomo import metrics
from fomo.config import UserError
from fomo.evaluation import evaluate
from fomo.runtime import files

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write_mask(path, voxels, value=1, shape=(12, 10, 8), affine=AFFINE):
    array = np.zeros(shape, np.uint8)
    for x in voxels:
        array[x, 2:5, 2:5] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def masks(tmp_path):
    """One case: a lesion of two found and one invented; another: nothing there or found. References by session."""
    write_mask(tmp_path / "answers/masks/s_1_ses_1.nii.gz", [1, 2, 9])
    write_mask(tmp_path / "answers/masks/s_2_ses_1.nii.gz", [])
    write_mask(tmp_path / "labels/s_1/ses_1/seg.nii.gz", [2, 3, 6])
    write_mask(tmp_path / "labels/s_2/ses_1/seg.nii.gz", [])
    return str(tmp_path / "answers"), str(tmp_path / "labels")


def test_masks_are_scored_case_by_case(masks, tmp_path):
    kind, rows, summary = evaluate.evaluate(*masks)
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
    evaluate.write(kind, rows, summary, str(tmp_path / "scores"))
    written = json.loads((tmp_path / "scores/evaluation.json").read_text())
    assert written["cases"] == 2 and written["metrics"]["dice"]["value"] == first["dice"]
    with open(tmp_path / "scores/evaluation_cases.csv") as file:
        assert float(list(csv.DictReader(file))[0]["dice"]) == first["dice"]


def test_more_classes_have_their_own_columns(masks, tmp_path):
    write_mask(tmp_path / "answers/masks/s_3.nii.gz", [2], value=2)
    write_mask(tmp_path / "labels/s_3/seg.nii.gz", [2], value=2)
    _, rows, summary = evaluate.evaluate(*masks)
    assert rows[2]["dice_2"] == 1 and np.isnan(rows[2]["dice_1"]) and np.isnan(rows[0]["dice_2"])
    assert summary["dice_2"]["value"] == 1 and summary["dice_2"]["undefined"] == 2


def test_references_of_other_classes_are_errors(masks, tmp_path):
    for name in ("s_1", "s_2"):
        write_mask(tmp_path / f"labels/{name}/ses_1/seg.nii.gz", [2, 3, 6], value=255)
    with pytest.raises(UserError, match="got masks of the labels 255, and those of .* have 1: wanted the same classes"):
        evaluate.evaluate(*masks)
    write_mask(tmp_path / "labels/s_2/ses_1/seg.nii.gz", [1])
    _, rows, _ = evaluate.evaluate(*masks)
    assert [name for name in rows[0] if name.startswith("dice")] == ["dice_1", "dice_255"], "no class that is nowhere"
    (tmp_path / "answers/settings.json").write_text('{"classes": 2}')  # as tools/predict.py writes it
    with pytest.raises(
        UserError, match="case s_1_ses_1: .*seg.nii.gz: got the labels 255, wanted whole numbers below 2"
    ):
        evaluate.evaluate(*masks)


class Warnings(list):
    """A log whose warnings are kept, and the column of the targets."""

    def __call__(self, event, **values):
        self.column = values["column"]

    def warn(self, message, **values):
        self.append(message)


def test_intervals_draw_subjects(tmp_path):
    log = Warnings()
    for i in range(12):
        subject, session = f"s{i // 3}", f"ses_{i}"
        write_mask(tmp_path / f"answers/{subject}_{session}.nii.gz", range(i // 3, 4 + i % 3))
        for path in (f"flat/{subject}_{session}.nii.gz", f"tree/{subject}/{session}/seg.nii.gz"):
            write_mask(tmp_path / path, range(4))
    answers = str(tmp_path / "answers")
    _, rows, by_subject = evaluate.evaluate(answers, str(tmp_path / "tree"), log=log)
    assert not log
    dices = [row["dice"] for row in rows]
    wanted = metrics.bootstrap_ci(np.mean, dices, groups=[row["id"][:2] for row in rows])
    assert (by_subject["dice"]["ci_low"], by_subject["dice"]["ci_high"]) == (wanted.low, wanted.high)
    _, _, by_case = evaluate.evaluate(answers, str(tmp_path / "flat"), log=log)
    assert len(log) == 1 and "intervals are over cases" in log[0]
    assert by_case["dice"]["ci_low"] > by_subject["dice"]["ci_low"]
    predictions = write_table(tmp_path / "p.csv", [{"id": row["id"], "prediction": row["dice"]} for row in rows])
    targets = write_table(
        tmp_path / "t.csv", [{"id": row["id"], "target": i, "subject": row["id"][:2]} for i, row in enumerate(rows)]
    )
    _, _, summary = evaluate.evaluate(predictions, targets, log=log)
    wanted = metrics.bootstrap_ci(metrics.mae, np.arange(12), dices, groups=[row["id"][:2] for row in rows])
    assert len(log) == 1 and summary["mae"]["ci_low"] == wanted.low


def test_missing_extra_and_misplaced_masks_are_errors(masks, tmp_path):
    write_mask(tmp_path / "labels/s_4/seg.nii.gz", [])
    with pytest.raises(UserError, match="1 cases of .* are missing: s_4"):
        evaluate.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [], shape=(12, 10, 9))
    with pytest.raises(UserError, match="case s_4: .*wanted equal ones"):
        evaluate.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [], affine=np.diag([1.0, 2.0, 3.5, 1.0]))
    with pytest.raises(UserError, match="case s_4: .* mm off .*wanted the same affine"):
        evaluate.evaluate(*masks)
    write_mask(tmp_path / "answers/masks/s_4.nii.gz", [])
    write_mask(tmp_path / "answers/masks/s_5.nii.gz", [])
    with pytest.raises(UserError, match="1 cases are not in .*: s_5"):
        evaluate.evaluate(*masks)
    (tmp_path / "answers/masks/s_5.nii.gz").write_bytes(b"nothing")
    write_mask(tmp_path / "labels/s_5/seg.nii.gz", [])
    with pytest.raises(UserError, match="case s_5: .*cannot read it as NIfTI"):
        evaluate.evaluate(*masks)
    with pytest.raises(UserError, match="no masks"):
        evaluate.evaluate(masks[0], str(tmp_path / "nowhere"))


def test_a_table_may_name_the_reference_masks(masks, tmp_path):
    rows = [{"id": f"s_{n}_ses_1", "age": 3, "mask": f"labels/s_{n}/ses_1/seg.nii.gz"} for n in (1, 2)]
    table = write_table(tmp_path / "table.csv", [{**row, "own": row["mask"]} for row in rows])
    wanted = [row["dice"] for row in evaluate.evaluate(*masks)[1]]
    for columns in (evaluate.Columns(), evaluate.Columns(target="own")):
        found = evaluate.evaluate(masks[0], table, columns=columns)[1]
        assert [row["dice"] for row in found] == pytest.approx(wanted, nan_ok=True)
    for mask, said in (("", "case s_2_ses_1: column 'mask': got a blank cell"), ("no.nii", "case s_2_ses_1: .*no.nii")):
        write_table(table, [rows[0], {**rows[1], "mask": mask}])
        with pytest.raises(UserError, match=said):
            evaluate.evaluate(masks[0], table)
    write_table(table, [{"id": row["id"], "age": 3} for row in rows])
    with pytest.raises(UserError, match="got the columns id, age, wanted mask, the paths of the masks .*or the folder"):
        evaluate.evaluate(masks[0], table)


def test_masks_next_to_whole_numbers_are_read_as_in_training(tmp_path):
    for name, value in (("predicted", 1.0), ("reference", 0.99995)):
        mask = np.zeros((6, 6, 6), np.float32)
        mask[2:4, 2:4, 2:4] = value
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / name / "a.nii.gz")
    _, [row], _ = evaluate.evaluate(str(tmp_path / "predicted"), str(tmp_path / "reference"))
    assert row["dice"] == 1 and row["reference_voxels"] == 8


def test_tables_are_scored_as_the_metrics_say(tmp_path):
    generator = np.random.default_rng(0)
    y, p = np.arange(20) % 2, generator.random(20)
    found = [{"id": f"c{i}", "probability": repr(float(v)), "decision": int(v > 0.3)} for i, v in enumerate(p)]
    predictions = write_table(tmp_path / "predictions.csv", found)
    references = write_table(tmp_path / "targets.csv", [{"id": f"c{i}", "target": v} for i, v in enumerate(y)])
    kind, rows, summary = evaluate.evaluate(predictions, references)
    assert kind == "classification" and len(rows) == 20
    assert summary["auroc"]["value"] == metrics.auroc(y, p) and summary["auroc"]["ci_low"] < summary["auroc"]["value"]
    assert summary["accuracy"]["value"] == np.mean((p > 0.3) == y), "the table's own decisions"
    assert "decided_at_half" not in summary
    undecided = write_table(
        tmp_path / "undecided.csv", [{k: v for k, v in row.items() if k != "decision"} for row in found]
    )
    _, _, summary = evaluate.evaluate(undecided, references)
    assert summary["accuracy"]["value"] == np.mean((p >= 0.5) == y) and summary["decided_at_half"] == {
        "value": 20,
        "n": 20,
    }

    subjects = [{**row, "subject": f"s{i // 2}"} for i, row in enumerate(found)]
    _, _, of_subjects = evaluate.evaluate(write_table(tmp_path / "subjects.csv", subjects), references)
    by_id = sorted(range(20), key=lambda i: f"c{i}")
    wanted = metrics.bootstrap_ci(metrics.auroc, y[by_id], p[by_id], 1000, 0, groups=[f"s{i // 2}" for i in by_id])
    assert (of_subjects["auroc"]["ci_low"], of_subjects["auroc"]["ci_high"]) == (wanted.low, wanted.high)

    ages = generator.uniform(20, 80, 20)
    found = [
        {"id": f"c{i}", "prediction": repr(float(v)), "corrected": repr(float(v + 1))} for i, v in enumerate(ages + 3)
    ]
    predictions = write_table(tmp_path / "ages.csv", found)
    for i, age in enumerate(ages):
        (tmp_path / f"labels/c{i}").mkdir(parents=True)
        (tmp_path / f"labels/c{i}/label.txt").write_text(f"{float(age)!r}\n")
    kind, rows, summary = evaluate.evaluate(predictions, str(tmp_path / "labels"))
    assert (
        kind == "regression"
        and summary["mae"]["value"] == pytest.approx(3)
        and summary["corrected_mae"]["value"] == pytest.approx(4)
    )
    assert rows[0]["error"] == pytest.approx(3)


def test_a_mask_of_the_layout_is_a_label(tmp_path):
    write_mask(tmp_path / "labels/a/ses_1/seg.nii.gz", [2])
    write_mask(tmp_path / "labels/b/ses_1/seg.nii.gz", [2])  # instead of which training takes labels_masked
    write_mask(tmp_path / "labels_masked/b/ses_1/seg_masked.nii.gz", [])
    for place, value in (("c/ses_1", 1), ("d", 0)):  # d's for all of its sessions
        (tmp_path / "labels" / place).mkdir(parents=True)
        (tmp_path / "labels" / place / "label.txt").write_text(f"{value}\n")
    ids = ["a_ses_1", "b_ses_1", "c_ses_1", "d_ses_1", "d_ses_2"]
    predictions = write_table(tmp_path / "p.csv", [{"id": id, "probability": 0.5, "decision": 1} for id in ids])
    _, rows, _ = evaluate.evaluate(predictions, str(tmp_path))
    assert {row["id"]: row["target"] for row in rows} == dict(zip(ids, (1, 0, 1, 0, 0)))
    (tmp_path / "labels_masked/b/ses_1/seg_masked.nii.gz").unlink()
    _, rows, _ = evaluate.evaluate(predictions, str(tmp_path / "labels"))
    assert [row["target"] for row in rows] == [1, 1, 1, 0, 0]
    write_mask(tmp_path / "labels/d/ses_2/seg.nii.gz", [2])
    with pytest.raises(
        UserError, match="case d_ses_2: .*d/label.txt says 0 and .*d/ses_2/seg.nii.gz says 1; correct one"
    ):
        evaluate.evaluate(predictions, str(tmp_path / "labels"))


def test_which_column_is_the_target_is_not_guessed(tmp_path):
    predictions = write_table(tmp_path / "p.csv", [{"id": "a", "prediction": 60}, {"id": "b", "prediction": 70}])
    references = write_table(
        tmp_path / "t.csv", [{"id": "a", "label": 0, "age": 61}, {"id": "b", "label": 1, "age": 71}]
    )
    with pytest.raises(
        UserError, match="t.csv: got the columns label and age, wanted one of them: name it, as --column label"
    ):
        evaluate.evaluate(predictions, references)
    assert evaluate.evaluate(predictions, references, columns=evaluate.Columns("age"))[2]["mae"]["value"] == 1
    with pytest.raises(UserError, match="t.csv: got the columns id, label, age, wanted years .--column"):
        evaluate.evaluate(predictions, references, columns=evaluate.Columns("years"))
    for flag, columns in (("column", ("age",)), ("id-column", (None, "age")), ("subject-column", (None, None, "age"))):
        with pytest.raises(UserError, match=f"--{flag}: got age, and .* is no table"):
            evaluate.evaluate(predictions, str(tmp_path), columns=evaluate.Columns(*columns))


def test_the_column_that_was_learned_is_the_target(tmp_path):
    predictions = write_table(
        tmp_path / "predictions.csv", [{"id": "a", "prediction": 20}, {"id": "b", "prediction": 30}]
    )
    rows = [{"id": "a", "age": 61, "bmi": 21, "target": 5}, {"id": "b", "age": 71, "bmi": 31, "target": 5}]
    references = write_table(tmp_path / "t.csv", rows)

    def error(trained, *columns):
        """(MAE, the column that was logged, warnings): networks that learned `trained`, a table of id and `columns`."""
        (tmp_path / "settings.json").write_text(json.dumps({"targets": trained}))
        write_table(references, [{name: row[name] for name in ("id", *columns)} for row in rows])
        log = Warnings()
        *_, summary = evaluate.evaluate(predictions, references, resamples=0, log=log)
        return summary["mae"]["value"], getattr(log, "column", None), log

    assert error(["bmi"], "age", "bmi", "target") == (1, "bmi", [])
    assert error(["bmi"], "age", "target") == (20, "target", [])
    mae, column, warnings = error([], "age", "bmi")  # learned from files of labels, or by an older version
    assert (mae, column) == (41, None) and "the targets' column was guessed by its name" in warnings[0]
    with pytest.raises(
        UserError, match="t.csv: got the columns id, age, wanted bmi or target, or the name .*--column NAME"
    ):
        error(["bmi"], "age")
    with pytest.raises(UserError, match="got the columns target and age, wanted one of them: .*--column target"):
        error([], "age", "target")


def test_names_of_ids_subjects_and_classes(tmp_path):
    found = [{"id": id, "probability": p, "decision": int(p > 0.5)} for id, p in zip("abcd", (0.1, 0.6, 0.7, 0.2))]
    predictions = write_table(tmp_path / "predictions.csv", found)
    classes = ("CN", "very mild", "CN", "very mild")
    rows = [{"accession": id, "patient": id in "ab", "cohort": text} for id, text in zip("abcd", classes)]
    references, columns = write_table(tmp_path / "t.csv", rows), evaluate.Columns(id="accession", subject="patient")

    def targets(names, texts, columns=columns):
        (tmp_path / "settings.json").write_text(json.dumps({"targets": ["cohort"], "class_names": names}))
        write_table(references, [{**row, "cohort": text} for row, text in zip(rows, texts)])
        return [row["target"] for row in evaluate.evaluate(predictions, references, resamples=20, columns=columns)[1]]

    assert targets(["CN", "very_mild"], classes) == [0, 1, 0, 1]
    assert targets(["very_mild", "CN"], classes) == [1, 0, 1, 0]
    assert targets(["CN", "very_mild"], (0, "1.0", 0, 1)) == [0, 1, 0, 1], "numbers are the classes' own"
    assert targets(["1", "2"], (1, 2, 1, 2)) == [0, 1, 0, 1]
    assert targets(["0", "1"], ("0", "1.0", "0.0", "1")) == [0, 1, 0, 1]
    with pytest.raises(UserError, match="t.csv: case b: got 'MCI', wanted one of the classes CN, very_mild$"):
        targets(["CN", "very_mild"], ("CN", "MCI", "CN", "CN"))
    with pytest.raises(UserError, match="t.csv: case a: got '0', wanted one of the classes 1, 2$"):
        targets(["1", "2"], (0, 1, 0, 1))
    with pytest.raises(UserError, match="t.csv: case a: got 'CN', wanted a number: names of classes are known where"):
        targets([], classes)
    with pytest.raises(
        UserError, match="got the columns accession, patient, cohort, wanted id .--id-column. and a line per case"
    ):
        targets(["CN", "very_mild"], classes, evaluate.Columns())
    with pytest.raises(UserError, match="got the columns accession, patient, cohort, wanted pid .--subject-column"):
        targets(["CN", "very_mild"], classes, columns._replace(subject="pid"))


def test_intervals_are_over_the_subjects_of_the_column_that_is_named(tmp_path):
    values = np.random.default_rng(0).random(24)
    pairs, fours = ([f"{i // size}" for i in range(24)] for size in (2, 4))
    found = [{"id": f"{i:02d}", "subject": pairs[i], "prediction": repr(float(v))} for i, v in enumerate(values)]
    predictions = write_table(tmp_path / "p.csv", found)
    references = write_table(
        tmp_path / "t.csv", [{"id": f"{i:02d}", "target": i, "patient": fours[i]} for i in range(24)]
    )
    for name, groups in ((None, pairs), ("patient", fours)):
        _, _, summary = evaluate.evaluate(predictions, references, columns=evaluate.Columns(subject=name))
        assert summary["mae"]["ci_low"] == metrics.bootstrap_ci(metrics.mae, np.arange(24), values, groups=groups).low
    found = [{"id": f"v{i}", "probability_x": i / 24, "subject": pairs[i]} for i in range(24)]
    predictions = write_table(tmp_path / "p.csv", found)
    rows = [{"scan": f"v{i}.nii.gz", "x": i % 2, "patient": fours[i]} for i in range(24)]
    references = write_table(tmp_path / "t.csv", rows)
    _, rows, _ = evaluate.evaluate(predictions, references, columns=evaluate.Columns(id="scan", subject="patient"))
    assert [row["subject"] for row in rows] == fours


def test_a_subjects_label_is_not_that_of_another_whose_name_begins_alike(tmp_path):
    def label(place, value):
        (tmp_path / "labels" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / place / "label.txt").write_text(f"{value}\n")

    def targets(*ids):
        predictions = write_table(tmp_path / "p.csv", [{"id": id, "prediction": 60} for id in ids])
        return [row["target"] for row in evaluate.evaluate(predictions, str(tmp_path / "labels"), resamples=0)[1]]

    label("sub_1", 61)
    assert targets("sub_1_ses_1", "sub_1_ses-2_run-1", "sub_1_baseline", "sub_1_session_1_ses_2") == [61] * 4
    with pytest.raises(UserError, match="1 cases are not in .*labels: sub_1_2_ses_1"):
        targets("sub_1_ses_1", "sub_1_2_ses_1")
    label("sub_1_2/ses_1", 71)
    assert targets("sub_1_2_ses_1", "sub_1_ses_1") == [71, 61]
    with pytest.raises(UserError, match="1 cases are not in .*labels: sub_1_2_followup"):
        targets("sub_1_2_ses_1", "sub_1_2_followup", "sub_1_ses_1")
    label("sub_1_2", 71)
    assert targets("sub_1_2_followup", "sub_1_2_ses_1", "sub_1_ses_1") == [71, 71, 61]


def test_links_are_followed_and_hidden_entries_left_out(masks, tmp_path):
    wanted = evaluate.evaluate(*masks)[1]
    (tmp_path / "labels/s_2").rename(tmp_path / "elsewhere")
    (tmp_path / "labels/s_2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "labels")
    write_mask(tmp_path / "labels/.ipynb_checkpoints/seg.nii.gz", [1])
    write_mask(tmp_path / "labels/s_1/ses_1/.old/seg.nii.gz", [1])
    write_mask(tmp_path / "answers/masks/._s_1_ses_1.nii.gz", [1])
    assert str(evaluate.evaluate(*masks)[1]) == str(wanted)


def test_references_may_have_what_a_run_did_not_test_and_nothing_else(tmp_path):
    run, ids = tmp_path / "run", [f"c{i}" for i in range(8)]
    run.mkdir()
    (run / "config.yaml").write_text("task: {type: regression}\ndata: {channels: [t1]}\n")
    write_table(
        run / "predictions.csv", [{"id": id, "subject": id, "prediction": 60 + i} for i, id in enumerate(ids[:4])]
    )
    references = write_table(tmp_path / "t.csv", [{"id": id, "target": 60} for id in ids])

    def split(*tested):
        folds = [{"train": [], "val": [], "test": test} for test in tested]
        (run / "splits.json").write_text(json.dumps({"cases": {id: {} for id in ids}, "folds": folds}))
        return evaluate.evaluate(str(run), references, resamples=0)[1]

    assert [row["id"] for row in split(ids[:4])] == ids[:4], "one split: the others were trained on"
    with pytest.raises(UserError, match="4 cases of .*t.csv are missing: c4"):
        split(ids[:4], ids[4:])  # the second fold is not finished


def test_the_masks_of_a_run_are_those_of_its_folds(trained, scans, tmp_path):
    run, root = trained("segmentation"), str(scans("segmentation"))
    wanted = files.read_csv(os.path.join(run, "predictions.csv"))
    kind, rows, _ = evaluate.evaluate(str(run), root, resamples=0)
    assert kind == "segmentation" and [row["id"] for row in rows] == [row["id"] for row in wanted]
    for name in ("predicted_voxels", "reference_voxels", "dice", "surface_dice"):
        assert [row[name] for row in rows] == pytest.approx([float(row[name] or "nan") for row in wanted], nan_ok=True)
    labels = tmp_path / "labels"
    shutil.copytree(os.path.join(root, "labels"), labels)
    path = min(labels.glob("*/*/seg.nii.gz"))
    mask = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(mask.shape, 2, np.uint8), mask.affine), path)
    with pytest.raises(
        UserError, match="got the labels 2, wanted whole numbers below 2, the classes of the predictions"
    ):
        evaluate.evaluate(str(run), str(labels))
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.pt"))
    (copy / "fold_1/masks" / f"{rows[0]['id']}.nii.gz").write_bytes(b"")
    (copy / "fold_2/masks" / f"{rows[0]['id']}.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=f"two masks of the case {rows[0]['id']}: .*fold_1.* and .*fold_2"):
        evaluate.evaluate(str(copy), root)


def test_an_undefined_correction_is_nan(tmp_path):
    rows = [{"id": id, "prediction": p, "corrected": "nan"} for id, p in (("a", 60), ("b", 70))]
    references = write_table(tmp_path / "t.csv", [{"id": "a", "target": 61}, {"id": "b", "target": 71}])
    _, _, summary = evaluate.evaluate(write_table(tmp_path / "p.csv", rows), references)
    assert summary["mae"]["value"] == 1
    assert all(np.isnan(summary[f"corrected_{name}"]["value"]) for name in ("mae", "r2", "pearson"))
    with pytest.raises(UserError, match="case a: got 'nan', wanted a number"):
        evaluate.evaluate(write_table(tmp_path / "p.csv", [{**row, "prediction": "nan"} for row in rows]), references)


def test_bad_options_are_errors(masks):
    for options, said in (
        ({"resamples": -5}, "--bootstrap: got -5"),
        ({"tolerance_mm": -1.0}, "--tolerance-mm: got -1"),
        ({"tolerance_mm": float("nan")}, "--tolerance-mm: got nan"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.evaluate(*masks, **options)


def test_bad_tables_are_errors(tmp_path):
    references = write_table(tmp_path / "targets.csv", [{"id": "a", "target": 0}, {"id": "b", "target": 1}])
    for rows, said in (
        ([{"id": "a", "probability": 0.1}], "1 cases of .* are missing: b"),
        ([{"id": i, "probability": 0.1} for i in "abc"], "1 cases are not in .*: c"),
        ([{"id": i, "probability": 0.1} for i in "aba"], "line 4: got the case a as in line 2"),
        ([{"id": "a", "probability": "x"}, {"id": "b", "probability": 1}], "case a: got 'x', wanted a number"),
        ([{"id": i, "probability": 0.1, "decision": 2} for i in "ab"], "case a: got 2, wanted 0 or 1"),
        ([{"id": "a", "score": 1}], "wanted id and probability, or id and prediction"),
        ([{"name": "a", "probability": 1}], "wanted id"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.evaluate(write_table(tmp_path / "p.csv", rows), references)
    twice = write_table(tmp_path / "twice.csv", [{"id": i, "target": 0} for i in "abb"])
    with pytest.raises(UserError, match="twice.csv: line 4: got the case b as in line 3, wanted each once"):
        evaluate.evaluate(write_table(tmp_path / "p.csv", [{"id": i, "probability": 0.1} for i in "ab"]), twice)
    found = write_table(tmp_path / "p.csv", [{"id": "v.nii.gz", "probability_x": 0.1}])
    twice = write_table(tmp_path / "twice.csv", [{"VolumeName": f"v.{end}", "x": 0} for end in ("nii.gz", "npy")])
    with pytest.raises(UserError, match="twice.csv: line 3: got the case v as in line 2"):
        evaluate.evaluate(found, twice)
    two = write_table(tmp_path / "two.csv", [{"id": f"v.{end}", "probability_x": 0.1} for end in ("nii.gz", "npy")])
    with pytest.raises(UserError, match="two.csv: got v.nii.gz and v.npy, which are one volume"):
        evaluate.evaluate(two, write_table(tmp_path / "once.csv", [{"VolumeName": "v", "x": 0}]))
    with pytest.raises(UserError, match="got the columns id, probability, wanted target, or the name of the targets'"):
        evaluate.evaluate(write_table(tmp_path / "p.csv", [{"id": "a", "probability": 1}]), str(tmp_path / "p.csv"))
    with pytest.raises(UserError, match="no masks"):
        evaluate.evaluate(str(tmp_path / "nowhere"), references)


def test_the_command_writes_and_logs(masks, capsys):
    tool("evaluate", "--predictions", masks[0], "--references", masks[1], "--bootstrap", 50)
    assert re.search(r" evaluate metric=dice value=0.333333 ", capsys.readouterr().out)
    assert {"evaluation.csv", "evaluation_cases.csv", "evaluation.json"} <= set(os.listdir(masks[0]))


@pytest.mark.parametrize(
    "predicted, wanted, sides",
    [
        ((1, 3), (1, 4), "predictions=3 references=4"),
        ((1, 2), (1, 2), None),
        ((1,), (1, 4), "predictions=none references=4"),
    ],
)
def test_classes_that_one_side_has_are_warned_of(tmp_path, capsys, predicted, wanted, sides):
    for folder, (first, *other) in (("p", predicted), ("r", wanted)):
        mask = np.zeros((12, 10, 8), np.uint8)
        mask[:3] = first
        mask[6:9] = other[0] if other else 0
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(mask, AFFINE), tmp_path / folder / "a.nii.gz")
    tool("evaluate", "--predictions", tmp_path / "p", "--references", tmp_path / "r", "--bootstrap", 0)
    found = [line for line in capsys.readouterr().out.splitlines() if "only one side has" in line]
    assert [line.partition('?" ')[2] for line in found] == ([sides] if sides else [])


def test_units_of_metres_give_distances_in_mm(tmp_path):
    for folder, z in (("p", 5), ("r", 2)):
        mask = np.zeros((12, 10, 8), np.uint8)
        mask[5, 5, z] = 1
        image = nibabel.Nifti1Image(mask, np.diag([0.0015, 0.0015, 0.004, 1.0]))
        image.header.set_xyzt_units("meter")
        (tmp_path / folder).mkdir()
        nibabel.save(image, tmp_path / folder / "a.nii.gz")
    _, rows, _ = evaluate.evaluate(str(tmp_path / "p"), str(tmp_path / "r"), resamples=0)
    assert rows[0]["hd95"] == pytest.approx(12, abs=1e-4) and rows[0]["surface_dice"] == 0


def test_zeros_that_a_spreadsheet_has_dropped_are_recognised(tmp_path):
    found = write_table(tmp_path / "p.csv", [{"id": id, "probability": 0.1} for id in ("007", "012")])
    references = write_table(tmp_path / "r.csv", [{"id": id, "target": 0} for id in ("7", "12")])
    with pytest.raises(UserError, match="missing: 12, 7; there is '012' for '12': a spreadsheet has changed numbers"):
        evaluate.evaluate(found, references)
