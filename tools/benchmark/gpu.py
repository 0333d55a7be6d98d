"""The part `gpu`: what a training step costs on this chip, against the naive step and against the chip.

The naive step is what the FOMO25 baseline does: eager, contiguous tensors, instance norms in float32 under autocast,
AdamW as torch gives it, batches from CPU workers. Ours is the step of training itself. The chip's rates are measured in
the same run: the product of two 8192 x 8192 bf16 matrices, and a copy of 1 GiB. torch's own counter counts operations.

Targets on one H200 (segmentation, 3 -> 2 channels, 96^3, batch 2, bf16): a step in at most 1/1.5 of the naive time
without data, 1/2 with each one's own pipeline; batch 8 at 35% of the matrix rate; at 128^3 memory at most 1.0 of the
naive step's, 0.7 with checkpointed activations. Without a GPU everything runs at toy size, for its correctness only.
"""

import functools
import gc
import math
import os
import tempfile
import time
import types

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fomo import losses, nets, tasks
from fomo.training import optimization
from fomo.training.step import to_device, train_step

from . import feed, timing
from .inference import bench_full
from .timing import best_seconds, say, timed, wait

PARTS = ("chip", "steps", "breakdown", "fed", "parity", "inference", "compile")
STEPS = (  # task, network, channels in and out, batch, edge of the patch in voxels
    ("segmentation", "unet_b", 3, 2, 2, 96),
    ("segmentation", "unet_b", 3, 2, 8, 96),
    ("segmentation", "unet_b", 3, 2, 2, 128),
    ("classification", "unet_b", 4, 2, 2, 96),
    ("classification", "unet_b", 4, 2, 8, 96),
    ("classification", "unet_b", 4, 2, 2, 128),
    ("mae", "unet_b_lw_dec", 1, 1, 2, 96),
    ("slices", "resnet50", 1, 18, 64, 224),
)
LOSSES = {
    "segmentation": losses.dice_ce,
    "classification": losses.cross_entropy,
    "mae": losses.masked_mse,
    "slices": losses.bce,
}
PATHS = {"naive": dict(naive=True), "torch_norm": dict(torch_norm=True), "checkpointed": dict(recompute=True)}
KERNELS = {  # class: parts of the names of its kernels; the first that matches counts
    "optimizer": "multi_tensor adam l2norm lpnorm",
    "normalisation": "norm welford bn_ reduce_kernel addcmul",
    "convolution": "conv gemm cutlass xmma cudnn dgrad wgrad fprop nchwtonhwc nhwctonchw vol2col col2vol",
    "copies": "memcpy memset copy cat fill",
    "pooling and activation": "pool leaky relu",
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
    if "steps" in parts:
        for case in STEPS:
            for who, how in variants(case, device).items():
                attempt(dict(part="steps", **where_of(case), who=who), step, case, who, how)
    if "breakdown" in parts and device.type == "cuda":
        for case in STEPS:
            attempt(dict(part="breakdown", **where_of(case)), breakdown, case, device)
    if "fed" in parts:
        attempt(dict(part="fed"), bench_fed, device)
    if "parity" in parts:
        attempt(dict(part="parity"), bench_parity, device, PATHS)
    if "inference" in parts and device.type == "cuda":  # target: 20 s
        attempt(dict(part="inference"), bench_full, 5, [0, 1, 2], device)
    if "compile" in parts:  # last: a minute or so for each case
        attempt(dict(part="compile"), bench_parity, device, {"compiled": dict(compiled=True)})
        for case in STEPS:
            attempt(dict(part="compile", **where_of(case)), step, case, "fomo_compiled", dict(compiled=True))


def say_versions(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu (toy sizes: times mean nothing)"
    say("versions", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), device=name)
    for message in optimization.doubts(device):
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


def variants(case, device):
    """{who: how it differs, for make_step}; the naive step first, which the others are compared with."""
    found = {"naive": dict(naive=True), "fomo": {}}
    if case[1].startswith("unet"):
        found["fomo_checkpointed"] = dict(recompute=True)
        found["fomo_torch_norm"] = dict(torch_norm=True)
    if device.type == "cuda":
        found["fomo_other_layout"] = dict(other_layout=True)
        found["fomo_cudnn_benchmark"] = dict(search=True)
    return found


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


def bench_step(case, who, how, device, turns, rates, measured):
    """Time and memory of one step; added to `measured`, {(case, who): (seconds, peak GB)} of the steps before."""
    batch, edge = sizes(case, device)
    operations = count_operations(case, device)
    step = make_step(case, device, **how)
    first_s, _ = timed(step, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step_s = best_seconds(step, device, repeat=8 if device.type == "cuda" else 1, turns=turns)
    # of the GPU's allocator, which says nothing on the CPU
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    torch.backends.cudnn.benchmark = False
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
    return case[4:] if device.type == "cuda" else (2, 32)


def make_step(case, device, naive=False, compiled=False, search=False, edge=None, **how):
    """A function that does one optimizer step, on a fixed batch or on the one that it is fed, and returns its loss.

    compiled: by torch.
    search: cuDNN tries its convolutions.
    edge: of the patch, instead of the case's.
    naive and how: see `make_network`.
    """
    torch.backends.cudnn.benchmark = search
    network, layout = make_network(case, device, naive, **how)
    fixed = make_batch(case, device, edge)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda" and not naive)
    loss = LOSSES[case[0]]
    task = types.SimpleNamespace(loss=lambda outputs, batch: loss(outputs, batch["target"]))
    forward = optimization.wrap(network, compiled, device)
    amp = "bf16" if device.type == "cuda" else "off"  # CPUs without it in hardware take minutes for a step
    autocast, scaler = optimization.precision(amp, device)

    def laid_out(batch):
        return {**batch, "image": batch["image"].contiguous(memory_format=layout)}

    fixed = laid_out(fixed)

    def step(fed=None):
        given = fixed if fed is None else laid_out({**fed, "target": fed["mask"]})
        if naive:
            return naive_step(forward, task, given, optimizer, autocast)
        return train_step(forward, task, [given], optimizer, scaler, autocast, 1.0).loss

    return step


def make_network(case, device, naive=False, recompute=False, torch_norm=False, other_layout=False):
    """(network in training mode, memory format of its images).

    naive: contiguous, and instance norms as autocast's older rules run them.
    recompute: with checkpointed activations.
    torch_norm: with torch's own instance norm.
    other_layout: with the weights of convolutions in the layout that is not the default here.
    """
    kind, name, channels, outputs, _, _ = case
    torch.manual_seed(0)
    whole = kind in ("classification", "slices")
    network = nets.build(name, channels, outputs, mode="classification" if whole else "segmentation").to(device)
    layout = torch.contiguous_format if naive else optimization.lay_out(network, device)
    if other_layout:
        layout = _to_other_layout(network, layout)
    for module in network.modules():
        if isinstance(module, torch.nn.InstanceNorm3d):
            if naive:
                _in_float32(module)
            if torch_norm:
                module.forward = functools.partial(torch.nn.InstanceNorm3d.forward, module)
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


def _to_other_layout(network, layout):
    """Move the weights of all convolutions to the layout that is not the default here; returns it."""
    other = torch.channels_last_3d if layout == torch.contiguous_format else torch.contiguous_format
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=other)
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last if other == torch.channels_last_3d else other)
    return other


