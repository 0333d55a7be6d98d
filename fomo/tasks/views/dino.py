"""DINO: whether the teacher has collapsed, what a probe makes of its features, and which cases it finds alike."""

import math
import os

from ...pages import page, pictures
from ...pages.figures.epochs import curves
from ...pages.page import number
from ...space import patches
from .classification import against_chance
from .view import View, read_arrays

NEAR = 0.01  # of the largest entropy, and standard deviation: as good as collapsed


def _verdict(run):
    collapse = _collapse(run)
    if "probe_auroc" not in run.metrics:
        return collapse
    value = number(run.value("probe_auroc"), 3)
    chance = against_chance(*run.with_interval("probe_auroc"))
    return f"{collapse} Linear probe on frozen features, AUROC {value}: {chance}"


def _collapse(run):
    """The teacher's entropy at the selected epoch: the largest means that all outputs are alike, 0 that one has won."""
    largest = math.log(run.config.task.out_dim)
    entropy = run.value("teacher_entropy")
    limits = f"between 0 and ln({run.config.task.out_dim}) = {number(largest, 3)}"
    found = f"the teacher's entropy is {number(entropy, 3)}, {limits}"
    if entropy > (1 - NEAR) * largest:
        return f"Collapsed to equal outputs: {found}."
    if entropy < NEAR * largest:
        return f"Collapsed to one output: {found}."
    return f"No sign of collapse: {found}."


def _curves(run, options):
    """The collapse curves and the probes, as far as the history has them."""
    rows = next(iter(run.histories.values()))
    largest = math.log(run.config.task.out_dim), f"ln({run.config.task.out_dim}): all outputs equal"
    spread = "Spread of the teacher's answers over the cases; near 0 all cases look the same to it."
    wanted = {
        "teacher_entropy": (largest, (0, 1.1 * largest[0]), "Near the line or near 0 the teacher has collapsed."),
        "teacher_std": (None, (0, 1), spread),
        "probe_auroc": ((0.5, "chance"), None, "A linear probe on frozen features of the labelled cases."),
        "knn_auroc": ((0.5, "chance"), None, "Votes of the nearest neighbours among the labelled cases."),
    }
    found = []
    for name, (level, limits, what) in wanted.items():
        if f"val_{name}" in rows[0]:
            title = page.label(name)
            curve = curves(run.histories, [(f"val_{name}", "-", "")], title, **options, level=level, limits=limits)
            found.append(page.figure(curve, f"{page.capital(title)}.", what))
    return found


def _pictures(run):
    """A row of slices per query, from what `_write_neighbours` of tasks/dino.py has stored."""
    path = run.fold(1).neighbours
    if not os.path.exists(path):
        return [page.note("The run has stored no neighbours.")]
    stored = read_arrays(path)
    axis, radiological = patches.thinnest(run.config.data.patch), run.config.eval.radiological
    found, arrays = [], (stored[name] for name in ("ids", "similarity", "queries", "neighbours"))
    for (query, *names), cosines, own, others in zip(*arrays):
        near = ", ".join(f"{name}\u00a0{number(value, 2)}" for name, value in zip(names, cosines.tolist()))
        alike = f"{query} and the cases that are most like it: {near}"
        picture = pictures.mosaic([[own, *others]], [axis], run.config.data.spacing_mm, alike, radiological)
        found.append(page.figure(picture, str(query), near))
    what = "On the left a case, beside it the validation cases nearest to it, with the cosine of their features. "
    what += pictures.convention(radiological)
    return [page.note(what), page.grid(found, "grid wide")]


VIEW = View(title="Nearest neighbours", verdict=_verdict, curves=_curves, pictures=_pictures)
