"""The `gpu` part of tools/benchmark.py: what a training step costs on this chip, against the naive step and against the chip.

The naive step is what the FOMO25 baseline does: eager, contiguous tensors, instance norms in float32 under autocast, AdamW
as torch gives it, batches from CPU workers. Ours is the engine's own step. The chip's rates are measured in the same
run: the product of two 8192 x 8192 bf16 matrices, and a copy of 1 GiB. Operations are counted by torch's own counter.

Targets on one H200 (segmentation, 3 -> 2 channels, 96^3, batch 2, bf16): a step in at most 1/1.5 of the naive time without
data, 1/2 with each one's own pipeline; batch 8 at 35% of the matrix rate; at 128^3 memory at most 1.0 of the naive step's,
0.7 with checkpointed activations. Without a GPU everything runs at toy size, for its correctness only.
"""

import contextlib
import gc
import os
import tempfile
import time
import types

import torch

from benchmark_data import phantom_batches
from benchmark_inference import bench_full

PARTS = ("chip", "steps", "breakdown", "fed", "parity", "inference")
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
KERNELS = {  # class: parts of the names of its kernels; the first that matches counts
    "optimizer": ("multi_tensor", "adam", "l2norm", "lpnorm"),
    "normalisation": ("norm", "welford", "bn_"),
    "convolution": ("conv", "gemm", "cutlass", "xmma", "cudnn", "dgrad", "wgrad", "fprop", "nchwtonhwc", "nhwctonchw"),
    "copies": ("memcpy", "memset", "copy", "cat", "fill"),
    "pooling and activation": ("pool", "leaky", "relu"),
}


def add_arguments(command):
    command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    command.add_argument("--turns", type=int, default=3, help="turns of which the best counts (3)")
    command.add_argument("--compile", action="store_true", help="also the compiled step (a minute or more each)")


def bench_gpu(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu (toy sizes: times mean nothing)"
    say("versions", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), device=name)
    rates = bench_chip(device, say) if "chip" in options.parts else {}
    for case in STEPS if {"steps", "breakdown"} & set(options.parts) else ():
        with _out_of_memory_is_said(say, case):
            bench_step(case, device, options, rates, say)
    if "fed" in options.parts:
        bench_fed(device, say)
    if "parity" in options.parts:
        bench_parity(device, options, say)
    if "inference" in options.parts and device.type == "cuda":  # Task 2's channels; target: 20 s
        bench_full(types.SimpleNamespace(full=5, mirror=[0, 1, 2]), say, device)


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


def bench_step(case, device, options, rates, say):
    kind, name, channels, outputs, batch, edge = case
    if device.type == "cpu":
        batch, edge = 2, 32
    where = dict(task=kind, network=name, batch=batch, patch=edge)
    operations = count_operations(case, batch, edge, device)
    who = {"naive": dict(naive=True), "fomo": {}}
    if name.startswith("unet"):
        who["fomo_checkpointed"] = dict(recompute=True)
    if options.compile:
        who["fomo_compiled"] = dict(compiled=True)
    if device.type == "cuda":
        who["fomo_cudnn_benchmark"] = {}
    seconds, memory = {}, {}
    for label, how in who.items():
        torch.backends.cudnn.benchmark = label == "fomo_cudnn_benchmark"
        start = time.perf_counter()
        step = make_step(case, batch, edge, device, **how)
        step()
        first_s = time.perf_counter() - start
        if "breakdown" in options.parts and label == "fomo":
            breakdown(step, device, where, say)
        _reset_peak(device)
        seconds[label] = best_seconds(step, device, repeat=8 if device.type == "cuda" else 1, turns=options.turns)
        memory[label] = _peak_gb(device)
        line = dict(first_s=first_s, step_s=seconds[label], samples_per_s=batch / seconds[label], peak_gb=memory[label])
        if rates:
            tflops = operations / seconds[label] / 1e12
            line |= dict(tflops=tflops, of_matrix_rate=tflops / rates["tflops"])
        faster, lighter = seconds["naive"] / seconds[label], memory[label] / memory["naive"] if memory["naive"] else None
        say("step", **where, who=label, **line, faster_than_naive=faster, memory_of_naive=lighter)
        del step
        gc.collect()
    torch.backends.cudnn.benchmark = False


