"""Plots as inline SVG, by matplotlib, which is optional: `available()` says whether it is there.

- `panel`: what every plot has, one way to draw each thing that several show; `training`: curves over epochs
- `classification`, `multilabel`, `regression`, `segmentation`: the plots of the view of that name
- `comparison`: one run over another
"""

import importlib.util

MISSING = "Figures need matplotlib, which is not installed: pip install matplotlib, then python tools/report.py RUN."


def available():
    return importlib.util.find_spec("matplotlib") is not None
