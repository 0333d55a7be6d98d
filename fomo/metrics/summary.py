"""Summaries of per-case values that may be undefined or infinite."""

import numpy as np

from . import checks

COUNTS = ("_undefined", "_infinite")  # endings of the names under which tables count what a mean leaves out


def over_classes(values):
    """Mean of one metric over the classes of a case: of those where it is defined; infinite where one of them is missed.

    NaN where none is defined.
    """
    values = checks.real(values, "values", finite=False).astype(np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def summarize(values):
    """Mean, spread and counts of per-case values, as a dict.

    values: (n,). mean, std (n - 1), median, minimum, maximum of the finite ones (NaN if none; std of one: NaN), and the
    counts: n all, finite, undefined (NaN: the metric has no value, as Dice of two empty masks), infinite (a missed
    structure's distance). A mean over fewer than n cases must be shown with those counts.
    """
    values = checks.real(values, "values", finite=False).astype(np.float64)
    kept = values[np.isfinite(values)]
    some = kept if len(kept) else np.array([np.nan])
    return dict(
        mean=float(some.mean()),
        std=float(kept.std(ddof=1)) if len(kept) > 1 else float("nan"),
        median=float(np.median(some)),
        minimum=float(some.min()),
        maximum=float(some.max()),
        n=len(values),
        finite=len(kept),
        undefined=int(np.isnan(values).sum()),
        infinite=int(np.isinf(values).sum()),
    )
