"""Every number on a page is that of the run's files: exactly where a table keeps it, rounded where it is said."""

import math
import os

import pytest
from report_runs import make_run, needs_figures, shown

from fomo.pages import page
from fomo.report import parts
from fomo.runtime import files

PRETRAINING = ("mae", "dino")
CROSS_VALIDATED = ("classification", "segmentation", "regression", "targets", "multilabel")


@pytest.fixture(scope="module", params=CROSS_VALIDATED + PRETRAINING)
def given(request, tmp_path_factory):
    """(task, run folder, its Page, the metrics of its summary.json with NaN for what is undefined)."""
    folder = make_run(tmp_path_factory.mktemp("runs") / request.param, request.param, cases=60)
    metrics = files.read_json(os.path.join(folder, "summary.json"))["metrics"]
    metrics = {name: {key: number(value) for key, value in facts.items()} for name, facts in metrics.items()}
    return request.param, folder, shown(folder), metrics


def of(*tasks):
    """For tests of the pages of these tasks only."""
    return pytest.mark.parametrize("given", tasks, indirect=True)


def number(text):
    return math.nan if text in (None, "") else float(text)


def equal(cell, value):
    """A cell shows a number of the files: exactly in data-value, rounded in its text."""
    value = number(value)
    assert cell.value == value or (math.isnan(value) and math.isnan(cell.value)), (cell, value)
    assert cell.text == page.number(value)


def by_title(found):
    """[{title: Cell}] of the rows of a table."""
    header, *rows = found
    return [{head.text: cell for head, cell in zip(header, row, strict=True)} for row in rows]


def stored(folder, *names):
    return files.read_csv(os.path.join(folder, *names))


def test_the_headline(given):
    _, folder, found, metrics = given
    summary = files.read_json(os.path.join(folder, "summary.json"))
    facts = metrics[summary.get("headline_within", summary["headline"])]
    assert found.values["headline"] == facts["pooled"]
    low, high = facts["pooled_low"], facts["pooled_high"]
    assert f"{page.number(facts['pooled'], 3)}95% interval {page.interval(low, high, 3)}" in found.text


def test_the_table_of_results(given):
    task, _, found, metrics = given
    others = [rows for name, rows in found.tables.items() if name.startswith("Other metrics")]
    rows = by_title(found.table("All ")) + [row for table in others for row in by_title(table)]
    rows = {row["metric"].text: row for row in rows}
    counts = [name for name in metrics if name.endswith(("_undefined", "_infinite"))]
    beside = [name for name in counts if name.rpartition("_")[0] in metrics]
    assert len(rows) == len(metrics) - len(beside)
    for name, facts in metrics.items():
        if name in beside:
            base, _, why = name.rpartition("_")
            assert f"{int(facts['pooled'])} {why}" in rows[page.label(base)]["cases left out"].text
            continue
        row = rows[page.label(name)]
        equal(row["all cases"], facts["pooled"])
        assert row["95% interval"].text == page.interval(facts["pooled_low"], facts["pooled_high"])
        if name not in (*parts._COUNTS, *counts) and not name.endswith("_within") and task not in PRETRAINING:
            equal(row["mean of folds"], facts["mean"])
            equal(row["SD of folds"], facts["std"])
            assert "95% interval of the mean" not in row


@of(*CROSS_VALIDATED)
def test_the_table_of_the_folds(given):
    _, folder, found, metrics = given
    _, *rows = found.table("Test metrics of each fold")
    for row, expected in zip(rows, stored(folder, "fold_results.csv"), strict=True):
        equal(row[1], expected["cases"])
        own = [name for name in metrics if not name.endswith("_within")]
        for cell, name in zip(row[2:], own, strict=True):
            equal(cell, expected.get(name, ""))


def test_the_table_of_the_training(given):
    task, folder, found, _ = given
    metric = "val_" + files.read_json(os.path.join(folder, "summary.json"))["headline"]
    for fold, row in enumerate(by_title(found.table("Training")), 1):
        history = stored(folder, f"fold_{fold}", "history.csv")
        best = history[int(row["selected epoch"].value) - 1]
        assert best["epoch"] == ("4" if task == "dino" else "3")  # made to be the best of four
        equal(row["epochs"], len(history))
        equal(row[page.label(metric)], best[metric])
        equal(row["last training loss"], history[-1]["train_loss"])
        equal(row["last validation loss"], history[-1]["val_loss"])


# of each task: {title in the table of cases: column of predictions.csv}
CASE_COLUMNS = {
    "classification": {"label": "target", "probability": "probability", "decision": "decision"},
    "regression": {"true": "target", "predicted": "prediction", "corrected": "corrected"},
    "segmentation": {
        "Dice": "dice",
        "HD95 (mm)": "hd95",
        "surface Dice": "surface_dice",
        "surface distance (mm)": "average_surface_distance",
        "sensitivity": "sensitivity",
        "precision": "precision",
        "reference (voxels)": "reference_voxels",
        "predicted (voxels)": "predicted_voxels",
        "lesions missed": "lesions_missed",
        "false lesions": "lesions_false",
    },
    "targets": {"loss": "loss"},
    "multilabel": {"loss": "loss"},
    "mae": {"loss": "loss"},
    "dino": {"loss": "loss", "probe, class 1": "probe_1"},
}


