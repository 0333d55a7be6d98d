"""Linear operations that act along one axis at a time, each written as one small matrix per axis.

Filters and splines on a grid are separable: output = Mx · My · Mz · volume. Several filters are first multiplied into
one matrix, in float64. One small GEMM per axis is faster than convolutions or FFTs on a CPU.
"""

import numpy as np


def apply_matrices(volume, matrices):
    """Apply one matrix per axis. volume: (..., X, Y, Z); matrices: three (out, in) tensors, None for the identity."""
    x, y, z = matrices
    if z is not None:
        volume = volume @ z.T
    if y is not None:  # of a slice one product, not one per row
        volume = (volume[..., 0] @ y.T)[..., None] if volume.shape[-1] == 1 else y @ volume
    if x is not None:
        *lead, size_x, size_y, size_z = volume.shape
        volume = (x @ volume.reshape(*lead, size_x, size_y * size_z)).reshape(*lead, len(x), size_y, size_z)
    return volume


def product(left, right):
    """left @ right of numpy matrices, by torch: numpy starts threads for it, which loader processes must not."""
    import torch

    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


def resize(size, new):
    """Matrix (new, size) that averages on the way down and interpolates on the way up, over the same field of view.

    The weights are a triangle as wide as the coarser grid's voxel; voxel edges are aligned, not voxel centres.
    """
    centre = (np.arange(size) + 0.5) / size
    new_centre = (np.arange(new) + 0.5) / new
    weights = np.clip(1 - np.abs(new_centre[:, None] - centre) * min(size, new), 0, None)
    return weights / weights.sum(1, keepdims=True)


def spline_basis(size, nodes=2):
    """(node positions in voxels, matrix (size, nodes)): a cubic B-spline of `nodes` - 3 intervals over `size` voxels.

    Two nodes: the straight line between the ends. One voxel has one node. A coefficient equal to its node's position
    gives the position itself, so an affine map and a smooth displacement can share the coefficients.
    """
    if size == 1:
        return np.zeros(1), np.ones((1, 1))
    if nodes == 2:
        t = np.arange(size) / (size - 1)
        return np.array([0.0, size - 1.0]), np.stack((1 - t, t), axis=1)
    step = (size - 1) / (nodes - 3)
    positions = np.arange(-1, nodes - 1) * step
    distance = np.abs(np.arange(size)[:, None] - positions) / step
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return positions, np.where(distance < 1, near, far)


def spline_coefficients(size):
    """Matrix from samples to the coefficients of the cubic B-spline through them, mirrored at the ends (size > 1)."""
    samples = (np.eye(size) * 4 + np.eye(size, k=1) + np.eye(size, k=-1)) / 6
    samples[0, 1] = samples[-1, -2] = 1 / 3
    matrix = np.linalg.inv(samples)
    matrix[np.abs(matrix) < 1e-9] = 0.0
    return matrix


def tensors(matrices, device, dtype=None):
    """numpy matrices (or None) as tensors on the device; from pinned memory, so that nothing waits for a GPU.

    dtype: float32 if None.
    """
    import torch

    def moved(matrix):
        tensor = torch.as_tensor(matrix, dtype=dtype or torch.float32)
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return [None if matrix is None else moved(matrix) for matrix in matrices]
