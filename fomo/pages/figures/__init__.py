"""Plots as inline SVG, by matplotlib, which is optional: `available()` says whether it is there.

- `panel`: what every plot has, and what several of them draw
- `probabilities`: ROC, precision and recall, calibration, of one label and of many
- `selection`: errors of the cases that a model is surest of
- `numbers`: predicted over true numbers, their errors, one run over another; `agreement`: overlap, distances, volumes
- `epochs`: the course of a training; `rungs`: of a search
"""

import importlib.util

MISSING = "Figures need matplotlib, which is not installed: pip install matplotlib, then write this page again."


def available():
    return importlib.util.find_spec("matplotlib") is not None
