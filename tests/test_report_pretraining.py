"""The views of the masked autoencoder and of DINO, and their mosaics."""

import base64
import io
import math
import os
import re

import numpy as np
import pytest
from report_runs import make_run, needs_figures, shown, verdict

from fomo.pages import pictures
from fomo.report import run


def test_the_verdict_on_a_masked_autoencoder(tmp_path):
    found = run.Run(make_run(tmp_path / "run", "mae"))
    assert verdict(found).endswith("after the first epoch it was 0.500, at the selected one (epoch 3) 0.400.")


def test_the_verdict_on_dino(tmp_path):
    found = run.Run(make_run(tmp_path / "run", "dino"))
    assert found.best_row(1)["epoch"] == 4  # by the task's own rule: of equal probes the last
    assert verdict(found).startswith("No sign of collapse") and "AUROC 0.700: Better than chance" in verdict(found)
    for entropy, start in (
        (0.99 * math.log(64) + 0.01, "Collapsed to equal outputs"),
        (0.01, "Collapsed to one output"),
    ):
        found.metrics["teacher_entropy"] = {"pooled": entropy}
        assert verdict(found).startswith(start)


@pytest.mark.parametrize("task", ("mae", "dino"))
def test_a_pretraining_that_goes_on_or_was_only_evaluated(tmp_path, task):
    found = shown(make_run(tmp_path / "run", task, finished=()))
    assert "Not finished: there are no results yet" in found.text and found.table("Training")
    folder = make_run(tmp_path / "evaluated", task)
    os.remove(os.path.join(folder, "fold_1", "history.csv"))
    os.remove(os.path.join(folder, "summary.json"))  # the numbers are those of the fold
    found = shown(folder)
    assert (
        found.table("All validation cases")
        and found.table("Every validation case")
        and "Learning rate" not in found.text
    )


@needs_figures
def test_a_mosaic_shows_planes_as_they_lie():
    from matplotlib import image

    plane = np.zeros((10, 20), np.float16)
    plane[-1, 0] = 1  # at the end of the first axis, the beginning of the second: right, below
    heat = np.zeros((10, 20))
    heat[0, -1] = 1  # left, above
    picture = pictures.mosaic([[plane, plane]], [2], (2.0, 1.0, 9.0), "alt <text>", False, [[None, heat]], pixels=40)
    data = base64.b64decode(re.search('base64,([^"]*)', picture.text).group(1))
    found = image.imread(io.BytesIO(data), format="jpeg") / 255
    mirrored = pictures.mosaic([[plane, plane]], [2], (2.0, 1.0, 9.0), "alt <text>", True, [[None, heat]], pixels=40)
    turned = image.imread(
        io.BytesIO(base64.b64decode(re.search('base64,([^"]*)', mirrored.text).group(1))), format="jpeg"
    )
    assert turned[-1, :2].min() > 150 and turned[-1, 35:39].max() < 60
    assert found.shape == (40, 83, 3) and "alt &lt;text&gt;" in picture.text
    assert (
        found[-1, 38].min() > 0.8 and found[-8, 38].max() < 0.1
    )  # two voxels of 1 mm upwards are 4 pixels of 20 mm in 40
    assert found[0, 44].max() > 0.3 > found[0, 0].max()
