"""The page of a data set before it is trained on: each case as the network gets it, and a training patch of it."""

import dataclasses
import math

import numpy as np

from .. import kinds, tasks
from ..config import UserError
from ..data import listing, loader, sources
from ..pages import figures, page, pictures
from ..pages.figures.intensities import intensities
from ..pages.page import number, tag
from ..space import volume
from ..training.fold import with_patch_that_fits

_FOLD = 1  # whose random draws the patches are


def write(config, path, cases, log):
    """Write the page of at most `cases` cases, evenly chosen of all that the source lists, and return its path.

    Nothing is trained; the cases that are drawn are preprocessed into the cache, as training would do it.
    """
    if not figures.available():
        raise UserError("a page of pictures needs matplotlib: pip install matplotlib")
    if cases < 1:
        raise UserError(f"--cases: got {cases}, wanted 1 or more")
    config, _ = kinds.settle(config)
    wanted = tasks.wanted(config)
    listed = sources.list_cases(config.data, wanted, log=log)
    listing.describe(config, wanted, listed, log)
    places = sorted({round(place) for place in np.linspace(0, len(listed) - 1, cases)})
    prepared = sources.prepare([listed[place] for place in places], config.data, wanted, log)
    looked = Looked(with_patch_that_fits(config, prepared), wanted, listed)
    return page.save(path, _document(looked, prepared))


@dataclasses.dataclass(frozen=True)
class Looked:
    """What all cases share: the config, what its task reads of a case, and all cases that are listed."""

    config: object
    wanted: object
    listed: list

    def channels(self, case):
        """{name: (X, Y, Z) as it is in the cache, or None where the case lacks it}."""
        image = np.array(case.image(), np.float32)
        return {name: None if i in case.missing else image[i] for i, name in enumerate(self.config.data.channels)}

    def spacing(self, case):
        """(x, y, z) in mm of the cached case; None without a geometry."""
        return case.geometry.spacing_mm if case.geometry else None

    def mask(self, case):
        """(X, Y, Z) whole numbers, or None."""
        has_one = self.wanted.masked and getattr(case, "class_voxels", ())
        return np.array(case.mask()) if has_one else None


def _document(looked, prepared):
    config, subjects = looked.config, len({case.subject for case in looked.listed})
    what = f"{config.task.type} · {len(looked.listed)} cases of {subjects} subjects · {len(prepared)} drawn"
    facts = [
        ("source", config.data.source),
        ("channels", ", ".join(config.data.channels)),
        ("voxel size", _size(config.data.spacing_mm, " mm") or "each case's own"),
        ("intensities", config.data.normalize),
        ("training patch", _size(config.data.patch, " voxels")),
        ("augmentation", config.augment.preset),
    ]
    counts = listing.counts(looked.wanted, looked.listed).items()
    facts += [(name.replace("_", " "), number(value)) for name, value in counts]
    parts = [
        tag("header", [tag("h1", f"A look at {config.name}"), tag("p", what, class_="sub")]),
        page.section("Data", [page.definitions(facts), _table(looked, prepared)], "data"),
        *(page.section(case.id, _case(looked, case), f"case-{i}") for i, case in enumerate(prepared, 1)),
        tag("footer", "Written by tools/look.py, before any training, of cases as they are preprocessed for it."),
    ]
    return page.document(f"A look at {config.name}", parts)


def _size(values, unit):
    return "" if values is None else " × ".join(number(value, 3) for value in values) + unit


def _table(looked, prepared):
    rows = []
    for case in prepared:
        geometry = case.geometry
        native = (geometry.native_shape, volume.spacing(geometry.native_affine)) if geometry else (None, None)
        sizes = [_size(native[0], ""), _size(native[1], ""), _size(case.shape, ""), _size(looked.spacing(case), "")]
        rows.append([case.id, case.subject, _label(looked, case), *sizes])
    titles = ["case", "subject", "label", "voxels, in the file", "size there (mm)", "voxels, prepared", "size (mm)"]
    return page.table(titles, rows, "The cases that are drawn", sortable=True)


