"""One plot: a small panel that is legible at its own size, so that the page can stack them on a narrow screen.

The colours are Okabe and Ito's, which colour-blind readers tell apart; a second mark (dash, marker) goes with each.
"""

import functools
import io
import re
import zlib

import numpy as np

from ..page import Html, escape

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072b2", "#d55e00", "#007a5a", "#a64d85", "#3a8fc4", "#6b7580"
DARK, SOFT = "#1b1f24", "#4d5761"  # the page's text and notes
MARKS = ((BLUE, "o"), (ORANGE, "^"))  # of two series of points
_RASTER_FROM = 3000  # points: above it they are drawn as pixels, which keeps the page light


def plot(draw):
    """A decorator: `draw(axes, ...)` fills axes and returns in words what they show; `draw(...)` then gives the SVG."""

    @functools.wraps(draw)
    def drawn(*arguments, **options):
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_RC):
            drawing, file = Figure(figsize=(3.7, 3.05), layout="constrained"), io.StringIO()
            alt = draw(drawing.add_subplot(), *arguments, **options)
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            drawing.savefig(file, format="svg", metadata=metadata, dpi=150)
        return _accessible(file.getvalue(), alt)

    return drawn


def _accessible(text, alt):
    """The Html of the <svg> element alone, sized by the page, with its description for those who cannot see it."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them
    own = f"{zlib.crc32(text.encode()):08x}"  # or the plots of a page have elements of the same id
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}", text)
    opening, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening).group()
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view} xmlns="http://www.w3.org/2000/svg" role="img"'
    return Html(f'{opening} aria-label="{escape(alt)}">{rest}')


_RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fomo",  # the same run gives the same file
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#8a939c",
    **dict.fromkeys(("axes.labelcolor", "text.color"), DARK),
    **dict.fromkeys(("xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.7,
    "legend.framealpha": 0.6,  # readable over a curve, which shows through
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "axes.formatter.useoffset": False,
}


def diagonal(axes, legend, ends=(0, 1)):
    """The line on which both axes have the same value."""
    axes.plot(ends, ends, "--", color=GREY, linewidth=1, label=legend)


def identity(axes, *values, legend="identity"):
    """The diagonal, and room for all `values` on both axes."""
    both = np.concatenate(values)
    low, high = float(np.nanmin(both)), float(np.nanmax(both))
    pad = 0.04 * (high - low or 1)
    ends = low - pad, high + pad
    diagonal(axes, legend, ends)
    axes.set(xlim=ends, ylim=ends)


def points(axes, x, y, colour=BLUE, marker="o", **options):
    """Marks that are still told apart when there are many."""
    size, alpha = (17, 0.75) if len(x) <= 200 else (8.5, 0.5)
    look = {"s": size, "alpha": alpha, "linewidths": 0, "rasterized": len(x) > _RASTER_FROM}
    axes.scatter(x, y, color=colour, marker=marker, **look, **options)


def histogram(axes, values, bins, limits=None):
    axes.hist(values, bins=bins, range=limits, color=SKY, edgecolor="white", linewidth=0.6)
    axes.set(ylabel="cases")
    axes.yaxis.get_major_locator().set_params(integer=True)


def legend_above(axes, **options):
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), **options)


def unit_square(axes, xlabel, ylabel):
    """Axes of two shares."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
