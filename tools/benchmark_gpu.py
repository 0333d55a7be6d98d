"""The `gpu` part of tools/benchmark.py: what a training step costs on this chip, against the naive step and against the chip.

The naive step is what the FOMO25 baseline does: eager, contiguous tensors, instance norms in float32 under autocast, AdamW
as torch gives it, batches from CPU workers. Ours is the engine's own step. The chip's rates are measured in the same
run: the product of two 8192 x 8192 bf16 matrices, and a copy of 1 GiB. Operations are counted by torch's own counter.

Targets on one H200 (segmentation, 3 -> 2 channels, 96^3, batch 2, bf16): a step in at most 1/1.5 of the naive time without
data, 1/2 with each one's own pipeline; batch 8 at 35% of the matrix rate; at 128^3 memory at most 1.0 of the naive step's,
0.7 with checkpointed activations. Without a GPU everything runs at toy size, for its correctness only.
"""

import functools
import gc
import math
import os
import tempfile
import time
import types

import torch
from benchmark_data import phantom_batches
from benchmark_inference import bench_full

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
PATHS = {
    "naive": dict(naive=True),
    "torch_norm": dict(torch_norm=True),
    "checkpointed": dict(recompute=True),
}  # held against ours
KERNELS = {  # class: parts of the names of its kernels; the first that matches counts
    "optimizer": ("multi_tensor", "adam", "l2norm", "lpnorm"),
    "normalisation": ("norm", "welford", "bn_", "reduce_kernel", "addcmul"),
    "convolution": (
        "conv",
        "gemm",
        "cutlass",
        "xmma",
        "cudnn",
        "dgrad",
        "wgrad",
        "fprop",
        "nchwtonhwc",
        "nhwctonchw",
        "vol2col",
        "col2vol",
    ),
    "copies": ("memcpy", "memset", "copy", "cat", "fill"),
    "pooling and activation": ("pool", "leaky", "relu"),
}


def add_arguments(command):
    command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    command.add_argument("--turns", type=int, default=3, help="turns of which the best counts (3)")
    command.add_argument(
        "--minutes", type=float, default=8, help="what has not begun by then is left out, and said (8)"
    )


