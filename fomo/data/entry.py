"""A case as the cache holds it, for pictures: it is read without its source files."""

import os
from typing import NamedTuple

import numpy as np

from ..runtime import files, lazy
from ..space import volume

nifti = lazy.Module("..space.nifti", __package__)


class Entry(NamedTuple):
    """The arrays are in RAS+ order, on the network's grid."""

    image: np.ndarray  # (C, X, Y, Z), memory-mapped
    background: tuple  # a value per channel
    mask: np.ndarray | None  # (X, Y, Z) class numbers; None where no mask is learned, or the case has none
    geometry: volume.Geometry

    def predicted(self, path):
        """(X, Y, Z) class numbers of the predicted mask in the file `path`; None where there is no such file."""
        return volume.to_grid(nifti.read_nifti(path)[0], self.geometry) if os.path.exists(path) else None


def read(folder):
    """The Entry in a folder of the cache. Raises OSError or ValueError for one that is gone or damaged."""
    facts = files.read_json(os.path.join(folder, "case.json"), "geometry", "background")
    mask = os.path.join(folder, "mask.npy")
    return Entry(
        np.load(os.path.join(folder, "image.npy"), "r"),
        tuple(facts["background"]),
        np.load(mask, "r") if os.path.exists(mask) else None,
        volume.Geometry.from_dict(facts["geometry"]),
    )
