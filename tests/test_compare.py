import math
import os

import numpy as np
import pytest
from conftest import run_command
from report_runs import Page, make_run

from fomo import metrics, report
from fomo.config import UserError
from fomo.pages import page
from fomo.report import differences
from fomo.runtime import files


def test_holms_correction_by_hand():
    # sorted: .01 * 4, .02 * 3, .03 * 2 = .06 (not below the one before), .5 * 1
    assert differences.holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    corrected = differences.holm([0.02, math.nan, 0.9])
    assert corrected[0] == 0.04 and math.isnan(corrected[1]) and corrected[2] == 0.9
    assert differences.holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """{task: a weak and a strong run on the same cases}."""
    folder = tmp_path_factory.mktemp("pairs")
    found = {
        task: [make_run(folder / f"{task}_a", task, skill=0.3), make_run(folder / f"{task}_b", task, skill=3.0)]
        for task in ("classification", "segmentation", "regression", "targets", "multilabel")
    }
    strong = files.read_csv(os.path.join(found["segmentation"][1], "predictions.csv"))
    better = {row["id"]: {**row, "dice": min(1.0, float(row["dice"]) + 0.1)} for row in strong}
    for fold in (1, 2):
        path = os.path.join(found["segmentation"][1], f"fold_{fold}", "predictions.csv")
        files.write_csv(path, [better[row["id"]] for row in files.read_csv(path)])
    return found


def test_auroc_is_compared_by_delong(pairs):
    rows, runs = report.compare(pairs["classification"], resamples=200)
    a, b = runs.values()
    labels = [int(row["target"]) for row in a.rows]
    scores = [[row["probability"] for row in run.rows] for run in (b, a)]
    subjects = [row["subject"] for row in a.rows]
    assert len(set(subjects)) < len(subjects)
    folds = [row["fold"] for row in a.rows]
    for name, of_pairs in (("auroc", np.zeros(len(folds))), ("auroc_within", folds)):
        expected = metrics.delong_test(labels, *scores, groups=subjects, folds=of_pairs)
        row = next(row for row in rows if row["metric"] == name)
        assert all(row[key] == getattr(expected, key) for key in ("difference", "low", "high", "p"))
        values = row["first_value"], row["second_value"]
        assert values == pytest.approx((a.metrics[name]["pooled"], b.metrics[name]["pooled"]))
    assert row["difference"] > 0 and row["better"] == "classification_b" and row["p"] < row["p_holm"] < 0.05


@pytest.mark.parametrize(
    "task, metric, sign", [("regression", "mae", -1), ("classification", "brier", -1), ("segmentation", "dice", 1)]
)
def test_the_better_run_is_named_and_its_values_are_the_summaries(pairs, task, metric, sign):
    rows, runs = report.compare(pairs[task], resamples=500)
    row = next(row for row in rows if row["metric"] == metric)
    assert np.sign(row["difference"]) == sign and row["better"] == f"{task}_b"
    assert row["low"] <= row["difference"] <= row["high"]
    if task != "segmentation":  # whose undefined cases are left out on both sides
        for name, key in (("first", "first_value"), ("second", "second_value")):
            assert row[key] == pytest.approx(runs[row[name]].metrics[metric]["pooled"], rel=1e-12)
    else:
        undefined = sum(
            not (math.isfinite(a["dice"]) and math.isfinite(b["dice"]))
            for a, b in zip(*(run.rows for run in runs.values()))
        )
        assert row["left_out"] == undefined and row["cases"] + undefined == 40


def test_a_run_and_its_copy_do_not_differ(tmp_path):
    rows, _ = report.compare(
        [make_run(tmp_path / "a", "regression"), make_run(tmp_path / "b", "regression")], resamples=100
    )
    for row in rows:
        assert (row["difference"], row["p"], row["p_holm"], row["better"]) == (0, 1, 1, "")


def test_sessions_of_a_subject_flip_together():
    difference = np.array([1.0, 1.0, 1.0, 1.0])
    alone = differences.paired(np.zeros(4), difference, np.array(list("abcd")), 100, 0)
    together = differences.paired(np.zeros(4), difference, np.array(list("aabb")), 100, 0)
    assert alone["p"] == 2 / 2**4 and together["p"] == 2 / 2**2
    assert alone["difference"] == together["difference"] == 1


