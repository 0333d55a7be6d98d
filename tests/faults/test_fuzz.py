"""A few hundred of the inputs that `python tests/faults/fuzz.py` makes by the ten thousand."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def fuzz(kind, inputs, seed):
    """(read, refused) of damaged inputs; none may fail."""
    command = [sys.executable, str(ROOT / "tests/faults/fuzz.py"), kind, f"--inputs={inputs}", f"--seed={seed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout
    return tuple(map(int, re.search(r" read=(\d+) refused=(\d+) failures=0 ", done.stdout).groups()))


@pytest.mark.parametrize("kind", ["config", "nifti", "array", "table", "checkpoint"])
def test_damaged_and_malicious_inputs_are_read_or_refused(kind):
    inputs = 400 if kind == "checkpoint" else 120
    read, refused = fuzz(kind, inputs, seed=7)
    assert read + refused == inputs and min(read, refused) > 1, "both sides of the checks are reached"


@pytest.mark.slow
def test_ten_thousand_damaged_and_malicious_checkpoints_are_read_or_refused():
    read, refused = fuzz("checkpoint", 10_000, seed=8)
    assert read + refused == 10_000 and min(read, refused) > 100


def test_the_fuzzer_notices_what_must_not_happen(tmp_path):
    """Its own alarms: each of these inputs is a failure of its own kind."""
    script = tmp_path / "alarms.py"
    script.write_text(
        f"""
import sys, pathlib, os
sys.path[:0] = [{str(ROOT / "tests/faults")!r}, {str(ROOT)!r}]
import fuzz
fuzz.SECONDS = 0.5
watch = fuzz.Watch(pathlib.Path({str(tmp_path)!r}))
watch.limit_memory()

def check(folder, number):
    if number == 0:
        raise KeyError("x")
    elif number == 1:
        while True:
            pass
    elif number == 2:
        open(folder / "../outside", "w").close()
    elif number == 3:
        os.system("true")
    elif number == 4:
        bytearray(10**11)
    elif number == 5:
        raise ValueError("x" * 3000)
    elif number == 6:
        os.rename(folder, folder.parent / "elsewhere")
    else:
        (folder / "inside").touch()

check.refuses = (ValueError,)
for number in range(8):
    _, failure = fuzz.one(lambda folder, rng: number, check, pathlib.Path({str(tmp_path)!r}), watch, number)
    print(str(failure).splitlines()[0])
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    complaints = done.stdout.splitlines()
    said = [
        "KeyError",
        "more than",
        "did what it must not: open",
        "did what it must not: os.system",
        "MemoryError",
        "a message of 3000",
    ]
    for complaint, start in zip(complaints, [*said, "did what it must not: os.rename", "None"], strict=True):
        assert complaint.startswith(start), complaints
