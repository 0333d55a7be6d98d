"""The slices of a volume to look through: per plane one picture of all slices, of which a slider shows one.

A column of such a picture is a slice, a row a channel. Outlines of masks lie over it as a second, see-through picture.
It works without a script, which only moves the slider: then the first slice shown stays.
"""

import base64
import io
import struct
import zlib

import numpy as np

from .page import Html, escape, tag
from .pictures import LEGEND, PLANES, sides

_QUALITY = 50  # of the JPEG
_FINE = 160  # pixels of an outline's tile, at least


def viewer(image, background, masks, spacing_mm, channels, radiological, tile, count, planes=PLANES):
    """Html of the planes of `image` (C, X, Y, Z), in RAS+, with a slider each.

    background: a value per channel, which is black. masks: (reference, predicted), each (X, Y, Z) bool or None.
    channels: their names. tile: pixels of a slice's longer side, at most. count: slices of a plane, at most.
    planes: those of pictures.PLANES that are shown.
    """
    images = [np.asarray(channel, np.float32) for channel in image]
    greys = [_greys(channel, value) for channel, value in zip(images, background)]
    shown = next((mask for mask in masks if mask is not None and mask.any()), None)
    found = []
    for name, axis in planes:
        across = [other for other in range(3) if other != axis]
        if min(images[0].shape[other] for other in across) < 2:
            continue
        size = _size(images[0].shape, spacing_mm, across, tile)
        places, first = _places(images[0].shape[axis], count, None if shown is None else shown.sum(tuple(across)))
        flip = bool(axis and radiological)
        rows = [
            [_plane(channel.take(at, axis), size, limits, flip) for at in places]
            for channel, limits in zip(images, greys)
        ]
        sprite = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        outlines = _outlines(
            [mask if mask is None else np.take(mask, places, axis) for mask in masks], axis, size, flip
        )
        found.append(_frame(name, sprite, outlines, size, places, first, channels, sides(axis, radiological)))
    return tag("div", found, class_="views")


def _size(shape, spacing_mm, across, tile):
    """[pixels, pixels] of a slice along the axes `across`, in true proportions."""
    extent = [shape[axis] * spacing_mm[axis] for axis in across]
    longest = min(tile, 2 * max(shape[axis] for axis in across))
    return [max(1, round(longest * mm / max(extent))) for mm in extent]


def _greys(channel, background):
    values = channel[:: max(1, channel.shape[0] // 64), ::2, ::2]
    values = values[values > background]
    return np.percentile(values, (1, 99.5)) if values.size else (background, background + 1)


def _places(slices, count, foreground):
    """(indices of the slices that are shown, the place among them of the one with most foreground, or the middle)."""
    count = min(slices, count)
    places = np.floor((np.arange(count) + 0.5) * slices / count).astype(int)
    best = slices // 2 if foreground is None else int(foreground.argmax())
    first = int(np.abs(places - best).argmin())
    places[first] = best
    return places.tolist(), first


def _averaging(old, new):
    """(new, old): each new pixel is the mean of the old ones below it."""
    edges = np.arange(new + 1) * old / new
    left, right = np.arange(old), np.arange(old) + 1
    weights = np.clip(np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None]), 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _plane(plane, size, greys, flip):
    """(height, width) uint8 of a plane (A, B), b upwards."""
    low, high = greys
    small = _averaging(plane.shape[0], size[0]) @ plane @ _averaging(plane.shape[1], size[1]).T
    grey = np.clip((small - low) / max(high - low, 1e-6), 0, 1) * 235 + 20 * (small > low)
    return np.round(grey.T[::-1, ::-1] if flip else grey.T[::-1]).astype(np.uint8)


def _outlines(masks, axis, size, flip):
    """(h, slices * w) uint8: 1 on the outline of the reference, 2 on that of the prediction; None without masks."""
    fine = -(-_FINE // max(size))
    width, height = (fine * n for n in size)
    canvas = None
    for colour, mask in enumerate(masks, start=1):
        if mask is None:
            continue
        mask = np.moveaxis(np.asarray(mask), axis, 0).transpose(0, 2, 1)[:, ::-1, :: -1 if flip else 1]
        index = [(2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), mask.shape[1:])]
        mask = np.pad(mask[:, index[0]][:, :, index[1]], ((0, 0), (1, 1), (1, 1)))
        core = mask[:, 1:-1, 1:-1]
        inside = mask[:, 2:, 1:-1] & mask[:, :-2, 1:-1] & mask[:, 1:-1, 2:] & mask[:, 1:-1, :-2]
        canvas = np.zeros(core.shape, np.uint8) if canvas is None else canvas
        line = core & ~inside
        if colour == 2:  # dashed: the other one shows through where both run together
            line &= (np.add.outer(np.arange(height), np.arange(width)) // 4 % 2 == 0) | (canvas == 0)
        canvas[line] = colour
    return None if canvas is None else np.concatenate(list(canvas), axis=1)


def _frame(name, sprite, outlines, size, places, first, channels, letters):
    from matplotlib.image import imsave

    file, slices, rows = io.BytesIO(), len(places), len(channels)
    options = {"quality": _QUALITY, "optimize": True}
    imsave(file, np.repeat(sprite[:, :, None], 3, axis=2), format="jpeg", pil_kwargs=options)
    picture = (
        f'<img loading="lazy" src="data:image/jpeg;base64,{_base64(file.getvalue())}" alt="{escape(name)} slices">'
    )
    parts = [Html(picture)]
    if outlines is not None and outlines.any():
        url = f"data:image/png;base64,{_base64(_indexed(outlines, [colour for _, colour, _ in LEGEND]))}"
        parts.append(tag("i", style=f"background-image:url({url})"))
    parts += [tag("b", text, style=f"top:{100 * i / rows:.4g}%") for i, text in enumerate(channels)]
    parts += [tag("s", letter, class_=side) for letter, side in zip(letters, ("left", "right"))]
    style = f"--n:{slices};--i:{first};--c:{rows};aspect-ratio:{size[0]}/{size[1] * rows}"
    frame = tag("div", parts, class_="frame", style=style)
    slider = Html(
        f'<input type="range" min="0" max="{slices - 1}" value="{first}" aria-label="{escape(name)} slice">'
        if slices > 1
        else ""
    )
    width = f"max-width:{max(160, 600 // rows)}px"  # all channels fit on a screen
    return tag("figure", [frame, slider, tag("figcaption", name)], class_="view", style=width)


def _base64(data):
    return base64.b64encode(data).decode()


def _indexed(pixels, colours):
    """A PNG of (h, w) uint8: 0 is transparent, 1 the first of `colours` (as #rrggbb), and so on."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    palette = bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in colours)
    lines = zlib.compress(np.insert(pixels, 0, 0, axis=1).tobytes(), 6)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", head), (b"PLTE", palette), (b"tRNS", b"\0"), (b"IDAT", lines), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
