"""One run over another, case by case."""

from .panel import identity, panel, points


def paired(first, second, names, label):
    def draw(axes):
        identity(axes, first, second, legend="equal")
        points(axes, first, second, label="case")
        axes.set(xlabel=f"{label}, {names[0]}", ylabel=f"{label}, {names[1]}")
        axes.legend(loc="best")

    return panel(draw, f"{label} of {len(first)} cases: {names[1]} over {names[0]}")
