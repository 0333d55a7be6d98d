import base64
import io
import math
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from conftest import run_command
from report_runs import LOG, Page, make_run

from fomo import report, tables, volume
from fomo.config import UserError
from fomo.data.sources import Case, Volume
from fomo.report import cases, figures, page, run, sections, slices, views

TASKS = ("classification", "segmentation", "regression")
PRETRAINING = ("mae", "dino")
KINDS = (*TASKS, "targets", "multilabel", *PRETRAINING)
needs_figures = pytest.mark.skipif(not figures.available(), reason="matplotlib is not installed")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def verdict(found):
    return views.of(found).verdict(found)


def equal(cell, value):
    """A cell shows a number of the files: exactly in data-value, rounded in its text."""
    value = math.nan if value in (None, "") else float(value)
    assert cell.value == value or (math.isnan(value) and math.isnan(cell.value)), (cell, value)
    assert cell.text == page.number(value)


@pytest.fixture(scope="module")
def pages(runs):
    """{task: text of the page}."""
    return {task: read(report.write(folder)) for task, folder in runs.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {task: make_run(folder / task, task) for task in KINDS}


# of each task: {title in the table of cases: column of predictions.csv}
CASE_COLUMNS = {
    "classification": {"label": "target", "probability": "probability", "decision": "decision"},
    "regression": {"true": "target", "predicted": "prediction", "corrected": "corrected"},
    "segmentation": {
        "Dice": "dice",
        "HD95 (mm)": "hd95",
        "reference voxels": "reference_voxels",
        "surface Dice": "surface_dice",
    },
    "targets": {"loss": "loss"},
    "multilabel": {"loss": "loss"},
    "mae": {"loss": "loss"},
    "dino": {"loss": "loss", "probe, class 1": "probe_1"},
}


@pytest.mark.parametrize("task", KINDS)
def test_every_number_equals_the_files(runs, pages, task):
    folder, shown = runs[task], Page(pages[task])
    summary = tables.read_json(os.path.join(folder, "summary.json"))
    metrics = summary["metrics"]
    assert shown.values["headline"] == metrics[summary["headline"]]["pooled"]

    header, *rows = shown.table("All ")
    rows += next((others[1:] for name, others in shown.tables.items() if name.startswith("Other metrics")), [])
    column = {cell.text: i for i, cell in enumerate(header)}
    by_label = {row[0].text: row for row in rows}
    counts = [name for name in metrics if name.endswith(("_undefined", "_infinite"))]
    beside = [name for name in counts if name.rpartition("_")[0] in metrics]
    assert len(by_label) == len(metrics) - len(beside)
    for name, facts in metrics.items():
        if name in beside:
            base, _, why = name.rpartition("_")
            assert f"{facts['pooled']} {why}" in by_label[page.label(base)][column["cases left out"]].text
            continue
        row = by_label[page.label(name)]
        equal(row[column["all cases"]], facts["pooled"])
        low, high = (math.nan if facts[key] is None else facts[key] for key in ("pooled_low", "pooled_high"))
        assert row[column["95% interval"]].text == page.interval(low, high)
        if name not in (*sections._COUNTS, *counts) and task not in PRETRAINING:
            equal(row[column["mean of folds"]], facts["mean"])
            equal(row[column["SD of folds"]], facts["std"])

    if task not in PRETRAINING:  # which have one split
        header, *rows = shown.table("Test metrics of each fold")
        for row, expected in zip(rows, tables.read_csv(os.path.join(folder, "fold_results.csv")), strict=True):
            equal(row[1], expected["cases"])
            for cell, name in zip(row[2:], metrics, strict=True):
                equal(cell, expected.get(name, ""))

    header, *rows = shown.table("Every ")
    stored = "predictions_volumes.csv" if task == "multilabel" else "predictions.csv"
    predictions = {row["id"]: row for row in tables.read_csv(os.path.join(folder, stored))}
    assert sorted(row[0].text for row in rows) == sorted(predictions)
    for row in rows:
        for title, name in CASE_COLUMNS[task].items():
            equal(row[[cell.text for cell in header].index(title)], predictions[row[0].text][name])


def test_the_tables_of_the_labels_equal_the_files(runs, pages):
    folder, shown = runs["multilabel"], Page(pages["multilabel"])
    stored = {row["label"]: row for row in tables.read_csv(os.path.join(folder, "labels.csv"))}
    names = {"positive": "positives", "prevalence": "prevalence", "AUROC": "auroc", "average precision": "ap"}
    header, *rows = shown.table("Each label")
    for row in rows:
        for title, name in {**names, "AUROC, slices": "slice_auroc"}.items():
            equal(row[[cell.text for cell in header].index(title)], stored[row[0].text][name])
    scans = tables.read_csv(os.path.join(folder, "predictions_volumes.csv"))
    header, *rows = shown.table("Decisions")
    assert len(rows) == len(stored) == 3
    for row in rows:
        right, false, missed, rest = (int(cell.value) for cell in row[1:5])
        assert right + missed == int(stored[row[0].text]["positives"]) and right + false + missed + rest == len(scans)
        equal(row[7], stored[row[0].text]["f1"])


def test_the_tables_of_the_targets_equal_the_files(runs, pages):
    folder, shown = runs["targets"], Page(pages["targets"])
    metrics = tables.read_json(os.path.join(folder, "summary.json"))["metrics"]
    _, *rows = shown.table("grade: each class")
    assert [row[3].value for row in rows] == [metrics[f"grade_auroc_{name}"]["pooled"] for name in ("I", "II", "III")]
    _, *rows = shown.table("sex: each class")
    assert {row[3].value for row in rows} == {metrics["sex_auroc"]["pooled"]}
    stored = [int(line["cases"]) for line in tables.read_csv(os.path.join(folder, "confusion.csv"))]
    matrices = [cell.value for row in shown.tables["confusion"] for cell in row if cell.value is not None]
    assert matrices == stored


def test_the_confusion_matrix_equals_the_summary(runs, pages):
    shown = Page(pages["classification"])
    metrics = tables.read_json(os.path.join(runs["classification"], "summary.json"))["metrics"]
    _, ones, zeros = shown.tables["confusion"]
    assert [cell.value for cell in ones[1:] + zeros[1:]] == [
        metrics[name]["pooled"] for name in ("tp", "fn", "fp", "tn")
    ]


@needs_figures
@pytest.mark.parametrize("task", KINDS)
def test_the_page_is_one_light_file_without_requests(pages, task):
    text = pages[task]
    shown = Page(text)
    assert "svg" in shown.tags
    assert all(link.startswith(("data:", "#")) for link in shown.links), shown.links
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<link(?! rel=\"icon\" href=\"data:)", text)
    assert len(text) < 5e6
    anchors = re.findall(r'<h2 id="(\w+)"', text)
    assert re.findall(r'<a href="#(\w+)"', text) == anchors and len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("task", KINDS)
def test_the_same_run_gives_the_same_page(runs, pages, task):
    assert read(report.write(runs[task])) == pages[task]


@pytest.mark.parametrize("task", KINDS)
def test_without_matplotlib_there_are_tables_and_advice(runs, task, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    shown = Page(read(report.write(runs[task])))
    assert "svg" not in shown.tags and "img" not in shown.tags
    assert "pip install matplotlib" in shown.text
    assert shown.table("Every ")


@pytest.mark.parametrize("task", (*TASKS, "targets", "multilabel"))
def test_an_unfinished_run_shows_its_finished_folds(tmp_path, task):
    folder = make_run(tmp_path / "run", task, folds=3, finished=(1, 3))
    shown = Page(read(report.write(folder)))
    assert "2 of 3 folds finished" in shown.text
    assert "fold 2 is open (fold 2 after epoch 4 of 100)" in shown.text
    assert "Provisional" in shown.text
    assert len(shown.table("Training of each fold")) == 4  # header and three folds
    # a fold ends after the summary was written: its numbers are computed, and are those that the summary will have
    os.rename(os.path.join(folder, "summary.json"), os.path.join(folder, "kept.json"))
    again = Page(read(report.write(folder)))
    assert again.values == shown.values
    ours, theirs = (p.table("All out-of-fold cases together")[1:] for p in (again, shown))
    assert [[cell.text for cell in row[:3]] for row in ours] == [[cell.text for cell in row[:3]] for row in theirs]


def test_a_run_without_a_finished_fold_shows_its_curves(tmp_path):
    shown = Page(read(report.write(make_run(tmp_path / "run", "regression", finished=()))))
    assert "No fold is finished yet" in shown.text
    assert shown.table("Training of each fold")
    assert "Every out-of-fold case" not in shown.tables


@pytest.mark.parametrize("task", PRETRAINING)
def test_a_pretraining_that_goes_on_or_was_only_evaluated(tmp_path, task):
    shown = Page(read(report.write(make_run(tmp_path / "run", task, finished=()))))
    assert "Not finished: there are no results yet" in shown.text and shown.table("Training")
    folder = make_run(tmp_path / "evaluated", task)
    os.remove(os.path.join(folder, "fold_1", "history.csv"))
    os.remove(os.path.join(folder, "summary.json"))  # the numbers are those of the fold
    shown = Page(read(report.write(folder)))
    assert shown.table("All validation cases") and shown.table("Every validation case") and "Learning rate" not in shown.text


def test_a_stale_summary_is_not_shown(tmp_path):
    folder = make_run(tmp_path / "run", "regression")
    summary = tables.read_json(os.path.join(folder, "summary.json"))
    summary["metrics"]["mae"]["pooled"] = 12345.0
    tables.write_json(os.path.join(folder, "summary.json"), {**summary, "folds_done": [1]})
    assert "12345" not in read(report.write(folder))


def test_only_a_run_folder_has_a_report(tmp_path):
    with pytest.raises(UserError, match="config.yaml"):
        report.write(str(tmp_path))
    folder = make_run(tmp_path / "run", "regression")
    os.remove(os.path.join(folder, "splits.json"))
    with pytest.raises(UserError, match="has not begun"):
        report.write(folder)


def test_text_from_outside_is_escaped(tmp_path):
    folder = make_run(tmp_path / "run", "regression", data={"root": "/<script>alert(1)</script>"})
    text = read(report.write(folder))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "case &quot;x&quot; &lt;odd&gt;" in text  # a warning of the log


def test_a_task_without_a_view_has_a_report(runs, monkeypatch):
    monkeypatch.setattr(views, "VIEWS", {})
    text = read(report.write(runs["regression"]))
    assert re.findall(r'<a href="#(\w+)"', text) == re.findall(r'<h2 id="(\w+)"', text)
    shown = Page(text)
    header, *rows = shown.table("Every out-of-fold case")
    assert [cell.text for cell in header][:4] == ["case", "fold", "target", "prediction"] and len(rows) == 40
    assert "svg" in shown.tags and shown.table("All out-of-fold cases")


# ---------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "skill, start",
    [(3.0, "Better than chance"), (0.0, "Not shown to be better than chance"), (-3.0, "Worse than chance")],
)
def test_the_verdict_on_a_classification(tmp_path, skill, start):
    folder = make_run(tmp_path / "run", "classification", skill=skill, cases=60, seed=1)
    assert verdict(run.read(folder)).startswith(start)


def test_the_verdict_on_a_regression(tmp_path):
    found = run.read(make_run(tmp_path / "good", "regression", skill=5))
    assert re.match(r"Better than predicting the mean .*\(MAE 1\d\.\d\): the error is .* smaller", verdict(found))
    worse = [{**row, "prediction": row["target"] + 40 + index % 3} for index, row in enumerate(found.rows)]
    assert verdict(run.Run(**{**vars(found), "rows": worse})).startswith("Worse than")
    same = [{**row, "prediction": row["training_mean"]} for row in found.rows]
    assert verdict(run.Run(**{**vars(found), "rows": same})).startswith("Not shown")


def test_the_verdict_on_a_segmentation(runs):
    found = run.read(runs["segmentation"])
    # of 40 cases 36 have a reference; those with index 7, 14, 21, 28, 35 have no prediction
    assert (
        verdict(found)
        == "Better than an empty mask, which scores 0; of the 36 cases with something to find, 5 are missed altogether."
    )


def test_the_verdict_on_a_pretraining(runs):
    found = run.read(runs["mae"])
    assert verdict(found).endswith("after the first epoch it was 0.5, at the selected one (epoch 3) 0.4.")
    found = run.read(runs["dino"])
    assert found.best_row(1)["epoch"] == 4  # by the task's own rule: of equal probes the last
    assert verdict(found).startswith("No sign of collapse") and "AUROC 0.7: Better than chance" in verdict(found)
    for entropy, start in ((0.99 * math.log(64) + 0.01, "Collapsed to equal outputs"), (0.01, "Collapsed to one output")):
        metrics = {**found.metrics, "teacher_entropy": {"pooled": entropy}}
        assert verdict(run.Run(**{**vars(found), "metrics": metrics})).startswith(start)


# ------------------------------------------------------------------------------------------- cases


def test_cases_come_worst_first_with_warnings():
    base = {
        "subject": "s",
        "fold": 1.0,
        "surface_dice": 0.5,
        "average_surface_distance": 1.0,
        "sensitivity": 1.0,
        "precision": 1.0,
        "lesions_false": 0.0,
    }
    given = [
        {
            "id": "fine",
            "dice": 0.9,
            "hd95": 1.0,
            "reference_voxels": 9.0,
            "predicted_voxels": 9.0,
            "lesions_missed": 0.0,
        },
        {
            "id": "nothing",
            "dice": math.nan,
            "hd95": math.nan,
            "reference_voxels": 0.0,
            "predicted_voxels": 0.0,
            "lesions_missed": 0.0,
        },
        {
            "id": "empty",
            "dice": 0.0,
            "hd95": math.inf,
            "reference_voxels": 9.0,
            "predicted_voxels": 0.0,
            "lesions_missed": 2.0,
        },
        {
            "id": "invented",
            "dice": 0.0,
            "hd95": math.inf,
            "reference_voxels": 0.0,
            "predicted_voxels": 5.0,
            "lesions_missed": 0.0,
        },
        {
            "id": "one missed",
            "dice": 0.5,
            "hd95": 3.0,
            "reference_voxels": 9.0,
            "predicted_voxels": 5.0,
            "lesions_missed": 1.0,
        },
        {
            "id": "elsewhere",
            "dice": 0.0,
            "hd95": 9.0,
            "reference_voxels": 9.0,
            "predicted_voxels": 5.0,
            "lesions_missed": 1.0,
        },
    ]
    _, rows, warned = views.segmentation.cases([{**base, **row} for row in given])
    assert {row[0]: row[1].value for row in rows} == {
        "empty": "empty prediction",
        "elsewhere": "no overlap; 1 missed lesion",
        "invented": "nothing there, something predicted",
        "one missed": "1 missed lesion",
        "fine": "",
        "nothing": "",
    }
    assert [row[0] for row in rows][-3:] == ["one missed", "fine", "nothing"]
    assert set(warned) == {"empty", "elsewhere", "invented", "one missed"}

    base = {"subject": "s", "fold": 1.0}
    given = [
        {**base, "id": str(p), "target": 1.0, "probability": p, "decision": float(p >= 0.5)} for p in (0.9, 0.05, 0.4)
    ]
    _, rows, _ = views.classification.cases(given)
    assert [(row[0], row[1].value) for row in rows] == [("0.05", "wrong and sure of it"), ("0.4", "wrong"), ("0.9", "")]

    given = [{**base, "id": str(e), "target": 10.0, "prediction": 10.0 + e} for e in (1, -2, 3, -30)]
    columns, rows, _ = views.regression.cases(given)
    assert [(row[0], row[1].value) for row in rows] == [("-30", "outlier"), ("3", ""), ("-2", ""), ("1", "")]
    assert "corrected" not in columns


def test_outliers_by_tukeys_fence():
    # quartiles 2 and 4: the fence is at 4 + 1.5 * 2 = 7
    assert cases.outliers([1, 2, 3, 4, 7.1]).tolist() == [False, False, False, False, True]
    assert cases.outliers([1, 2, 3, 4, 6.9]).tolist() == [False] * 5
    assert cases.outliers([1, 2, 3, 4, 7.1, math.inf, math.nan]).tolist() == [
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert not cases.outliers([2, 2, 2, 2, 9]).any()  # the quartiles are equal: no spread to judge by
    assert not cases.outliers([math.nan]).any()


# --------------------------------------------------------------------------------------------- log


def test_what_the_log_says(tmp_path):
    (tmp_path / "log.txt").write_text(LOG + "2026-01-01T12:00:30 IN")  # the line that is being written
    log = run.read_log(tmp_path)
    assert log[-1]["message"] == 'case "x" <odd>'
    assert run.duration_s(log) == 60 + 30  # two sessions; the time between them does not count
    assert run.data_wait(log, 1) == pytest.approx(
        (2 * 0.1 + 0.8) / 3
    )  # a line stands for the steps since the one before
    assert run.data_wait(log, 2) == 0
    assert math.isnan(run.data_wait(log, 3))
    assert run.started(log)["code"] == "abc124"
    assert run.read_log(tmp_path / "none") == []


def test_the_selected_epoch(tmp_path):
    found = run.read(make_run(tmp_path / "run", "classification"))
    assert found.best_row(1)["epoch"] == 3
    rows = [
        {"epoch": e, "val_auroc": a, "val_loss": v}
        for e, a, v in ((1, math.nan, 0), (2, 0.7, 3.0), (3, 0.7, 2.0), (4, 0.7, 2.0))
    ]
    tied = run.Run(**{**vars(found), "histories": {1: rows}})
    assert tied.best_row(1)["epoch"] == 3  # the lower loss, then the earlier one
    assert run.Run(**{**vars(found), "histories": {1: rows[:1]}}).best_row(1) is None


# ----------------------------------------------------------------------------------------- figures


def test_numbers_in_print():
    shown = {
        0.123456: "0.1235",
        12.0: "12",
        123456.7: "123457",
        1e-7: "1e-07",
        math.nan: "undefined",
        math.inf: "infinite",
        -0.5: "-0.5",
    }
    assert {value: page.number(value) for value in shown} == shown
    assert page.label("corrected_mae") == "corrected MAE"
    assert page.label("val_dice_2") == "validation Dice, class 2"


def test_the_roc_band_surrounds_the_curve():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    scores = labels + rng.normal(size=200)
    grid, low, high = figures.roc_band(labels, scores, np.arange(200), seed=0, resamples=200)
    order = np.argsort(-scores)
    true, false = np.cumsum(labels[order]) / 100, np.cumsum(1 - labels[order]) / 100
    curve = np.interp(grid, false, true)
    assert (low <= high).all() and np.mean((low <= curve) & (curve <= high)) > 0.95
    assert 0.02 < np.mean(high - low) < 0.3
    tied = figures.roc_band(labels, np.zeros(200), np.arange(200), seed=0, resamples=20)
    assert np.allclose(tied[1], grid) and np.allclose(tied[2], grid)  # ties are one step: the diagonal


def test_calibration_bins():
    (first, second) = figures.calibration_bins(np.array([0, 1, 1]), np.array([0.11, 0.19, 1.0]))
    assert first[:3] == (pytest.approx(0.15), 0.5, 2)
    assert second[:3] == (1.0, 1.0, 1)
    # Wilson's interval of 1 in 2: 0.0945 to 0.9055
    assert first[3:] == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))


