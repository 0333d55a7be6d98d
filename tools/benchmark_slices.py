"""The `slices` part of tools/benchmark.py: images per second of the slice loader against PIL and torchvision.

Both read the same .npy files (224x224, uint8 and float16), in the same order, in this process, and do the same to every
image: mirror with probability 1/2, turn by up to 15 degrees and shift by up to 10% in one bilinear resampling, change the
contrast and the brightness, and stack float32 batches. `torchvision` is PIL images through torchvision's fastest way to
that, one RandomAffine; `torchvision_steps` is the pipeline as it is mostly written, RandomRotation and then RandomAffine.
fomo has one channel or three (the slice three times), PIL one (mode L) or three (RGB). Target: 3 times `torchvision`.
"""

import os
import tempfile
import time

import numpy as np

SIZE, TARGET = 224, 3.0


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns of which the best counts (5)")
    command.add_argument("--slices", type=int, default=512, help="images of a turn (512)")
    command.add_argument("--batch", type=int, default=32, help="images of a batch (32)")


def bench_slices(options, say, peer):
    """options: of add_arguments; say(event, **values) prints a line; peer(module, install) imports or says what is missing."""
    import torch

    torch.set_num_threads(1)
    torchvision = peer("torchvision", "torchvision --no-deps") and peer("PIL", "pillow")
    say("versions", torch=torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("uint8", "float16"):
            paths = write_slices(folder, dtype, options.slices)
            for channels in (1, 3):
                functions = {"fomo": ours(folder, paths, channels, options.batch)}
                if torchvision:
                    functions["torchvision"] = theirs(paths, channels, options.batch, one_affine=True)
                    functions["torchvision_steps"] = theirs(paths, channels, options.batch, one_affine=False)
                best = dict.fromkeys(functions, np.inf)
                for _ in range(options.turns):
                    for name, function in functions.items():
                        start = time.perf_counter()
                        images = sum(len(batch) for batch in function())
                        assert images == options.slices
                        best[name] = min(best[name], (time.perf_counter() - start) / images)
                for name, seconds in best.items():
                    line = dict(case=f"{dtype}_{channels}_channels", who=name, images_per_s=1 / seconds)
                    if name != "fomo":
                        line["fomo_is_faster_by"] = seconds / best["fomo"]
                    if name == "torchvision":
                        line |= dict(target=TARGET, reached=bool(seconds / best["fomo"] >= TARGET))
                    say("loader", **line)


def write_slices(folder, dtype, count):
    """Paths of `count` bodies of smooth texture and noise, in air."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:SIZE, :SIZE] / SIZE
    paths = []
    for number in range(count):
        a, b = rng.uniform(5, 20, 2)
        body = np.hypot((x - 0.5) / 0.45, (y - 0.5) / 0.33) < 1
        image = body * np.clip(0.5 + 0.3 * np.sin(a * x) * np.cos(b * y) + rng.normal(0, 0.02, x.shape), 0, 1)
        path = os.path.join(folder, f"{dtype}_{number}.npy")
        np.save(path, np.round(255 * image).astype(np.uint8) if dtype == "uint8" else image.astype(np.float16))
        paths.append(path)
    return paths


def ours(folder, paths, channels, batch):
    from fomo import config as config_module
    from fomo.data import loader, slice_files
    from fomo.data.cases import Case, Volume

    always = {"p": 1.0}
    config = config_module.from_dict(
        {
            "task": {"type": "multilabel", "targets": ["a", "b"]},
            "data": {
                "source": "slices",
                "csv": os.path.join(folder, "unused.csv"),
                "channels": ["a", "b", "c"][:channels],
                "normalize": "none",
                "patch": [SIZE, SIZE, 1],
            },
            "model": {"name": "resnet50"},
            "train": {"batch_size": batch, "workers": 0},
            "augment": {
                "preset": "slices",
                "device": "cpu",
                "parameters": {name: always for name in ("rotate", "translate", "contrast", "brightness")},
            },
        },
        "the benchmark",
    )
    cases = slice_files.prepare(
        [Case(f"{n:06d}", str(n), (Volume(path),), None, (0.0, 1.0), None) for n, path in enumerate(paths)], config.data
    )

    def run():
        for one in loader.batches(config, cases, 1, loader.Plan(batch, 0, 1, batch), 0, len(paths) // batch):
            yield one["image"]

    return run


def theirs(paths, channels, batch, one_affine):
    import torch
    from PIL import Image
    from torchvision import transforms

    bilinear = transforms.InterpolationMode.BILINEAR
    if one_affine:
        spatial = [transforms.RandomAffine(15, translate=(0.1, 0.1), interpolation=bilinear)]
    else:
        spatial = [
            transforms.RandomRotation(15, interpolation=bilinear),
            transforms.RandomAffine(0, translate=(0.1, 0.1), interpolation=bilinear),
        ]
    pipeline = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            *spatial,
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.ToTensor(),
        ]
    )

    class Slices(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            pixels = np.load(paths[index])
            if pixels.dtype != np.uint8:
                pixels = (255 * pixels.astype(np.float32)).astype(np.uint8)
            image = Image.fromarray(pixels)
            return pipeline(image.convert("RGB") if channels == 3 else image), torch.tensor([0.0, 1.0])

    def run():
        for images, _ in torch.utils.data.DataLoader(Slices(), batch_size=batch, shuffle=True):
            yield images

    return run
