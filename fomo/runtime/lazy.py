"""Modules that are imported when something of them is first used: torch alone takes a second or more.

`--help`, an error in a config and the processes that preprocess need none of them, but they do need the kinds, whose
files use torch elsewhere.
"""

import importlib


class Module:
    """Stands for a module, whose attributes it has; name, package: as for importlib.import_module."""

    def __init__(self, name, package=None):
        self._place, self._module = (name, package), None

    def __getattr__(self, name):
        if self._module is None:
            self._module = importlib.import_module(*self._place)
        return getattr(self._module, name)


torch = Module("torch")
