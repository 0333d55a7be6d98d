"""How settings did in each round of a search."""

from ..page import number
from .panel import BLUE, GREY, plot


@plot
def over_rungs(axes, lines, chosen, lengths, label):
    """A line per setting over the rungs, that of the chosen one in colour.

    lines: {setting: [(rung, score)]}; lengths: of the training in each rung, in words.
    """
    for setting, points in sorted(lines.items(), key=lambda item: item[0] == chosen):
        look = {"color": BLUE, "linewidth": 2, "zorder": 5} if setting == chosen else {"color": GREY, "linewidth": 0.9}
        axes.plot(*zip(*points), "-o", markersize=4, **look)
    axes.plot([], [], "-o", color=BLUE, label=f"setting {chosen}, which is chosen")
    axes.set_xticks(range(1, len(lengths) + 1), lengths)
    axes.set(xlabel="length of the training", ylabel=label, xlim=(0.7, len(lengths) + 0.3))
    axes.legend(loc="best")
    said = ", ".join(f"{number(score, 3)} in rung {rung}" for rung, score in lines[chosen])
    return f"{label} of {len(lines)} settings over {len(lengths)} rungs; the chosen setting has {said}"