def bench_gpu(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line."""
    from fomo.training import optimization

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu (toy sizes: times mean nothing)"
    say("versions", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), device=name)
    for message in optimization.doubts(device):
        say("doubt", message=message)
    end, rates, measured = time.monotonic() + 60 * options.minutes, {}, {}

    def attempt(where, function, *arguments, **given):
        """What fails, or has no time left, is one line, and the rest is measured."""
        if time.monotonic() > end:
            return say("left_out", **where, minutes=options.minutes)
        try:
            return function(*arguments, **given)
        except Exception as error:  # of a kernel, a compiler, a library or of memory: whatever this machine lacks
            say("failed", **where, error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
        finally:
            gc.collect()

    if "chip" in options.parts:
        rates = attempt(dict(part="chip"), bench_chip, device, say) or {}
    for case in STEPS if "steps" in options.parts else ():
        for who, how in variants(case, device).items():
            attempt(
                dict(part="steps", **where_of(case), who=who),
                bench_step,
                case,
                who,
                how,
                device,
                options,
                rates,
                measured,
                say,
            )
    for case in STEPS if "breakdown" in options.parts and device.type == "cuda" else ():
        attempt(dict(part="breakdown", **where_of(case)), breakdown, case, device, say)
    if "fed" in options.parts:
        attempt(dict(part="fed"), bench_fed, device, say)
    if "parity" in options.parts:
        attempt(dict(part="parity"), bench_parity, device, say, PATHS)
    if "inference" in options.parts and device.type == "cuda":  # target: 20 s
        attempt(dict(part="inference"), bench_full, types.SimpleNamespace(full=5, mirror=[0, 1, 2]), say, device)
    if "compile" in options.parts:  # last: a minute or so for each case
        attempt(dict(part="compile"), bench_parity, device, say, {"compiled": dict(compiled=True)})
        for case in STEPS:
            where = dict(part="compile", **where_of(case))
            attempt(
                where, bench_step, case, "fomo_compiled", dict(compiled=True), device, options, rates, measured, say
            )


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


def bench_chip(device, say):
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


def bench_step(case, who, how, device, options, rates, measured, say):
    """Time and memory of one step; measured: {(case, who): (seconds, peak GB)} of the steps before, which is added to."""
    batch, edge = sizes(case, device)
    operations = count_operations(case, device)
    step = make_step(case, device, **how)
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    first_s = time.perf_counter() - start
    _reset_peak(device)
    step_s = best_seconds(step, device, repeat=8 if device.type == "cuda" else 1, turns=options.turns)
    peak_gb = _peak_gb(device)
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


def make_step(
    case,
    device,
    naive=False,
    recompute=False,
    compiled=False,
    torch_norm=False,
    other_layout=False,
    search=False,
    edge=None,
):
    """A function that does one optimizer step, on a fixed batch or on the one that it is fed, and returns its loss."""
    from fomo import losses, nets
    from fomo.training import loop, optimization

    kind, name, channels, outputs, _, _ = case
    batch, own_edge = sizes(case, device)
    edge = edge or own_edge
    whole = kind in ("classification", "slices")
    torch.backends.cudnn.benchmark = search
    torch.manual_seed(0)
    network = nets.build(name, channels, outputs, mode="classification" if whole else "segmentation").to(device)
    size = (edge, edge, 1) if kind == "slices" else (edge,) * 3
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *size, generator=generator).to(device)
    target = _target(kind, batch, outputs, size, generator).to(device)
    layout = torch.contiguous_format if naive else optimization.lay_out(network, device)
    if other_layout:
        layout = _to_other_layout(network, layout)
    if naive:
        for module in instance_norms(network):
            _in_float32(module)
    if torch_norm:
        for module in instance_norms(network):
            module.forward = functools.partial(torch.nn.InstanceNorm3d.forward, module)
    if recompute:
        network.checkpoint_activations(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda" and not naive)
    network.train()
    loss = {
        "segmentation": losses.dice_ce,
        "classification": losses.cross_entropy,
        "slices": losses.bce,
        "mae": losses.masked_mse,
    }[kind]
    task = types.SimpleNamespace(loss=lambda outputs, batch: loss(outputs, batch["target"]))
    batch_of_step = {"image": image.contiguous(memory_format=layout), "target": target, "id": [""] * batch}
    forward = optimization.wrap(network, compiled, device)
    autocast, scaler = optimization.precision("bf16", device)

    def step(fed=None):
        given = (
            batch_of_step
            if fed is None
            else {**fed, "target": fed["mask"], "image": fed["image"].contiguous(memory_format=layout)}
        )
        if naive:
            return naive_step(forward, task, given, optimizer, autocast)
        return loop.train_step(forward, task, [given], optimizer, scaler, autocast, 1.0).loss

    return step


def instance_norms(network):
    return [module for module in network.modules() if isinstance(module, torch.nn.InstanceNorm3d)]


def _to_other_layout(network, layout):
    """All weights of 3D convolutions in the layout that is not the default here; returns it."""
    other = torch.channels_last_3d if layout == torch.contiguous_format else torch.contiguous_format
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=other)
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last if other == torch.channels_last_3d else other)
    return other


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


def _target(kind, batch, outputs, size, generator):
    if kind == "segmentation":
        return torch.randint(0, outputs, (batch, *size), generator=generator)
    if kind == "classification":
        return torch.randint(0, outputs, (batch,), generator=generator)
    if kind == "slices":
        return torch.randint(0, 2, (batch, outputs), generator=generator).float()
    return torch.randn(batch, outputs, *size, generator=generator)


def _in_float32(norm):
    """Instance norm as autocast's older rules run it: the input is converted, and the result stays in float32."""
    own = norm.forward
    norm.forward = lambda x: own(x.float())


@functools.cache
def count_operations(case, device):
    """Floating-point operations of one forward and backward pass, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    step = make_step(case, device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def breakdown(case, device, say, steps=5):
    """Share of the GPU's time by class of kernel, and how long it had nothing to do."""
    from torch.profiler import ProfilerActivity, profile

    step = make_step(case, device)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) / steps
    sums = {}
    for event in profiler.key_averages():
        kernel_s = event.self_device_time_total / 1e6 / steps
        if (
            kernel_s and "cuda" in str(event.device_type).lower() and not event.is_user_annotation
        ):  # which spans kernels
            lower = event.key.lower()
            kind = next((kind for kind, words in KERNELS.items() if any(word in lower for word in words)), "other")
            sums[kind] = sums.get(kind, 0.0) + kernel_s
    busy, where = sum(sums.values()), where_of(case)
    if not busy:
        raise RuntimeError("the profiler saw no kernel: it may lack the right to the GPU's counters")
    for kind, kernel_s in sorted(sums.items(), key=lambda pair: -pair[1]):
        say("kernels", **where, kind=kind, seconds=kernel_s, share=kernel_s / busy)
    say(
        "kernels",
        **where,
        kind="idle, under the profiler",
        seconds=max(0.0, wall - busy),
        share=max(0.0, 1 - busy / wall),
    )


