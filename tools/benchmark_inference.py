"""The `inference` part of tools/benchmark.py: sliding windows against MONAI's, and one full-size case of the challenge.

The network is trivial, so that the time is that of cutting windows out and putting them together again. `alone` is the
network on the same windows with nothing around it. Targets: at most 0.85 of MONAI's time, 3.5 of the network's, 1.3 of the
memory of input and output.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

SHAPE, PATCH, OVERLAP = (4, 192, 224, 192), (96, 96, 96), 0.5


def add_arguments(command):
    command.add_argument("--turns", type=int, default=7, help="turns of which the best counts (7)")
    command.add_argument(
        "--full",
        type=int,
        default=0,
        metavar="FOLDS",
        help="also one 240x240x155 case of 4 channels, UNet-B, FOLDS networks (0: left out)",
    )
    command.add_argument("--mirror", nargs="*", type=int, default=[0, 1, 2], help="axes of --full's mirroring (0 1 2)")


def bench_inference(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line; peer(module, install) imports one or not."""
    import torch

    monai = peer("monai.inferers", "monai")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    volume = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    for name, network in (
        ("two_channels", lambda batch: batch[:, :2] * 2),
        ("mean", lambda batch: batch.mean(1, keepdim=True)),
    ):
        times, results = bench_windows(network, volume, monai, options.turns)
        for who, seconds in times.items():
            say(
                "time",
                case=f"windows_{name}",
                who=who,
                device=str(device),
                seconds=seconds,
                fomo_takes=times["fomo"] / seconds,
            )
        if monai:
            difference = float((results["fomo"] - results["monai"][0]).abs().max())
            say("values", case=f"windows_{name}", against="monai", largest_difference=difference)
    say("memory", case="windows_two_channels", who="fomo", of_input_and_output=peak_memory(device))
    if options.full:
        bench_full(options, say, device)


def bench_windows(network, volume, monai, turns):
    """({who: best seconds}, {who: result}) in rotation; of CPU time on the CPU, where other processes may run."""
    import torch

    from fomo import inference
    from fomo.space import patches

    starts = patches.window_starts(volume.shape[1:], PATCH, OVERLAP)

    def alone():
        for x, y, z in starts:
            network(volume[None, :, x : x + PATCH[0], y : y + PATCH[1], z : z + PATCH[2]])

    functions = {"fomo": lambda: inference.sliding_window(network, volume, PATCH, OVERLAP), "alone": alone}
    if monai:
        functions["monai"] = lambda: monai.sliding_window_inference(
            volume[None], PATCH, 1, network, overlap=OVERLAP, mode="gaussian"
        )
    best, results = {}, {}
    clock = time.perf_counter if volume.is_cuda else time.thread_time
    with torch.no_grad():
        for _ in range(turns):
            for name, function in functions.items():
                start = clock()
                results[name] = function()
                if volume.is_cuda:
                    torch.cuda.synchronize()
                best[name] = min(best.get(name, 1e9), clock() - start)
    return best, results


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
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    code = _PEAK.format(root=root, device=str(device), patch=PATCH, shape=SHAPE, overlap=OVERLAP)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def bench_full(options, say, device):
    """Task 2's config on one case of 240 x 240 x 155 voxels at 1 mm, 4 channels, nothing to crop, as the container is called."""
    import nibabel
    import numpy as np
    import torch

    from fomo import checkpoint, nets, tasks
    from fomo import config as config_module

    root, channels = pathlib.Path(__file__).resolve().parent.parent, ["dwi_b1000", "flair", "adc", "swi"]
    config = config_module.from_dict(
        {"task": {"type": "segmentation"}, "data": {"channels": channels, "patch": list(PATCH)}}, "benchmark"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(os.path.join(folder, "checkpoints"))
        for fold in range(1, options.full + 1):
            torch.manual_seed(fold)
            content = {
                "model": nets.build("unet_b", 4, 2).state_dict(),
                "config": config_module.to_dict(config),
                "fold": fold,
                "calibrated": True,
            }
            checkpoint.save(
                os.path.join(folder, "checkpoints", f"fold_{fold}.pt"), {**content, "task": tasks.build(config).state}
            )
        given, generator = [], np.random.default_rng(0)
        for name in channels:
            path = os.path.join(folder, f"{name}.nii.gz")
            nibabel.save(
                nibabel.Nifti1Image(
                    generator.integers(1, 1000, (240, 240, 155)).astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])
                ),
                path,
            )
            given += [f"--{name}", path]
        command = [
            sys.executable,
            str(root / "tools" / "predict_fomo25.py"),
            *given,
            "--output",
            os.path.join(folder, "out.nii.gz"),
        ]
        command += ["--checkpoints", os.path.join(folder, "checkpoints"), "--mirror", *map(str, options.mirror)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        say(
            "time",
            case="container_240x240x155x4",
            who="fomo",
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            folds=options.full,
            mirror=json.dumps(options.mirror),
            seconds=time.perf_counter() - start,
            target=120.0,
        )
