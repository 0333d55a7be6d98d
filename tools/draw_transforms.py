"""Draw every transform on a real slice, before and after, so that a person can see that it does what its name says.

    python tools/draw_transforms.py --output transforms.png [--image case.nii.gz ...] [--mask mask.nii.gz]

Each pair is the same slice before and after one transform at the strong end of the preset's range.
Without --image a synthetic head is drawn. Several images are channels; --mask is outlined. Needs matplotlib.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.config import UserError
from fomo.space import nifti, patches, volume
from fomo.transforms import PRESETS, build, masking, mixing, resolve
from fomo.transforms.registry import TRANSFORMS


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="transforms.png", help="PNG file to write")
    parser.add_argument("--image", nargs="+", default=[], help="NIfTI files on one grid, one per channel")
    parser.add_argument("--mask", help="NIfTI file of labels on the same grid")
    parser.add_argument("--preset", default="strong", choices=list(PRESETS), help="preset whose ranges are used")
    parser.add_argument(
        "--patch", type=int, nargs=3, help="voxels; default: the whole image, at most 160 along an axis"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seed < 0 or min(options.patch or [_SMALLEST]) < _SMALLEST:
        got = f"got --seed {options.seed} --patch {options.patch}"
        parser.error(f"{got}, wanted at least 0 and {_SMALLEST} voxels along each axis")
    if options.mask and not options.image:
        parser.error("--mask goes with --image")
    try:
        image, mask = read(options.image, options.mask) if options.image else phantom()
    except ValueError as error:  # a file that is no volume
        raise UserError(str(error)) from error
    patch = options.patch or [min(max(size, _SMALLEST), 160) for size in image.shape[1:]]
    image, mask = crop(image, patch), crop(mask[None], patch)[0]
    try:
        draw({"image": image[None], "mask": mask[None]}, options.preset, options.seed, options.output)
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error}") from error
    print(options.output)


_SMALLEST = 8  # voxels along an axis: what is hidden are cubes of 4


def read(paths, mask_path):
    """Image (C, X, Y, Z), standardised per channel, and mask (X, Y, Z), in RAS+."""
    images = [volume.to_ras(*nifti.read_nifti(path))[0] for path in paths]
    mask = volume.to_ras(*nifti.read_nifti(mask_path))[0] if mask_path else np.zeros_like(images[0])
    for path, image in zip(paths, images):
        if image.shape != mask.shape:
            raise ValueError(f"{path}: got shape {image.shape}, wanted that of {mask_path or paths[0]}, {mask.shape}")
        if image.min() == image.max():
            raise ValueError(f"{path}: all voxels are {image.max():g}, wanted an image")
    return torch.from_numpy(np.stack([(v - v.mean()) / v.std() for v in images])), torch.from_numpy(
        mask.astype(np.uint8)
    )


def phantom(size=96):
    """A head of ellipsoids with a bright lesion."""
    x, y, z = (np.indices((size,) * 3) - size / 2 + 0.5) / size
    image = np.zeros((size,) * 3, np.float32)
    for radii, value in (
        ((0.42, 0.46, 0.45), 3.0),
        ((0.38, 0.42, 0.41), 1.5),
        ((0.34, 0.38, 0.37), 2.0),
        ((0.08, 0.15, 0.12), 0.5),
    ):
        image[(x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1] = value
    lesion = (x - 0.18) ** 2 + (y + 0.12) ** 2 + z**2 < 0.07**2
    image[lesion] = 2.8
    return torch.from_numpy((image - image.mean()) / image.std())[None], torch.from_numpy(lesion.astype(np.uint8))


def crop(image, patch):
    """The central `patch` of (C, X, Y, Z), padded with the minimum where the volume is smaller."""
    start = [patches.centred(size, want) for size, want in zip(image.shape[1:], patch)]
    return patches.read(image, start, patch, image.min())


WEAK_END_LAST = ("zoom", "cutoff")  # ranges whose lower end is the strong one


def cases(batch, preset_name, seed):
    """Yield (title, batch after) for every transform at the strong end of its ranges, and a few draws of the preset."""
    patch = tuple(batch["image"].shape[2:])
    values = resolve(preset_name)
    off = {name: {"p": 0.0} for name, transform in TRANSFORMS.items() if transform.stage != "setting"}
    for name in off:
        strongest = {key: 1.0 for key in values[name] if key in ("p", "axis_p", "channel_p")}
        for key, value in values[name].items():
            if isinstance(value, tuple) and len(value) == 2 and key != "copies":
                strongest[key] = (value[0],) * 2 if key in WEAK_END_LAST else (value[1],) * 2
        augment = build(preset_name, patch, off | {name: strongest})
        shown = " ".join(f"{key} {value[0]:.3g}" for key, value in strongest.items() if isinstance(value, tuple))
        yield f"{name}\n{shown}", augment(batch, [np.random.default_rng(seed)])
    everything = build(preset_name, patch)
    for number in range(3):
        yield f"preset {preset_name}\nsample {number + 1}", everything(batch, [np.random.default_rng([seed, number])])
    # The partner is the same case turned back to front, so that it can be told apart.
    for kind in mixing.KINDS:
        plan = mixing.draw(kind, np.random.default_rng(seed), 0, 2, patch, p=1.0, alpha=30.0)
        mixed = mixing.mix(batch["image"], batch["image"].flip(3), [plan])
        yield f"{kind}\nown share {plan['share']:.2f}", {"image": mixed}
    drawn = masking.draw_cubes(np.random.default_rng(seed), 1, patch, ratio=0.6, cube=4)
    masked, _ = masking.mask_image(batch["image"], *drawn, cube=4, value=float(batch["image"].min()))
    yield "masking\n60% of cubes of 4 voxels", {"image": masked}


def draw(batch, preset_name, seed, path):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError(f"drawing needs matplotlib: pip install matplotlib ({error})") from error
    shown = list(cases(batch, preset_name, seed))
    mask = batch["mask"][0]
    level = int(mask.sum((0, 1)).argmax()) if mask.any() else mask.shape[2] // 2
    before = batch["image"][0, 0, :, :, level]
    low, high = float(before.quantile(0.01)), float(before.quantile(0.999))
    columns = 5
    rows = -(-len(shown) // columns)
    x, y = before.shape
    figure, cells = plt.subplots(
        rows, columns, figsize=(columns * 4.4, rows * (4.4 * y / (2 * x) + 0.55)), squeeze=False
    )
    for cell in cells.flat:
        cell.axis("off")
    for cell, (title, after) in zip(cells.flat, shown):
        both = torch.cat((before, after["image"][0, 0, :, :, level])).numpy()
        cell.imshow(both.T, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        if "mask" in after and mask.any():
            outline = torch.cat((mask[:, :, level], after["mask"][0, :, :, level])).numpy() > 0
            if outline.any():
                cell.contour(outline.T, levels=[0.5], colors="red", linewidths=0.8)
        cell.set_title(title, fontsize=8)
    figure.suptitle(
        f"before | after, slice {level + 1} of {mask.shape[2]}, ranges of preset '{preset_name}'", fontsize=11
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=75)


if __name__ == "__main__":
    cli.run(main)
