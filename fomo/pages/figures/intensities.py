"""The intensities of an image."""

import numpy as np

from .panel import BLUE, GREEN, ORANGE, PURPLE, SKY, legend_above, plot

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
_DASHES = ("-", "--", ":", "-.")
_BINS = 80


@plot
def intensities(axes, channels):
    """Shares of the voxels by intensity, on a logarithmic scale; channels: {name: array}."""
    low = min(float(array.min()) for array in channels.values())
    high = max(float(array.max()) for array in channels.values())
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    for i, (name, array) in enumerate(channels.items()):
        counts, _ = np.histogram(array, edges)
        shares = counts / array.size
        look = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]}
        axes.stairs(np.where(shares > 0, shares, np.nan), edges, label=name, **look)
    axes.set(xlabel="intensity", ylabel="share of the voxels", yscale="log")
    legend_above(axes, ncols=min(3, len(channels)))
    ranges = ", ".join(f"{name} {array.min():.3g} to {array.max():.3g}" for name, array in channels.items())
    return f"Histogram of the intensities: {ranges}."
