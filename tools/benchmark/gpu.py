"""The part `gpu`: what a training step costs on this chip, against the naive step and against the chip.

The naive step is what most people write: eager, contiguous tensors, parameters in float32 under torch's autocast, AdamW
as torch gives it, batches augmented by CPU workers. Ours is the step of training itself, with its losses read as
training reads them. The chip's rates are measured in the same run: the product of two 8192 x 8192 bf16 matrices, and a
copy of 1 GiB. torch's own counter counts operations.

Targets on one H200 (segmentation, 3 -> 2 channels, 96^3, bf16): a step of batch 2 in at most 1/1.5 of the naive time
without data, 1/2 with each one's own pipeline, which it awaits for less than 3%; batch 8 at 35% of the matrix rate; at
128^3 memory at most 1.0 of the naive step's, 0.7 with checkpointed activations. Without a GPU everything runs at toy
size, for its correctness only.
"""

import collections
import contextlib
import functools
import gc
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import types
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fomo import losses, nets, tasks
from fomo.nets import norm
from fomo.run_folder import FoldFolder
from fomo.tasks.results import finished
from fomo.training import evaluate, optimization
from fomo.training.step import to_device, train_step

from . import feed, timing
from .inference import bench_full
from .timing import best_seconds, say, timed, wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("chip", "steps", "breakdown", "fed", "evaluated", "parity", "ranks", "inference", "others", "compile")
STEPS = (  # task, network, channels in and out, batch, edge of the patch in voxels
    ("segmentation", "unet_b", 3, 2, 2, 96),
    ("segmentation", "unet_b", 3, 2, 8, 96),
    ("segmentation", "unet_b", 3, 2, 2, 128),
    ("segmentation", "resenc_unet_b", 3, 2, 2, 160),
)
OTHERS = (
    ("classification", "unet_b", 4, 2, 2, 96),
    ("mae", "unet_b_lw_dec", 1, 1, 2, 96),
    ("slices", "resnet50", 1, 18, 64, 224),
)
LOSSES = {
    "segmentation": losses.dice_focal,
    "classification": losses.cross_entropy,
    "mae": losses.masked_mse,
    "slices": losses.bce,
}
VARIANTS = {  # who: how it differs, for make_step
    "naive": dict(naive=True),
    "fomo": {},
    "fomo_checkpointed": dict(recompute=True),
    "fomo_eager": dict(graph=False),
    "fomo_torch_norm": dict(torch_norm=True),
    "fomo_cudnn_benchmark": dict(search=True),
    "fomo_compiled": dict(compiled=True),
}
KERNELS = {  # class: parts of the names of its kernels; the first that matches counts
    "layout": "nchwtonhwc nhwctonchw",
    "weight gradients": "wgrad",
    "convolution": "dgrad fprop conv gemm cutlass xmma cudnn vol2col col2vol",
    "optimizer": "multi_tensor adam lpnorm",
    "norm and activation": "_sums _statistics _totals _apply norm welford bn_ leaky_relu",
    "concatenation": "cat",
    "pooling": "pool",
    "copies and casts": "memcpy memset copy fill",
    "sums": "reduce_kernel",
    "additions": "functor_add",
}


def add_arguments(command):
    command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    command.add_argument("--turns", type=int, default=3, help="turns of which the best counts (3)")
    left_out = "what has not begun by then is left out, and said (8)"
    command.add_argument("--minutes", type=float, default=8, help=left_out)


def run(options):
    device = timing.device()
    say_versions(device)
    attempt, parts, rates = Attempts(options.minutes), options.parts, {}
    if "chip" in parts:
        rates = attempt(dict(part="chip"), bench_chip, device) or {}
    step = functools.partial(bench_step, device=device, turns=options.turns, rates=rates, measured={})

    def steps(part, cases, variants):
        for case in cases:
            for who in variants(case, device):
                attempt(dict(part=part, **where_of(case), who=who), step, case, who)

    if "steps" in parts:
        steps("steps", STEPS[:2], lambda case, device: ("naive", "fomo"))
    if "breakdown" in parts and device.type == "cuda":
        for case in STEPS[:2]:
            attempt(dict(part="breakdown", **where_of(case)), breakdown, case, device)
    if "fed" in parts:
        attempt(dict(part="fed"), bench_fed, device)
    if "evaluated" in parts:
        attempt(dict(part="evaluated"), bench_evaluated, device, options.turns)
    if "steps" in parts:
        steps("steps", STEPS[2:], lambda case, device: ("naive", "fomo", "fomo_checkpointed"))
        steps("steps", STEPS[:2], lambda case, device: ("fomo_eager", "fomo_torch_norm", "fomo_cudnn_benchmark"))
    if "inference" in parts and device.type == "cuda":  # target: 20 s
        attempt(dict(part="inference"), bench_full, 5, [0, 1, 2], device)
    if "parity" in parts:
        attempt(dict(part="parity"), bench_parity, device, ("naive", "fomo_torch_norm", "fomo_checkpointed"))
    if "ranks" in parts:
        attempt(dict(part="ranks"), bench_ranks)
    if "others" in parts:
        steps("others", OTHERS, lambda case, device: ("naive", "fomo"))
    if "breakdown" in parts and device.type == "cuda":
        for case in STEPS[2:]:
            attempt(dict(part="breakdown", **where_of(case)), breakdown, case, device)
    if "compile" in parts:  # last: a minute or so for each case
        attempt(dict(part="compile"), bench_parity, device, ("fomo_compiled",))
        steps("compile", STEPS, lambda case, device: ("fomo_compiled",))


