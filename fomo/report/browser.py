"""The case browser: below the table of cases the slices of each, from the cache, which a click on its row opens."""

import numpy as np

from ..pages import page, pictures, slices
from ..pages.page import tag

PAGE = 4.9e6  # characters of a page with all its pictures
_AT_LEAST = 1.2e6  # of them for the slices, however long the rest is
_PER_PIXEL, _PER_CASE = 0.16, 6000  # characters that a picture is likely to take: its slices; its outlines and the rest
_TILES = (160, 128, 96, 80, 64)  # pixels of a slice
_ENOUGH, _MOST = 8, 24  # slices of a plane
_LEAST, _FEWER = 5, 50  # with fewer slices of all cases than `_LEAST`, only the worst cases are shown


def plan(cases, channels, voxels=_TILES[0], characters=PAGE, per_pixel=_PER_PIXEL):
    """(cases that are shown, pixels of a slice, slices of a plane) that keep the page light.

    voxels: of the longest side of a volume, which gets two pixels of each at most. characters: of all pictures.
    """
    tiles = [min(tile, 2 * voxels) for tile in _TILES]
    for shown in (cases, min(cases, _FEWER)):
        pixels = (0.9 * characters / shown - _PER_CASE) / per_pixel / (3 * channels)
        fits = [(tile, int(pixels / (0.75 * tile**2))) for tile in tiles]
        tile, count = next((fit for fit in fits if fit[1] >= _ENOUGH), fits[-1])
        if count >= _LEAST:
            break
    return shown, tile, max(1, min(count, _MOST))


def browser(run, columns, rows, rest):
    """(rows of the table of cases, whose ids open the slices; parts below the table).

    rest: characters of the rest of the page.
    """
    cached, characters = [index for index, row in enumerate(rows) if run.has_entry(row[0])], max(PAGE - rest, _AT_LEAST)
    first = run.entry(rows[cached[0]][0]) if cached else None
    if first is None:
        return rows, [page.note(f"No slices of the cases: the cache {run.config.data.cache} does not hold them.")]
    size = len(cached), len(run.config.data.channels), max(first.geometry.shape), characters
    most, tile, count = plan(*size)
    trial = len(_panel(run, columns, rows[cached[0]], 0, first, tile, count).text)  # noise takes more than a guess
    most, tile, count = plan(*size, per_pixel=_PER_PIXEL * trial / (0.9 * characters / most))
    rows, panels = list(rows), []
    for index in cached[:most]:
        entry = run.entry(rows[index][0])
        if entry is None or characters < 0:
            continue
        panel = _panel(run, columns, rows[index], index, entry, tile, count)
        characters -= len(panel.text)
        panels.append(panel)
        link = tag("a", rows[index][0], href=f"#case-{index}")
        rows[index] = [page.Cell(link, rows[index][0]), *rows[index][1:]]
    return rows, [*_about(run, len(panels), len(rows), count), tag("div", panels, class_="browser")]


def _about(run, shown, cases, count):
    some = "" if shown == cases else f" Of {cases} cases {shown} have slices here: the first ones of the table's order."
    what = (
        f"Click a case, here or in the table. Up to {count} slices of each plane, as the network gets them: cropped, "
    )
    what += f"and on its grid.{some} {pictures.convention(run.config.eval.radiological)}"
    lines = [(name, f"border-top:3px {style} {colour}") for name, colour, style in pictures.LEGEND]
    masked = run.task.wanted(run.config.task).masked
    return [tag("h3", "Slices of the cases"), page.note(what), page.legend(lines, "legend dark") if masked else None]


def _panel(run, columns, row, index, entry, tile, count):
    id, config = row[0], run.config
    unit = next(line for line in run.units if line["id"] == id)
    reference, predicted = entry.mask, entry.predicted(run.fold(unit["fold"]).mask(id))
    masks = [None if mask is None else np.asarray(mask) > 0 for mask in (reference, predicted)]
    spacing_mm, radiological = entry.geometry.spacing_mm, config.eval.radiological
    lacking = (unit.get("missing") or "").split(", ")
    channels = [f"{name}: missing" if name in lacking else name for name in config.data.channels]
    options = (spacing_mm, channels, radiological, tile, count)
    view = slices.viewer(entry.image, entry.background, masks, *options)
    facts = [(title, page.shown(value)) for title, value in zip(columns[1:], row[1:])]
    said = tag("p", [tag("b", id), *(part for name, value in facts if value != "" for part in (f" · {name} ", value))])
    steps = tag("p", [tag("a", "back to the table", href="#the-cases")], class_="note")
    inside = tag("div", [said, view, steps], id=f"case-{index}")
    return page.Html(f'<details name="case"><summary>{page.escape(id)}</summary>{inside.text}</details>')
