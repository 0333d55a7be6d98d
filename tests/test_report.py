import os
import re
import shutil
import subprocess
import time

import pytest
from report_runs import Page, make_run, needs_figures, read, shown

from fomo import report
from fomo.config import UserError
from fomo.pages import figures, page
from fomo.runtime import files
from fomo.tasks.regression import Regression
from fomo.tasks.views.view import View

TASKS = ("classification", "segmentation", "regression")
PRETRAINING = ("mae", "dino")
KINDS = (*TASKS, "targets", "multilabel", *PRETRAINING)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {task: make_run(folder / task, task) for task in KINDS}


@pytest.fixture(scope="module")
def pages(runs):
    """{task: text of the page}."""
    return {task: read(report.write(folder)) for task, folder in runs.items()}


# ------------------------------------------------------------------------------------------ one file


@needs_figures
@pytest.mark.parametrize("task", KINDS)
def test_the_page_is_one_light_file_without_requests(pages, task):
    text = pages[task]
    found = Page(text)
    assert "svg" in found.tags
    assert all(link.startswith(("data:", "#")) for link in found.links), found.links
    assert not re.search(r"@import|url\((?!#|data:)|fetch\(|XMLHttpRequest|<link(?! rel=\"icon\" href=\"data:)", text)
    assert len(text) < 5e6
    anchors = re.findall(r'<h2 id="(\w+)"', text)
    assert re.findall(r'<a href="#(\w+)"', text) == anchors and len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("task", KINDS)
def test_the_same_run_gives_the_same_page(runs, pages, task):
    assert read(report.write(runs[task])) == pages[task]


@pytest.mark.parametrize("task", KINDS)
def test_without_matplotlib_there_are_tables_and_advice(runs, task, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    found = shown(runs[task])
    assert "svg" not in found.tags and "img" not in found.tags
    assert "pip install matplotlib" in found.text
    assert found.table("Every ")


def test_a_task_without_a_view_has_a_report(runs, monkeypatch):
    monkeypatch.setattr(Regression, "view", View())
    text = read(report.write(runs["regression"]))
    assert re.findall(r'<a href="#(\w+)"', text) == re.findall(r'<h2 id="(\w+)"', text)
    found = Page(text)
    header, *rows = found.table("Every out-of-fold case")
    titles = [cell.text for cell in header]
    assert titles[:3] == ["case", "target", "prediction"] and titles[-1] == "fold" and len(rows) == 40
    assert "svg" in found.tags and found.table("All out-of-fold cases")


def test_cases_that_a_view_does_not_sort_are_not_called_sorted(runs, monkeypatch):
    plain = View().cases
    assert shown(runs["regression"]).table("Every out-of-fold case, worst first")
    monkeypatch.setattr(Regression, "view", View(cases=lambda run: plain(run), order=""))
    found = shown(runs["regression"])
    assert found.table("Every out-of-fold case; 0 of 40 with a warning") and "worst first" not in found.text


@pytest.mark.parametrize("preset, parameters, said", (
    ("none", {"blur": {"p": 1}}, "none, with blur"),
    ("basic", {"gamma": {"p": 0}, "noise": {"p": 1}}, "basic, with gamma, noise"),
    ("basic", None, "basic"),
))  # fmt: skip
def test_the_augmentation_that_was_run(tmp_path, preset, parameters, said):
    folder = make_run(tmp_path / "run", "regression", augment={"preset": preset, "parameters": parameters})
    assert f"<dt>augmentation</dt><dd>{said}</dd>" in read(report.write(folder))


def test_text_from_outside_is_escaped(tmp_path):
    folder = make_run(tmp_path / "run", "regression", data={"root": "/<script>alert(1)</script>"})
    text = read(report.write(folder))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "case &quot;x&quot; &lt;odd&gt;" in text  # a warning of the log


def test_numbers_in_print():
    shown = {
        0.123456: "0.1235",
        0.8: "0.8000",
        0.99999: "1.000",
        1.0: "1",
        12.0: "12",
        1234.5: "1234",
        123456.7: "123457",
        1e-7: "1.000e-07",
        float("nan"): "undefined",
        float("inf"): "infinite",
        -0.5: "-0.5000",
    }
    assert {value: page.number(value) for value in shown} == shown


def test_names_in_print():
    assert page.label("corrected_mae") == "corrected MAE"
    assert page.label("volume_similarity_nerve") == "volume similarity, nerve"
    assert (page.label("volume_similarity"), page.label("volume_auroc")) == ("volume similarity", "AUROC")
    assert page.label("tumour_lesion_sensitivity") == "tumour: lesion sensitivity"
    assert page.label("age_corrected_mae") == "age: corrected MAE"
    assert page.label("age_bias_slope") == "age: bias slope"
    assert page.label("val_dice_2") == "validation Dice, class 2"
    assert page.breakable("/a/b_c<").text == "/<wbr>a/<wbr>b_<wbr>c&lt;"


# ---------------------------------------------------------------------------- runs that are not finished


@pytest.mark.parametrize("task", (*TASKS, "targets", "multilabel"))
def test_an_unfinished_run_shows_its_finished_folds(tmp_path, task):
    folder = make_run(tmp_path / "run", task, folds=3, finished=(1, 3))
    found = shown(folder)
    assert "2 of 3 folds finished" in found.text
    assert "fold 2 is open (fold 2 after epoch 4 of 100)" in found.text
    assert "Provisional" in found.text
    assert len(found.table("Training of each fold")) == 4  # header and three folds
    # a fold ends after the summary was written: its numbers are computed, and are those that the summary will have
    os.rename(os.path.join(folder, "summary.json"), os.path.join(folder, "kept.json"))
    again = shown(folder)
    assert again.values == found.values
    ours, theirs = (p.table("All out-of-fold cases together")[1:] for p in (again, found))
    assert [[cell.text for cell in row[:3]] for row in ours] == [[cell.text for cell in row[:3]] for row in theirs]


def test_a_run_without_a_finished_fold_shows_its_curves(tmp_path):
    found = shown(make_run(tmp_path / "run", "regression", finished=()))
    assert "No fold is finished yet" in found.text
    assert found.table("Training of each fold")
    assert "Every out-of-fold case" not in found.tables


def test_a_stale_summary_is_not_shown(tmp_path):
    folder = make_run(tmp_path / "run", "regression")
    summary = files.read_json(os.path.join(folder, "summary.json"))
    summary["metrics"]["mae"]["pooled"] = 12345.0
    files.write_json(os.path.join(folder, "summary.json"), {**summary, "folds_done": [1]})
    assert "12345" not in read(report.write(folder))


def test_only_a_run_folder_has_a_report(tmp_path):
    with pytest.raises(UserError, match="config.yaml"):
        report.write(str(tmp_path))
    folder = make_run(tmp_path / "run", "regression")
    os.remove(os.path.join(folder, "splits.json"))
    with pytest.raises(UserError, match="has not begun"):
        report.write(folder)


# ------------------------------------------------------------------------------------------- as a user


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
    command = (
        "chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=2000 --enable-logging=stderr --dump-dom"
    )
    done = subprocess.run(
        [*command.split(), f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=300
    )
    assert "CONSOLE" not in done.stderr
    header, *rows = Page(done.stdout).table("Every out-of-fold case")
    values = [row[[cell.text for cell in header].index("HD95 (mm)")].value for row in rows]
    defined = [value for value in values if value == value]
    assert len(defined) < len(values)
    assert defined == sorted(defined) and values[: len(defined)] == defined  # undefined last
