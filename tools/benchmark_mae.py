"""The `mae` part of tools/benchmark.py: what masking and its loss add to the forward and backward pass of their network.

The step is what training does with a batch that has been read: draw the cubes, mask, forward, loss, backward. `plain` is the
network's forward and backward pass on the same batch, with the mean of the output as the loss. Target: at most 1.1 times.
"""

import statistics
import time

CHANNELS = 1


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns; the ratio is the median over them (5)")
    command.add_argument("--model", default="unet_b_lw_dec", help="network (unet_b_lw_dec)")
    command.add_argument("--patch", type=int, default=64, help="edge of the patch, in voxels (64)")
    command.add_argument("--batch", type=int, default=2, help="samples (2)")
    command.add_argument("--loss", default="all", choices=("all", "masked"), help="task.mae_loss (all)")


def bench_mae(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line."""
    import numpy as np
    import torch

    from fomo import config as config_module
    from fomo import tasks
    from fomo.training import optimization

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    config = config_module.from_dict(
        {
            "task": {"type": "mae", "mae_loss": options.loss},
            "data": {"channels": ["mri"], "patch": [options.patch] * 3},
            "model": {"name": options.model},
        },
        "the benchmark",
    )
    task = tasks.build(config)
    network = tasks.build_network(config, task)
    layout = optimization.lay_out(network, device)
    autocast, _ = optimization.precision("auto", device)
    image = torch.randn(options.batch, CHANNELS, *config.data.patch, device=device)
    image = image.contiguous(memory_format=layout)

    def plain():
        with autocast:
            outputs = network(image)
        outputs.float().mean().backward()

    def step():
        batch = {"image": image}
        batch.update(task.draw([np.random.default_rng(seed) for seed in range(options.batch)], batch))
        batch = task.prepare(batch)
        with autocast:
            outputs = network(batch["image"])
        task.loss(outputs, batch).mean().backward()

    def seconds(function):
        """On the CPU of this process, which waits for no other."""
        network.zero_grad(set_to_none=True)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    seconds(plain), seconds(step)
    pairs = [(seconds(plain), seconds(step)) for _ in range(options.turns)]
    case = f"{options.model}_{options.patch}_batch{options.batch}_{options.loss}"
    for who, times in zip(("plain", "mae"), zip(*pairs)):
        say("time", case=case, who=who, device=str(device), seconds=min(times))
    ratio = statistics.median(step / plain for plain, step in pairs)
    say(
        "mae",
        case=case,
        times_plain=ratio,
        of_the_best=min(b for _, b in pairs) / min(a for a, _ in pairs),
        target=1.1,
        reached=ratio <= 1.1,
    )