def say_versions(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu (toy sizes: times mean nothing)"
    say("versions", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), device=name)
    for message in optimization.doubts(device, *(network for _, network, *_ in STEPS)):
        say("doubt", message=message)


class Attempts:
    """Calls functions: what fails, or has no time left, is one line, and the rest is measured."""

    def __init__(self, minutes):
        self.minutes, self.end = minutes, time.monotonic() + 60 * minutes

    def __call__(self, where, function, *arguments):
        if time.monotonic() > self.end:
            return say("left_out", **where, minutes=self.minutes)
        try:
            return function(*arguments)
        except Exception as error:  # of a kernel, a compiler, a library or of memory: whatever this machine lacks
            said = str(error).strip().partition("\n")[0][:200]
            say("failed", **where, error=f"{type(error).__name__}: {said}")
        finally:
            gc.collect()


def where_of(case):
    return dict(task=case[0], network=case[1], batch=case[4], patch=case[5])


def bench_chip(device):
    """{"tflops": bf16 matrix rate, "gb_s": bytes read and written by a copy} of this device."""
    size, gib = (8192, 2**30) if device.type == "cuda" else (256, 2**20)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(gib, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = best_seconds(lambda: a @ b, device, repeat=10)
    copy_s = best_seconds(lambda: target.copy_(source), device, repeat=10)
    rates = {"tflops": 2 * size**3 / product_s / 1e12, "gb_s": 2 * gib / copy_s / 1e9}
    say("chip", matrix=size, bf16_tflops=rates["tflops"], copy_gb_per_s=rates["gb_s"])
    return rates


# ----------------------------------------------------------------------------------------- one step


def bench_step(case, who, device, turns, rates, measured):
    """Time and memory of one step; added to `measured`, {(case, who): (seconds, peak GB)} of the steps before."""
    batch, edge = sizes(case, device)
    operations, how = count_operations(case, device), VARIANTS[who]
    with make_step(case, device, **how) as step:
        first_s, _ = timed(step, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step_s = best_seconds(step, device, repeat=8 if device.type == "cuda" else 1, turns=turns)
    # what the allocator holds: a graph keeps its memory; on the CPU it says nothing
    peak_gb = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else 0.0
    measured[case, who] = step_s, peak_gb
    line = dict(first_s=first_s, step_s=step_s, samples_per_s=batch / step_s, peak_gb=peak_gb)
    if rates:
        tflops = operations / step_s / 1e12
        line |= dict(tflops=tflops, of_matrix_rate=tflops / rates["tflops"])
    if (case, "naive") in measured:
        naive_s, naive_gb = measured[case, "naive"]
        line |= dict(faster_than_naive=naive_s / step_s, memory_of_naive=peak_gb / naive_gb if naive_gb else None)
    if how.get("compiled") and (case, "fomo") in measured:  # steps after which a run with it is ahead of one without
        gained_s = measured[case, "fomo"][0] - step_s
        line |= dict(earned_back_after_steps=math.ceil((first_s - step_s) / gained_s) if gained_s > 0 else math.inf)
    say("step", **{**where_of(case), "batch": batch, "patch": edge}, who=who, **line)


def sizes(case, device):
    """(batch, edge of the patch); toys without a GPU."""
    return case[4:] if device.type == "cuda" else (1, 64 if case[1].startswith("resenc") else 32)


@contextlib.contextmanager
def make_step(case, device, naive=False, compiled=False, graph=True, search=False, torch_norm=False, **how):
    """A function that does one optimizer step, on a fixed batch or on the one that it is fed, and returns its loss.

    compiled: by torch.
    graph: its passes are CUDA graphs, as in training.
    search: cuDNN tries its convolutions.
    torch_norm: with torch's own instance norm, and the layout that suits it.
    naive and how: see `make_network`; `edge`: of the patch, instead of the case's.
    """
    edge = how.pop("edge", None)
    with contextlib.ExitStack() as stack:
        if torch_norm or naive:
            stack.enter_context(mock.patch.object(norm, "problem", lambda device: "left out"))
        torch.backends.cudnn.benchmark = search
        stack.callback(setattr, torch.backends.cudnn, "benchmark", False)
        network, layout = make_network(case, device, naive, **how)
        fixed = make_batch(case, device, edge)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda" and not naive)
        loss = LOSSES[case[0]]
        task = types.SimpleNamespace(loss=lambda outputs, batch: loss(outputs, batch["target"]))
        graph = graph and not naive
        train = types.SimpleNamespace(cuda_graph=graph, checkpoint_activations=how.get("recompute"))
        plan = types.SimpleNamespace(micro_batches=1)
        if compiled:
            torch.compiler.reset()  # or a second size of patch would be compiled for any size
        forward = torch.compile(network) if compiled else optimization.wrap(network, train, plan, device)
        amp = "bf16" if device.type == "cuda" else "off"  # CPUs without it in hardware take minutes for a step
        autocast, scaler = optimization.precision(amp, device)
        fixed["image"] = fixed["image"].contiguous(memory_format=layout)
        pending = collections.deque()

        def step(fed=None):
            given = fixed if fed is None else {**fed, "target": fed["mask"]}
            if naive:
                return naive_step(forward, task, given, optimizer, autocast)
            pending.append(train_step(forward, task, [given], optimizer, scaler, autocast, 1.0))
            if len(pending) > 1:
                pending.popleft().read()
            return pending[-1].loss

        step.layout = layout
        yield step
        if getattr(forward, "problem", None):
            say("graph", **where_of(case), problem=forward.problem)


def make_network(case, device, naive=False, recompute=False):
    """(network in training mode, memory format of its images).

    naive: contiguous.
    recompute: with checkpointed activations.
    """
    kind, name, channels, outputs, _, _ = case
    torch.manual_seed(0)
    whole = kind in ("classification", "slices")
    network = nets.build(name, channels, outputs, mode="classification" if whole else "segmentation").to(device)
    layout = torch.contiguous_format if naive else optimization.lay_out(network, device)
    if recompute:
        network.checkpoint_activations(True)
    return network.train(), layout


def make_batch(case, device, edge=None):
    """A batch of noise with a target of the task's kind."""
    kind, _, channels, outputs, _, _ = case
    batch, own_edge = sizes(case, device)
    edge = edge or own_edge
    size = (edge, edge, 1) if kind == "slices" else (edge,) * 3
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *size, generator=generator)
    if kind == "segmentation":
        target = torch.randint(0, outputs, (batch, *size), generator=generator)
    elif kind == "classification":
        target = torch.randint(0, outputs, (batch,), generator=generator)
    elif kind == "slices":
        target = torch.randint(0, 2, (batch, outputs), generator=generator).float()
    else:
        target = torch.randn(batch, outputs, *size, generator=generator)
    return {"image": image.to(device), "target": target.to(device), "id": [""] * batch}


def naive_step(forward, task, batch, optimizer, autocast):
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        outputs = forward(batch["image"])
    loss = task.loss(outputs, batch).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(forward.parameters()), 1.0)
    optimizer.step()
    loss.item()  # as a progress bar shows it
    return loss.detach()


