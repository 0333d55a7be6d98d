"""train.compile: the same training as without it, on ranks, when other parts are frozen, and when it is continued."""

import functools
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command

from fomo import nets
from fomo.training import optimization

CPU = torch.device("cpu")


def test_every_network_is_compiled_however_many_came_before(monkeypatch):
    """Dynamo gives up after a few compilations of one forward(), without an error: later folds would be slow."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for _ in range(12):
        network = nets.build("unet_b", 1, 2, mode="classification", width=1)
        train = types.SimpleNamespace(compile=True)
        optimization.wrap(network, train, None, CPU)(torch.zeros(1, 1, 16, 16, 32))
    graphs = len(compiled) // 12
    assert graphs >= 1 and len(compiled) == 12 * graphs


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_compiled_training_equals_the_plain_one(tiny_config, tmp_path, task):
    """Losses to 1e-4 on one rank and two, through an epoch that unfreezes; continued after a kill, equal to the bit."""
    finetune = {"strategy": "gradual", "unfreeze_epoch": 2} if task == "classification" else {}
    path = tiny_config(
        task, train={"checkpoint_activations": True, "save_every_s": 0}, finetune=finetune, cv={"folds_to_run": [1]}
    )

    def train(name, *arguments, ranks=1):
        done = run_command("cv.py", path, f"output={tmp_path}/{name}", *arguments, ranks=ranks, timeout=1200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    logs = {
        "plain": train("plain"),
        "compiled": train("compiled", "train.compile=true"),
        "ranks": train("ranks", "train.compile=true", ranks=2),
    }
    losses = {
        name: [float(value) for value in re.findall(r" train .* loss=(\S+) lr", log)] for name, log in logs.items()
    }
    assert len(losses["plain"]) == 6
    np.testing.assert_allclose(losses["compiled"], losses["plain"], atol=1e-4)
    np.testing.assert_allclose(losses["ranks"], losses["plain"], atol=1e-4)
    epochs = re.findall(r" compile fold=1 epoch=(\d) ", logs["compiled"])
    assert epochs == (["1", "2"] if finetune else ["1"]) and " compile " not in logs["plain"]

    command = [sys.executable, str(ROOT / "cv.py"), str(path), f"output={tmp_path}/cut", "train.compile=true"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        next(line for line in process.stdout if " train " in line and " step=5 " in line)
        process.kill()
    assert " resume " in train("cut", "train.compile=true")
    whole, cut = (
        torch.load(tmp_path / name / "run/fold_1/last.pt", weights_only=True)["model"] for name in ("compiled", "cut")
    )
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
