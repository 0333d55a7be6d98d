"""The challenge's container: what its two definition files put into it, its call, and what it answers."""

import math
import os
import re
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, channel_paths, members_of, one_line_error, run_command, tool

from fomo.config import UserError
from fomo.prediction import single
from fomo.runtime.log import Log

TASKS = ("classification", "segmentation", "regression")


@pytest.fixture(scope="session")
def container(tmp_path_factory, trained):
    """Function: task -> /app as the Dockerfile and the Apptainer definition fill it, which must be the same."""
    docker, definition = ((ROOT / "tools" / name).read_text() for name in ("Dockerfile", "fomo25.def"))
    files, post = (re.search(rf"%{name}\n(.*?)\n\n", definition, re.S)[1] for name in ("files", "post"))
    copies = re.findall(r"^COPY (\S+) /app/(\S+)$", docker, re.M)
    assert [(s.replace("${CHECKPOINTS}", "{{ checkpoints }}"), t) for s, t in copies] == re.findall(
        r"^ +(.+) /app/(\S+)$", files, re.M
    )
    install, _, steps = re.findall(r"^RUN (.+)$", re.sub(r" \\\n +", " ", docker), re.M)
    assert " && ".join(re.findall(r"^ +([^#\s].*)$", post, re.M)) == f"{install} && {steps}"
    needed = (ROOT / "requirements.txt").read_text().split()
    assert re.findall(r'"(.+?)"', install) == [name for name in needed if not name.startswith(("torch", "matplotlib"))]
    assert "PYTHONNOUSERSITE=1" in docker and "PYTHONPATH= PYTHONNOUSERSITE=1" in definition, (
        "packages of the caller's home"
    )
    done = {}

    def build(task):
        if task not in done:
            root = tmp_path_factory.mktemp(f"image_{task}")
            for source, target in copies:
                place = root / "app" / target
                place.parent.mkdir(parents=True, exist_ok=True)
                path = trained(task) / "final" if "CHECKPOINTS" in source else ROOT / source
                (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
            (root / "app" / "fomo" / "nets" / "left.cpython-310.pyc").touch()
            (root / "app" / "tools" / "predict_fomo25.py").chmod(0o600)
            shell = re.sub(r"(?<![\w.])/(?=(app|input|output)\b)", f"{root}/", steps)
            if task != "segmentation":
                shell = shell.partition(" && cd ")[0]  # loading the checkpoints takes seconds
            path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
            subprocess.run(["sh", "-ec", shell], check=True, env={**os.environ, "PATH": path})
            assert not (root / "app" / "fomo" / "nets" / "left.cpython-310.pyc").exists()
            assert (root / "app" / "predict.py").stat().st_mode & 0o777 == 0o644
            done[task] = root / "app"
        return done[task]

    return build


@pytest.mark.parametrize("task", TASKS)
def test_the_container_answers_as_the_challenge_wants(trained, scans, container, tmp_path, task):
    paths = channel_paths(scans(task), task, "sub_002_ses_1")
    output = tmp_path / "new" / ("out.nii.gz" if task == "segmentation" else "out.txt")
    given = [text for name, path in paths.items() for text in (f"--{name}", path)]
    app = container(task)
    if task == "segmentation":
        done = run_command(app / "predict.py", *given, "--output", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        tool("predict_fomo25", *given, "--output", output, root=app)
    assert os.listdir(output.parent) == [output.name]
    members = members_of(trained(task) / "final")
    row = single.predict_to_file(members, paths, str(tmp_path / output.name), Log(active=False))
    if task == "segmentation":
        mask, image = nibabel.load(output), nibabel.load(paths["flair"])
        assert (
            mask.shape == image.shape
            and np.array_equal(mask.affine, image.affine)
            and mask.get_data_dtype() == np.uint8
        )
        assert set(np.unique(mask.dataobj)) <= {0, 1} and np.asarray(mask.dataobj).sum() == row["predicted_voxels"]
    else:
        assert float(output.read_text()) == row["probability" if task == "classification" else "prediction"]


def test_the_container_refuses_in_one_line(trained, scans, container, tmp_path):
    app = container("segmentation")
    paths = channel_paths(scans("segmentation"), "segmentation", "sub_002_ses_1")
    given = [text for name, path in paths.items() for text in (f"--{name}", path)]
    one_line_error(
        run_command(app / "predict.py", *given, "--output", tmp_path / "o.txt"), "task.type=segmentation", ".nii.gz"
    )
    with pytest.raises(UserError, match="got none.*swi or t2s"):
        tool("predict_fomo25", *given[2:], "--output", tmp_path / "o.nii.gz", root=app)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/o.nii.gz"):
        tool("predict_fomo25", *given, "--output", tmp_path / "file" / "o.nii.gz", root=app)


def test_an_empty_mask_is_written_and_warned_about_and_spare_channels_are_named(trained, scans, tmp_path, capsys):
    members = members_of(trained("segmentation") / "fold_1")
    for name, parameter in members[0].network.named_parameters():
        if name.startswith("decoder.out_conv"):
            parameter.data.copy_(torch.tensor([5.0, -5.0]) if parameter.ndim == 1 else parameter * 0)
    paths = channel_paths(scans("segmentation"), "segmentation", "sub_002_ses_1")
    row = single.predict_to_file(
        members, {**paths, "adc": "not read", "t1": "not read"}, str(tmp_path / "o.nii.gz"), Log()
    )
    assert row["predicted_voxels"] == 0 and not np.asarray(nibabel.load(tmp_path / "o.nii.gz").dataobj).any()
    said = capsys.readouterr().out
    assert "the predicted mask is empty" in said and "channels=adc,t1" in said


def test_the_corrected_age_is_a_number_or_refused(trained, scans, tmp_path):
    def answer(task, correction=None):
        members = members_of(trained(task) / "fold_1")
        if correction:
            members[0].task.state["bias_correction"] = correction
        paths = channel_paths(scans(task), task, "sub_002_ses_1")
        return single.predict_to_file(members, paths, str(tmp_path / "age.txt"), Log(active=False), corrected=True)

    row = answer("regression", [0.5, 10.0])
    assert float((tmp_path / "age.txt").read_text()) == row["corrected"] == pytest.approx(2 * (row["prediction"] - 10))
    (tmp_path / "age.txt").unlink()
    with pytest.raises(UserError, match="--corrected: it is undefined"):
        answer("regression", [math.nan, 10.0])
    with pytest.raises(UserError, match="--corrected: got checkpoints of task.type=classification"):
        answer("classification")
    assert not list(tmp_path.iterdir())
