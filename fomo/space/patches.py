"""Patches of memory maps: a box is chosen, and only that box is read."""

import numpy as np


def window_starts(shape, patch, overlap):
    """Starts (N, 3) of the windows that cover a volume.

    The first and last window of each axis touch the borders. Neighbours overlap by at least `overlap`, a fraction of
    the patch. An axis that is shorter than the patch has one window with a negative start: it is padded on both sides.
    """

    def starts(size, length):
        if size <= length:
            return [centred(size, length)]
        stride = max(1, int(length * (1 - overlap)))
        count = -((length - size) // stride) + 1
        return np.round(np.linspace(0, size - length, count)).astype(int)

    return np.stack(np.meshgrid(*map(starts, shape, patch), indexing="ij"), axis=-1).reshape(-1, 3)


def centred(size, length):
    """Start of a window of `length` in the middle of an axis of `size` voxels; negative where the window is longer."""
    return (size - length) // 2


def thinnest(patch):
    """The axis along which a patch is thinnest, the last of equals: slices across it are the largest."""
    return 2 - int(np.argmin(patch[::-1]))


def draw_start(shape, patch, generator, position="random", voxel=None):
    """Start (3,) of a training patch.

    position: `center`, or `random`: uniform over all places inside the volume. voxel: one that shall lie in the patch,
    at least a quarter of it away from its sides; were lesions always in the middle, a network would learn that. Axes
    that are shorter than the patch are centred.
    """
    start = []
    for axis, (size, length) in enumerate(zip(shape, patch)):
        slack = size - length
        if slack <= 0 or position == "center":
            start.append(centred(size, length))
        elif voxel is None:
            start.append(int(generator.integers(slack + 1)))
        else:
            margin = length // 4
            low = np.clip(voxel[axis] - length + 1 + margin, 0, slack)
            high = np.clip(voxel[axis] - margin, 0, slack)
            start.append(int(generator.integers(low, high + 1)))
    return tuple(start)


def inside(shape, start, patch):
    """uint8 of `patch` voxels: 1 where the box at `start` lies in a volume of `shape`."""
    result = np.zeros(patch, np.uint8)
    result[tuple(slice(max(0, -begin), max(0, size - begin)) for begin, size in zip(start, shape))] = 1
    return result


def read(array, start, patch, fill, dtype=None):
    """The box of `patch` voxels at `start` of an array or tensor (..., X, Y, Z), as a new one.

    Only the box is read. Voxels outside the volume hold `fill`: one value, or one per leading index. dtype: type of the
    result (None: the array's). A tensor is converted while it is read, which numpy is slower at for float16.
    """
    inside, target = [], []
    for begin, length, size in zip(start, patch, array.shape[-3:]):
        low, high = max(0, begin), min(size, begin + length)
        inside.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    box, shape = array[(..., *inside)], (*array.shape[:-3], *patch)
    if isinstance(array, np.ndarray):
        result, fill = np.empty(shape, dtype or array.dtype), np.asarray(fill, array.dtype)
    else:
        import torch

        result, fill = array.new_empty(shape, dtype=dtype), torch.as_tensor(fill).to(array)
    if tuple(box.shape) != shape:
        result[...] = fill.reshape(*fill.shape, 1, 1, 1)
    result[(..., *target)] = box
    return result
