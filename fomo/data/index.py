"""The index of a cache: one file with what a start needs of the case.json of all entries.

It has a line per entry: [key, entry, shape, background, class_voxels, checksums]; the key stands for the paths of the
sources. If
two processes write it, the last one stays, and the entries of the other are looked up again.
"""

import json
from typing import NamedTuple

from ..runtime import files


class Facts(NamedTuple):
    entry: str  # name of the entry's folder
    shape: tuple[int, int, int]
    background: tuple[float, ...]
    class_voxels: tuple[int, ...]
    checksums: tuple[str, ...]  # of the voxels of each channel, and then of the mask


def read(path, log=None):
    """{key: Facts}; empty where there is no index, and with a warning where it is damaged."""
    found = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                key, entry, *values = json.loads(line)
                found[key] = Facts(entry, *map(tuple, values))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        if log:
            log.warn(f"{path}: line {number}: not an index of the cache: {error}; it is made anew")
        return {}
    return found


def write(path, facts):
    """Replace the index by {key: Facts}."""
    with files.replacing(path) as file:
        file.writelines(json.dumps([key, *values]) + "\n" for key, values in facts.items())
