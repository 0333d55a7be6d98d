"""Metrics and intervals for segmentation, classification and regression. Needs numpy and scipy only.

Each file has one topic: overlap, surface and lesions (masks), challenge (masks as FOMO26 scores them), ranking,
classification and calibration (labels), selective (risk over coverage), regression, intervals and comparison
(statistics), summary (values with NaN and inf), probe and heads (frozen features), fairness (groups of subjects).
Arrays go in, plain numbers come out; the reference comes before the prediction. An undefined metric is NaN. Bad input
raises ValueError, which names the argument, what was got and what was wanted.
"""

from .calibration import brier, ece, fit_logistic, fit_temperature, log_loss, shifted, tempered
from .challenge import CHALLENGES, fomo26_dice, fomo26_metrics, fomo26_nsd
from .classification import (
    binary_metrics,
    choose_threshold,
    confusion_matrix,
    crg,
    decision_metrics,
    multiclass_metrics,
)
from .comparison import delong_test, paired_permutation, paired_swap
from .crossvalidated import Interval, cross_validated_ci, fold_shift, within_folds
from .intervals import bootstrap_ci, t_interval
from .overlap import dice, overlap_from_counts
from .ranking import auroc, average_precision, macro_auroc, precision_recall_curve, roc_curve
from .regression import (
    apply_bias_correction,
    bounded_bias_correction,
    conformal_half_width,
    fit_bias_correction,
    mae,
    pearson,
    r2,
    regression_metrics,
)
from .selective import risk_coverage, risk_coverage_area
from .summary import COUNTS, WITHIN, deviation, over_classes, range_of, summarize
from .surface import (
    average_surface_distance,
    hausdorff,
    segmentation_metrics,
    segmentation_metrics_per_class,
    surface_dice,
)
