"""The index of a cache: what the case.json of all its entries say that a start needs, in one file.

A line per entry: [key, entry, shape, background, class_voxels]; the key stands for the paths of the sources. Written
aside and renamed, so that a reader sees the old or the new one; of two that write at once the last stays, and the other's
entries are looked up again.
"""

import json
from typing import NamedTuple

from ..runtime import files


class Facts(NamedTuple):
    entry: str  # name of the entry's folder
    shape: tuple[int, int, int]
    background: tuple[float, ...]
    class_voxels: tuple[int, ...]


def read(path):
    """{key: Facts}; empty where there is no index. ValueError, with the path, for one that is damaged."""
    found = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                key, entry, *values = json.loads(line)
                shape, background, class_voxels = map(tuple, values)
                found[key] = Facts(entry, shape, background, class_voxels)
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: line {number}: not an index of the cache: {error}") from error
    return found


def write(path, facts):
    """Replace the index by {key: Facts}."""
    with files.replacing(path) as file:
        file.writelines(json.dumps([key, *values]) + "\n" for key, values in facts.items())
