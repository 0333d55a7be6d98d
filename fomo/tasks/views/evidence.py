"""Classes or labels by evidence: what they show otherwise, and of each case what its probabilities were made of."""

import math
import os

from ...pages import page, pictures
from ...pages.page import number, tag
from . import classification, multilabel
from .view import read_arrays

_MOST = 24  # cases on a page


def of_two_classes():
    """The View of a class that is learned from masks."""
    plain = classification.VIEW
    return plain._replace(title="Scores and evidence", pictures=lambda run: [*plain.pictures(run), *_evidence(run)])


def of_labels():
    """The View of several labels, of which some are learned from masks."""
    plain = multilabel.VIEW
    return plain._replace(title="Labels and evidence", pictures=lambda run: [*plain.pictures(run), *_evidence(run)])


def _evidence(run):
    columns = list(zip(run.task.names_of("probability"), run.task.names_of("target")))
    ranked = sorted(run.rows, key=lambda row: -max(abs(row[said] - row[true]) for said, true in columns))
    stored = [(row, run.fold(row["fold"]).evidence(row["id"])) for row in ranked]
    stored = [pair for pair in stored if os.path.exists(pair[1])]
    shown = [figure for row, path in stored[:_MOST] for figure in _figures(run, row, read_arrays(path))]
    what = "The slices through the most probable voxel of a finding, the case with the worst answer first: the image, "
    what += "in colour on it the probability of the finding, of which the case's score is made, and the mask, where it "
    what += "has a voxel. Of several labels those are drawn that a case has, and the most probable ones. "
    what += pictures.convention(run.config.eval.radiological)
    left = len(run.rows) - len(shown)
    notes = [page.note(what + (f" {left} of {len(run.rows)} cases are not drawn." if left else ""))]
    return [tag("h3", "Evidence"), *notes, page.grid(shown, "grid wide")]


def _figures(run, row, stored):
    """Yield a figure of each label in `stored`, see `tasks.evidence.FromMasks._planes`."""
    columns = (run.task.names_of(kind) for kind in ("target", "probability", "located"))
    targets, probabilities, located = map(list, columns)
    options = [axis for _, axis in pictures.PLANES], run.config.data.spacing_mm
    for own, label in enumerate(stored["labels"].tolist()):
        where, name = row[located[label]], targets[label].partition("_")[2]
        names = ["evidence", *([] if math.isnan(where) else ["reference"])]
        rows = [[stored[f"image_{axis}"][own]] * (1 + len(names)) for _, axis in pictures.PLANES]
        heats = [[None, *(stored[f"{kind}_{axis}"][own] for kind in names)] for _, axis in pictures.PLANES]
        said = f"{name or 'class'} {row[targets[label]]:g}, probability {number(row[probabilities[label]], 3)}"
        if not math.isnan(where):
            said += ", its highest voxel is " + ("in the mask" if where else "outside the mask")
        drawn = pictures.mosaic(rows, *options, f"{row['id']}: {said}", run.config.eval.radiological, heats)
        yield page.figure(drawn, row["id"], said)
