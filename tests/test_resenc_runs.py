"""Whole runs of the residual-encoder U-Net: every task, on one rank and two, and continued after a kill."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command

from fomo import nets


@pytest.fixture
def pretrained(tmp_path):
    """Weights as the FOMO26 baseline pretrains them: without skip connections."""
    torch.manual_seed(0)
    network = nets.build("resenc_unet_b", 1, 1, width=4, skips=False)
    torch.save({"state_dict": {f"model.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "w")
    return str(tmp_path / "w")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression", "segmentation"])
def test_every_task_is_the_same_on_two_ranks_and_after_a_kill(tiny_config, tmp_path, pretrained, task):
    """With few voxels at the bottleneck gradients are large, and magnify the rounding of other batch sizes."""
    deep = {"deep_supervision": True} if task == "segmentation" else {}
    path = tiny_config(
        task,
        data={"patch": [64, 64, 32]},
        model={"name": "resenc_unet_b", "width": 4, **deep},
        weights={"path": pretrained},
        finetune={"strategy": "decoder_first", "unfreeze_epoch": 2},
        optim={"name": "sgd", "momentum": 0.9, "lr": 1e-3, "clip_norm": 1},
        train={"checkpoint_activations": True, "batch_size": 2, "save_every_s": 0},
        cv={"folds_to_run": [1]},
    )

    def train(name, ranks=1):
        done = run_command("cv.py", path, f"output={tmp_path}/{name}", ranks=ranks, timeout=1200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    logs = {"one": train("one"), "two": train("two", ranks=2)}
    one, two = ([float(value) for value in re.findall(r" train .* loss=(\S+) lr", log)] for log in logs.values())
    assert len(one) == 6
    np.testing.assert_allclose(two, one, rtol=1e-2)

    command = [sys.executable, str(ROOT / "cv.py"), str(path), f"output={tmp_path}/cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        next(line for line in process.stdout if " train " in line and " step=5 " in line)
        process.kill()
    assert " resume " in train("cut")
    whole, cut = (
        torch.load(tmp_path / name / "run/fold_1/last.pt", weights_only=True)["model"] for name in ("one", "cut")
    )
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
