"""Heat maps over images: where the networks looked in the cases of which each fold has stored the maps."""

import itertools

import numpy as np

from ...pages import page, pictures
from ...pages.page import number, tag
from .view import read_arrays

_MOST = 12  # cases on a page


def heatmaps(run, words=("not its class", "its class")):
    """Parts of the page; [] where `eval.saliency` is 0. words: of an output that a case does not have, or has."""
    if not run.config.eval.saliency:
        return []
    stored = itertools.zip_longest(*(run.fold(number).saliencies() for number in run.finished))
    paths = [path for of_folds in stored for path in of_folds if path]  # of each fold in turn, so that all are seen
    if not paths:
        return [page.note("The run has stored no maps.")]
    what = "Each case, and on it in colour what speaks for the labels with the highest probabilities (Grad-CAM)"
    what += "; last the weights of its attention (CBAM)" if run.config.model.attention == "cbam" else ""
    what += ". A map shows what the network used, not that a finding is there. "
    what += pictures.convention(run.config.eval.radiological)
    figures = [_figure(read_arrays(path), run.config, words) for path in paths[:_MOST]]
    return [tag("h3", "Where the networks looked"), page.note(what), page.grid(figures, "grid wide")]


def _figure(stored, config, words):
    """stored: what `runs.maps.write` has stored of a case."""
    rows, heats = [], []
    for axis in stored["axes"]:
        maps = list(stored[f"grad_cam_{axis}"])
        if f"attention_{axis}" in stored:
            weights = stored[f"attention_{axis}"].astype(np.float32)  # of which only the differences are of interest
            maps.append((weights - weights.min()) / max(float(np.ptp(weights)), 0.02))
        rows.append([stored[f"image_{axis}"]] * (1 + len(maps)))
        heats.append([None, *maps])
    outputs = zip(stored["labels"], stored["probabilities"], stored["targets"])
    said = ", ".join(f"{name} {number(float(value), 3)} ({words[target]})" for name, value, target in outputs)
    options = config.data.spacing_mm, f"{stored['id']}: {said}", config.eval.radiological, heats
    picture = pictures.mosaic(rows, stored["axes"], *options)
    return page.figure(picture, str(stored["id"]), said)