def test_the_table_of_the_cases(given):
    task, folder, found, _ = given
    rows = stored(folder, "predictions_volumes.csv" if task == "multilabel" else "predictions.csv")
    expected = {row["id"]: row for row in rows}
    rows = by_title(found.table("Every "))
    assert sorted(row["case"].text for row in rows) == sorted(expected)
    for row in rows:
        case = expected[row["case"].text]
        for title, name in CASE_COLUMNS[task].items():
            equal(row[title], case[name])
        if task not in PRETRAINING:
            equal(row["fold"], case["fold"])
        if task == "regression":
            assert row["error"].value == float(case["prediction"]) - float(case["target"])
            assert row["absolute error"].value == abs(row["error"].value)
        if task == "targets":
            classes = {"grade": ("I", "II", "III"), "sex": ("F", "M")}
            for name, texts in classes.items():
                true = texts[int(float(case[f"target_{name}"]))]
                assert (
                    row[name].text == true
                    and row[f"{name}, decided"].text == texts[int(float(case[f"decision_{name}"]))]
                )
                equal(row[f"{name}, of the true class"], case[f"probability_{name}_{true}"])


def said(metrics, task):
    """What the sentences, captions and legends say of the metrics."""

    def value(name, digits=3):
        return page.number(metrics[name]["pooled"], digits)

    return {
        "classification": lambda: [
            f"model, AUROC {value('auroc')}",
            f"model, average precision {value('average_precision')}",
            f"ECE {value('ece')}.",
        ],
        "segmentation": lambda: [
            f"mean {value('dice')}",
            f"mean {value('hd95')}",
            f"HD95 (mm) leaves out {value('hd95_infinite')} of 60 cases",
            f"Dice leaves out {value('dice_undefined')} of 60 cases",
            f"{value('hd95_infinite')} of 60 cases infinite",
            f"{value('dice_undefined')} of 60 cases undefined",
        ],
        "regression": lambda: [
            f"(MAE {value('mae_of_the_mean')}): the error is",
            f"predicted {value('bias_slope', 2)}; bias-corrected {value('corrected_bias_slope', 2)}.",
        ],
        "targets": lambda: [
            *(f"{name}, {value(f'grade_auroc_{name}')}" for name in ("I", "II", "III")),
            f"model, AUROC {value('sex_auroc')}",
            f"ECE {value('grade_ece')}.",
            f"ECE {value('sex_ece')}.",
        ],
        "multilabel": lambda: [
            *(f"mean, AUROC {value(f'{level}_auroc_macro')}" for level in ("volume", "slice")),
            *(f"all together, {value(f'{level}_ap_micro')}" for level in ("volume", "slice")),
            *(f"the mean of the labels' own errors (ECE) is {value(f'{level}_ece')}." for level in ("volume", "slice")),
        ],
        "mae": lambda: ["after the first epoch it was 0.500, at the selected one (epoch 3) 0.400."],
        "dino": lambda: [
            f"the teacher's entropy is {value('teacher_entropy')}, between 0",
            f"Linear probe on frozen features, AUROC {value('probe_auroc')}",
        ],
    }[task]()


@needs_figures
def test_the_words(given):
    task, _, found, metrics = given
    for text in said(metrics, task):
        assert text in found.text, text


@of("classification")
def test_the_confusion_matrix_of_two_classes(given):
    _, _, found, metrics = given
    _, ones, zeros = found.tables["confusion"]
    cells = [cell.value for cell in ones[1:] + zeros[1:]]
    assert cells == [metrics[name]["pooled"] for name in ("tp", "fn", "fp", "tn")]


@of("targets")
def test_the_tables_of_the_targets(given):
    _, folder, found, metrics = given
    rows = by_title(found.table("grade: each class"))
    assert [row["AUROC"].value for row in rows] == [
        metrics[f"grade_auroc_{name}"]["pooled"] for name in ("I", "II", "III")
    ]
    rows = by_title(found.table("sex: each class"))
    assert {row["AUROC"].value for row in rows} == {metrics["sex_auroc"]["pooled"]}
    counts = [cell.value for row in found.tables["confusion"] for cell in row if cell.value is not None]
    assert counts == [int(line["cases"]) for line in stored(folder, "confusion.csv")]
    (ff, fm), (mf, mm) = counts[9:11], counts[11:]  # of sex: a row per class, a column per decision
    assert [row["cases"].value for row in rows] == [ff + fm, mf + mm]
    assert (rows[1]["recall"].value, rows[1]["precision"].value) == (mm / (mf + mm), mm / (fm + mm))


LABEL_COLUMNS = {
    "positive": "positives",
    "prevalence": "prevalence",
    "AUROC": "auroc",
    "average precision": "ap",
    "calibration error (ECE)": "ece",
    "AUROC, slices": "slice_auroc",
    "average precision, slices": "slice_ap",
}


@of("multilabel")
def test_the_tables_of_the_labels(given):
    _, folder, found, _ = given
    expected = {row["label"]: row for row in stored(folder, "labels.csv")}
    rows = by_title(found.table("Each label"))
    assert len(rows) == len(expected) == 3
    for row in rows:
        of_label = expected[row["label"].text]
        for title, name in LABEL_COLUMNS.items():
            equal(row[title], of_label[name])
        low, high = (number(of_label[name]) for name in ("auroc_low", "auroc_high"))
        assert row["95% interval"].text == page.interval(low, high, 3)
    scans = stored(folder, "predictions_volumes.csv")
    for row in by_title(found.table("Decisions")):
        of_label = expected[row["label"].text]
        right, false, missed, rest = (int(cell.value) for cell in list(row.values())[1:5])
        assert right + missed == int(of_label["positives"]) and right + false + missed + rest == len(scans)
        for title in ("precision", "recall", "F1"):
            equal(row[title], of_label[title.lower()])
