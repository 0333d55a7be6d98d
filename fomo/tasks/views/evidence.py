"""Classification by evidence: what a classification shows, and of each case what its probability was made of."""

import math
import os

from ...pages import page, pictures
from ...pages.page import number, tag
from . import classification
from .view import read_arrays

_MOST = 24  # cases on a page


def _pictures(run):
    ranked = sorted(run.rows, key=lambda row: abs(row["probability"] - row["target"]), reverse=True)
    stored = [(row, run.fold(row["fold"]).evidence(row["id"])) for row in ranked]
    stored = [pair for pair in stored if os.path.exists(pair[1])]
    shown = [_figure(row, read_arrays(path), run.config) for row, path in stored[:_MOST]]
    what = (
        "The slices through the most probable voxel of each case, the worst answer first: the image, in colour on it "
    )
    what += "the probability of the finding, of which that of the case is made, and the mask, where there is one. "
    what += pictures.convention(run.config.eval.radiological)
    left = len(run.rows) - len(shown)
    notes = [page.note(what + (f" {left} of {len(run.rows)} cases are not drawn." if left else ""))]
    return [*classification.VIEW.pictures(run), tag("h3", "Evidence"), *notes, page.grid(shown, "grid wide")]


def _figure(row, planes, config):
    """planes: image_A, evidence_A and, with a mask, reference_A, across each axis A from 0 to 2."""
    names = ["evidence", *(["reference"] if "reference_0" in planes else [])]
    rows = [[planes[f"image_{axis}"]] * (1 + len(names)) for _, axis in pictures.PLANES]
    heats = [[None, *(planes[f"{name}_{axis}"] for name in names)] for _, axis in pictures.PLANES]
    options = [axis for _, axis in pictures.PLANES], config.data.spacing_mm
    said = f"class {row['target']:g}, probability {number(row['probability'], 3)}"
    if not math.isnan(row["located"]):
        said += ", its highest voxel is " + ("in the mask" if row["located"] else "outside the mask")
    return page.figure(
        pictures.mosaic(rows, *options, f"{row['id']}: {said}", config.eval.radiological, heats), row["id"], said
    )


VIEW = classification.VIEW._replace(title="Scores and evidence", pictures=_pictures)
