"""Checkpoints: saved atomically, loaded as plain data; and weights of other runs, transferred by declaration.

A file never runs code unless the caller says `trust`. No tensor is left out in silence: what does not fit, and was not
declared, is an error that lists the names.
"""

from .saving import load, save
from .transfer import LoadReport, downstream, load_weights, warn_of_known
