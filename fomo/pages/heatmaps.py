"""Heat maps over images: where the networks looked in the cases that a run has stored (fomo/overlays.py writes them)."""

import glob
import os

import numpy as np

from . import page, pictures
from .page import number, tag

_MOST = 12  # cases on a page


def heatmaps(run, words=("not its class", "its class")):
    """Parts of the page; [] where `eval.saliency` is 0, a note where nothing is stored.

    words: what is said of an output that the case does not have, and of one that it has.
    """
    if not run.config.eval.saliency:
        return []
    folders = [os.path.join(run.folder, f"fold_{fold}", "saliency", "*.npz") for fold in run.finished]
    stored = [sorted(glob.glob(pattern)) for pattern in folders]
    if not any(stored):
        return [page.note("The run has stored no maps.")]
    # of each fold in turn, so that all are seen
    paths = [of_fold[i] for i in range(max(map(len, stored))) for of_fold in stored if i < len(of_fold)][:_MOST]
    cbam = "; last the weights of its attention (CBAM)" if run.config.model.attention == "cbam" else ""
    return [
        tag("h3", "Where the networks looked"),
        page.note(
            "Each case, and on it in colour what speaks for the labels with the highest probabilities (Grad-CAM)"
            f"{cbam}. A map shows what the network used, not that a finding is there."
        ),
        page.grid([_picture(run, pictures.arrays(path), words) for path in paths], "grid wide"),
    ]


def _picture(run, stored, words):
    rows, heats = [], []
    for axis in stored["axes"]:
        maps = list(stored[f"grad_cam_{axis}"])
        if f"attention_{axis}" in stored:
            weights = stored[f"attention_{axis}"].astype(np.float32)
            maps.append(
                (weights - weights.min()) / max(float(np.ptp(weights)), 0.02)
            )  # only how they differ is of interest
        rows.append([stored[f"image_{axis}"]] * (1 + len(maps)))
        heats.append([None, *maps])
    said = [
        f"{name} {number(float(probability), 3)} ({words[target]})"
        for name, probability, target in zip(stored["labels"], stored["probabilities"], stored["targets"])
    ]
    spacings = [pictures.in_plane(run.config.data.spacing_mm, axis) for axis in stored["axes"]]
    picture = pictures.mosaic(rows, spacings, f"{stored['id']}: {', '.join(said)}", overlay=heats)
    return tag("figure", [picture, tag("figcaption", [tag("b", str(stored["id"])), f" {', '.join(said)}"])])
