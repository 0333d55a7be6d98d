"""The case browser, the cohort and the rest of the page, of a run whose cases are in the cache."""

import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from report_runs import Page, make_run, needs_figures, read, shown

from fomo import kinds, report, tasks
from fomo.config import fingerprint
from fomo.data import cache, index
from fomo.pages import rates
from fomo.pages.figures.epochs import curves
from fomo.space import nifti, volume
from fomo.tasks.views import regression

VOID = {"meta", "link", "img", "input", "br", "hr", "wbr", "path", "use", "rect", "stop"}


def fill_cache(folder, ids, channels, masked, affine=(-1.0, 1.0, 2.0, 1.0)):
    """Put a small case of each id into the cache of a run, and its predicted mask into the fold that tests it."""
    config, rng = kinds.load(f"{folder}/config.yaml"), np.random.default_rng(0)
    settings = fingerprint(cache._settings(config.data, tasks.wanted(config)))
    found = {}
    for number, id in enumerate(ids):
        mask = np.zeros((12, 14, 10), np.uint8)
        mask[3:6, 4:8, 2 + number % 5 : 5 + number % 5] = 1
        arrays = [rng.normal(50, 5, mask.shape).astype(np.float32) + 40 * mask for _ in range(channels)]
        image, on_grid, geometry = volume.preprocess(arrays, np.diag(affine), mask=mask)
        place = tmp_entry(config.data.cache, id)
        np.save(place / "image.npy", image)
        if masked:
            np.save(place / "mask.npy", on_grid)
        facts = {"geometry": geometry.to_dict(), "background": image.min(axis=(1, 2, 3)).tolist(), "checksums": ["x"]}
        (place / "case.json").write_text(json.dumps(facts))
        found[id] = index.Facts(place.name, geometry.shape, tuple(facts["background"]), (), ("x",))
        if masked:
            for fold in report.run.Run(folder).folder.folds():
                if id in {row["id"] for row in fold.results().rows}:
                    nifti.write_nifti(fold.mask(id, new=True), np.roll(mask, 1, 0), np.diag(affine))
    index.write(f"{config.data.cache}/index-{settings}.jsonl", found)


def tmp_entry(folder, id):
    place = pathlib.Path(folder) / f"{id}-0123456789abcdef"
    place.mkdir(parents=True)
    return place


