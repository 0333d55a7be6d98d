"""The part `growth`: predictions of many cases, and of many networks.

`rows` adds so many cases to a folder of predictions, a quarter of them and all: `times` is 4 where the work is linear.
`cases` is the same for a report and a comparison of runs, for an evaluation of a table, and for folds. `rewritten`
writes the table of predictions after each case. `members` are networks that segment a case together, in windows of a
quarter of its length: the peak memory, in copies of one network's output, of a process of its own (this module).
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import torch

from fomo import config, tasks
from fomo.data.cases import Case
from fomo.inference import WindowOptions
from fomo.prediction import members
from fomo.prediction.folder import PredictionFolder
from fomo.runtime import files
from fomo.space import volume

from . import many_cases
from .timing import say, timed

TOOLS = pathlib.Path(__file__).resolve().parent.parent
CLASSES, SIZE = 12, 112
ROW = {f"number_{place}": 1 / (3 + place) for place in range(12)}


def add_arguments(command):
    command.add_argument("--cases", type=int, default=4000, help="rows (4000)")


def run(options):
    seconds = {count: add_rows(count) for count in (options.cases // 4, options.cases)}
    few, all_of_them = seconds.values()
    say("rows", who="fomo", cases=options.cases, seconds=all_of_them, times=all_of_them / few, linear=4)
    rewritten = rewrite_rows(options.cases // 4)
    say("rows", who="rewritten", cases=options.cases // 4, seconds=rewritten, fomo_takes=few / rewritten)
    few, all_of_them = (many_cases.seconds(5 * n // 4, 15 * n) for n in (options.cases // 4, options.cases))
    for name, took in all_of_them.items():
        count = (1.25 if name in ("report", "comparison") else 15) * options.cases
        say("cases", who="fomo", what=name, cases=int(count), seconds=took, times=took / few[name], linear=4)
    environment = {**os.environ, "PYTHONPATH": f"{TOOLS.parent}{os.pathsep}{TOOLS}"}
    for count in (1, 5):
        command = [sys.executable, "-m", "benchmark.growth", str(count)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        say("memory", case="segmentation", who="fomo", members=count, classes=CLASSES, copies=float(done.stdout))


def make_folder(path, count):
    task = tasks.build(config.Config())
    task.state["classes"] = ["0", "1"]
    member = SimpleNamespace(sha256="", path="", network=None, config=config.Config(), task=task, sees_slices=False)
    folder = PredictionFolder(path, [member])
    folder.begin([Case(f"{number:05d}", str(number), (), None, None, None) for number in range(count)])
    return folder


def add_rows(count):
    with tempfile.TemporaryDirectory() as path:
        folder = make_folder(path, count)

        def add():
            for number in range(count):
                folder.add(f"{number:05d}", ROW)
            folder.save()

        return timed(add)[0]


def rewrite_rows(count):
    with tempfile.TemporaryDirectory() as path:
        rows = []

        def write():
            for number in range(count):
                rows.append({"id": f"{number:05d}", **ROW})
                files.write_csv(os.path.join(path, "predictions.csv"), rows)

        return timed(write)[0]


def copies(count):
    """Peak memory over that at the start, in copies of the probabilities of all classes."""
    torch.set_num_threads(1)
    task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=CLASSES)))
    task.state["postprocess"] = {"fill_holes": False, "minimum_mm3": 0.0, "largest": False}
    array = np.random.default_rng(0).random((SIZE, SIZE, SIZE), dtype=np.float32)
    image, _, geometry = volume.preprocess([array], np.diag([-1.0, -1.0, 1.0, 1.0]))
    weights, windows = torch.randn(CLASSES, 1, 1, 1), WindowOptions((SIZE // 4,) * 3, device=torch.device("cpu"))
    several = [SimpleNamespace(task=task, network=lambda x: x * weights, windows=windows)] * count
    begin = peak()
    members.answer(several, members.infer(several, SimpleNamespace(id="a"), image, (0.0,)), geometry)
    return (peak() - begin) / (4 * CLASSES * SIZE**3)


def peak():
    """Bytes; by Linux itself, since getrusage also counts what the process was started from."""
    with open("/proc/self/status", encoding="utf-8") as file:
        [line] = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(copies(int(sys.argv[1])))
