"""The part `slices`: images per second of the slice loader against PIL and torchvision.

Both read the same .npy files (224x224, uint8 and float16), in the same order, in this process, and do the same to every
image: mirror with probability 1/2, turn by up to 15 degrees and shift by up to 10% in one bilinear resampling, change
the contrast and the brightness, and stack float32 batches. `torchvision` is PIL images through torchvision's fastest
way to that, one RandomAffine; `torchvision_steps` is the pipeline as most people write it, RandomRotation and then
RandomAffine. fomo has one channel or three (the slice three times), PIL one (mode L) or three (RGB). Target: 3 times
`torchvision`.
"""

import os
import tempfile

import numpy as np
import torch

from fomo.data import slice_files
from fomo.data.cases import Case, Volume

from . import feed
from .timing import best_times, peer, say

SIZE, TARGET = 224, 3.0


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns of which the best counts (5)")
    command.add_argument("--slices", type=int, default=512, help="images of a turn (512)")
    command.add_argument("--batch", type=int, default=32, help="images of a batch (32)")


def run(options):
    torch.set_num_threads(1)
    torchvision = peer("torchvision", "torchvision --no-deps") and peer("PIL", "pillow")
    say("versions", torch=torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("uint8", "float16"):
            paths = write_slices(folder, dtype, options.slices)
            for channels in (1, 3):
                readers = {"fomo": fomo(folder, paths, channels, options.batch)}
                if torchvision:
                    readers["torchvision"] = theirs(paths, channels, options.batch, one_affine=True)
                    readers["torchvision_steps"] = theirs(paths, channels, options.batch, one_affine=False)
                report(f"{dtype}_{channels}_channels", readers, options)


def report(case, readers, options):
    def count(read):
        return lambda: sum(len(batch) for batch in read())

    best = best_times({name: count(read) for name, read in readers.items()}, options.turns)
    for name, (seconds, images) in best.items():
        assert images == options.slices
        line, ratio = dict(case=case, who=name, images_per_s=images / seconds), seconds / best["fomo"][0]
        if name != "fomo":
            line["fomo_is_faster_by"] = ratio
        if name == "torchvision":
            line |= dict(target=TARGET, reached=bool(ratio >= TARGET))
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


def fomo(folder, paths, channels, batch):
    values = {
        "task": {"type": "multilabel", "targets": ["a", "b"]},
        "data": {
            "source": "slices", "csv": os.path.join(folder, "unused.csv"), "channels": ["a", "b", "c"][:channels],
            "normalize": "none", "patch": [SIZE, SIZE, 1],
        },
        "model": {"name": "resnet50"},
        "train": {"batch_size": batch, "workers": 0},
        "augment": {
            "preset": "slices", "device": "cpu",
            "parameters": {name: {"p": 1.0} for name in ("rotate", "translate", "contrast", "brightness")},
        },
    }  # fmt: skip
    config = feed.config_of(values)
    listed = [Case(f"{n:06d}", str(n), (Volume(path),), None, (0.0, 1.0), None) for n, path in enumerate(paths)]
    cases = slice_files.prepare(listed, config.data)

    def read():
        for one in feed.batches(config, cases, len(paths) // batch):
            yield one["image"]

    return read


def theirs(paths, channels, batch, one_affine):
    from PIL import Image
    from torchvision import transforms

    bilinear = transforms.InterpolationMode.BILINEAR
    if one_affine:
        spatial = [transforms.RandomAffine(15, translate=(0.1, 0.1), interpolation=bilinear)]
    else:
        turned = transforms.RandomRotation(15, interpolation=bilinear)
        spatial = [turned, transforms.RandomAffine(0, translate=(0.1, 0.1), interpolation=bilinear)]
    jitter = transforms.ColorJitter(brightness=0.2, contrast=0.2)
    pipeline = transforms.Compose([transforms.RandomHorizontalFlip(), *spatial, jitter, transforms.ToTensor()])

    class Slices(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            pixels = np.load(paths[index])
            if pixels.dtype != np.uint8:
                pixels = (255 * pixels.astype(np.float32)).astype(np.uint8)
            image = Image.fromarray(pixels)
            return pipeline(image.convert("RGB") if channels == 3 else image), torch.tensor([0.0, 1.0])

    def read():
        for images, _ in torch.utils.data.DataLoader(Slices(), batch_size=batch, shuffle=True):
            yield images

    return read
