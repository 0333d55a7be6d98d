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

from fomo import kinds
from fomo.config import UserError
from fomo.runs import crossval

SAVED_OFTEN = {"epochs": 3, "ema": 0.9, "save_every_s": 0}
SHORT = dict(train=SAVED_OFTEN, cv={"folds_to_run": [1]}, augment={"preset": "basic"})


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


def finish(process, timeout=300):
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
    process = start(
        path, f"output={tmp_path}/cut", "train.workers=1" if number == signal.SIGTERM else "train.workers=0"
    )
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


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("folds", marks=pytest.mark.slow)])
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


def test_a_run_that_is_stopped_on_two_ranks_continues_on_one_with_the_same_batches(tiny_config, tmp_path):
    # at a low rate: ranks add up the same gradients in another order, which each step of AdamW makes larger
    path = tiny_config(cv={"folds_to_run": [1]}, augment={"preset": "basic"}, optim={"lr": 2e-4})
    process = start(path, f"output={tmp_path}/cut", ranks=2)
    read_until(process, r" train .* step=1 ")
    process.send_signal(signal.SIGTERM)
    _, output = finish(process)
    assert "interrupted=true" in output
    for name in ("cut", "whole"):
        done = run_command("cv.py", path, f"output={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
    logs = {name: (tmp_path / name / "run/log.txt").read_text() for name in ("cut", "whole")}
    assert re.search(r" run .* ranks=2 ", logs["cut"]) and re.search(r" run .* ranks=1 ", logs["cut"])
    assert re.search(r" resume fold=1 epoch=\d step=[1-5]$", logs["cut"], re.M)
    losses = {name: dict(re.findall(r" train .* step=(\d+) loss=(\S+) ", log)) for name, log in logs.items()}
    assert list(losses["cut"]) == list(losses["whole"]) == ["1", "2", "3", "4", "5", "6"], "each step once, in order"
    np.testing.assert_allclose(
        [float(v) for v in losses["cut"].values()], [float(v) for v in losses["whole"].values()], atol=1e-4
    )


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
    step = torch.load(last.with_name("last.previous.pt"), weights_only=True)["step"]
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
    assert re.search(rf" resume fold=1 epoch=\d step={step}$", done.stdout, re.M), "the predecessor is a step older"
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


@pytest.mark.slow
def test_teams_of_ranks_share_folds_and_give_the_same_results(tiny_config, tmp_path):
    """Four ranks run two folds at a time, each by DDP on two ranks; the team that is free first takes the third fold.

    The results are, to the bit, those of two ranks that take one fold after the other.
    """
    path = tiny_config(cv={"folds": 3, "ranks_per_fold": 2}, train={"epochs": 2})
    two = run_command("cv.py", path, f"output={tmp_path}/two", ranks=2)
    four = run_command("cv.py", path, f"output={tmp_path}/four", "cv.parallel=folds", ranks=4)
    assert two.returncode == 0 and four.returncode == 0, four.stderr
    assert (tmp_path / "two/run/predictions.csv").read_text() == (tmp_path / "four/run/predictions.csv").read_text()
    for fold in (1, 2, 3):
        own = (tmp_path / f"four/run/fold_{fold}/log.txt").read_text()
        assert len(re.findall(rf" train fold={fold} ", own)) == 6 and "fold=" + str(fold % 3 + 1) not in own


@pytest.mark.parametrize("ranks, batch_size, wanted", [(3, 4, "ranks=3"), (4, 3, "train.batch_size=3")])
def test_teams_need_whole_numbers(tiny_config, monkeypatch, ranks, batch_size, wanted):
    cv = {"ranks_per_fold": 2, "parallel": "folds"}
    config = kinds.load(tiny_config(cv=cv, train={"batch_size": batch_size}))
    assert crossval.team_size(config) == 1, "on one rank"
    monkeypatch.setattr(crossval.dist, "world_size", lambda: ranks)
    with pytest.raises(UserError, match=f"cv.ranks_per_fold: got 2, wanted a divisor of {wanted}"):
        crossval.team_size(config)


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


@pytest.mark.slow
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
        torch.testing.assert_close(a[name], b[name], atol=5e-3, rtol=5e-2)  # AdamW's first steps scale rounding up


@pytest.fixture(scope="module")
def references():
    """{ranks: (run folder, seconds)} of the uninterrupted runs, for all kills."""
    return {}


def wait_for_a_moment(process, kind, rng, seconds):
    """Some moment of preparing or of anything else (clock), of training, of saving or of evaluating."""
    if kind == "clock":
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        return
    pattern = {"training": r" train ", "saving": r" (epoch|checkpoint) ", "evaluation": r" train .* step=(3|6|9) "}[
        kind
    ]
    for _ in range(int(rng.integers(1, {"training": 18, "saving": 8, "evaluation": 6}[kind] + 1))):
        read_until(process, pattern)
    time.sleep(rng.uniform(0, 0.05))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(30))
def test_kill_9_at_a_random_moment(tiny_config, references, tmp_path, tmp_path_factory, ranks, seed):
    path = tiny_config(train=SAVED_OFTEN, augment={"preset": "basic"})
    if ranks not in references:
        folder, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
        done = run_command("cv.py", path, f"output={folder}", ranks=ranks)
        assert done.returncode == 0, done.stderr
        references[ranks] = folder / "run", time.monotonic() - begun
    whole, seconds = references[ranks]
    process = start(path, f"output={tmp_path}/cut", ranks=ranks)
    wait_for_a_moment(
        process, ("clock", "training", "saving", "evaluation")[seed % 4], np.random.default_rng(seed), seconds
    )
    victims = children(process.pid) if ranks > 1 else []
    for pid in [*victims, process.pid]:
        os.kill(pid, signal.SIGKILL)
    finish(process)
    done = run_command("cv.py", path, f"output={tmp_path}/cut", ranks=ranks)
    assert done.returncode == 0, done.stderr
    for fold in (1, 2):
        a, b = last_model(whole, fold), last_model(tmp_path / "cut/run", fold)
        assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("predictions.csv", "aggregated_results.csv"):
        assert (whole / name).read_text() == (tmp_path / "cut/run" / name).read_text()
