"""Masked autoencoder: what was hidden, and what the network made of it."""

import os

from ...pages import page, pictures
from ...pages.page import number
from .view import View, read_arrays

_SHOWN = 4  # cases
_KINDS = (("original", "original"), ("masked", "what the network saw"), ("reconstructed", "reconstructed"))


def _since_the_first_epoch(run):
    text = "Squared error of the restored intensities"
    if 1 not in run.histories:  # trained elsewhere
        return f"{text}."
    best = run.best_row(1)
    first, value = (number(row[f"val_{run.headline}"], 3) for row in (run.histories[1][0], best))
    return f"{text}: after the first epoch it was {first}, at the selected one (epoch {int(best['epoch'])}) {value}."


def _pictures(run):
    stored = [(row, run.fold(row["fold"]).reconstruction(row["id"])) for row in run.rows]
    ranked = sorted((pair for pair in stored if os.path.exists(pair[1])), key=lambda pair: pair[0]["loss"])
    if not ranked:
        return [page.note("The run has stored no reconstructions.")]
    count = min(_SHOWN, len(ranked))  # evenly from the best to the worst
    shown = [ranked[round(i * (len(ranked) - 1) / max(1, count - 1))] for i in range(count)]
    columns = ", ".join(name for _, name in _KINDS)
    what = f"From left to right: {columns}; the central axial, coronal and sagittal slice. Lowest error first. "
    what += pictures.convention(run.config.eval.radiological)
    figures = [_figure(row, read_arrays(path), run.config) for row, path in shown]
    return [page.note(what), page.grid(figures, "grid wide")]


def _figure(row, planes, config):
    """planes: original_A, masked_A and reconstructed_A, across each axis A from 0 to 2."""
    rows = [[planes[f"{kind}_{axis}"] for kind, _ in _KINDS] for _, axis in pictures.PLANES]
    options = [axis for _, axis in pictures.PLANES], config.data.spacing_mm
    alt = f"{row['id']}: original, masked and reconstructed slices"
    picture = pictures.mosaic(rows, *options, alt, config.eval.radiological)
    return page.figure(picture, row["id"], f"squared error {number(row['loss'], 3)}")


VIEW = View(
    title="Reconstructions",
    verdict=_since_the_first_epoch,
    pictures=_pictures,
    per_case={"reconstruction_mse": (lambda row: row["loss"], False, "squared error")},
)