# ------------------------------------------------------------------------------------------ slices


@needs_figures
def test_pictures_of_the_best_median_and_worst_case(tmp_path):
    shape, affine = (12, 10, 8), np.diag([-1.0, 1.0, 2.0, 1.0])  # stored right to left
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 3:6, 4:6] = 1
    rng = np.random.default_rng(0)
    plain, lesion = rng.normal(5, 1, shape).astype(np.float32), (rng.normal(5, 1, shape) + 9 * mask).astype(np.float32)
    for name, array in (("t1", plain), ("flair", lesion), ("mask", mask), ("predicted", np.zeros_like(mask))):
        volume.write_nifti(str(tmp_path / f"{name}.nii.gz"), array, affine)
    case = Case(
        "a",
        "a",
        (Volume(str(tmp_path / "t1.nii.gz")), Volume(str(tmp_path / "flair.nii.gz"))),
        Volume(str(tmp_path / "mask.nii.gz")),
        1.0,
        None,
    )
    channel, pictures = slices.planes(case, ("t1", "flair"), str(tmp_path / "predicted.nii.gz"))
    assert channel == "flair"
    assert [plane for plane, _ in pictures] == ["axial", "coronal", "sagittal"]
    assert all(picture.text.startswith('<img src="data:image/png;base64,') for _, picture in pictures)

    rows = [{"id": str(i), "dice": i / 10, "reference_voxels": 1.0} for i in range(5)] + [
        {"id": "none", "dice": math.nan, "reference_voxels": 0.0}
    ]
    assert [(name, row["id"]) for name, row in slices.chosen(rows)] == [("best", "4"), ("median", "2"), ("worst", "0")]
    assert [row["id"] for _, row in slices.chosen(rows[:2])] == ["1", "0"]
    assert [row["id"] for _, row in slices.chosen(rows[:1])] == ["0"]
    assert slices.chosen(rows[5:]) == []


