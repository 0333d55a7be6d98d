"""The part `data`: samples per second of reading and augmenting, against the libraries replaced, and of the loader.

The augmentations draw, so every line is an average over many samples; the libraries take turns, so that all see the
same machine. `cpu_per_s` counts processor time, which other programs disturb less than the wall clock.
"""

import itertools
import multiprocessing
import os
import shutil
import tempfile
import time

import nibabel
import numpy as np
import scipy.ndimage
import torch

from fomo import nets, tasks
from fomo.training import optimization
from fomo.training.step import to_device, train_step
from fomo.transforms import build
from fomo.transforms.registry import TRANSFORMS

from . import feed, timing
from .peers import PATCH, PEERS, read_monai, read_torchio, read_yucca
from .timing import peer, say

CHANNELS = 4

# nnU-Net's default training augmentation (batchgeneratorsv2), in fomo's terms.
NNUNET = {
    "rotate": {"p": 0.2, "axis_p": 1.0},
    "scale": {"p": 0.2, "factor": (0.7, 1.4)},
    "mirror": {"p": 0.5, "axes": (True, True, True)},
    "noise": {"p": 0.1, "sigma": (0.0, 0.316)},
    "blur": {"p": 0.2, "channel_p": 0.5, "sigma": (0.5, 1.0)},
    "brightness": {"p": 0.15},
    "contrast": {"p": 0.15},
    "low_resolution": {"p": 0.25, "channel_p": 0.5, "single_axis_p": 0.0},
    "gamma": {"p": 0.37, "gamma": (0.7, 1.5), "invert_p": 0.27},  # 0.1 inverted and 0.3 plain
}
SPATIAL = {"elastic": {"p": 0.33}, "rotate": {"p": 0.2}, "scale": {"p": 0.2}}
LIBRARIES = {
    "batchgeneratorsv2": "batchgeneratorsv2.transforms.spatial.spatial",
    "monai": "monai.transforms",
    "torchio": "torchio",
    "yucca": "yucca.modules.data.augmentation.YuccaAugmentationComposer",
}
TARGETS = {"yucca": 12, "torchio": 12, "monai": 7, "batchgeneratorsv2": 1}
READ_TARGETS = {"yucca": 2.5, "monai": 15, "nifti": 35}
PARTS = ("read", "augment", "loader", "waiting")


def add_arguments(command):
    command.add_argument("--turns", type=int, default=10, help="turns of about a second per library (10)")
    command.add_argument("--cases", type=int, default=20, help="cached volumes to read from (20)")
    command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    command.add_argument("--width", type=int, help="of the UNet-B that the loader feeds (GPU: its own 32, CPU: 4)")


def run(options):
    torch.set_num_threads(1)
    found = {}
    if {"read", "augment"} & set(options.parts):
        found = {name: peer(module, name) for name, module in LIBRARIES.items()}
    libraries = {name: library for name, library in found.items() if library}
    if "read" in options.parts:
        bench_read(options, libraries)
    if "augment" in options.parts:
        bench_augment(options, libraries)
    if "loader" in options.parts:
        bench_loader()
    if "waiting" in options.parts:
        bench_waiting(options)


def report(case, rates, targets, whom):
    """One line for each of `rates`; for a peer with a target also how many times faster fomo is. whom: {peer: ours}."""
    for name, (wall, cpu, count) in rates.items():
        line = dict(case=case, who=name, samples=count, samples_per_s=wall, cpu_per_s=cpu)
        if name in targets:
            ratio = rates[whom.get(name, "fomo")][1] / cpu
            line |= dict(fomo_is_faster_by=ratio, target=float(targets[name]), reached=bool(ratio >= targets[name]))
        say("throughput", **line)


def throughput(functions, turns):
    """{name: (samples per second, samples per second of processor time, samples)} of functions that make one sample."""
    sums = {name: [0.0, 0.0, 0] for name in functions}
    share = dict.fromkeys(functions, 0)  # samples a turn: about a second
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        while share[name] < 2 or time.perf_counter() < start + 1:
            function()
            share[name] += 1
    for _ in range(turns):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(share[name]):
                function()
            row = sums[name]
            row[0] += time.perf_counter() - wall
            row[1] += time.process_time() - cpu
            row[2] += share[name]
    return {name: (count / wall, count / cpu, count) for name, (wall, cpu, count) in sums.items()}


