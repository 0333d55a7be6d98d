"""Losses, metrics and learning rates over the epochs of a training, a line per fold."""

from ..page import number
from .panel import BLUE, DARK, GREEN, GREY, ORANGE, PURPLE, SKY, SOFT, legend_above, plot

FOLDS = (BLUE, ORANGE, GREEN, PURPLE, "#8a6d00", DARK, SKY, GREY)


def fold_colour(index, folds):
    return FOLDS[index] if folds <= len(FOLDS) else BLUE


@plot
def curves(axes, histories, names, ylabel, best, unfreeze=None, level=None, limits=None, small=False):
    """Columns of the histories over the epochs.

    histories: {fold: rows}.
    names: [(column, line style, legend)].
    best: {fold: epoch}, marked on the last of `names`.
    unfreeze: the epoch in which the encoder begins to be trained.
    level: (value, what it is) of a line to compare with.
    limits: of the values' axis.
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
        axes.axvline(unfreeze, color=SOFT, linewidth=1, linestyle=":")
        look = {"ha": "right", "va": "top", "rotation": 90, "fontsize": 7.5, "color": SOFT}
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("encoder trained from here", (unfreeze, 1), (-1, -2), **place, **look)
    if level is not None:
        axes.axhline(level[0], color=GREY, linewidth=1, linestyle="--", label=level[1])
    if len(names) > 1:
        for _, style, legend in names:
            axes.plot([], [], style, color=SOFT, linewidth=_width(style), label=legend)
    if len(names) > 1 or level is not None:
        legend_above(axes, ncols=2)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=limits)
    axes.xaxis.get_major_locator().set_params(integer=True)
    last = ", ".join(f"fold {fold}: {number(rows[-1][names[-1][0]], 3)}" for fold, rows in histories.items())
    return f"{ylabel} over epochs; at the last epoch {last}"


def _width(style):
    return 1.5 if style == "-" else 0.9