@needs_figures
def test_a_mosaic_shows_planes_as_they_lie(tmp_path):
    from matplotlib import image

    plane = np.zeros((10, 20), np.float16)
    plane[-1, 0] = 1  # at the end of the first axis, the beginning of the second: right, below
    heat = np.zeros((10, 20))
    heat[0, -1] = 1  # left, above
    picture = slices.mosaic([[plane, plane]], [(2.0, 1.0)], "alt <text>", overlay=[[None, heat]], pixels=40)
    data = base64.b64decode(re.search("base64,([^\"]*)", picture.text).group(1))
    shown = image.imread(io.BytesIO(data))[:, :, :3]
    assert shown.shape == (40, 83, 3) and "alt &lt;text&gt;" in picture.text
    assert shown[-1, 39].min() == 1 and shown[-5, 39].max() == 0  # two voxels of 1 mm upwards are 4 pixels of 20 mm in 40
    assert shown[0, 43].max() > 0.3 > shown[0, 0].max()


@needs_figures
def test_the_overlays_of_each_fold(pages, tmp_path):
    shown = Page(pages["multilabel"])
    assert shown.tags.count("img") == 4 and "Lung nodule 0.9 (present), Cardiomegaly 0.2 (absent)" in shown.text
    folder = make_run(tmp_path / "run", "classification", eval={"saliency": 2})
    assert "The run has stored no maps." in Page(read(report.write(folder))).text
    assert "stored no maps" not in Page(pages["classification"]).text