@functools.cache
def count_operations(case, device):
    """Floating-point operations of one forward and backward pass, by torch's counter."""
    with make_step(case, device, graph=False) as step, FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def breakdown(case, device, steps=5, largest=6):
    """Share of the GPU's time by class of kernel, the largest kernels, and how long the GPU had nothing to do."""
    with make_step(case, device) as step:

        def several():
            for _ in range(steps):
                step()

        for _ in range(3):
            step()
        wait(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            wall = timed(several, device)[0] / steps
    sums, kernels = collections.Counter(), []
    for event in profiler.key_averages():
        kernel_s = event.self_device_time_total / 1e6 / steps
        on_gpu = "cuda" in str(event.device_type).lower() and not event.is_user_annotation  # which spans kernels
        if kernel_s and on_gpu:
            sums[kind_of_kernel(event.key.lower())] += kernel_s
            kernels.append((kernel_s, event.count / steps, re.sub(r"<.*|void |at::native::", "", event.key)[:90]))
    busy, where = sum(sums.values()), where_of(case)
    if not busy:
        raise RuntimeError("the profiler saw no kernel: it may lack the right to the GPU's counters")
    for kind, kernel_s in sums.most_common():
        say("kernels", **where, kind=kind, seconds=kernel_s, share=kernel_s / busy)
    for kernel_s, count, name in sorted(kernels, reverse=True)[:largest]:
        say("kernel", **where, name=name, per_step=count, seconds=kernel_s, share=kernel_s / busy)
    idle = dict(seconds=max(0.0, wall - busy), share=max(0.0, 1 - busy / wall))
    say("kernels", **where, kind="idle, under the profiler", **idle)


def kind_of_kernel(name):
    return next((kind for kind, words in KERNELS.items() if any(word in name for word in words.split())), "other")


def bench_fed(device, steps=40):
    """Steps of the segmentation with batches from disk: the naive step behind CPU augmentation, ours as configured."""
    edge, batch, workers = (96, 2, min(8, os.cpu_count())) if device.type == "cuda" else (32, 2, 0)
    steps, warm = (steps, 8) if device.type == "cuda" else (2, 1)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for who, where in (("naive", "cpu"), ("fomo", "auto")):
            given = f"augment.device={where}", f"data.patch=[{edge},{edge},{edge}]", "augment.preset=all"
            config, _, batches = feed.phantom_batches(folder, workers, steps + warm, batch, *given)
            augment, waited_s = tasks.build(config).augmentation(), 0.0
            with make_step(STEPS[0], device, naive=who == "naive", edge=edge) as step:
                for index in range(steps + warm):
                    if index == warm:
                        wait(device)
                        start, waited_s = time.perf_counter(), 0.0
                    clock = time.perf_counter()
                    fed = next(batches)
                    waited_s += time.perf_counter() - clock
                    step(to_device(fed, device, augment, step.layout))
                wait(device)
            seconds[who] = (time.perf_counter() - start) / steps
            line = dict(workers=workers, batch=batch, patch=edge, step_s=seconds[who], data_s=waited_s / steps)
            share = line["data_s"] / line["step_s"]
            say("fed", who=who, augment=where, **line, share=share, faster_than_naive=seconds["naive"] / seconds[who])


def bench_evaluated(device, turns):
    """Seconds of a case of a final evaluation, with masks and all metrics in native space: one after another, and ours.

    Ours reads cases ahead, and finishes an answer while the network is at the next case.
    """
    sizes = ["data.patch=[96,96,96]"] if device.type == "cuda" else ["data.patch=[32,32,32]", "data.phantom_size=34"]
    sizes += [] if device.type == "cuda" else ["data.spacing_mm=[5.6,5.6,5.6]", "model.width=2"]
    with tempfile.TemporaryDirectory() as folder:
        config, cases, _ = feed.phantom_batches(folder, 0, 1, 1, *sizes)
        task, fold = tasks.build(config), FoldFolder(os.path.join(folder, "fold_1"), 1)
        task.fit(cases, cases)
        network, windows = tasks.build_network(config, task).eval(), evaluate.windows_of(config, device)
        optimization.lay_out(network, device)
        ways = {
            "one_by_one": lambda: [finished(task.predict(network, case, windows, fold)).row for case in cases],
            "fomo": lambda: evaluate.evaluate(config, task, network, cases, fold).rows,
        }
        found = timing.best_times(ways, turns, device)
    (slow, rows), (seconds, same) = found["one_by_one"], found["fomo"]
    for who, case_s in (("one_by_one", slow / len(cases)), ("fomo", seconds / len(cases))):
        say("evaluated", who=who, cases=len(cases), case_s=case_s, faster=slow / len(cases) / case_s)
    dice = [[row["dice"] for row in sorted(some, key=lambda row: row["id"])] for some in (rows, same)]
    say("values", case="evaluated", same_dice=np.array_equal(*dice, equal_nan=True))  # NaN of two empty masks


def bench_parity(device, others):
    """Losses of 50 steps on one batch: each of the other VARIANTS against ours, in bf16."""
    steps, found = 50 if device.type == "cuda" else 2, {}
    for who in ("fomo", *others):
        with make_step(STEPS[0], device, **VARIANTS[who], edge=48 if device.type == "cuda" else 32) as step:
            found[who] = [float(step()) for _ in range(steps)]
    for who in others:
        largest = max(abs(a - b) for a, b in zip(found["fomo"], found[who]))
        line = dict(steps=steps, first=found[who][0], last=found[who][-1], largest_difference=largest)
        say("parity", who="fomo", against=who, **line)


def bench_ranks(steps=8):
    """Losses of the first steps of a demo in float32: on two ranks, which share the device, against one."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            command += [str(ROOT / "train.py"), str(ROOT / "configs" / "demo_task2.yaml"), f"output={folder}/{ranks}"]
            command += [f"data.root={folder}/phantoms", "data.phantom_cases=12", f"train.steps={steps}"]
            command += ["train.amp=off", "train.log_every=1", "cv.val_fraction=0.2", "cv.folds=3"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            lines = [line for line in run.stdout.splitlines() if " train " in line and " loss=" in line]
            found[ranks] = [float(re.search(r" loss=(\S+)", line)[1]) for line in lines]
    differences = [abs(a - b) for a, b in zip(found[1], found[2], strict=True)]
    line = dict(first=found[1][0], last=found[1][-1], first_difference=differences[0])
    say("ranks", steps=len(differences), **line, largest_difference=max(differences))