def volume(shape, channels, seed=0):
    """Smooth image (C, X, Y, Z) float32 of deviation 1, and a mask (X, Y, Z) uint8 of three classes."""
    noise = np.random.default_rng(seed).standard_normal((channels, *shape), np.float32)
    image = np.stack([scipy.ndimage.gaussian_filter(one, 2) for one in noise])
    image /= image.std()
    return image, np.digitize(image[0], (0.8, 1.6)).astype(np.uint8)


def peak_memory():
    """(size of a batch of 2, growth of this process's peak memory while everything is applied to it) in MB.

    The growth is None where the system has no /proc (it is Linux's).
    """
    torch.set_num_threads(1)
    image, mask = volume(PATCH, CHANNELS)
    batch = {"image": torch.from_numpy(np.stack([image] * 2)), "mask": torch.from_numpy(np.stack([mask] * 2))}
    size = sum(value.numel() * value.element_size() for value in batch.values()) / 2**20
    if not os.path.exists("/proc/self/status"):
        return size, None
    everything = {name: {"p": 1.0} for name in TRANSFORMS if name not in ("resample", "channel_dropout")}
    augment = build("all", PATCH, everything)
    small = build("all", (8, 8, 8), {"rotate": {"p": 1.0}, "gamma": {"p": 1.0}})
    small({"image": batch["image"][..., :8, :8, :8]}, np.random.default_rng(0))  # libraries that load at first use
    before = status("VmHWM")
    augment(batch, np.random.default_rng(0))
    return size, status("VmHWM") - before


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


# ------------------------------------------------------------------------------------------ augment


def bench_augment(options, libraries):
    image, mask = volume(PATCH, CHANNELS)
    for case in ("all", "spatial"):
        ours = {"fomo": fomo(image, mask, *(("all", None) if case == "all" else ("none", SPATIAL)))}
        if case == "all":
            ours["fomo_nnunet"] = fomo(image, mask, "none", NNUNET)
        peers = {name: PEERS[name](library, image, mask, case == "spatial") for name, library in libraries.items()}
        whom = {"batchgeneratorsv2": "fomo_nnunet"} if case == "all" else {}
        report(f"augment_{case}", throughput(ours | peers, options.turns), TARGETS, whom)
    # a fresh process holds no freed memory that hides the peak
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        batch_mb, peak_mb = pool.apply(peak_memory)
    if peak_mb is not None:
        limit, case = 3 * batch_mb + 500, "augment_all_batch_2"
        say("memory", case=case, batch_mb=batch_mb, peak_mb=peak_mb, target_mb=limit, reached=bool(peak_mb < limit))


def fomo(image, mask, preset, parameters):
    augment, generator = build(preset, PATCH, parameters), np.random.default_rng(0)
    batch = {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]}
    return lambda: augment(batch, generator)


# --------------------------------------------------------------------------------------------- read


def bench_read(options, libraries, size=160):
    """Crops of 96³ around a voxel of the foreground, 2 + 1 channels, from volumes of 160³ that all fit into memory.

    Each library reads the files that it makes or asks for, as its documentation has it: yucca its .npy with pickled
    foreground locations, MONAI a CacheDataset in memory, TorchIO a queue of 8 patches a volume; `nifti` is nibabel
    reading the .nii.gz, and the voxel from fomo's index. `copy` is a box out of one array that is mapped already.
    """
    with tempfile.TemporaryDirectory() as folder:
        image, mask = volume((size,) * 3, 2)
        os.makedirs(f"{folder}/data_set/preprocessed_2")
        paths = [f"{folder}/data_set/preprocessed_2/{case:03d}" for case in range(options.cases)]
        for path in paths:
            np.save(path, np.concatenate([image, mask[None].astype(np.float32)]))
        samples = {dtype: cached_samples(folder, dtype) for dtype in ("float32", "float16")}
        ours = {
            "fomo": one_by_one(samples["float32"]),
            "fomo_float16": one_by_one(samples["float16"]),
            "copy": copies(samples["float32"].cases[0]),
        }
        foreground = samples["float32"].cases[0].foreground()
        nifti = write_nifti(image, mask, paths)
        peers = {"nifti": read_nifti(nifti, foreground)}
        if "yucca" in libraries:
            peers["yucca"] = read_yucca(paths, foreground)
        if "monai" in libraries:
            peers["monai"] = read_monai(libraries["monai"], nifti)
        if "torchio" in libraries:
            peers["torchio_queue"] = read_torchio(libraries["torchio"], nifti)
        report("read", throughput(ours | peers, options.turns), READ_TARGETS, {})


