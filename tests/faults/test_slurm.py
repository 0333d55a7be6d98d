"""tools/slurm_cv.sbatch with stand-ins for Slurm's commands: at the warning the run is saved and queued again."""

import os
import re
import signal
import subprocess
import sys
import time

import torch
from conftest import ROOT

STAND_INS = {
    "srun": 'echo $$ > "$STATE/step"; exec setsid "$@"',  # the step is a process of its own
    "scancel": 'echo "$@" > "$STATE/scancel"; kill -TERM "$(cat "$STATE/step")"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" > "$STATE/requeued"; fi',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}


def test_the_warning_before_the_time_limit_saves_and_requeues(tiny_config, tmp_path):
    path = tiny_config(train={"epochs": 3}, cv={"folds_to_run": [1]})
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1"}
    environment = {**os.environ, **slurm, "STATE": str(tmp_path), "PATH": f"{commands}:{os.environ['PATH']}"}
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        job = subprocess.Popen(
            ["bash", str(ROOT / "tools/slurm_cv.sbatch"), str(path)],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
        )
        deadline = time.monotonic() + 300
        while " step=4 " not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B:USR1
        code = job.wait(timeout=300)
    said = output.read_text()
    assert code == 75, said
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 7.0\n" and (
        tmp_path / "requeued"
    ).read_text() == "requeue 7\n"
    assert re.search(r" checkpoint .*interrupted=true", said)
    assert torch.load(tmp_path / "runs/run/fold_1/last.pt", weights_only=True)["step"] >= 4
