"""Runs that are stopped, killed or damaged end as if nothing had happened.

The quick part runs with every test run. The long part, 30 kills at random moments on 1 and on 2 ranks:
    python -m pytest -q -m slow tests/faults
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conftest import ROOT, run_command

SHORT = dict(train={"epochs": 3, "ema": 0.9}, cv={"folds_to_run": [1]}, augment={"preset": "basic"})


def start(*arguments, ranks=1, agent=(), **options):
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    elif agent:
        command += ["-m", "torch.distributed.run", *agent]
    return subprocess.Popen(
        [*command, str(ROOT / "cv.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


def read_until(process, pattern):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"{pattern} never came:\n" + "".join(lines))


def finish(process, timeout=120):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def last_model(folder, fold=1):
    return torch.load(folder / f"fold_{fold}" / "last.pt", weights_only=True)["model"]


def assert_same_run(one, two):
    a, b = last_model(one), last_model(two)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("predictions.csv", "aggregated_results.csv"):
        assert (one / name).read_text() == (two / name).read_text()


@pytest.fixture
def whole(tiny_config, tmp_path):
    """(config path, run folder of the uninterrupted run)."""
    path = tiny_config(**SHORT)
    done = run_command("cv.py", path, f"output={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    return path, tmp_path / "whole" / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_the_same_command_continues(whole, tmp_path, number):
    path, reference = whole
    process = start(path, f"output={tmp_path}/cut", "train.workers=1" if number == signal.SIGTERM else "train.workers=0")
    read_until(process, r" train .* step=5 ")
    asked = time.monotonic()
    os.killpg(process.pid, number)  # to the loader's processes as well, as a terminal and a scheduler do
    code, output = finish(process)
    assert code == 75 and time.monotonic() - asked < 30
    assert "interrupted=true" in output and "the same command continues" in output and "Traceback" not in output
    step = torch.load(tmp_path / "cut/run/fold_1/last.pt", weights_only=True)["step"]
    done = run_command("cv.py", path, f"output={tmp_path}/cut")
    assert done.returncode == 0 and re.search(rf" resume fold=1 epoch=\d step={step}$", done.stdout, re.M)
    assert_same_run(reference, tmp_path / "cut" / "run")


@pytest.mark.parametrize("parallel", ["ddp", "folds"])
def test_two_ranks_stop_together_when_torchrun_is_terminated(tiny_config, tmp_path, parallel):
    path = tiny_config(**{**SHORT, "cv": {"parallel": parallel}})
    process = start(path, f"output={tmp_path}/cut", ranks=2)
    read_until(process, r" train .* step=4 ")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code != 0 and time.monotonic() - asked < 30 and "interrupted=true" in output
    done = run_command("cv.py", path, f"output={tmp_path}/cut", ranks=2)
    assert done.returncode == 0 and " resume " in done.stdout
    whole = run_command("cv.py", path, f"output={tmp_path}/whole", ranks=2)
    assert whole.returncode == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads /proc")
def test_a_rank_that_dies_takes_the_others_down_and_torchrun_restarts_them(tiny_config, tmp_path):
    path = tiny_config(**SHORT)
    agent = ["--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    process = start(path, f"output={tmp_path}/cut", agent=agent)
    read_until(process, r" train .* step=4 ")
    died = time.monotonic()
    os.kill(children(process.pid)[1], signal.SIGKILL)
    read_until(process, r" resume ")
    assert time.monotonic() - died < 60
    code, output = finish(process)
    assert code == 0 and " cv folds=1 " in output


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "missing"])
def test_a_damaged_checkpoint_is_noticed_and_its_predecessor_used(whole, tmp_path, damage):
    path, reference = whole
    process = start(path, f"output={tmp_path}/cut")
    read_until(process, r" train .* step=8 ")
    process.kill()
    finish(process)
    last = tmp_path / "cut/run/fold_1/last.pt"
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes(content)
    if damage == "missing":
        last.unlink()
    done = run_command("cv.py", path, f"output={tmp_path}/cut")
    assert done.returncode == 0, done.stderr
    assert damage == "missing" or re.search(r"WARN warn .*last\.pt.*trying its predecessor", done.stdout)
    assert re.search(r" resume fold=1 epoch=2 step=3$", done.stdout, re.M), "the predecessor is one epoch older"
    assert_same_run(reference, tmp_path / "cut" / "run")


def test_a_full_disk_leaves_the_previous_checkpoint(tiny_config, tmp_path):
    """A limit on the size of files stands for the disk: no checkpoint of this network fits."""
    path = tiny_config(**SHORT)
    process = start(path)
    read_until(process, r" train .* step=4 ")
    process.kill()
    finish(process)
    last = tmp_path / "runs/run/fold_1/last.pt"
    before = last.read_bytes()
    limit = f"ulimit -f {len(before) // 2048}; exec {sys.executable} {ROOT}/cv.py {path}"
    done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write the checkpoint" in done.stderr and "Traceback" not in done.stderr
    assert last.read_bytes() == before and not list(last.parent.glob(".*.tmp"))


def test_folds_in_parallel_give_the_same_results_and_logs_of_their_own(tiny_config, tmp_path):
    path = tiny_config(cv={"folds": 3}, train={"epochs": 2})
    one = run_command("cv.py", path, f"output={tmp_path}/one")
    two = run_command("cv.py", path, f"output={tmp_path}/two", "cv.parallel=folds", ranks=2)
    assert one.returncode == 0 and two.returncode == 0, two.stderr
    assert (tmp_path / "one/run/predictions.csv").read_text() == (tmp_path / "two/run/predictions.csv").read_text()
    merged = (tmp_path / "two/run/log.txt").read_text()
    for fold in (1, 2, 3):
        own = (tmp_path / f"two/run/fold_{fold}/log.txt").read_text().splitlines()
        assert own and all(f" fold={fold} " in line and line in merged for line in own)
    assert merged.count(" cv folds=3 of=3 ") == 1
    assert re.search(r" split parallel=folds ", merged)


def test_a_failing_fold_does_not_stop_the_others(tiny_config, tmp_path):
    """Fold 2's folder cannot be made: a file has its name."""
    path = tiny_config("regression", cv={"folds": 3}, train={"epochs": 1})
    assert finish(start(path, "cv.folds_to_run=[1]"))[0] == 0
    blocked = tmp_path / "runs/run/fold_2"
    blocked.write_text("in the way")
    done = run_command("cv.py", path)
    assert done.returncode == 1 and "fold 2 failed and the others are finished" in done.stderr
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["folds_done"] == [1, 3]
    blocked.unlink()
    again = run_command("cv.py", path)
    assert again.returncode == 0 and not re.search(r" train fold=[13] ", again.stdout)
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["folds_done"] == [1, 2, 3]