def cached_samples(folder, dtype):
    """fomo's own training samples, of the cache that it makes of folder/data_set."""
    text = f"""
task: {{type: segmentation, classes: 3}}
data: {{source: fomo2, root: data_set, cache: cache, channels: [flair, swi], spacing_mm: null, crop: false,
  cache_dtype: {dtype}, foreground_fraction: 1.0, prepare_workers: 0}}
"""
    config = feed.config_in(folder, text)
    return feed.samples(config, feed.prepared(config))


def one_by_one(samples):
    slots = itertools.count()
    return lambda: samples[next(slots)]


def copies(case):
    image, mask, rng = case.image(), case.mask(), np.random.default_rng(0)

    def run():
        box = tuple(slice(low, low + length) for low, length in zip(corner(case.shape, rng), PATCH))
        return image[(slice(None), *box)].copy(), mask[box].copy()

    return run


def corner(shape, rng, voxel=None):
    """Start of a box inside the volume, that holds the voxel."""
    low, high = np.zeros(3, int), np.array(shape) - PATCH
    if voxel is not None:
        low, high = np.clip(voxel - np.array(PATCH) + 1, low, high), np.clip(voxel, low, high)
    return rng.integers(low, high + 1)


def write_nifti(image, mask, paths):
    """The compressed files of each case: one per channel and the mask."""
    rows = [{name: f"{path}_{name}.nii.gz" for name in ("flair", "swi", "mask")} for path in paths]
    for array, name in zip((*image, mask), rows[0]):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), rows[0][name])
        for row in rows[1:]:
            shutil.copyfile(rows[0][name], row[name])
    return rows


def read_nifti(rows, foreground):
    rng = np.random.default_rng(0)

    def run():
        volumes = [nibabel.load(path).get_fdata(dtype=np.float32) for path in rows[rng.integers(len(rows))].values()]
        start = corner(volumes[0].shape, rng, foreground[rng.integers(len(foreground)), :3].astype(int))
        box = tuple(slice(low, low + length) for low, length in zip(start, PATCH))
        return np.stack([volume[box] for volume in volumes[:2]]), volumes[2][box].astype(np.uint8)

    return run


# ------------------------------------------------------------------------------------------- loader


def bench_loader(batch_size=2, steps=20):
    with tempfile.TemporaryDirectory() as folder:
        for preset, workers in (("none", 0), ("all", 0), ("all", 2)):
            given = f"augment.preset={preset}", "augment.device=cpu"
            _, _, batches = feed.phantom_batches(folder, workers, steps + 2, batch_size, *given)
            next(batches), next(batches)  # workers have started
            seconds, count = timing.timed(lambda batches=batches: sum(len(batch["image"]) for batch in batches))
            line = dict(case=f"loader_{preset}", workers=workers, who="fomo", samples=count)
            say("throughput", **line, samples_per_s=count / seconds)


def bench_waiting(options, batch_size=2, steps=12):
    """The share of a training step of UNet-B that is spent waiting for the batch, on the GPU where there is one."""
    device = timing.device()
    width = options.width or (32 if device.type == "cuda" else 4)
    with tempfile.TemporaryDirectory() as folder:
        config, cases, batches = feed.phantom_batches(folder, 2, steps + 4, batch_size)
        task = tasks.build(config)
        task.fit(cases, cases)
        network = nets.build("unet_b", 3, 2, mode=task.mode, width=width)
        layout = optimization.lay_out(network, device)
        optimizer, scaler = torch.optim.AdamW(network.parameters()), torch.amp.GradScaler(device.type, enabled=False)
        autocast, augment = (
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
            task.augmentation(),
        )
        times = []
        for _ in range(steps + 4):
            start = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - start
            batch = to_device(batch, device, augment, layout)
            train_step(network, task, [batch], optimizer, scaler, autocast, None).read()
            times.append((waited, time.perf_counter() - start))
        data_s, step_s = np.mean(times[4:], axis=0)
        values = dict(workers=2, device=device.type, width=width, batch_size=batch_size, data_s=data_s, step_s=step_s)
        say("waiting", **values, share=data_s / step_s, target=0.05, reached=bool(data_s / step_s < 0.05))
