"""The room works when it is copied into another project by itself, with numpy and scipy only."""

import pathlib
import shutil
import subprocess
import sys

ROOM = pathlib.Path(__file__).resolve().parents[2] / "fomo" / "metrics"

SCRIPT = """
import sys
import numpy as np
import their_metrics as metrics
mask = np.zeros((4, 5, 6), bool)
mask[1:3, 1:3, 1:3] = True
assert metrics.segmentation_metrics(mask, mask, (1.0, 1.0, 3.0))["dice"] == 1
assert metrics.auroc([0, 1], [0.1, 0.2]) == 1
packages = {name.split(".")[0] for name in sys.modules}
assert not packages & {"fomo", "torch", "nibabel", "yaml", "sklearn"}, packages
"""


def test_a_copy_works_under_another_name(tmp_path):
    shutil.copytree(ROOM, tmp_path / "their_metrics", ignore=shutil.ignore_patterns("__pycache__"))
    finished = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
