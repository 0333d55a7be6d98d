"""A mask read 8 voxels at a time, so that the time goes with the foreground, not with the volume."""

import numpy as np


class Words:
    """A bool mask of any number of axes as words of 8 voxels (bytes 0 and 1) along its last axis.

    `occupied`: indices of the words with foreground; only these are looked at. A mask that is not in C order, or whose
    last axis is no multiple of 8, is copied.
    """

    def __init__(self, mask):
        depth = mask.shape[-1]
        if depth % 8 or not mask.flags.c_contiguous:
            padded = np.zeros((*mask.shape[:-1], depth + -depth % 8), bool)
            padded[..., :depth] = mask
            mask = padded
        self.mask = mask
        self.words = mask.reshape(-1).view("<u8")
        self.shape = (*mask.shape[:-1], mask.shape[-1] // 8)
        self.occupied = np.flatnonzero(self.words != 0)
        self.own = self.words[self.occupied]
        self.where = np.unravel_index(self.occupied, self.shape)

    def count(self):
        """Number of foreground voxels."""
        return np.count_nonzero(self.own.view(np.uint8))

    def count_common(self, other):
        """Number of voxels that are foreground in both masks, which have one shape."""
        return np.count_nonzero((self.own & other.words[self.occupied]).view(np.uint8))

    def surface_voxels(self):
        """(n, axes) indices, in array order, of the foreground voxels with a face to background or to the outside."""
        before, after = self._along_last()
        interior = self.own & before & after
        stride = self.shape[-1]
        for axis in range(len(self.shape) - 2, -1, -1):
            interior &= self._neighbours(axis, -stride, 0)
            interior &= self._neighbours(axis, stride, self.shape[axis] - 1)
            stride *= self.shape[axis]
        return self._indices(self.own & ~interior)

    def runs(self):
        """Runs of foreground along the last axis, in array order: indices of their first and of their last voxels."""
        before, after = self._along_last()
        return self._indices(self.own & ~before), self._indices(self.own & ~after)

    def _along_last(self):
        """The voxels before and after each voxel of the occupied words, along the last axis."""
        before, after = self._neighbours(-1, -1, 0), self._neighbours(-1, 1, self.shape[-1] - 1)
        return self.own << 8 | before >> 56, self.own >> 8 | after << 56

    def _neighbours(self, axis, stride, border):
        """The words `stride` away from the occupied ones along `axis`; 0 (background) beyond the array."""
        words = self.words.take(self.occupied + stride, mode="clip")
        words[self.where[axis] == border] = 0
        return words

    def _indices(self, chosen):
        """(n, axes) indices of the voxels that are set in `chosen`, which has a word for each occupied one."""
        kept = np.flatnonzero(chosen)
        voxel = np.flatnonzero(chosen[kept].view(np.uint8) != 0)
        word = kept[voxel >> 3]
        return np.stack([*(index[word] for index in self.where[:-1]), self.where[-1][word] * 8 + (voxel & 7)], axis=1)
