"""The case browser: below the table of cases the slices of each, which a click on its row opens.

They are read from the cache or, where the cases are slices of scans, from the files of these.
"""

from typing import NamedTuple

import numpy as np

from ..config import UserError
from ..data import slice_files
from ..pages import page, pictures, slices
from ..pages.page import tag

PAGE = 4.9e6  # characters of a page with all its pictures
_AT_LEAST = 1.2e6  # of them for the slices, however long the rest is
_PER_PIXEL, _PER_CASE = 0.16, 6000  # characters that a picture is likely to take: its slices; its outlines and the rest
_TILES = (160, 128, 96, 80, 64)  # pixels of a slice
_ENOUGH, _MOST = 8, 24  # slices of a plane
_READ = 64  # slices of a scan
_LEAST, _FEWER = 5, 50  # with fewer slices of all cases than `_LEAST`, only the worst cases are shown


class Look(NamedTuple):
    """What is drawn of a case; the arguments of slices.viewer."""

    image: np.ndarray
    background: tuple
    masks: tuple
    spacing_mm: tuple
    channels: tuple
    planes: tuple = pictures.PLANES


def plan(cases, channels, voxels=_TILES[0], characters=PAGE, per_pixel=_PER_PIXEL, planes=3):
    """(cases that are shown, pixels of a slice, slices of a plane) that keep the page light.

    voxels: of the longest side of a volume, which gets two pixels of each at most. characters: of all pictures.
    """
    tiles = [min(tile, 2 * voxels) for tile in _TILES]
    for shown in (cases, min(cases, _FEWER)):
        pixels = (0.9 * characters / shown - _PER_CASE) / per_pixel / (planes * channels)
        fits = [(tile, int(pixels / (0.75 * tile**2))) for tile in tiles]
        tile, count = next((fit for fit in fits if fit[1] >= _ENOUGH), fits[-1])
        if count >= _LEAST:
            break
    return shown, tile, max(1, min(count, _MOST))


def browser(run, columns, rows, rest):
    """(rows of the table of cases, whose ids open the slices; parts below the table).

    rest: characters of the rest of the page.
    """
    found, characters = [i for i, row in enumerate(rows) if _is_there(run, row[0])], max(PAGE - rest, _AT_LEAST)
    first = _look(run, rows[found[0]][0]) if found else None
    if first is None:
        data = run.config.data
        where = f"the cache {data.cache} does not hold them" if run.in_cache else f"{data.csv} does not lead to them"
        return rows, [page.note(f"No slices of the cases: {where}.")]
    size = len(found), len(first.channels), max(first.image.shape[1:]), characters
    most, tile, count = plan(*size, planes=len(first.planes))
    trial = len(_panel(run, columns, rows[found[0]], 0, first, tile, count).text)  # noise takes more than a guess
    per_pixel = _PER_PIXEL * trial / (0.9 * characters / most)
    most, tile, count = plan(*size, per_pixel=per_pixel, planes=len(first.planes))
    rows, panels = list(rows), []
    for index in found[:most]:
        look = _look(run, rows[index][0])
        if look is None or characters < 0:
            continue
        panel = _panel(run, columns, rows[index], index, look, tile, count)
        characters -= len(panel.text)
        panels.append(panel)
        link = tag("a", rows[index][0], href=f"#case-{index}")
        rows[index] = [page.Cell(link, rows[index][0]), *rows[index][1:]]
    return rows, [*_about(run, len(panels), len(rows), count), tag("div", panels, class_="browser")]


def _about(run, shown, cases, count):
    some = "" if shown == cases else f" Of {cases} cases {shown} have slices here: the first ones of the table's order."
    which = "each plane, as the network gets them: cropped, and on its grid" if run.in_cache else "each scan"
    what = f"Click a case, here or in the table. Up to {count} slices of {which}.{some} "
    what += pictures.convention(run.config.eval.radiological)
    lines = [(name, f"border-top:3px {style} {colour}") for name, colour, style in pictures.LEGEND]
    masked = run.task.wanted(run.config.task).masked
    return [tag("h3", "Slices of the cases"), page.note(what), page.legend(lines, "legend dark") if masked else None]


def _is_there(run, id):
    return run.has_entry(id) if run.in_cache else id in run.stacks


def _look(run, id):
    """The Look of a case; None where its files are gone."""
    return _look_at_entry(run, id) if run.in_cache else _look_at_scan(run, id)


def _unit(run, id):
    return next(line for line in run.units if line["id"] == id)


def _look_at_entry(run, id):
    entry, unit = run.entry(id), _unit(run, id)
    if entry is None:
        return None
    masks = entry.mask, entry.predicted(run.fold(unit["fold"]).mask(id))
    masks = tuple(None if mask is None else np.asarray(mask) > 0 for mask in masks)
    lacking = (unit.get("missing") or "").split(", ")
    channels = [f"{name}: missing" if name in lacking else name for name in run.config.data.channels]
    return Look(entry.image, entry.background, masks, entry.geometry.spacing_mm, channels)


def _look_at_scan(run, id):
    cases = run.stacks[id]
    cases = [cases[place] for place in np.linspace(0, len(cases) - 1, min(len(cases), _READ)).round().astype(int)]
    try:
        image, background, channels = slice_files.stack(cases, run.config.data)
    except UserError:
        return None
    return Look(image, background, (None, None), (1.0, 1.0, 1.0), channels, pictures.PLANES[:1])


def _panel(run, columns, row, index, look, tile, count):
    id, radiological = row[0], run.config.eval.radiological
    arguments = look.image, look.background, look.masks, look.spacing_mm, look.channels
    view = slices.viewer(*arguments, radiological, tile, count, look.planes)
    facts = [(title, page.shown(value)) for title, value in zip(columns[1:], row[1:])]
    said = tag("p", [tag("b", id), *(part for name, value in facts if value != "" for part in (f" · {name} ", value))])
    steps = tag("p", [tag("a", "back to the table", href="#the-cases")], class_="note")
    inside = tag("div", [said, view, steps], id=f"case-{index}")
    return page.Html(f'<details name="case"><summary>{page.escape(id)}</summary>{inside.text}</details>')
