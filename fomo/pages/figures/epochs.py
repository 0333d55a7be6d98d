"""Losses, metrics and learning rates over the epochs of a training, a line per fold."""

from ... import metrics
from ..page import number
from .panel import BLUE, DARK, GREEN, GREY, ORANGE, PURPLE, SKY, SOFT, legend_above, plot

FOLDS = (BLUE, ORANGE, GREEN, PURPLE, "#8a6d00", DARK, SKY, GREY)


def fold_colour(index, folds):
    return FOLDS[index] if folds <= len(FOLDS) else BLUE


@plot
def curves(axes, histories, names, ylabel, best, unfreeze=None, level=None, limits=None, metric=None, small=False):
    """Columns of the histories over the epochs.

    histories: {fold: rows}.
    names: [(column, line style, legend)].
    best: {fold: epoch}, marked on the last of `names`.
    unfreeze: the epoch in which the encoder begins to be trained.
    level: (value, what it is) of a line to compare with.
    limits: of the values' axis.
    metric: the name of what is drawn, if it is one: the axis ends where no value of it can be.
    small: a plot of half the size.
    """
    if small:
        axes.figure.set_size_inches(2.2, 1.5)
    for index, (fold, rows) in enumerate(histories.items()):
        colour = fold_colour(index, len(histories))
        epochs = [row["epoch"] for row in rows]
        for name, style, _ in names:
            alone = {"marker": ".", "markersize": 4} if len(rows) == 1 else {}
            axes.plot(epochs, [row[name] for row in rows], style, color=colour, linewidth=_width(style), **alone)
        if fold in best:
            value = rows[int(best[fold]) - 1][names[-1][0]]
            axes.plot(best[fold], value, "o", color=colour, markersize=6, markeredgecolor="white", zorder=5)
    if unfreeze is not None:
        axes.axvline(unfreeze, color=SOFT, linewidth=1, linestyle=":", label="encoder trained from here")
    if level is not None:
        axes.axhline(level[0], color=GREY, linewidth=1, linestyle="--", label=level[1])
    if len(names) > 1:
        for _, style, legend in names:
            axes.plot([], [], style, color=SOFT, linewidth=_width(style), label=legend)
    if axes.get_legend_handles_labels()[1]:
        legend_above(axes, ncols=2)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=limits)
    if metric is not None:
        values = [row[names[-1][0]] for rows in histories.values() for row in rows]
        (low, high), (least, greatest) = axes.get_ylim(), metrics.range_of(metric, values)
        rim = 0.02 * (high - low)  # for the width of a line
        axes.set_ylim(max(low, least - rim), min(high, greatest + rim))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if max(map(len, histories.values())) == 1:
        axes.set_xticks(sorted({rows[0]["epoch"] for rows in histories.values()}))  # not .98, .99, 1 and so on
    last = ", ".join(f"fold {fold}: {number(rows[-1][names[-1][0]], 3)}" for fold, rows in histories.items())
    return f"{ylabel} over epochs; at the last epoch {last}"


def _width(style):
    return 1.5 if style == "-" else 0.9