def test_two_agents_on_two_addresses(tiny_config, tmp_path):
    """Multi-node: two torchrun agents meet at a loopback address and train one fold."""
    path = tiny_config(**SHORT)
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"]
    agents = [start(path, f"output={tmp_path}/two", agent=[*common, "--local_addr=127.0.0.1"]) for _ in range(2)]
    results = [finish(agent) for agent in agents]
    assert [code for code, _ in results] == [0, 0], results
    one = run_command("cv.py", path, f"output={tmp_path}/one")
    assert one.returncode == 0
    a, b = last_model(tmp_path / "one/run"), last_model(tmp_path / "two/run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-3, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(30))
def test_kill_9_at_a_random_moment(tiny_config, tmp_path, ranks, seed):
    """At any moment of preparing, training, saving and evaluating; by the clock, so that it hits in between, too."""
    path = tiny_config(train={"epochs": 3, "ema": 0.9}, augment={"preset": "basic"})
    begun = time.monotonic()
    done = run_command("cv.py", path, f"output={tmp_path}/whole", ranks=ranks)
    assert done.returncode == 0
    moment = np.random.default_rng(seed).uniform(0.2, 1.0) * (time.monotonic() - begun)
    process = start(path, f"output={tmp_path}/cut", ranks=ranks)
    time.sleep(moment)
    victims = children(process.pid) if ranks > 1 else []
    for pid in [*victims, process.pid]:
        os.kill(pid, signal.SIGKILL)
    finish(process)
    done = run_command("cv.py", path, f"output={tmp_path}/cut", ranks=ranks)
    assert done.returncode == 0, done.stderr
    for fold in (1, 2):
        a, b = last_model(tmp_path / "whole/run", fold), last_model(tmp_path / "cut/run", fold)
        assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("predictions.csv", "aggregated_results.csv"):
        assert (tmp_path / "whole/run" / name).read_text() == (tmp_path / "cut/run" / name).read_text()
