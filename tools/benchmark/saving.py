"""The part `saving`: what the end of an epoch that is the best so far costs a training, apart from its validation.

`each_epoch` writes best.pt and last.pt there, with the optimizer's state; `fomo` keeps the weights in memory and writes
the history, until train.save_every_s have passed.
"""

import os
import tempfile
from types import SimpleNamespace

import torch

from fomo import kinds, tasks
from fomo.run_folder import FoldFolder
from fomo.runtime.log import Log
from fomo.training.state import Training

from .timing import best_times, say


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns of which the best counts (5)")
    command.add_argument("--width", type=int, default=32, help="channels of the UNet-B (32)")


def run(options):
    with tempfile.TemporaryDirectory() as folder:
        training, log = begun(FoldFolder(folder, 1), options.width), Log(active=False)

        def fomo():
            training.keep(1, training.history[-1])
            training.fold.write_history(training.history)

        def each_epoch():
            fomo()
            training.save(log)

        found = best_times({"fomo": fomo, "each_epoch": each_epoch}, options.turns)
        sizes = {name: os.path.getsize(getattr(training.fold, name)) / 1e6 for name in ("best", "last")}
    seconds = {name: best for name, (best, _) in found.items()}
    parameters = sum(p.numel() for p in training.network.parameters())
    for name, best in seconds.items():
        say("time", case="epoch_end", who=name, ms=1000 * best, fomo_takes=seconds["fomo"] / best)
    say("size", case="epoch_end", parameters=parameters, **{f"{name}_mb": size for name, size in sizes.items()})


def begun(fold, width):
    """A Training of a UNet-B after its first epoch."""
    sections = {"data": {"root": "nowhere", "channels": ["flair"]}, "task": {"type": "segmentation"}}
    chosen = kinds.from_dict(
        {**sections, "model": {"name": "unet_b", "width": width}, "optim": {"lr": 1e-3}}, "the benchmark"
    )
    task = tasks.build(chosen)
    training = Training(chosen, task, tasks.build_network(chosen, task), [SimpleNamespace(subject="a")] * 2, [], fold)
    for parameter in training.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    training.optimizer.step()
    training.step = training.steps_per_epoch
    training.history.append({"epoch": 1, "step": training.step, "train_loss": 1.0, "val_loss": 1.0, "val_dice": 0.5})
    return training
