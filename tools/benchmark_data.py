"""`benchmark.py data`: samples per second of reading, augmenting and the two together, against the libraries replaced.

The augmentations draw, so every line is an average over many samples; the libraries take turns, so that all see the
same machine. `cpu_per_s` counts processor time, which other programs disturb less than the wall clock.
"""

import contextlib
import io
import multiprocessing
import os
import tempfile
import time

import numpy as np
import scipy.ndimage
import torch

PATCH, CHANNELS = (96, 96, 96), 4
DEGREES = 30.0

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
TARGETS = {"yucca": 12, "torchio": 12, "monai": 7, "batchgeneratorsv2": 1}


def add_arguments(command):
    command.add_argument("--turns", type=int, default=10, help="turns of a few samples per library (10)")
    command.add_argument("--cases", type=int, default=20, help="cached volumes to read from (20)")


def bench_data(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line; peer(module, install) imports one or not."""
    torch.set_num_threads(1)
    libraries = {
        name: library
        for name, module, install in (
            ("batchgeneratorsv2", "batchgeneratorsv2.transforms.spatial.spatial", "batchgeneratorsv2"),
            ("monai", "monai.transforms", "monai"),
            ("torchio", "torchio", "torchio"),
            ("yucca", "yucca.modules.data.augmentation.YuccaAugmentationComposer", "yucca"),
        )
        if (library := peer(module, install))
    }
    image, mask = volume(PATCH, CHANNELS)
    for case in ("all", "spatial"):
        ours = {"fomo": fomo(image, mask, *(("all", None) if case == "all" else ("none", SPATIAL)))}
        if case == "all":
            ours["fomo_nnunet"] = fomo(image, mask, "none", NNUNET)
        peers = {name: PEERS[name](library, image, mask, case == "spatial") for name, library in libraries.items()}
        rates = throughput(ours | peers, options.turns)
        for name, (wall, cpu, count) in rates.items():
            line = dict(case=f"augment_{case}", who=name, samples=count, samples_per_s=wall, cpu_per_s=cpu)
            if name in TARGETS:
                own = rates["fomo_nnunet" if name == "batchgeneratorsv2" and case == "all" else "fomo"][1]
                line |= dict(
                    fomo_is_faster_by=own / cpu, target=float(TARGETS[name]), reached=bool(own / cpu >= TARGETS[name])
                )
            say("throughput", **line)
    with multiprocessing.get_context("spawn").Pool(
        1
    ) as pool:  # a fresh process holds no freed memory that hides the peak
        batch_mb, peak_mb = pool.apply(peak_memory)
    if peak_mb is not None:
        limit = 3 * batch_mb + 500
        say(
            "memory",
            case="augment_all_batch_2",
            batch_mb=batch_mb,
            peak_mb=peak_mb,
            target_mb=limit,
            reached=bool(peak_mb < limit),
        )
    bench_read(options, say)
    bench_loader(options, say)


def throughput(functions, turns):
    """{name: (samples per second, samples per second of processor time, samples)} of functions that make one sample."""
    sums = {name: [0.0, 0.0, 0] for name in functions}
    share = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        for _ in range(3):
            function()
        share[name] = max(2, min(20, round(3 / (time.perf_counter() - start))))  # samples a turn: about a second
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
    from fomo.transforms import KEYS, build

    torch.set_num_threads(1)
    image, mask = volume(PATCH, CHANNELS)
    batch = {"image": torch.from_numpy(np.stack([image] * 2)), "mask": torch.from_numpy(np.stack([mask] * 2))}
    size = sum(value.numel() * value.element_size() for value in batch.values()) / 2**20
    if not os.path.exists("/proc/self/status"):
        return size, None
    augment = build("all", PATCH, {name: {"p": 1.0} for name in KEYS if name not in ("resample", "channel_dropout")})
    small = build("all", (8, 8, 8), {"rotate": {"p": 1.0}, "gamma": {"p": 1.0}})
    small({"image": batch["image"][..., :8, :8, :8]}, np.random.default_rng(0))  # libraries that load at first use
    before = status("VmHWM")
    augment(batch, np.random.default_rng(0))
    return size, status("VmHWM") - before


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


# ------------------------------------------------------------------------------------------ augment


def fomo(image, mask, preset, parameters):
    from fomo.transforms import build

    augment, generator = build(preset, PATCH, parameters), np.random.default_rng(0)
    batch = {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]}
    return lambda: augment(batch, generator)


def batchgeneratorsv2(library, image, mask, spatial):
    """nnU-Net's default training transforms; for `spatial` with the elastic deformation that they leave out."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    angle = np.deg2rad(DEGREES)
    steps = [
        library.SpatialTransform(
            PATCH, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0.33 if spatial else 0.0,
            p_rotation=0.2, rotation=(-angle, angle), p_scaling=0.2, scaling=(0.9, 1.1) if spatial else (0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
        )
    ]  # fmt: skip
    if not spatial:
        each = dict(synchronize_channels=False, p_per_channel=1.0)
        contrast, gamma = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
        blur = GaussianBlurTransform(
            (0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5, benchmark=True
        )
        coarse = SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5)
        steps += [
            RandomTransform(GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
            RandomTransform(blur, 0.2),
            RandomTransform(MultiplicativeBrightnessTransform(contrast, **each), 0.15),
            RandomTransform(ContrastTransform(contrast, preserve_range=True, **each), 0.15),
            RandomTransform(coarse, 0.25),
            RandomTransform(GammaTransform(gamma, p_invert_image=1, p_retain_stats=1, **each), 0.1),
            RandomTransform(GammaTransform(gamma, p_invert_image=0, p_retain_stats=1, **each), 0.3),
            MirrorTransform((0, 1, 2)),
        ]
    transform = ComposeTransforms(steps)
    label = torch.from_numpy(mask.astype(np.int16))[None]
    return lambda: transform(image=torch.from_numpy(image).clone(), segmentation=label.clone())


def monai(library, image, mask, spatial):
    """The transforms of preset `all` that MONAI has (no ghosting); elastic sigma 3-4, because 20-30 takes minutes."""
    both, one, angle = ["image", "mask"], ["image"], (np.deg2rad(DEGREES),) * 3
    modes = dict(mode=("bilinear", "nearest"))
    steps = [
        library.Rand3DElasticd(both, (3, 4), (200, 600), prob=0.33, **modes),
        library.RandAffined(both, prob=0.36, rotate_range=angle, scale_range=(0.1,) * 3, **modes),
    ]
    if not spatial:
        sigma = dict.fromkeys(("sigma_x", "sigma_y", "sigma_z"), (0.25, 1.0))
        steps += [
            library.RandGaussianNoised(one, prob=0.2),
            library.RandGaussianSmoothd(one, prob=0.2, **sigma),
            library.RandGaussianNoised(one, prob=0.2),
            library.RandGibbsNoised(one, prob=0.2),
            library.RandSimulateLowResolutiond(one, prob=0.2),
            library.RandBiasFieldd(one, prob=0.33),
            library.RandAdjustContrastd(one, prob=0.2, gamma=(0.5, 2.0)),
        ]
    transform = library.Compose(steps)
    return lambda: transform({"image": torch.from_numpy(image).clone(), "mask": torch.from_numpy(mask)[None].clone()})


def torchio(library, image, mask, spatial):
    """The transforms of preset `all` that TorchIO has; a spike stands for Gibbs ringing."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    steps = [library.RandomElasticDeformation(p=0.33), library.RandomAffine(scales=0.1, degrees=DEGREES, p=0.36)]
    if not spatial:
        steps += [
            library.RandomNoise(p=0.2),
            library.RandomBlur(std=(0, 1), p=0.2),
            library.RandomNoise(p=0.2),
            library.RandomGhosting(p=0.2),
            library.RandomSpike(p=0.2),
            library.RandomAnisotropy(p=0.2),
            library.RandomBiasField(p=0.33),
            library.RandomGamma(p=0.2),
        ]
    transform = library.Compose(steps)

    def run():
        channels, label = torch.from_numpy(image), torch.from_numpy(mask)[None]
        return transform(
            library.Subject(image=library.ScalarImage(tensor=channels), mask=library.LabelMap(tensor=label))
        )

    return run


def yucca(library, image, mask, spatial):
    """yucca's defaults, which are the FOMO25 baseline's preset `all`."""
    from yucca.modules.data.augmentation.augmentation_presets import no_aug

    changes = {
        "elastic_deform_p_per_sample": 0.33,
        "rotation_p_per_sample": 0.2,
        "rotation_p_per_axis": 0.66,
        "scale_p_per_sample": 0.2,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        composer = library.YuccaAugmentationComposer(
            patch_size=PATCH, parameter_dict=no_aug | changes if spatial else {}
        )
    return lambda: composer.train_transforms({"image": image.copy(), "label": mask[None].copy()})


PEERS = {"batchgeneratorsv2": batchgeneratorsv2, "monai": monai, "torchio": torchio, "yucca": yucca}


# --------------------------------------------------------------------------------------------- read


def bench_read(options, say, size=160):
    """Foreground-aware 96³ crops of 2 + 1 channels from cached volumes of 160³, and the same with preset `all`."""
    from fomo import patches
    from fomo.transforms import build

    rng = np.random.default_rng(0)
    augment = build("all", PATCH)
    with tempfile.TemporaryDirectory() as folder:
        image, mask = volume((size,) * 3, 2)
        foreground = np.argwhere(mask)[:: max(1, int((mask > 0).sum()) // 10_000)]
        for case in range(options.cases):
            np.save(f"{folder}/{case}_mask.npy", mask)
            for dtype in ("float32", "float16"):
                np.save(f"{folder}/{case}_{dtype}.npy", image.astype(dtype))
        mapped = np.load(f"{folder}/0_float32.npy", mmap_mode="r"), np.load(f"{folder}/0_mask.npy", mmap_mode="r")

        def crop(dtype):
            case = rng.integers(options.cases)
            voxel = foreground[rng.integers(len(foreground))]
            start = patches.draw_start((size,) * 3, PATCH, rng, voxel=voxel)
            channels = patches.read(np.load(f"{folder}/{case}_{dtype}.npy", mmap_mode="r"), start, PATCH, (0.0, 0.0))
            label = patches.read(np.load(f"{folder}/{case}_mask.npy", mmap_mode="r"), start, PATCH, 0)
            return {"image": torch.from_numpy(channels)[None].float(), "mask": torch.from_numpy(label)[None]}

        def copy():
            start = rng.integers(size - np.array(PATCH) + 1)
            box = tuple(slice(low, low + length) for low, length in zip(start, PATCH))
            return mapped[0][(slice(None), *box)].copy(), mapped[1][box].copy()

        functions = {
            "read_float32": lambda: crop("float32"),
            "read_float16": lambda: crop("float16"),
            "plain_copy_of_a_mapped_array": copy,
            "read_float32_and_augment_all": lambda: augment(crop("float32"), rng),
        }
        for name, (wall, cpu, count) in throughput(functions, options.turns).items():
            say("throughput", case=name, who="fomo", samples=count, samples_per_s=wall, cpu_per_s=cpu)


# ------------------------------------------------------------------------------------------- loader


def bench_loader(options, say, batch_size=2, steps=30):
    """The training loader itself, cache to batch, on phantoms: segmentation, preset `all`, 0 and 2 workers."""
    from fomo import config as config_module
    from fomo.data import cache, loader, sources

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                "task: {type: segmentation}\n"
                "data: {source: phantom, root: phantoms, cache: cache, channels: [dwi_b1000, flair, swi|t2s],\n"
                "  spacing_mm: [1.5, 1.5, 1.5], phantom_cases: 6, phantom_size: 128, prepare_workers: 0}\n"
            )
        config = config_module.load(path)
        cases = cache.prepare(sources.list_cases(config.data, config.task), config.data, config.task)
        plan = loader.Plan(batch_size=batch_size, rank=0, world_size=1, micro_batch=batch_size)
        for workers in (0, 2):
            config = config_module.load(path, [f"train.workers={workers}", f"train.batch_size={batch_size}"])
            batches = loader.batches(config, cases, 0, plan, 0, steps + 2)
            next(batches), next(batches)  # workers have started
            start = time.perf_counter()
            count = sum(len(batch["image"]) for batch in batches)
            seconds = time.perf_counter() - start
            say(
                "throughput",
                case=f"loader_all_{workers}_workers",
                who="fomo",
                samples=count,
                samples_per_s=count / seconds,
            )
