"""A network over whole volumes: sliding windows, blended or one output per window."""

import numpy as np
import torch

from . import patches


def window_weights(patch):
    """Gaussian weights (X, Y, Z) of a window, sigma an eighth of the patch, at least 1e-3 of the peak: never zero."""
    weights = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch):
        distance = (torch.arange(size) - (size - 1) / 2) / (size / 8)
        line = torch.exp(-0.5 * distance**2)
        weights = weights * line.reshape([-1 if axis == other else 1 for other in range(3)])
    return (weights / weights.max()).clamp_min(1e-3)


@torch.no_grad()
def sliding_window(network, volume, patch, overlap=0.5, *, background=0.0, windows=1, device=None, autocast=None):
    """Blend a network's dense outputs over a volume.

    network: (B, C, *patch) -> (B, K, *patch). volume: array or memory map (C, X, Y, Z), read window by window.
    patch: window in voxels. overlap: smallest overlap of neighbours, as a fraction of the patch. background: value
    (one, or one per channel) outside the volume. windows: windows per forward pass. autocast: context manager for the
    forward pass. Returns float32 (K, X, Y, Z) on `device`, the Gaussian-weighted mean of the outputs.
    """
    shape = volume.shape[1:]
    starts = patches.window_starts(shape, patch, overlap)
    low = np.minimum(starts.min(axis=0), 0)  # windows reach outside where the volume is smaller than the patch
    grid = np.maximum(starts.max(axis=0) + patch, shape) - low
    weights = window_weights(patch).to(device)
    total, weight = None, torch.zeros(*grid, device=device)
    for outputs, chosen in _forward(network, volume, starts, patch, background, windows, device, autocast):
        if total is None:
            total = torch.zeros(outputs.shape[1], *grid, device=device)
        for output, start in zip(outputs, chosen - low):
            box = tuple(slice(begin, begin + length) for begin, length in zip(start, patch))
            total[(slice(None), *box)] += output * weights
            weight[box] += weights
    inside = tuple(slice(-begin, -begin + size) for begin, size in zip(low, shape))
    return total[(slice(None), *inside)] / weight[inside]


@torch.no_grad()
def window_outputs(network, volume, patch, overlap=0.5, *, background=0.0, windows=1, device=None, autocast=None):
    """Outputs (N, K) of a whole-case network on each of the N windows that cover a volume (C, X, Y, Z)."""
    starts = patches.window_starts(volume.shape[1:], patch, overlap)
    return torch.cat([out for out, _ in _forward(network, volume, starts, patch, background, windows, device, autocast)])


def _forward(network, volume, starts, patch, background, windows, device, autocast):
    volume = np.asarray(volume)
    for first in range(0, len(starts), windows):
        chosen = starts[first : first + windows]
        batch = np.stack([patches.read(volume, start, patch, background) for start in chosen])
        batch = torch.from_numpy(batch).to(device).float().contiguous(memory_format=torch.channels_last_3d)
        if autocast is None:
            outputs = network(batch)
        else:
            with autocast:
                outputs = network(batch)
        yield outputs.float(), chosen