def test_three_runs_give_three_pairs_corrected_together(tmp_path):
    folders = [
        make_run(tmp_path / name, "regression", seed=0, skill=skill) for name, skill in (("a", 1), ("b", 2), ("c", 3))
    ]
    rows, _ = report.compare(folders, resamples=100)
    assert {(row["first"], row["second"]) for row in rows} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert [row["p_holm"] for row in rows] == differences.holm([row["p"] for row in rows])
    heads = [line for line in report.comparison_text(rows).splitlines() if line.startswith("metric")]
    assert [line.split()[1:3] for line in heads] == [["a", "b"], ["a", "c"], ["b", "c"]]  # a table per pair


def test_what_cannot_be_compared(tmp_path):
    a = make_run(tmp_path / "a", "regression")
    for other, message in (
        (make_run(tmp_path / "b", "classification"), "wanted one task"),
        (make_run(tmp_path / "c", "regression", cases=41), "other cases .*case_0040"),
        (make_run(tmp_path / "d", "regression", seed=1), "other labels"),
        (make_run(tmp_path / "e", "regression", finished=(1,)), "finish the run first"),
        (a, "twice"),
        (str(tmp_path), "config.yaml"),
    ):
        with pytest.raises(UserError, match=message):
            report.compare([a, other])
    with pytest.raises(UserError, match="nothing to compare"):
        report.compare([make_run(tmp_path / name, "dino") for name in "fg"])
    with pytest.raises(UserError, match="two or more"):
        report.compare([a])
    with pytest.raises(UserError, match="--resamples: got 0, wanted 1"):
        report.compare([a, a], resamples=0)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = []
    for place in "ab":
        (tmp_path / place).mkdir()
        folders.append(make_run(tmp_path / place / "run", "regression"))
    assert list(report.compare(folders, resamples=10)[1]) == folders


@pytest.mark.parametrize("task", ("classification", "segmentation", "regression", "targets", "multilabel"))
def test_text_csv_and_page_hold_the_same_numbers(pairs, task, tmp_path):
    rows, runs = report.compare(pairs[task], resamples=200)
    shown = Page(open(report.write_comparison(rows, runs, str(tmp_path)), encoding="utf-8").read())
    saved = files.read_csv(tmp_path / "comparison.csv")
    header, *lines = shown.table(f"{task}_b minus {task}_a")
    titles = [cell.text for cell in header]
    text = report.comparison_text(rows).splitlines()
    assert len(lines) == len(saved) == len(rows) == len(text) - 1
    for row, kept, cells, line in zip(rows, saved, lines, text[1:]):
        assert cells[0].text == page.label(row["metric"]) and line.startswith(cells[0].text)
        for title, name in (
            (f"{task}_a", "first_value"),
            (f"{task}_b", "second_value"),
            ("difference", "difference"),
            ("p", "p"),
            ("p (Holm)", "p_holm"),
            ("cases", "cases"),
        ):
            assert cells[titles.index(title)].value == row[name] == float(kept[name])
        assert page.number(row["difference"]) in line and page.interval(row["low"], row["high"]) in line
    per_case = {"regression": "Absolute error", "segmentation": "Dice"}.get(task, "Squared error")
    assert "Neither " in shown.text or " is better. " in shown.text  # the first thing that it says
    assert "has no test here" not in shown.text
    first = {"targets": "AUROC, mean, within folds", "multilabel": "AUROC, mean, within folds"}.get(task)
    assert first is None or f" better. {first} " in shown.text  # the headline of the runs, by fold
    assert "about the difference between these trained models" in shown.text
    assert ("DeLong's test for AUROCs, its terms summed per subject" in shown.text) == (
        task in ("classification", "targets", "multilabel")
    )
    keys = [[cell.text for cell in row] for row in shown.table("Keys of the config")[1:]]
    assert ["data.root", *(str(run.config.data.root) for run in runs.values())] in keys
    assert all(len(set(values)) == 2 for _, *values in keys)
    assert len(shown.table(f"{per_case} of each case")) == 41
    assert all(link.startswith(("data:", "#")) for link in shown.links)


def test_the_command(pairs, tmp_path):
    a, b = pairs["regression"]
    done = run_command("tools/compare.py", a, b, "--output", tmp_path / "out", "--resamples", 100)
    assert done.returncode == 0, done.stderr
    assert "MAE" in done.stdout and "p (Holm)" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["comparison.csv", "comparison.html"]
    done = run_command("tools/compare.py", a, pairs["classification"][0])
    assert done.returncode == 2 and "wanted one task" in done.stderr and "Traceback" not in done.stderr