@needs_figures
def test_images_that_are_gone_are_said_so(tmp_path):
    folder = make_run(tmp_path / "run", "segmentation", data={"source": "fomo2", "root": str(tmp_path / "gone")})
    shown = Page(read(report.write(folder)))
    assert "The images cannot be shown" in shown.text and "gone" in shown.text


# ------------------------------------------------------------------------------------- as a user


@needs_figures
def test_a_real_segmentation_run(tiny_config, tmp_path):
    done = run_command("cv.py", tiny_config("segmentation"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "run"
    done = run_command("tools/report.py", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = read(folder / "report.html")
    assert text.count("<img ") == 9 and "(ml)" in text
    assert 2e4 < len(text) < 5e6
    done = run_command("tools/report.py", tmp_path / "runs")
    assert done.returncode == 2 and "config.yaml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("task", TASKS)
def test_a_thousand_cases(tmp_path, task):
    folder = make_run(tmp_path / "run", task, cases=1000, folds=5)
    start = time.perf_counter()
    path = report.write(folder)
    assert time.perf_counter() - start < 30
    assert os.path.getsize(path) < 5e6


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_the_table_sorts_in_a_browser(pages, tmp_path):
    text = pages["segmentation"]
    heads = "[...document.querySelectorAll('table.sortable th')]"
    click = f"<script>{heads}.find(head => head.textContent === 'HD95 (mm)').firstChild.click()</script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", click), encoding="utf-8")
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    done = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    header, *rows = Page(done.stdout).table("Every out-of-fold case")
    values = [row[[cell.text for cell in header].index("HD95 (mm)")].value for row in rows]
    defined = [value for value in values if not math.isnan(value)]
    assert (
        len(defined) < len(values) and defined == sorted(defined) and values[: len(defined)] == defined
    )  # undefined last