def make_step(case, batch, edge, device, naive=False, recompute=False, compiled=False):
    """A function that does one optimizer step, on a fixed batch or on the one that it is fed, and returns its loss."""
    from fomo import engine, losses, nets, optimization

    kind, name, channels, outputs, _, _ = case
    whole = kind in ("classification", "slices")
    torch.manual_seed(0)
    network = nets.build(name, channels, outputs, mode="classification" if whole else "segmentation").to(device)
    size = (edge, edge, 1) if kind == "slices" else (edge,) * 3
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *size, generator=generator).to(device)
    target = _target(kind, batch, outputs, size, generator).to(device)
    if naive:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=False)
        for module in network.modules():
            if isinstance(module, torch.nn.InstanceNorm3d):
                _in_float32(module)
    else:
        optimization.to_channels_last(network)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda")
        if recompute:
            network.checkpoint_activations(True)
    network.train()
    loss = {
        "segmentation": losses.dice_ce,
        "classification": losses.cross_entropy,
        "slices": losses.bce,
        "mae": losses.masked_mse,
    }[kind]
    task = types.SimpleNamespace(loss=lambda outputs, batch: loss(outputs, batch["target"]))
    batch_of_step = {"image": image, "target": target, "id": [""] * batch}
    forward = torch.compile(network) if compiled else network
    autocast, scaler = optimization.precision("bf16", device)

    def step(fed=None):
        given = batch_of_step if fed is None else {**fed, "target": fed["mask"]}
        if naive:
            given = {**given, "image": given["image"].contiguous()}
            return naive_step(forward, task, given, optimizer, autocast)
        return engine.train_step(forward, task, [given], optimizer, scaler, autocast, 1.0).loss

    return step


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


def count_operations(case, batch, edge, device):
    """Floating-point operations of one forward and backward pass, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    step = make_step(case, batch, edge, device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def breakdown(step, device, where, say):
    """Share of the device's time by class of kernel, and how long the device had nothing to do."""
    from torch.profiler import ProfilerActivity, profile

    if device.type != "cuda":
        return
    steps = 5
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
        if kernel_s and "cuda" in str(event.device_type).lower():
            lower = event.key.lower()
            kind = next((kind for kind, words in KERNELS.items() if any(word in lower for word in words)), "other")
            sums[kind] = sums.get(kind, 0.0) + kernel_s
    busy = sum(sums.values())
    for kind, kernel_s in sorted(sums.items(), key=lambda pair: -pair[1]):
        say("kernels", **where, kind=kind, seconds=kernel_s, share=kernel_s / busy)
    say("kernels", **where, kind="idle, under the profiler", seconds=max(0.0, wall - busy), share=max(0.0, 1 - busy / wall))


def bench_fed(device, say, steps=40):
    """Steps of the segmentation with batches from disk: the naive step behind CPU augmentation, ours as it is configured."""
    from fomo import engine
    from fomo.data import loader

    edge, batch, workers = (96, 2, min(8, os.cpu_count())) if device.type == "cuda" else (32, 2, 0)
    steps = steps if device.type == "cuda" else 4
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for who, where in (("naive", "cpu"), ("fomo", "auto")):
            given = f"augment.device={where}", f"data.patch=[{edge},{edge},{edge}]", "augment.preset=all"
            config, _, batches = phantom_batches(folder, workers, steps + 8, batch, *given)
            augment, waited_s = loader.augmentation(config), 0.0
            step = make_step(STEPS[0], batch, edge, device, naive=who == "naive")
            for index in range(steps + 8):
                if index == 8:
                    _wait(device)
                    start, waited_s = time.perf_counter(), 0.0
                clock = time.perf_counter()
                feed = engine.to_device(next(batches), device, augment)
                waited_s += time.perf_counter() - clock
                step(feed)
            _wait(device)
            seconds[who] = (time.perf_counter() - start) / steps
            line = dict(workers=workers, batch=batch, patch=edge, step_s=seconds[who], data_s=waited_s / steps)
            share = line["data_s"] / line["step_s"]
            say("fed", who=who, augment=where, **line, share=share, faster_than_naive=seconds["naive"] / seconds[who])


def bench_parity(device, options, say, steps=50):
    """Losses of 50 steps on one batch: each fast path against the plain one, all in the precision that is trained in."""
    case = STEPS[0]
    batch, edge = 2, 32
    runs = {"plain": {}, "naive": dict(naive=True), "checkpointed": dict(recompute=True)}
    if options.compile:
        runs["compiled"] = dict(compiled=True)
    losses = {}
    for label, how in runs.items():
        step = make_step(case, batch, edge, device, **how)
        losses[label] = [float(step()) for _ in range(steps)]
    for label in list(runs)[1:]:
        largest = max(abs(a - b) for a, b in zip(losses["plain"], losses[label]))
        say("parity", who="fomo", against=label, steps=steps, first=losses[label][0], last=losses[label][-1], largest_difference=largest)


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


@contextlib.contextmanager
def _out_of_memory_is_said(say, case):
    """A case that does not fit on this chip is one line, and the others are measured."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        say("step", task=case[0], batch=case[4], patch=case[5], failed=str(error).splitlines()[0][:80])