def record(folder, kind):
    """As cv.py leaves splits.json: with the cases' facts."""
    path = f"{folder}/splits.json"
    saved = json.loads(read(path))
    ids = sorted(id for split in saved["folds"] for part in split.values() for id in part)
    targets = {"number": lambda i: 20.0 + i, "class": lambda i: float(i % 2)}[kind]
    saved["cases"] = {id: {"subject": id[:-1], "target": targets(i)} for i, id in enumerate(ids)}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(saved, file)
    return ids


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{task: text of the page of a run of 12 cases in the cache}."""
    found = {}
    for task, kind, channels in (
        ("segmentation", "class", 3),
        ("classification", "class", 4),
        ("regression", "number", 2),
    ):
        folder = make_run(tmp_path_factory.mktemp(task) / "run", task, cases=12)
        fill_cache(folder, record(folder, kind), channels, task == "segmentation")
        found[task] = read(report.write(folder))
    return found


class Tree(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects ids and the texts of links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


@needs_figures
@pytest.mark.parametrize("task", ("segmentation", "classification", "regression"))
def test_each_row_opens_the_slices_of_its_case(pages, task):
    text = pages[task]
    rows = re.findall(r'<th scope="row"><a href="#(case-\d+)">(\w+)</a></th>', text)
    panels = re.findall(r'<details name="case"><summary>(\w+)</summary><div id="(case-\d+)">', text)
    assert len(rows) == 12 and [(anchor, id) for anchor, id in rows] == [(anchor, id) for id, anchor in panels]
    assert text.count('type="range"') == text.count('<img loading="lazy" src="data:image/jpeg') == 3 * 12
    assert ("background-image:url(data:image/png" in text) == (task == "segmentation")
    assert len(text) < 5e6 and "radiological convention" in text


@needs_figures
@pytest.mark.parametrize("task", ("segmentation", "classification", "regression"))
def test_the_page_is_well_formed(pages, task):
    tree = Tree(pages[task])
    assert not tree.open and not tree.wrong
    assert len(tree.ids) == len(set(tree.ids)) and {"the-cases", "cohort", "case-0"} <= set(tree.ids)
    assert not re.search(r"\bnan\b", Page(pages[task]).text)


@needs_figures
def test_the_other_convention_is_an_option(tmp_path):
    folder = make_run(tmp_path / "run", "classification", cases=6, eval={"radiological": False, "bootstrap": 0})
    fill_cache(folder, record(folder, "class"), 4, False)
    text = read(report.write(folder))
    assert "neurological convention" in text and '<s class="left">L</s><s class="right">R</s>' in text
    again = read(report.write(folder, radiological=True))
    assert "radiological convention" in again and '<s class="left">R</s><s class="right">L</s>' in again
    assert not re.search(r"\bnan\b", Page(text).text)  # no interval was computed


def test_who_was_in_the_study(pages):
    header, everyone, *folds = Page(pages["segmentation"]).table("The cases")
    titles = [cell.text for cell in header]
    assert titles == ["", "cases", "subjects", "without a lesion", "with a lesion", "voxels (mm)"]
    assert [cell.text for cell in everyone][:1] == ["all"] and everyone[1].value == 12
    assert everyone[3].value == everyone[4].value == 6 and everyone[5].text == "1 × 1 × 2 (12)"
    assert sum(fold[1].value for fold in folds) == 12
    titles = [cell.text for cell in Page(pages["regression"]).table("The cases")[0]]
    assert titles[3:6] == ["lowest", "mean", "highest"]


def test_errors_by_decade():
    edges, step = regression.bins(np.array([23.0, 41.5, 60.0]), "years")
    assert edges == [20, 30, 40, 50, 60, 70] and step == 10
    edges, step = regression.bins(np.array([0.0, 1.0]), "")
    assert step == pytest.approx(0.2) and edges[0] <= 0 and edges[-1] > 1


def test_the_decades_hold_every_case(pages):
    _, *rows = Page(pages["regression"]).table("Error by decade")
    assert sum(row[1].value for row in rows) == 12 and all(re.fullmatch(r"\d+0 to \d+9", row[0].text) for row in rows)


def test_wilsons_interval():
    assert rates.wilson(0, 4) == pytest.approx((0, 0.4899), abs=1e-4)  # Newcombe, Stat Med 17:857, 1998: the formula
    assert rates.wilson(56, 56) == pytest.approx((0.9358, 1), abs=1e-4)
    assert all(np.isnan(rates.wilson(0, 0)))
    assert all(rates.wilson(0, n)[0] == 0 and rates.wilson(n, n)[1] == 1 for n in range(1, 60)), "not 0.99999..."


@needs_figures
def test_an_axis_ends_where_no_value_of_its_metric_can_be():
    histories = {1: [{"epoch": 1, "val_auroc": 1.0}, {"epoch": 2, "val_auroc": 1.0}]}
    for metric, beyond in (("auroc", False), (None, True)):
        picture = curves(histories, [("val_auroc", "-", "")], "AUROC", best={}, metric=metric).text
        ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", picture)]
        assert 1.0 in ticks and any(1 < tick < 1.5 for tick in ticks) == beyond, ticks


def test_a_run_in_progress_says_so_and_can_be_loaded_again(tmp_path):
    found = shown(make_run(tmp_path / "open", "regression", finished=[1]))
    assert "In progress. This page is from 2026-01-01 12:00:30." in found.text and "reload this page" in found.text
    assert "reload this page" not in shown(make_run(tmp_path / "done", "regression")).text
