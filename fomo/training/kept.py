"""The checkpoints of the best epochs: in memory until they are written, right before last.pt.

On the disk they are therefore never of later epochs than last.pt, but where a process is killed between these writes.
"""

import os

from .. import checkpoint


class Kept:
    """The best epochs of a training, the best first, and their files."""

    def __init__(self, paths):
        self._paths = paths
        self._places = list(range(len(paths)))  # what belongs there: the file that is at that place, or a new content

    def add(self, place, content):
        """Put a checkpoint at its place, from 1; those behind it move on, and the last one goes."""
        self._places.insert(place - 1, content)
        self._places.pop()

    def write(self):
        """Bring the files to this order; returns {path: epoch} of those that are new."""
        written, paths = {}, self._paths
        for new, old in reversed(list(enumerate(self._places))):  # files only move on
            if isinstance(old, int) and new != old and os.path.exists(paths[old]):
                os.replace(paths[old], paths[new])
        for path, content in zip(paths, self._places):
            if not isinstance(content, int):
                checkpoint.save(path, content)
                written[path] = content["epoch"]
        self._places = list(range(len(paths)))
        return written

    def forget_after(self, epoch):
        """Delete the files of epochs after `epoch`, which will be trained once more; those behind them move up.

        A single place is left as it is: the epoch will take it again, and without it nothing would be kept.
        """
        if len(self._paths) == 1:
            return
        there = [path for path in self._paths if os.path.exists(path)]
        kept = [path for path in there if checkpoint.load(path)["epoch"] <= epoch]
        for path in set(there) - set(kept):
            os.remove(path)
        for source, target in zip(kept, self._paths):
            os.replace(source, target)