def bench_fed(device, say, steps=40):
    """Steps of the segmentation with batches from disk: the naive step behind CPU augmentation, ours as it is configured."""
    from fomo.data import loader
    from fomo.training import loop

    edge, batch, workers = (96, 2, min(8, os.cpu_count())) if device.type == "cuda" else (32, 2, 0)
    steps = steps if device.type == "cuda" else 4
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for who, where in (("naive", "cpu"), ("fomo", "auto")):
            given = f"augment.device={where}", f"data.patch=[{edge},{edge},{edge}]", "augment.preset=all"
            config, _, batches = phantom_batches(folder, workers, steps + 8, batch, *given)
            augment, waited_s = loader.augmentation(config), 0.0
            step = make_step(STEPS[0], device, naive=who == "naive")
            for index in range(steps + 8):
                if index == 8:
                    _wait(device)
                    start, waited_s = time.perf_counter(), 0.0
                clock = time.perf_counter()
                feed = next(batches)
                waited_s += time.perf_counter() - clock
                step(loop.to_device(feed, device, augment))
            _wait(device)
            seconds[who] = (time.perf_counter() - start) / steps
            line = dict(workers=workers, batch=batch, patch=edge, step_s=seconds[who], data_s=waited_s / steps)
            share = line["data_s"] / line["step_s"]
            say("fed", who=who, augment=where, **line, share=share, faster_than_naive=seconds["naive"] / seconds[who])


def bench_parity(device, say, paths, steps=50):
    """Losses of 50 steps on one batch: each of `paths` {name: how, for make_step} against the plain one, in bf16."""
    losses = {}
    for label, how in {"plain": {}, **paths}.items():
        step = make_step(STEPS[0], device, **how, edge=48 if device.type == "cuda" else 32)
        losses[label] = [float(step()) for _ in range(steps)]
    for label in paths:
        largest = max(abs(a - b) for a, b in zip(losses["plain"], losses[label]))
        say(
            "parity",
            who="fomo",
            against=label,
            steps=steps,
            first=losses[label][0],
            last=losses[label][-1],
            largest_difference=largest,
        )


# ------------------------------------------------------------------------------------------ clocks


def best_seconds(function, device, repeat=1, turns=3):
    """Seconds of one call: the best of `turns` means over `repeat` calls, after one call that does not count."""
    best = float("inf")
    function()
    for _ in range(turns):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        _wait(device)
        best = min(best, (time.perf_counter() - start) / repeat)
    return best


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gb(device):
    """Of the GPU's allocator; 0 on the CPU, where it says nothing."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
