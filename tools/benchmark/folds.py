"""The part `folds`: four equal folds on one rank and on two, whole commands, one thread a rank.

The phantoms are made and cached before, so that the time is that of training, validation, saving and testing, with the
start of Python and of torchrun. Target: two ranks take at most 0.55 of one rank's time. `cpu_s` is the time that the
processes have computed: where other work shares the cores it says more than the clock. Both must give the same
predictions.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from .timing import say, timed

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDS = 4


def add_arguments(command):
    command.add_argument("--turns", type=int, default=1, help="turns of which the best counts (1)")
    command.add_argument("--epochs", type=int, default=30, help="epochs of each fold (30)")


def run(options):
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            str(ROOT / "configs/demo_task1.yaml"),
            f"data.root={folder}/phantoms",
            f"data.cache={folder}/cache",
        ]
        arguments += [f"cv.folds={FOLDS}", "data.phantom_cases=64", "augment.preset=basic"]
        arguments += [f"train.epochs={options.epochs}"]
        run_command([sys.executable, str(ROOT / "tools/preprocess.py"), *arguments, f"output={folder}"])
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        best = {}
        for turn in range(options.turns):
            for ranks, launch, parallel in ((1, [], []), (2, torchrun, ["cv.parallel=folds"])):
                command = [sys.executable, *launch, str(ROOT / "cv.py"), *arguments, *parallel]
                times = run_command([*command, f"output={folder}/{ranks}_{turn}"])
                best[ranks] = min(times, best.get(ranks, times))
        for ranks, (seconds, cpu_s) in best.items():
            say("time", case="folds", ranks=ranks, folds=FOLDS, seconds=seconds, cpu_s=cpu_s)
        ratio, cpu = (ours / theirs for ours, theirs in zip(best[2], best[1]))
        say("ratio", case="folds", two_ranks_take=ratio, target=0.55, reached=ratio <= 0.55, cpu=cpu)
        tables = [pathlib.Path(folder, f"{ranks}_0", "demo_task1", "predictions.csv").read_text() for ranks in (1, 2)]
        say("values", case="folds", same_predictions=tables[0] == tables[1])


def run_command(command):
    """(seconds, CPU seconds) of a command with one thread a process; its output where it fails."""

    def call():
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, done = timed(call)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
