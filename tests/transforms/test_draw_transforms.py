"""tools/draw_transforms.py draws something without any data."""

import nibabel
import numpy as np
import pytest
from conftest import one_line_error, run_command, tool

from fomo.config import UserError


def test_figure_of_the_synthetic_head(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "transforms.png"
    done = run_command("tools/draw_transforms.py", "--output", path, "--patch", 32, 32, 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys):
    one_line_error(run_command("tools/draw_transforms.py", "--image", tmp_path / "no.nii"), "no.nii")
    for name, value in (("flat", 0), ("image", 1)):
        nibabel.save(
            nibabel.Nifti1Image(value * np.arange(512, dtype=np.float32).reshape(8, 8, 8), np.eye(4)),
            tmp_path / f"{name}.nii",
        )
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    wrong = {
        "flat.nii: all voxels are 0": ["flat.nii"],
        "image.nii: got shape": ["image.nii", "--mask", tmp_path / "mask.nii"],
    }
    for words, (image, *rest) in wrong.items():
        with pytest.raises(UserError, match=words):
            tool("draw_transforms", "--image", tmp_path / image, *rest)
    for arguments in (["--preset", "nope"], ["--patch", 0, 0, 0], ["--seed", -1], ["--mask", "mask.nii"]):
        with pytest.raises(SystemExit) as end:
            tool("draw_transforms", *arguments)
        assert end.value.code == 2 and arguments[0] in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="cannot write .*nowhere"):
        tool("draw_transforms", "--patch", 8, 8, 8, "--output", tmp_path / "nowhere" / "x.png")
