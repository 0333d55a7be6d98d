"""The part `start`: what a command costs before its work begins, in CPU seconds of the process and those it waited for.

`--help`, a mistake in a config, a dry run of 60 cases, and the demo up to its first training step, with its phantoms
cached before; beside them is what `import torch` costs here, which the first two do without. `versions` is the hash of
the sources that each rank makes at its start, against their text by way of YAML. `first_eta` is what is said to be left
after the first of 40 jobs of a preparation in processes of its own, and how long it took from there.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from unittest import mock

import yaml

from fomo.data import jobs
from fomo.runs import crossval

from .timing import best_times, say

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = {"help": 1.0, "config_error": 1.0, "dry_run": 3.0, "first_step": 6.0, "import_torch": None}  # CPU seconds


def add_arguments(command):
    command.add_argument("--turns", type=int, default=3, help="turns of which the best counts (3)")


def run(options):
    with tempfile.TemporaryDirectory() as folder:
        data = [f"data.root={folder}/phantoms", "data.phantom_cases=60", f"data.cache={folder}/cache"]
        demo = [str(ROOT / "cv.py"), str(ROOT / "configs/demo_task1.yaml"), *data, "train.log_every=1"]
        measure([str(ROOT / "tools/preprocess.py"), *demo[1:], f"output={folder}"])
        best = {}
        for turn in range(options.turns):
            commands = {
                "help": ([demo[0], "--help"],),
                "config_error": ([*demo, "train.epochs=0"],),
                "dry_run": ([*demo, f"output={folder}/{turn}", "--dry-run"],),
                "first_step": ([*demo, f"output={folder}/{turn}"], " train "),
                "import_torch": (["-c", "import torch"],),
            }
            for name, command in commands.items():
                found = measure(*command)
                best[name] = min(found, best.get(name, found))
    for name, (cpu_s, seconds) in best.items():
        target = TARGETS[name]
        reached = {} if target is None else {"target": target, "reached": cpu_s <= target}
        say("time", case="start", what=name, cpu_s=cpu_s, seconds=seconds, **reached)
    versions = best_times({"fomo": crossval.code_version, "yaml": by_yaml}, options.turns, clock=time.process_time)
    seconds = {name: seconds for name, (seconds, _) in versions.items()}
    say("ratio", case="versions", **seconds, faster=seconds["yaml"] / seconds["fomo"])
    left_s, took_s = first_eta()
    say("time", case="first_eta", said_s=left_s, took_s=took_s)


def first_eta(count=40, job_s=0.1):
    """(seconds that the first report says are left, seconds until the last one)."""
    said = []

    def report(done, left_s):
        said.append((time.perf_counter(), left_s))

    with mock.patch.object(jobs, "_EVERY_S", 0.0):
        collections.deque(jobs.run(time.sleep, [job_s] * count, 2, report), maxlen=0)
    return said[0][1], said[-1][0] - said[0][0]


def measure(command, until=None):
    """(CPU seconds, seconds) of a command, which is killed once it has printed `until`."""
    begin, environment = time.perf_counter(), {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *command], env=environment, **pipe) as process:
        for line in process.stdout:
            if until is not None and until in line:
                process.kill()
                break
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, time.perf_counter() - begin


def by_yaml():
    return yaml.safe_dump([path.read_text(encoding="utf-8") for path in sorted((ROOT / "fomo").rglob("*.py"))])
