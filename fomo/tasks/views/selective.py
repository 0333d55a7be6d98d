"""The risk-coverage curve: whether a model's errors are where it is unsure."""

import math

from ...metrics import risk_coverage, risk_coverage_area
from ...pages import page
from ...pages.figures.selection import risk_over_coverage
from ...pages.page import interval, number


def risk_coverage_of(run, losses, confidence, label, bounds):
    """Its figure, in a list; losses, confidence: (n,) of the rows; bounds: the range of a loss, which `label` names."""
    area, low, high, resamples = risk_coverage_area(losses, confidence), math.nan, math.nan, run.config.eval.bootstrap
    if resamples and len(losses) > 2:
        chosen = run.results.bootstrap(resamples, run.config.seed)
        _, low, high, _ = chosen(risk_coverage_area, losses, confidence, bounds=bounds)
    limits = f" (95% interval {interval(low, high, 3)})" if not math.isnan(low) else ""
    said = f"Area {number(area, 3)}{limits}; a confidence that tells nothing has {number(float(losses.mean()), 3)}."
    picture = risk_over_coverage(*risk_coverage(losses, confidence), label)
    return [page.figure(picture, "Risk over coverage.", said)]
