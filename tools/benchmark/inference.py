"""The part `inference`: sliding windows against MONAI's, and one full-size case of the challenge.

The network is trivial, so that the time is that of cutting windows out and putting them together again. `alone` is the
network on the same windows with nothing around it. Targets: at most 0.85 of MONAI's time, 3.5 of the network's, 1.3 of
the memory of input and output.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import nibabel
import numpy as np
import torch

from fomo import checkpoint, inference, tasks
from fomo import config as config_module
from fomo.space import patches

from . import feed, timing
from .timing import best_times, peer, say

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE, PATCH, OVERLAP = (4, 192, 224, 192), (96, 96, 96), 0.5
NETWORKS = {"two_channels": lambda batch: batch[:, :2] * 2, "mean": lambda batch: batch.mean(1, keepdim=True)}
CHANNELS = ("dwi_b1000", "flair", "adc", "swi")


def add_arguments(command):
    command.add_argument("--turns", type=int, default=7, help="turns of which the best counts (7)")
    full = "also one 240x240x155 case of 4 channels, UNet-B, FOLDS networks (0: left out)"
    command.add_argument("--full", type=int, default=0, metavar="FOLDS", help=full)
    command.add_argument("--mirror", nargs="*", type=int, default=[0, 1, 2], help="axes of --full's mirroring (0 1 2)")


def run(options):
    monai, device = peer("monai.inferers", "monai"), timing.device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    volume = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    for name, network in NETWORKS.items():
        case, times = f"windows_{name}", bench_windows(network, volume, monai, options.turns)
        for who, (seconds, _) in times.items():
            ratio = times["fomo"][0] / seconds
            say("time", case=case, who=who, device=str(device), seconds=seconds, fomo_takes=ratio)
        if monai:
            difference = float((times["fomo"][1] - times["monai"][1][0]).abs().max())
            say("values", case=case, against="monai", largest_difference=difference)
    say("memory", case="windows_two_channels", who="fomo", of_input_and_output=peak_memory(device))
    if options.full:
        bench_full(options.full, options.mirror, device)


def bench_windows(network, volume, monai, turns):
    """{who: (best seconds, result)}; seconds of CPU time on the CPU, where other processes may run."""
    starts = patches.window_starts(volume.shape[1:], PATCH, OVERLAP)

    def alone():
        for x, y, z in starts:
            network(volume[None, :, x : x + PATCH[0], y : y + PATCH[1], z : z + PATCH[2]])

    functions = {"fomo": lambda: inference.sliding_window(network, volume, PATCH, OVERLAP), "alone": alone}
    if monai:
        functions["monai"] = lambda: monai.sliding_window_inference(
            volume[None], PATCH, 1, network, overlap=OVERLAP, mode="gaussian"
        )
    clock = time.perf_counter if volume.is_cuda else time.thread_time
    with torch.no_grad():
        return best_times(functions, turns, volume.device, clock)


_PEAK = r"""
import re, sys
sys.path.insert(0, {root!r})
import torch
from fomo import inference
torch.set_num_threads(1)
network, device = lambda batch: batch[:, :2] * 2, torch.device({device!r})
inference.sliding_window(network, torch.zeros(4, 96, 96, 96, device=device), {patch})
volume = torch.ones({shape}, device=device)
def now(key):  # VmRSS, VmHWM: memory of this process, its peak
    return 1024 * int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1])
cuda = device.type == "cuda"
before = torch.cuda.memory_allocated() if cuda else now("VmRSS")
result = inference.sliding_window(network, volume, {patch}, {overlap})
after = torch.cuda.max_memory_allocated() if cuda else now("VmHWM")
print((after - before + 4 * volume.numel()) / 4 / (volume.numel() + result.numel()))
"""


def peak_memory(device):
    """Peak memory over that of the input and the output, in a process of its own."""
    code = _PEAK.format(root=str(ROOT), device=str(device), patch=PATCH, shape=SHAPE, overlap=OVERLAP)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def bench_full(folds, mirror, device):
    """Task 2 on one case of 240 x 240 x 155 voxels at 1 mm, 4 channels, nothing to crop, as the container is called."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, images, result = (os.path.join(folder, name) for name in ("checkpoints", "images", "out.nii.gz"))
        write_checkpoints(checkpoints, folds)
        command = [sys.executable, str(ROOT / "tools" / "predict_fomo25.py"), *write_images(images)]
        command += ["--output", result, "--checkpoints", checkpoints, "--mirror", *map(str, mirror)]
        seconds, _ = timing.timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    line = dict(case="container_240x240x155x4", who="fomo", device=where, folds=folds, mirror=json.dumps(mirror))
    say("time", **line, seconds=seconds, target=120.0)


def write_checkpoints(folder, folds):
    """A checkpoint of an untrained network for each fold."""
    os.makedirs(folder)
    data = {"root": ".", "channels": list(CHANNELS), "patch": list(PATCH)}
    config = feed.config_of({"task": {"type": "segmentation"}, "data": data})
    task = tasks.build(config)
    shared = {"config": config_module.to_dict(config), "calibrated": True, "task": task.state, "subjects": []}
    for fold in range(1, folds + 1):
        torch.manual_seed(fold)
        content = {"model": tasks.build_network(config, task).state_dict(), "fold": fold, **shared}
        checkpoint.save(os.path.join(folder, f"fold_{fold}.pt"), content)


def write_images(folder):
    """Options of the container's command that name the images of one case."""
    os.makedirs(folder)
    options, generator = [], np.random.default_rng(0)
    for name in CHANNELS:
        path = os.path.join(folder, f"{name}.nii.gz")
        voxels = generator.integers(1, 1000, (240, 240, 155)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
        options += [f"--{name}", path]
    return options
