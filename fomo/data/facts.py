"""What can be said of a case from outside: its files, its grid, the size of the head, the spread of its intensities.

None of it needs a look at the finding. Where such a fact tells the label, a network may have learned the fact.
"""

import math
import os

import numpy as np

from ..runtime import lazy

nifti = lazy.Module("..space.nifti", __package__)

VERSION = 2  # raise it when a fact changes
_SLICES = 5  # of a scan whose files are slices that are looked at, evenly spaced
_VOXELS = 200_000  # of an image that are looked at, evenly spaced
_ABOVE = 0.05  # share of the range of a channel above its background from which on a voxel is of the head
_FULL = 0.95  # share of such voxels above which there is noise around the head, and Otsu's threshold takes its place
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_TEXT = 40  # characters of a header's description


def of_case(case, channels):
    """{kind: {fact: number, text or None}} of a Prepared case; channels: data.channels.

    Kinds: `volume of the head` and `voxel size and matrix` (of cases that lie in space), `intensities of CHANNEL` for
    each channel (as the network gets them, of the voxels of the head), and `files` (sizes, and what NIfTI headers say
    of type, scaling, orientation, codes and description). None: the case lacks the channel.
    """
    image = case.image()
    if case.scaling is not None:  # one slice in all channels
        image, channels = image[:1], channels[:1]
    step = max(1, round((math.prod(image.shape[1:]) / _VOXELS) ** (1 / 3)))
    seen = np.asarray(image[:, ::step, ::step, ::step], np.float32)
    there = [channel for channel in range(len(channels)) if channel not in case.missing]
    inside = _head(seen[there], [case.background[channel] for channel in there])
    found = {}
    if case.geometry is not None:
        voxel_ml = math.prod(case.geometry.spacing_mm) / 1000
        found["volume of the head"] = {"ml": float(inside.mean()) * math.prod(image.shape[1:]) * voxel_ml}
        found["voxel size and matrix"] = _grid(case.geometry)
    for channel, name in enumerate(channels):
        values = seen[channel][inside] if channel in there else None
        found[f"intensities of {name}"] = _intensities(values)
    found["files"] = _files(case.case.images, channels)
    return found


def of_scan(slices, channels):
    """The same of a scan from some of its slices, Prepared cases: means of numbers, the most frequent text.

    Beside them `number of slices`.
    """
    slices = sorted(slices, key=lambda case: case.id)
    looked = [of_case(slices[place], channels) for place in chosen(len(slices))]
    found = {
        kind: {name: _together([one[kind][name] for one in looked if name in one[kind]]) for name in facts}
        for kind, facts in looked[0].items()
    }
    return {**found, "number of slices": {"slices": float(len(slices))}}


def chosen(count):
    """Places of the slices, of `count`, that are looked at."""
    return np.unique(np.linspace(0, count - 1, min(_SLICES, count) + 2)[1:-1].round().astype(int)).tolist()


def _together(values):
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known, key=known.count) if isinstance(known[0], str) else float(np.mean(known))


def _head(seen, background):
    """(X, Y, Z) which voxels are of the head, from all channels (C, X, Y, Z) and the background of each."""
    base = np.reshape(background, (-1, 1, 1, 1))
    top = np.percentile(seen, 99.5, axis=(1, 2, 3), keepdims=True)
    heights = (seen - base) / np.maximum(top - base, 1e-12)
    inside = (heights > _ABOVE).any(0)
    if inside.mean() > _FULL:
        mean = heights.mean(0)
        inside = mean > _otsu(mean)
    return inside if inside.any() else np.ones_like(inside)


def _otsu(values):
    """The threshold that parts values into two groups of the least spread (Otsu 1979); -inf where all are equal."""
    if values.min() == values.max():
        return -math.inf
    counts, edges = np.histogram(values, bins=128)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return middles[np.nanargmax(between)]


def _grid(geometry):
    """Voxel size, matrix and field of view of the file, in the order of RAS axes."""
    order = np.argsort([axis for axis, _ in geometry.orientation])
    shape = np.array(geometry.native_shape)[order]
    found = {}
    for axis, count, mm in zip("xyz", shape.tolist(), geometry.spacing_before_mm):
        found |= {f"voxel {axis} (mm)": mm, f"matrix {axis}": count, f"field of view {axis} (mm)": count * mm}
    return found


def _intensities(values):
    """Of the values of a channel; None for all where the case lacks it."""
    names = ["mean", "standard deviation", *(f"percentile {q}" for q in _PERCENTILES)]
    if values is None:
        return dict.fromkeys(names)
    numbers = [values.mean(dtype=np.float64), values.std(dtype=np.float64), *np.percentile(values, _PERCENTILES)]
    return dict(zip(names, map(float, numbers)))


def _files(images, channels):
    found = {}
    for volume, text in zip(images, channels):
        facts = {"is there": float(volume is not None)}
        if volume is not None:
            facts |= _file(volume.path)
            names = [name for name in text.split("|") if name in os.path.basename(volume.path)]
            facts["which"] = names[0] if "|" in text and names else None
        found |= {f"{text}: {name}": value for name, value in facts.items()}
    return found


def _file(path):
    """Facts of a file, or of a folder of DICOM files."""
    if os.path.isdir(path):
        sizes = [entry.stat().st_size for entry in os.scandir(path) if entry.is_file()]
        return {"files": float(len(sizes)), "log of bytes": math.log(max(sum(sizes), 1))}
    facts = {"log of bytes": math.log(max(os.path.getsize(path), 1))}
    if not path.lower().endswith((".nii", ".nii.gz")):
        return facts
    from nibabel import orientations

    header = nifti.read_header(path)
    raw = header.raw
    facts["type"] = raw.get_data_dtype().name
    facts["orientation"] = "".join(orientations.aff2axcodes(header.affine))
    facts["description"] = raw["descrip"].item().decode("latin-1").strip("\0 ")[:_TEXT]
    facts |= {name: str(int(raw[name])) for name in ("sform_code", "qform_code", "xyzt_units")}
    for name in ("scl_slope", "scl_inter"):
        value = float(raw[name])
        facts[name] = value if math.isfinite(value) else None
    return facts
