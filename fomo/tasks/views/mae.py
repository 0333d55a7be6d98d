"""Masked autoencoder: what was hidden, and what the network made of it."""

import os

from ...pages import page, pictures
from ...pages.page import number, tag
from .view import View

_SHOWN = 4  # cases
_KINDS = (("original", "original"), ("masked", "what the network saw"), ("reconstructed", "reconstructed"))


def _since_the_first_epoch(run):
    text = "Squared error of the restored intensities"
    if 1 not in run.histories:  # trained elsewhere
        return f"{text}."
    best = run.best_row(1)
    first, value = (number(row[f"val_{run.headline}"], 3) for row in (run.histories[1][0], best))
    return f"{text}: after the first epoch it was {first}, at the selected one (epoch {int(best['epoch'])}) {value}."


def _pictures(run, listed):
    """From fold_K/reconstructions/ID.npz: original_0 .. 2, masked_0 .. 2, reconstructed_0 .. 2, planes across each axis."""
    stored = {row["id"]: path for row in run.rows if os.path.exists(path := _path(run, row))}
    if not stored:
        return [page.note("The run has stored no reconstructions.")]
    ranked = sorted((row for row in run.rows if row["id"] in stored), key=lambda row: row["loss"])
    at = range(min(_SHOWN, len(ranked)))  # evenly from the best to the worst
    shown = [ranked[round(i * (len(ranked) - 1) / max(1, len(at) - 1))] for i in at]
    found = [_picture(row, stored[row["id"]], run.config.data.spacing_mm) for row in shown]
    columns = ", ".join(name for _, name in _KINDS)
    return [
        page.note(f"From left to right: {columns}; the central axial, coronal and sagittal slice. Lowest error first."),
        page.grid(found, "grid wide"),
    ]


def _path(run, row):
    return os.path.join(run.folder, f"fold_{int(row['fold'])}", "reconstructions", f"{row['id']}.npz")


def _picture(row, path, spacing_mm):
    planes = pictures.arrays(path)
    rows = [[planes[f"{kind}_{axis}"] for kind, _ in _KINDS] for _, axis in pictures.PLANES]
    alt = f"{row['id']}: original, masked and reconstructed slices"
    return tag(
        "figure",
        [
            pictures.mosaic(rows, [pictures.in_plane(spacing_mm, axis) for _, axis in pictures.PLANES], alt),
            tag("figcaption", [tag("b", row["id"]), f" squared error {number(row['loss'], 3)}"]),
        ],
    )


VIEW = View(
    title="Reconstructions",
    verdict=_since_the_first_epoch,
    pictures=_pictures,
    per_case={"reconstruction_mse": (lambda row: row["loss"], False, "squared error")},
)
