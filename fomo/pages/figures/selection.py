"""What is left of the errors where a model answers only the cases of which it is surest."""

from ..page import number
from .panel import BLUE, GREY, legend_above, plot


@plot
def risk_over_coverage(axes, coverage, risk, label):
    """label: what the risk is. Dashed: that of all cases, which a confidence that tells nothing would keep."""
    axes.plot(coverage, risk, color=BLUE, drawstyle="steps-post")
    axes.axhline(risk[-1], linestyle="--", color=GREY, linewidth=1, label=f"all cases, {number(float(risk[-1]), 3)}")
    axes.set(xlim=(0, 1.02), ylim=(0, None), xlabel="share of the cases, the surest first", ylabel=label)
    legend_above(axes)
    half, whole = (number(float(value), 3) for value in (risk[len(risk) // 2], risk[-1]))
    return f"{label} over the share of the cases that are answered: {half} at one half, {whole} at all"
