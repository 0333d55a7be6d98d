"""Checkpoints: saved atomically, loaded as plain data; and weights of other runs, transferred by declaration.

Reading a file never runs code of it. No tensor is left out in silence: what does not fit, and was not
declared, is an error that lists the names.
"""

from .families import with_aliases
from .recognition import recognise
from .saving import load, read, save
from .transfer import LoadReport, channels_of, downstream, load_weights, warn_of_known
