"""Slices as pictures: outlines of masks over the image in three planes through the lesion, mosaics, heat maps."""

import base64
import io
import os

import numpy as np

from ..data.cases import read_volume
from ..space import volume
from .page import Html, escape

_REFERENCE, _PREDICTED = "#56b4e9", "#ffb000"
LEGEND = (("reference", _REFERENCE, "solid"), ("predicted", _PREDICTED, "dashed"))
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))  # and the axis that each lies across


def chosen(rows):
    """[(name, row)]: best, median and worst Dice of the cases whose reference is not empty."""
    ranked = sorted((row for row in rows if row["reference_voxels"] > 0), key=lambda row: row["dice"])
    if not ranked:
        return []
    picks = [("best", ranked[-1]), ("worst", ranked[0]), ("median", ranked[(len(ranked) - 1) // 2])][: len(ranked)]
    return sorted(picks, key=lambda pick: -pick[1]["dice"])


def planes(case, channels, mask_path):
    """(channel shown, [(plane, Html of the picture)]) of a sources.Case and the predicted mask in native space.

    Shown is the channel in which the lesion stands out most, in each plane the slice with most of the reference. RAS+:
    the patient's right is on the right. Raises ValueError for files that are missing or unreadable.
    """
    predicted, affine = volume.read_nifti(mask_path)
    reference, *images = (read_volume(source, like=affine)[0] for source in (case.mask, *case.images))
    channel = int(np.argmax([_contrast(image, reference > 0) for image in images]))
    image, ras_affine = volume.to_ras(images[channel], affine)
    reference, predicted = ((volume.to_ras(mask, affine)[0] > 0) for mask in (reference, predicted))
    spacing_mm = volume.spacing(ras_affine)
    limits = volume.nonzero_box([image, reference, predicted]) or [(0, n) for n in image.shape]
    box = tuple(slice(max(start - 2, 0), stop + 2) for start, stop in limits)
    image, reference, predicted = image[box], reference[box], predicted[box]
    low, high = np.percentile(image[image != 0], (1, 99.5)) if image.any() else (0, 1)
    shown = reference if reference.any() else predicted
    found = []
    for name, axis in PLANES:
        across = tuple(other for other in range(3) if other != axis)
        index = int(shown.sum(across).argmax())
        parts = [array.take(index, axis).T for array in (image, reference, predicted)]
        spacing_yx = spacing_mm[across[1]], spacing_mm[across[0]]
        found.append((name, _picture(*parts, (low, high), spacing_yx, f"{case.id}, {name} slice")))
    return channels[channel], found


def _contrast(image, lesion):
    """Distance of the lesion's mean from the rest's, in the rest's standard deviations."""
    rest = image[(image != 0) & ~lesion]
    if not lesion.any() or len(rest) < 2 or not rest.std():
        return 0.0
    return float(abs(image[lesion].mean() - rest.mean()) / rest.std())


def _picture(image, reference, predicted, limits, spacing_yx, alt, pixels=400):
    """A PNG, square and black around the slice, with the two outlines."""
    from matplotlib import patheffects
    from matplotlib.figure import Figure

    halo = [patheffects.withStroke(linewidth=4, foreground="black")]  # the outlines show on bright tissue, too

    drawing = Figure(figsize=(pixels / 100, pixels / 100), dpi=100, facecolor="black")
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    aspect = spacing_yx[0] / spacing_yx[1]
    axes.imshow(
        image, cmap="gray", vmin=limits[0], vmax=max(limits[1], limits[0] + 1e-6), origin="lower", aspect=aspect
    )
    for mask, (_, colour, style) in zip((reference, predicted), LEGEND):
        if mask.any() and not mask.all():
            # outlines at voxel borders: a contour between voxel centres would cut corners and lose single voxels
            fine = np.kron(np.pad(mask, 1), np.ones((4, 4)))
            x = (np.arange(fine.shape[1]) + 0.5) / 4 - 1.5
            y = (np.arange(fine.shape[0]) + 0.5) / 4 - 1.5
            axes.contour(x, y, fine, levels=[0.5], colors=colour, linewidths=2, linestyles=style).set_path_effects(halo)
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(-0.5, image.shape[0] - 0.5))
    file = io.BytesIO()
    drawing.savefig(file, format="png", metadata={"Software": None})
    return _html(file.getvalue(), pixels, pixels, alt)


def _html(png, width, height, alt):
    data = base64.b64encode(png).decode()
    return Html(f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">')


def mask_path(folder, row):
    return os.path.join(folder, f"fold_{int(row['fold'])}", "masks", f"{row['id']}.nii.gz")


# ------------------------------------------------------------------------------- planes that a run has stored


def arrays(path):
    """{name: array} of an .npz file of numbers and text."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def in_plane(spacing_mm, axis):
    """Voxel size along the two axes of the plane across `axis`; (1, 1) where it is each case's own."""
    return (1.0, 1.0) if spacing_mm is None else tuple(mm for other, mm in enumerate(spacing_mm) if other != axis)


def mosaic(rows, spacings_mm, alt, overlay=None, pixels=200):
    """Html of one PNG with the planes in `rows` of equal length, each in the grey values of the first one of its row.

    Planes are (A, B) arrays in RAS+ order; they are shown with their true proportions (spacings_mm: (a, b) of each row)
    in square tiles on black. overlay: rows of (A, B) arrays in 0 .. 1, or None, drawn as heat over the plane.
    """
    from matplotlib import image as matplotlib_image

    tiles = []
    for i, (row, spacing) in enumerate(zip(rows, spacings_mm)):
        low, high = np.percentile(np.asarray(row[0], np.float32), (0.5, 99.5))
        shown = [np.clip((np.asarray(plane, np.float32) - low) / max(high - low, 1e-6), 0, 1) for plane in row]
        coloured = [np.repeat(plane[:, :, None], 3, axis=2) for plane in shown]
        for j, heat in enumerate(overlay[i] if overlay else ()):
            coloured[j] = coloured[j] if heat is None else _heated(coloured[j], heat)
        tiles.append([_tile(plane, spacing, pixels) for plane in coloured])
    gap = 3
    height, width = len(tiles) * (pixels + gap) - gap, len(tiles[0]) * (pixels + gap) - gap
    canvas = np.zeros((height, width, 3), np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = i * (pixels + gap), j * (pixels + gap)
            canvas[top : top + pixels, left : left + pixels] = tile
    file = io.BytesIO()
    matplotlib_image.imsave(file, canvas, format="png", metadata={"Software": None})
    return _html(file.getvalue(), width, height, alt)


def _tile(plane, spacing, pixels):
    """(A, B, 3) in 0 .. 1 -> (pixels, pixels, 3) uint8, enlarged as a whole, with its true proportions, b upwards."""
    extent = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    size = [max(1, round(pixels * mm / max(extent))) for mm in extent]
    at = [np.minimum((np.arange(n) + 0.5) * old / n, old - 1).astype(int) for n, old in zip(size, plane.shape)]
    fine = plane[at[0]][:, at[1]].transpose(1, 0, 2)[::-1]
    tile = np.zeros((pixels, pixels, 3), np.uint8)
    top, left = (pixels - size[1]) // 2, (pixels - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = np.round(255 * fine).astype(np.uint8)
    return tile


def _heated(plane, heat):
    """Grey values under a heat map: the stronger, the more of its colour; nothing at 0."""
    from matplotlib import colormaps

    strength = np.clip(np.asarray(heat, np.float32), 0, 1)
    colour = colormaps["inferno"](0.25 + 0.75 * strength)[:, :, :3]
    share = 0.65 * strength[:, :, None]
    return plane * (1 - share) + colour * share