def _in_float32(norm):
    """Instance norm as autocast's older rules run it: the input is converted, and the result stays in float32."""
    own = norm.forward
    norm.forward = lambda x: own(x.float())


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
    step = make_step(case, device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def breakdown(case, device, steps=5):
    """Share of the GPU's time by class of kernel, and how long it had nothing to do."""
    step = make_step(case, device)

    def several():
        for _ in range(steps):
            step()

    for _ in range(3):
        step()
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        wall = timed(several, device)[0] / steps
    sums = {}
    for event in profiler.key_averages():
        kernel_s = event.self_device_time_total / 1e6 / steps
        on_gpu = "cuda" in str(event.device_type).lower() and not event.is_user_annotation  # which spans kernels
        if kernel_s and on_gpu:
            kind = kind_of_kernel(event.key.lower())
            sums[kind] = sums.get(kind, 0.0) + kernel_s
    busy, where = sum(sums.values()), where_of(case)
    if not busy:
        raise RuntimeError("the profiler saw no kernel: it may lack the right to the GPU's counters")
    for kind, kernel_s in sorted(sums.items(), key=lambda pair: -pair[1]):
        say("kernels", **where, kind=kind, seconds=kernel_s, share=kernel_s / busy)
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
            step = make_step(STEPS[0], device, naive=who == "naive")
            for index in range(steps + warm):
                if index == warm:
                    wait(device)
                    start, waited_s = time.perf_counter(), 0.0
                clock = time.perf_counter()
                fed = next(batches)
                waited_s += time.perf_counter() - clock
                step(to_device(fed, device, augment))
            wait(device)
            seconds[who] = (time.perf_counter() - start) / steps
            line = dict(workers=workers, batch=batch, patch=edge, step_s=seconds[who], data_s=waited_s / steps)
            share = line["data_s"] / line["step_s"]
            say("fed", who=who, augment=where, **line, share=share, faster_than_naive=seconds["naive"] / seconds[who])


def bench_parity(device, paths, steps=50):
    """Losses of 50 steps on one batch: each of `paths` {name: how, for make_step} against the plain one, in bf16."""
    found = {}
    for label, how in {"plain": {}, **paths}.items():
        step = make_step(STEPS[0], device, **how, edge=48 if device.type == "cuda" else 32)
        found[label] = [float(step()) for _ in range(steps)]
    for label in paths:
        largest = max(abs(a - b) for a, b in zip(found["plain"], found[label]))
        line = dict(steps=steps, first=found[label][0], last=found[label][-1], largest_difference=largest)
        say("parity", who="fomo", against=label, **line)