def _label(looked, case):
    """What is to be learned of a case, in words."""
    wanted, target = looked.wanted, case.target
    if wanted.kind == "mask":
        voxels = case.class_voxels[1:]
        spacing = looked.spacing(case)
        sizes = voxels if spacing is None else [count * math.prod(spacing) / 1000 for count in voxels]
        said = [f"class {c}: {number(size, 3)}" for c, size in enumerate(sizes, 1)]
        said = said if len(sizes) > 1 else [number(sizes[0], 3)]
        return f"{', '.join(said)} {'voxels' if spacing is None else 'ml'}"
    if target is None:
        return "none"
    if wanted.kind == "flags":
        return ", ".join(name for name, flag in zip(wanted.targets, target) if flag) or "none of the labels"
    numbers = np.atleast_1d(target)
    values = [name or number(value) for name, value in zip(case.labels or [""] * len(numbers), numbers)]
    names = wanted.targets if len(values) > 1 else [""]
    return ", ".join(f"{name} {value}".strip() for name, value in zip(names, values))


def _case(looked, case):
    mask, spacing, seen = looked.mask(case), looked.spacing(case), looked.channels(case)
    lacking = [name for name, array in seen.items() if array is None]
    seen = {name: array for name, array in seen.items() if array is not None}
    first, *_ = seen
    columns, titles = [(array, None) for array in seen.values()], list(seen)
    if mask is not None:
        columns, titles = [*columns, (seen[first], mask)], [*titles, f"{first} under the mask"]
    drawn = _planes(columns, spacing, _centre(mask, case.shape), f"{case.id}: {', '.join(titles)}")
    through = "where most of the mask lies" if mask is not None and mask.any() else "the middle"
    rows = ", ".join(name for name, axis in pictures.PLANES if _is_plane(case.shape, axis))
    figures_ = [
        page.figure(drawn, "The case.", f"Columns: {', '.join(titles)}. Rows: {rows}, through {through}."),
        page.figure(intensities(seen), "Intensities.", "Of all voxels, after preprocessing."),
        *_patches(looked, case, seen),
    ]
    return [page.definitions([("label", _label(looked, case)), ("lacks", ", ".join(lacking))]), page.grid(figures_)]


def _patches(looked, case, seen):
    """Figures of a training patch before and after its augmentation: one of each channel that the case has."""
    config, found = looked.config, []
    before, after = loader.before_and_after(config, tasks.build(config), case, _FOLD)
    masks = [sample.get("mask") if looked.wanted.masked else None for sample in (before, after)]
    centre = _centre(None if masks[0] is None else masks[0].numpy(), config.data.patch)
    for i, name in enumerate(config.data.channels):
        if name not in seen:
            continue
        said, columns = "before its augmentation (its views are not drawn)", [(_channel(before, i), None)]
        if "image" in after:
            said, columns = "before and after its augmentation", [*columns, (_channel(after, i), None)]
            if masks[1] is not None and not found:
                said, columns = f"{said}, and under the mask", [*columns, (_channel(after, i), masks[1].numpy())]
        drawn = _planes(columns, config.data.spacing_mm, centre, f"{case.id}: patch, {name}", alike=True)
        found.append(page.figure(drawn, f"A training patch, {name}.", f"{page.capital(said)}."))
    return found


def _channel(sample, place):
    """(X, Y, Z) float32; where all channels are one image, that."""
    image = sample["image"]
    return image[min(place, len(image) - 1)].float().numpy()


def _is_plane(shape, axis):
    return all(size > 1 for other, size in enumerate(shape) if other != axis)


def _centre(mask, shape):
    """A voxel: along each axis where most of the mask lies, or the middle."""
    if mask is None or not mask.any():
        return [size // 2 for size in shape]
    found = mask > 0
    return [int(found.sum(tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3)]


def _planes(columns, spacing, centre, alt, alike=False):
    """A mosaic with a row for each plane through `centre`, and a column for each (volume, mask over it or None).

    alike: whether all columns are in the grey values of the first one.
    """
    axes = [axis for _, axis in pictures.PLANES if _is_plane(columns[0][0].shape, axis)]
    rows = [[array.take(centre[axis], axis) for array, _ in columns] for axis in axes]
    heat = [
        [None if mask is None else (mask / max(1, mask.max())).take(centre[axis], axis) for _, mask in columns]
        for axis in axes
    ]
    return pictures.mosaic(rows, axes, spacing, alt, overlay=heat, alike=alike)
