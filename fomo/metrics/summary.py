"""Summaries of per-case values that may be undefined or infinite."""

import numpy as np

from . import checks

WITHIN = "_within"  # ending of the name of a metric that compares the cases of one fold only
_SHARES = (
    "accuracy precision recall specificity sensitivity f1 dice nsd jaccard similarity auroc ap brier ece hamming match "
    "coverage"
).split()
_SIGNED = "mcc kappa pearson spearman ccc gain".split()  # from -1 to 1
_NOISE = 1e-12  # of the largest value: sums of equal numbers differ by so much in different orders
COUNTS = ("_undefined", "_infinite")  # endings of the names under which tables count what a mean leaves out


def range_of(name, values):
    """(least, greatest) that the metric of this name can be; values: some of its values, (n,)."""
    words = name.split("_")
    if any(word in words for word in _SIGNED):
        return -1.0, 1.0
    if "r2" in words:
        return -np.inf, 1.0
    shares = any(word in words for word in _SHARES)
    return 0.0 if shares or np.nanmin([*values, 0]) >= 0 else -np.inf, 1.0 if shares else np.inf


def over_classes(values):
    """Mean of one metric over the classes of a case where it is defined; infinite where a class is missed; or NaN."""
    return checks.mean_of_defined(checks.real(values, "values", finite=False))


def deviation(values):
    """Standard deviation (n - 1) of values (n,): 0, and no rounding noise, of equal ones; NaN of fewer than two."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.nan
    return 0.0 if np.ptp(values) <= _NOISE * np.abs(values).max() else float(values.std(ddof=1))


def summarize(values):
    """Mean, spread and counts of per-case values (n,), as a dict.

    mean, std (n - 1), median, minimum, maximum: of the finite values; NaN without any, std also for only one.
    n, finite: the number of all values and of the finite ones.
    undefined, infinite: the number of NaN, as for Dice of two empty masks, and of infinite values, as for the distance
      to a missed structure. A mean over fewer than n cases must be shown with these counts.
    """
    values = checks.real(values, "values", finite=False).astype(np.float64)
    kept = values[np.isfinite(values)]
    some = kept if len(kept) else np.array([np.nan])
    return dict(
        mean=float(some.mean()),
        std=deviation(kept),
        median=float(np.median(some)),
        minimum=float(some.min()),
        maximum=float(some.max()),
        n=len(values),
        finite=len(kept),
        undefined=int(np.isnan(values).sum()),
        infinite=int(np.isinf(values).sum()),
    )
