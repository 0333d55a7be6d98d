"""What do others reach in the same time? This project, MONAI and nnU-Net, at equal CPU-seconds, on the same cases.

  pip install monai nnunetv2     (besides this project's requirements; only the arms that run need them)
  python shared/make_semi_real.py --out semi/train --subjects 60 --seed 1
  python shared/make_semi_real.py --out semi/test --subjects 60 --seed 2
  python tests/experiments/peers.py semi/train semi/test runs/peers --task 2 --seeds 0 1 \\
      --arm "ours: train.steps=300 train.steps_per_epoch=50" --arm "monai: lr=3e-3" \\
      --arm "nnunet: mirror=0" --arm "nnunet narrow: width=8 bf16=1"
  python tests/experiments/peers.py semi/train semi/test runs/peers --task 1 --seeds 0 \\
      --arm "ours: task.evidence=none train.steps=150 train.steps_per_epoch=25" \\
      --arm "monai:" --arm "monai longer: times=3"

An arm begins with who it is. The first one is ours, and takes any key of a config; its training sets the CPU-seconds
that each other arm of the seed has, or so many `times`: of all threads, with validations, without what is read and
preprocessed before and tested afterwards. All rates end with the time. Cases and parts are those of `recipes.py`.

What MONAI and nnU-Net do, and their keys, is in `peers_monai.py` and `peers_nnunet.py`.

Prints of each run its CPU-seconds, steps and score, and then what `arms.report` says: all by this project's metrics.
Runs that are finished are kept: the same command goes on.
"""

import argparse
import csv
import functools
import importlib.util
import inspect
import os
import pathlib
import re
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import arms
import peers_monai
import peers_nnunet
import recipes
import torch

from fomo import kinds, tasks
from fomo.config import to_dict
from fomo.data import sources
from fomo.runtime import files
from fomo.runtime.log import Log

PEERS = {  # the package that it needs, and who trains it
    (1, "monai"): ("monai", peers_monai.labels),
    (2, "monai"): ("monai", peers_monai.masks),
    (2, "nnunet"): ("nnunetv2", peers_nnunet.masks),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path, help="where tables and runs go")
    parser.add_argument("--task", type=int, default=2, choices=(1, 2))
    parser.add_argument("--labelled", type=int, default=40, help="subjects to train on")
    parser.add_argument("--selecting", type=int, default=8, help="further ones, to choose the epoch")
    parser.add_argument("--width", type=int, default=8, help="channels of our first level")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--arm", action="append", required=True, help="WHO FURTHER NAME: key=value key=value ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, results = [arm_of(text, options.task) for text in options.arm], {}
    if found[0][1] is not ours:
        sys.exit(f"--arm: got {options.arm[0]!r} first, wanted ours, which sets the time of the others")
    for seed in options.seeds:
        cpu_s = None
        for arm, train, settings in found:
            run = finished(options, arm, train, settings, seed, cpu_s)
            cpu_s = cpu_s or run["cpu_s"]
            results.setdefault(arm, []).append(run["rows"])
            print(f"run arm={arm!r} seed={seed} cpu_s={run['cpu_s']:.0f} steps={run['steps']}", flush=True)
    arms.report(recipes.TASKS[options.task][0], results)


def arm_of(text, task):
    """(name, who trains it, settings) of an --arm."""
    arm, _, settings = text.partition(":")
    who, settings = (arm.split() or [""])[0], settings.split()
    if who == "ours":
        return arm, ours, settings
    if (task, who) not in PEERS:
        sys.exit(f"--arm {text!r}: got {who!r} for task {task}, wanted ours or one of {sorted(PEERS)}")
    package, train = PEERS[task, who]
    if importlib.util.find_spec(package) is None:
        sys.exit(f"--arm {text!r}: needs a package that is not installed: pip install {package}")
    given, known = {}, {"times", *inspect.getfullargspec(train).kwonlyargs}
    for key, _, value in (setting.partition("=") for setting in settings):
        if key not in known or not re.fullmatch(r"[\d.]+(e-?\d+)?", value):
            sys.exit(f"--arm {text!r}: got {key}={value}, wanted numbers for some of {sorted(known)}")
        given[key] = float(value)
    return arm, functools.partial(peer, train, given), settings


def finished(options, arm, train, settings, seed, cpu_s):
    """{settings, cpu_s, steps, rows} of one run, from its file where there is one; cpu_s: those of ours."""
    name = f"task{options.task}_n{options.labelled}_w{options.width}_{arm.replace(' ', '-')}_{seed}"
    path = options.folder.resolve() / "peers" / f"{name}.json"
    if path.exists():
        known = files.read_json(path)
        if known["settings"] != settings:
            sys.exit(f"{path}: got {settings}, wanted {known['settings']}, with which it was made: take another name")
        return known
    cpu_s, steps, rows = train(options, arm, settings, seed, cpu_s)
    run = {"settings": settings, "cpu_s": cpu_s, "steps": steps, "rows": sorted(rows, key=lambda row: row["id"])}
    os.makedirs(path.parent, exist_ok=True)
    files.write_json(path, run)
    return run


def ours(options, arm, settings, seed, _):
    """(CPU-seconds of the training, steps, rows of the test cases)."""
    config = recipes.config_of(options, arm, [*settings, "train.mode=train"], seed)
    folder, wanted = pathlib.Path(config.output, config.name), tasks.wanted(config)
    if folder.exists():
        sys.exit(f"{folder}: a training that was stopped, whose CPU-seconds are not known: delete it")
    data = kinds.settle(config)[0].data
    sources.prepare(sources.list_cases(data, wanted, log=Log()), data, wanted, Log())
    began = arms.cpu_s()
    arms.run(to_dict(config))
    return arms.cpu_s() - began, config.train.steps, recipes.train(options, arm, settings, seed)


def peer(train, given, options, _, __, seed, cpu_s):
    """The same of another's training."""
    parts = {"train": [], "val": [], "test": []}
    with open(recipes.make_table(options, seed), newline="") as file:
        for row in csv.DictReader(file):
            names = (name for text in recipes.TASKS[options.task][3] for name in text.split("|"))
            case = {"id": row["id"], "image": [row[name] for name in names if row[name]]}
            parts[row["fold"]].append(case | {"mask": row["mask"], "target": row["target"]})
    own = {key: value for key, value in given.items() if key != "times"}
    return train(options.folder.resolve(), parts, seed, cpu_s * given.get("times", 1), **own)


if __name__ == "__main__":
    main()
