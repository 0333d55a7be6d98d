"""Slices as pictures: outlines of two masks over an image in three planes, and mosaics of planes, with heat on them."""

import base64
import io

import numpy as np

from ..space import volume
from .page import Html, escape

LEGEND = (("reference", "#56b4e9", "solid"), ("predicted", "#ffb000", "dashed"))  # name, colour, line of an outline
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))  # and the axis that each lies across
_GAP = 3  # pixels between the tiles of a mosaic


def sides(axis, radiological):
    """Letters of the left and the right side of a plane across `axis`: of the patient's sides, or back and front."""
    return ("P", "A") if axis == 0 else ("R", "L") if radiological else ("L", "R")


def convention(radiological):
    """What a page says of its pictures."""
    where = "left (radiological convention)" if radiological else "right (neurological convention)"
    return f"R: the patient's right, on the {where}; A: the front."


def outlined(image, reference, predicted, spacing_mm, alt, radiological=True):
    """[(plane, Html of the picture)]: in each plane the slice with most of the reference, if empty of the prediction.

    image (X, Y, Z), reference and predicted (X, Y, Z) bool, in RAS+. radiological: the patient's right is on the left.
    """
    limits = volume.nonzero_box([image, reference, predicted]) or [(0, n) for n in image.shape]
    box = tuple(slice(max(start - 2, 0), stop + 2) for start, stop in limits)
    image, reference, predicted = image[box], reference[box], predicted[box]
    greys = np.percentile(image[image != 0], (1, 99.5)) if image.any() else (0, 1)
    shown = reference if reference.any() else predicted
    found = []
    for name, axis in PLANES:
        across = tuple(other for other in range(3) if other != axis)
        index = int(shown.sum(across).argmax())
        slices = [array.take(index, axis).T for array in (image, reference, predicted)]
        if axis and radiological:
            slices = [plane[:, ::-1] for plane in slices]
        aspect, letters = spacing_mm[across[1]] / spacing_mm[across[0]], sides(axis, radiological)
        found.append((name, _with_outlines(*slices, greys, aspect, letters, f"{alt}, {name} slice")))
    return found


def _with_outlines(image, reference, predicted, greys, aspect, letters, alt, pixels=400):
    """A picture, square and black around the slice, with the two outlines and the letters of its sides."""
    from matplotlib import patheffects
    from matplotlib.figure import Figure

    halo = [patheffects.withStroke(linewidth=4, foreground="black")]  # the outlines show on bright tissue, too
    drawing = Figure(figsize=(pixels / 100, pixels / 100), dpi=100, facecolor="black")
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image, cmap="gray", origin="lower", aspect=aspect, vmin=greys[0], vmax=max(greys[1], greys[0] + 1e-6))
    for mask, (_, colour, style) in zip((reference, predicted), LEGEND):
        if mask.any() and not mask.all():
            # outlines at voxel borders: a contour between voxel centres would cut corners and lose single voxels
            fine = np.kron(np.pad(mask, 1), np.ones((4, 4)))
            x, y = ((np.arange(fine.shape[axis]) + 0.5) / 4 - 1.5 for axis in (1, 0))
            axes.contour(x, y, fine, levels=[0.5], colors=colour, linewidths=2, linestyles=style).set_path_effects(halo)
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(-0.5, image.shape[0] - 0.5))
    for x, align, letter in zip((0.02, 0.98), ("left", "right"), letters):
        axes.text(x, 0.5, letter, transform=drawing.transFigure, color="white", fontsize=13, ha=align, va="center")
    file = io.BytesIO()
    drawing.savefig(file, format="jpeg", pil_kwargs={"quality": 80})
    return _html(file, pixels, pixels, alt)


def _html(jpeg, width, height, alt):
    data = base64.b64encode(jpeg.getvalue()).decode()
    return Html(f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">')


def _in_plane(spacing_mm, axis):
    """Voxel size along the two axes of the plane across `axis`; (1, 1) where it is each case's own."""
    return (1.0, 1.0) if spacing_mm is None else tuple(mm for other, mm in enumerate(spacing_mm) if other != axis)


def mosaic(rows, axes, spacing_mm, alt, radiological=True, overlay=None, pixels=200, alike=True):
    """Html of one picture: the planes in `rows` of equal length, each in the grey values of the first one of its row.

    Planes are (A, B) arrays in RAS+ order, those of a row across its axis of `axes`; they are shown with their true
    proportions (spacing_mm; None: each case's own, taken as equal) in square tiles on black. radiological: as in
    `outlined`. overlay: rows of (A, B) arrays in 0 .. 1, or None, drawn as heat over the plane. alike: False: each
    plane in its own grey values.
    """
    from matplotlib.image import imsave

    step = pixels + _GAP
    height, width = len(rows) * step - _GAP, len(rows[0]) * step - _GAP
    canvas = np.zeros((height, width, 3), np.uint8)
    for i, (row, axis) in enumerate(zip(rows, axes)):
        for j, plane in enumerate(row):
            if not (alike and j):
                low, high = np.percentile(np.asarray(plane, np.float32), (0.5, 99.5))
            grey = np.clip((np.asarray(plane, np.float32) - low) / max(high - low, 1e-6), 0, 1)
            colours = _heated(np.repeat(grey[:, :, None], 3, axis=2), overlay[i][j] if overlay else None)
            tile = canvas[i * step : i * step + pixels, j * step : j * step + pixels]
            _fill(tile, colours[::-1] if axis and radiological else colours, _in_plane(spacing_mm, axis))
    file = io.BytesIO()
    imsave(file, canvas, format="jpeg", pil_kwargs={"quality": 75})
    return _html(file, width, height, alt)


def _fill(tile, plane, spacing):
    """Draw a plane (A, B, 3) in 0 .. 1 into a square black tile, as large as fits in true proportions, b upwards."""
    pixels = len(tile)
    extent = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    size = [max(1, round(pixels * mm / max(extent))) for mm in extent]
    at = [np.minimum((np.arange(n) + 0.5) * old / n, old - 1).astype(int) for n, old in zip(size, plane.shape)]
    fine = plane[at[0]][:, at[1]].transpose(1, 0, 2)[::-1]
    top, left = (pixels - size[1]) // 2, (pixels - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = np.round(255 * fine).astype(np.uint8)


def _heated(plane, heat):
    """Grey values under a heat map: the stronger, the more of its colour; nothing at 0."""
    from matplotlib import colormaps

    if heat is None:
        return plane
    strength = np.clip(np.asarray(heat, np.float32), 0, 1)
    colour = colormaps["inferno"](0.25 + 0.75 * strength)[:, :, :3]
    share = 0.65 * strength[:, :, None]
    return plane * (1 - share) + colour * share
