"""tools/draw_transforms.py draws something without any data."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_figure_of_the_synthetic_head(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "transforms.png"
    command = [
        sys.executable,
        str(ROOT / "tools" / "draw_transforms.py"),
        "--output",
        str(path),
        "--patch",
        "32",
        "32",
        "32",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000
