"""Overlap of two masks.

With TP, FP, FN, TN the voxels of both, of the prediction only, of the reference only and of neither:

metric              formula                      both empty   reference empty   prediction empty
dice                2 TP / (2 TP + FP + FN)      NaN          0                 0
jaccard             TP / (TP + FP + FN)          NaN          0                 0
sensitivity         TP / (TP + FN)               NaN          NaN               0
precision           TP / (TP + FP)               NaN          0                 NaN
specificity         TN / (TN + FP)               1            TN / (TN + FP)    1
volume_similarity   1 - |FP - FN| / (2 TP + FP + FN)   NaN    0                 0

A metric whose denominator is 0 is NaN, never 0 or 1: there is nothing to measure. scikit-learn gives 0 there, MONAI's
DiceMetric NaN for every empty reference. All agree where the reference is not empty. Volume similarity: Taha and
Hanbury, BMC Med Imaging 15:29 (2015).
"""

import numpy as np

from . import checks


def overlap_metrics(reference, prediction):
    """All metrics of the table above, as a dict, of two masks of one shape: bool, or integers 0 and 1."""
    reference, prediction = checks.mask_pair(reference, prediction)
    return overlap_from_counts(*map(np.count_nonzero, (reference & prediction, reference, prediction)), reference.size)


def overlap_from_counts(both, in_reference, in_prediction, voxels):
    ratio, tp, fp, fn = checks.ratio, both, in_prediction - both, in_reference - both
    tn = voxels - tp - fp - fn
    return dict(
        dice=ratio(2 * tp, 2 * tp + fp + fn),
        jaccard=ratio(tp, tp + fp + fn),
        sensitivity=ratio(tp, tp + fn),
        specificity=ratio(tn, tn + fp),
        precision=ratio(tp, tp + fp),
        volume_similarity=1 - ratio(abs(fp - fn), 2 * tp + fp + fn),
    )


def dice(reference, prediction):
    """Dice coefficient, 2 TP / (2 TP + FP + FN), of two masks of any one shape; both empty: NaN; one empty: 0."""
    return overlap_metrics(reference, prediction)["dice"]
