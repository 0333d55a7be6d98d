"""The part `mae`: what masking and its loss add to the forward and backward pass of their network.

The step is what training does with a batch that has been read: draw the cubes, mask, forward, loss, backward. `plain`
is the network's forward and backward pass on the same batch, with the mean of the output as the loss. Target: at most
1.1 times `plain`.
"""

import statistics
import time

import numpy as np
import torch

from fomo import tasks
from fomo.training import optimization

from . import feed, timing
from .timing import say

CHANNELS = 1


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns; the ratio is the median over them (5)")
    command.add_argument("--model", default="unet_b_lw_dec", help="network (unet_b_lw_dec)")
    command.add_argument("--patch", type=int, default=64, help="edge of the patch, in voxels (64)")
    command.add_argument("--batch", type=int, default=2, help="samples (2)")
    command.add_argument("--loss", default="all", choices=("all", "masked"), help="task.mae_loss (all)")


def run(options):
    device = timing.device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    plain, step, network = make_steps(options, device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time  # which waits for no other process

    def seconds(function):
        network.zero_grad(set_to_none=True)
        return timing.timed(function, device, clock)[0]

    seconds(plain), seconds(step)
    pairs = [(seconds(plain), seconds(step)) for _ in range(options.turns)]
    case = f"{options.model}_{options.patch}_batch{options.batch}_{options.loss}"
    best = [min(times) for times in zip(*pairs)]
    for who, fastest in zip(("plain", "mae"), best):
        say("time", case=case, who=who, device=str(device), seconds=fastest)
    ratio = statistics.median(step / plain for plain, step in pairs)
    say("mae", case=case, times_plain=ratio, of_the_best=best[1] / best[0], target=1.1, reached=ratio <= 1.1)


def make_steps(options, device):
    """(plain pass, masked step, their network)."""
    values = {
        "task": {"type": "mae", "mae_loss": options.loss},
        "data": {"source": "volumes", "root": ".", "channels": ["mri"], "patch": [options.patch] * 3},
        "model": {"name": options.model},
    }
    config = feed.config_of(values)
    task = tasks.build(config)
    network = tasks.build_network(config, task)
    layout = optimization.lay_out(network, device)
    autocast, _ = optimization.precision("auto", device)
    image = torch.randn(options.batch, CHANNELS, *config.data.patch, device=device)
    image = image.contiguous(memory_format=layout)
    inside = torch.ones(options.batch, *config.data.patch, dtype=torch.uint8, device=device)

    def plain():
        with autocast:
            outputs = network(image)
        outputs.float().mean().backward()

    def step():
        batch = {"image": image, "mask": inside}
        batch.update(task.draw([np.random.default_rng(seed) for seed in range(options.batch)], batch))
        batch = task.prepare(batch)
        with autocast:
            outputs = network(batch["image"])
        task.loss(outputs, batch).mean().backward()

    return plain, step, network
