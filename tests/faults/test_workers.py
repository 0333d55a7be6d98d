"""Processes that prepare and read: one that is killed takes its job along; a signal leaves nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT

from fomo.data import jobs, loader
from fomo.runtime import files, interrupt


def work(job):
    """Square a number; -1 kills the process, -2 waits for long in a new folder, -3 raises."""
    folder, number = job
    if number == -1:
        with files.new_folder(os.path.join(folder, "half")):
            os.kill(os.getpid(), signal.SIGKILL)
    if number == -2:
        with files.new_folder(os.path.join(folder, "long")):
            pathlib.Path(folder, "begun").touch()
            time.sleep(60)
    if number == -3:
        raise KeyError("a mistake in the code")
    return number**2


def run(numbers, folder, workers=2):
    reports = []
    found = list(jobs.run(work, [(str(folder), n) for n in numbers], workers, lambda done, left: reports.append(done)))
    assert reports[-1] == len(numbers)
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_jobs_give_their_results(tmp_path, workers):
    assert sorted(run(range(9), tmp_path, workers)) == [n**2 for n in range(9)]
    with pytest.raises(KeyError, match="a mistake"):
        run([1, -3], tmp_path, workers)


def slow(job):
    time.sleep(job)
    return job


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_is_told_from_the_jobs_without_the_start_of_the_processes(monkeypatch, workers):
    """Whose imports take seconds: here the clock jumps while they start."""
    told, jump, start = [], [0.0], jobs._start

    def late(function):
        jump[0] += 100
        return start(function)

    clock = time.monotonic
    monkeypatch.setattr(jobs, "_start", late)
    monkeypatch.setattr(jobs, "_EVERY_S", 0.0)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock() + jump[0])
    list(jobs.run(slow, [0.1] * 6, workers, lambda done, left: told.append((done, left))))
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6] and told[-1][1] == 0
    for done, left in told:
        assert 0.1 * (6 - done) <= left * max(1, workers) < 10


def test_a_killed_process_takes_only_its_job_along(tmp_path):
    found = run([1, 2, -1, 3, 4], tmp_path)
    [killed] = [one for one in found if isinstance(one, jobs.Killed)]
    assert sorted(one for one in found if one is not killed) == [1, 4, 9, 16]
    assert killed.job == (str(tmp_path), -1) and str(killed).startswith("its process was killed by signal 9")
    [left] = os.listdir(tmp_path)
    assert left.startswith(".half-")
    files.remove_left_by(killed.pid + 1, tmp_path)
    assert os.listdir(tmp_path) == [left], "of another process"
    files.remove_left_by(killed.pid, tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("to_all", [False, True])
def test_a_stop_ends_the_processes_and_what_they_had_begun(tmp_path, to_all):
    script = (
        f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'faults')]!r}\n"
        "import test_workers as t\n"
        "from fomo import cli\n"
        "def main(_):\n"
        f"    with t.interrupt.graceful(): t.run([1, -2, -2, 2], {str(tmp_path / 'work')!r})\n"
        "if __name__ == '__main__': cli.run(main)\n"
    )
    (tmp_path / "main.py").write_text(script)
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "work" / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == interrupt.Interrupted.exit_code and errors == ""
    assert os.listdir(tmp_path / "work") == ["begun"], "no stray folders"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("workers", [0, 2])
def test_preprocessing_that_is_stopped_goes_on_with_the_same_command(tmp_path, number, workers):
    rng = np.random.default_rng(0)
    for case in range(24):
        image = nibabel.Nifti1Image(rng.normal(100, 10, (96, 96, 96)).astype(np.float32), np.eye(4))
        nibabel.save(image, tmp_path / f"s{case}.nii")
    command = [sys.executable, ROOT / "tools" / "preprocess.py", ROOT / "configs" / "mae.yaml", f"data.root={tmp_path}"]
    command += [f"data.cache={tmp_path}/cache", f"data.prepare_workers={workers}", "data.channels=[mri]"]
    command += ["data.spacing_mm=[0.8,0.8,0.8]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while not list((tmp_path / "cache").glob("s*/case.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in errors
    names = os.listdir(tmp_path / "cache")
    assert 0 < len(names) < 24 and not [name for name in names if name.startswith(".")]


class Numbers:
    """A data set whose item 7 kills the process that reads it."""

    def __getitem__(self, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)

    def ids(self, indices):
        return [f"case_{index}" for index in indices]


@pytest.mark.filterwarnings("ignore")
def test_a_killed_loader_process_is_one_line_with_the_cases_it_read():
    batches = [[index, index + 1] for index in range(0, 12, 2)]
    with pytest.raises(loader.WorkerKilled) as caught, loader.explained():
        for _ in loader._read_ahead(Numbers(), torch.stack, batches, 2, False):
            time.sleep(0.01)
    assert "lower train.workers" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert "case_6, case_7" in str(caught.value) or "while it read" not in str(caught.value)
    assert "case_0" not in str(caught.value), "of the other process"


def test_other_errors_keep_their_words():
    with pytest.raises(RuntimeError, match="shapes differ"), loader.explained():
        raise RuntimeError("shapes differ")
