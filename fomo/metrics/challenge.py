"""Overlap and surface of two masks as the FOMO26 challenge scores them, under names of their own.

Where both masks have foreground `fomo26_dice` is `dice`, and `fomo26_nsd` is `surface_dice` of surface elements
(surface="surfels") at 1 mm: DeepMind's surface-distance, by which the challenge measures. Elsewhere they differ:

metric              both empty   one empty
dice                NaN          0
surface_dice        NaN          0
fomo26_dice         1            0
fomo26_nsd          0            0

So in the challenge a rightly empty mask is worth 1 in one metric and 0 in the other. Source: fomo26/fomo-metrics,
segmentation.py. Its AUROC, mean absolute error and correlation are those of this project.
"""

import math

from .overlap import dice
from .surface import surface_dice

FOMO26_TOLERANCE_MM = 1.0


def fomo26_dice(reference, prediction):
    """`dice`, and 1 of two empty masks."""
    value = dice(reference, prediction)
    return 1.0 if math.isnan(value) else value


def fomo26_nsd(reference, prediction, spacing_mm):
    """`surface_dice` of surface elements weighted by their area, at 1 mm, and 0 where a mask is empty."""
    value = surface_dice(reference, prediction, spacing_mm, FOMO26_TOLERANCE_MM, surface="surfels")
    return 0.0 if math.isnan(value) else value


def fomo26_metrics(reference, prediction, spacing_mm):
    """Both, as a dict by their names."""
    return {
        "fomo26_dice": fomo26_dice(reference, prediction),
        "fomo26_nsd": fomo26_nsd(reference, prediction, spacing_mm),
    }


CHALLENGES = {"fomo26": fomo26_metrics}  # {name: its metrics of the masks of one class}, whose names begin with it
