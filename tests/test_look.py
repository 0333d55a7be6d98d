"""The page of a data set before training: what it shows of the cases, and that it trains nothing."""

import re

import pytest
import torch
from conftest import run_command

from fomo import kinds, tasks
from fomo.data import loader, sources
from fomo.report import look


class Silent:
    def __call__(self, *_, **__): ...

    def warn(self, *_, **__): ...

    def status(self, *_, **__): ...


def pictures(page):
    return page.count("<img "), page.count("<svg ")


def test_the_tool_writes_one_page_of_cases_masks_and_patches(tiny_config, tmp_path):
    path, page = tiny_config("segmentation"), tmp_path / "look.html"
    done = run_command("tools/look.py", path, "augment.preset=all", "--output", page, "--cases", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(page)
    text = page.read_text()
    config = kinds.load(path)
    listed = sources.list_cases(config.data, tasks.wanted(config))
    drawn = re.findall(r'<h2 id="case-\d+">([^<]+)', text)
    assert drawn == [listed[0].id, listed[8].id, listed[15].id], "evenly chosen: 0, 7.5 and 15"
    channels = len(config.data.channels)
    assert pictures(text) == (3 * (1 + channels), 3), "a case and a patch of each channel, and a histogram"
    assert " ml</td>" in text and "under the mask" in text and " voxels</dd>" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text), "the page asks for nothing"
    assert not (tmp_path / "runs" / "run").exists(), "nothing is trained"


@pytest.mark.parametrize(
    "task, label",
    [("classification", r"<dt>label</dt><dd>[01]</dd>"), ("regression", r"<dt>label</dt><dd>\d+(\.\d+)?</dd>")],
)
def test_labels_of_other_tasks(tiny_config, tmp_path, task, label):
    config = kinds.load(tiny_config(task))
    text = open(look.write(config, str(tmp_path / "look.html"), 2, Silent())).read()
    assert len(re.findall(label, text)) == 2 and "under the mask" not in text
    assert pictures(text) == (2 * (1 + len(config.data.channels)), 2)


@pytest.mark.parametrize("task", ["mae", "dino"])
def test_pretraining_has_no_labels_and_dino_no_single_patch_after(tiny_config, tmp_path, task):
    views = {"global_size": [32, 32, 32], "local_size": [32, 16, 16]} if task == "dino" else {}
    data = {"channels": ["flair"]}
    config = kinds.load(tiny_config("regression", task={"type": task, **views}, data=data))
    text = open(look.write(config, str(tmp_path / "look.html"), 1, Silent())).read()
    assert "<dt>label</dt><dd>none</dd>" in text
    assert ("its views are not drawn" in text) == (task == "dino")


def test_the_patch_is_one_that_a_step_would_see(tiny_config):
    for preset in ("none", "strong"):
        config = kinds.load(tiny_config("segmentation", augment={"preset": preset}, train={"batch_size": 1}))
        wanted = tasks.wanted(config)
        [case] = sources.prepare(sources.list_cases(config.data, wanted)[:1], config.data, wanted)
        task = tasks.build(config)
        before, after = loader.before_and_after(config, task, case, 1)
        batch = loader.read_batch(config, task, [case], 1, [0])
        assert torch.equal(after["image"], batch["image"][0]) and torch.equal(after["mask"], batch["mask"][0])
        assert torch.equal(before["image"], after["image"]) == (preset == "none")


def test_wrong_arguments_are_one_line(tiny_config, tmp_path):
    done = run_command("tools/look.py", tiny_config("regression"), "--cases", 0)
    assert done.returncode == 2 and "--cases: got 0, wanted 1 or more" in done.stderr
    done = run_command("tools/look.py", tiny_config("regression"), "data.rot=x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
