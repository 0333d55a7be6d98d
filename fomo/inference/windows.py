"""A network on whole volumes: sliding windows, blended or with one output each, and test-time mirroring."""

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
import torch

from ..space import patches
from ..transforms.intensity import change_
from ..transforms.registry import TRANSFORMS


def window_weights(patch, mode="gaussian", sigma=0.125):
    """Weights (X, Y, Z) of a window's voxels in the blend, float32, never zero; as MONAI's compute_importance_map.

    mode: "gaussian" falls with the distance to the centre, down to 1e-3; "constant" is 1 everywhere.
    sigma: standard deviation of the Gaussian, as a fraction of the patch.
    """
    if mode == "constant":
        return torch.ones(*patch)
    if mode != "gaussian":
        raise ValueError(f"mode: got {mode!r}, wanted gaussian or constant")
    weights = torch.ones(1, 1, 1)
    for axis, size in enumerate(patch):
        distance = (torch.arange(size) - (size - 1) / 2) / (sigma * size)
        line = torch.exp(-0.5 * distance**2)
        weights = weights * line.reshape([-1 if axis == other else 1 for other in range(3)])
    return weights.clamp_min(1e-3)


@torch.no_grad()
def sliding_window(
    network,
    volume,
    patch,
    overlap=0.5,
    *,
    background=0.0,
    windows=1,
    weights="gaussian",
    device=None,
    accumulate=None,
    autocast=None,
):
    """The weighted mean (K, X, Y, Z) float32 of a network's outputs in overlapping windows of a volume.

    network: (B, C, *patch) -> (B, K, *patch).
    volume: array, memory map or tensor (C, X, Y, Z). It is read window by window, or for a GPU at once where it fits
        there, and given to the network in the type of its parameters (in its own type if the network has none).
    patch: the window, in voxels.
    overlap: the smallest overlap of neighbours, as a fraction of the patch.
    background: the value outside the volume, one for all channels or one for each.
    windows: how many go through the network in one forward pass.
    weights: a mode of `window_weights`, or positive weights (X, Y, Z).
    device: where the network runs; None: where the volume is.
    accumulate: the device that adds the outputs up and has the result; None: the same, or the CPU if they do not fit.
    autocast: context manager for the forward pass.
    """
    options = patch, overlap, background, windows, weights, device, accumulate, autocast
    [(_, total)] = _blended(network, volume, *options, rolled=None)
    return total


def _blended(network, volume, patch, overlap, background, windows, weights, device, accumulate, autocast, rolled):
    """Yield (first plane, planes (K, X, Y, Z)) of the blend of `sliding_window`, each plane once, in order.

    rolled: the axis 0, 1 or 2 across which planes lie that are given as soon as no window touches them any more; only
        as many of them as a window has are then held at once, and those that are given are overwritten afterwards, but
        for the last ones. None: all are given at the end.
    """
    shape, axis = tuple(volume.shape[1:]), rolled or 0
    starts = patches.window_starts(shape, patch, overlap)
    starts = starts[np.argsort(starts[:, axis], kind="stable")]
    weights = window_weights(patch, weights) if isinstance(weights, str) else weights
    weights = torch.as_tensor(weights, dtype=torch.float32)
    if tuple(weights.shape) != tuple(patch) or not bool((weights > 0).all()):
        wanted = f"positive ones of the patch's shape {tuple(patch)}"
        raise ValueError(f"weights: got shape {tuple(weights.shape)}, wanted {wanted}")
    # where the volume is shorter than the patch there is one window, which sticks out on both sides
    inside = tuple(slice(-min(s, 0), -min(s, 0) + min(n, p)) for s, n, p in zip(starts.min(axis=0), shape, patch))
    weights = weights[inside]
    total, first = None, 0  # sums of the planes from `first` on
    # from here on `axis` comes before the other two
    weights, order = weights.movedim(axis, 0), [axis, *(other for other in range(3) if other != axis)]
    at_zero = np.maximum(starts, 0)[:, order]
    for outputs, chosen in _forward(network, volume, starts, patch, background, windows, device, autocast):
        if total is None:
            dense = [outputs.shape[1], *shape]
            dense[1 + axis] = shape[axis] if rolled is None else len(weights)
            accumulate = torch.device(accumulate or _where_it_fits(dense, outputs.device))
            weights, on_cpu = weights.to(accumulate), accumulate.type == "cpu"
            # on the CPU numpy makes the zeros: it asks for huge pages, and takes an eighth of torch's time
            total = torch.from_numpy(np.zeros(dense, np.float32)) if on_cpu else torch.zeros(*dense, device=accumulate)
            total = total.movedim(1 + axis, 1)
        outputs = outputs[(..., *inside)].to(accumulate, torch.float32).movedim(2 + axis, 2)
        for index, start in enumerate(chosen):
            x, y, z = (max(start[other], 0) for other in order)
            if rolled is not None and x > first:
                done = total[:, : x - first]
                _divide_by_coverage(done, weights, at_zero, first)
                yield first, done.movedim(1, 1 + axis)
                _roll(total, x - first)
                first = x
            box = (slice(s, s + w) for s, w in zip((x - first, y, z), weights.shape))
            total[(slice(None), *box)].addcmul_(outputs[index], weights)
        del outputs  # the next ones take its place
    _divide_by_coverage(total, weights, at_zero, first)
    yield first, total.movedim(1, 1 + axis)


def _roll(total, count):
    """Move the planes of `total` (K, n, Y, Z) by `count` towards the first one, in place; zeros come behind them."""
    for of_class in total:
        for plane in range(len(of_class) - count):
            of_class[plane] = of_class[plane + count]
        of_class[len(of_class) - count :] = 0


@dataclass(frozen=True)
class WindowOptions:
    """How the windows of whole volumes go through a network: arguments of `sliding_window`."""

    patch: tuple[int, int, int]
    overlap: float = 0.5
    windows: int = 1  # per forward pass
    device: torch.device | None = None
    autocast: contextlib.AbstractContextManager | None = None

    def blend(self, network, volume, background):
        """The dense outputs (K, X, Y, Z), see `sliding_window`."""
        return sliding_window(network, volume, background=background, **vars(self))

    @torch.no_grad()
    def blend_planes(self, network, volume, background, axis=0):
        """Yield (place, planes (K, X, Y, Z)) of what `blend` gives, in order; place: four slices of that.

        It holds as many planes across the axis 0, 1 or 2 as a window has; what was given is overwritten afterwards.
        Those across the first axis have the bits of `blend`.
        """
        options = self.patch, self.overlap, background, self.windows, "gaussian", self.device, None, self.autocast
        for first, planes in _blended(network, volume, *options, rolled=axis):
            place = [slice(None)] * 4
            place[1 + axis] = slice(first, first + planes.shape[1 + axis])
            yield tuple(place), planes

    @torch.no_grad()
    def each(self, network, volume, background):
        """The outputs (N, K) float32 of a network (B, C, *patch) -> (B, K) on each of the N windows of a volume."""
        starts = patches.window_starts(volume.shape[1:], self.patch, self.overlap)
        options = self.patch, background, self.windows, self.device, self.autocast
        return torch.cat([outputs.float() for outputs, _ in _forward(network, volume, starts, *options)])


class Mirrored(torch.nn.Module):
    """A network whose outputs are the mean over several views of what it sees.

    The views are all flips of the spatial `axes` (0, 1, 2), flipped back if the outputs are dense, and the images after
    each of the powers `gammas`, channel by channel between darkest and brightest voxel, with the mean and the standard
    deviation kept.
    count: only so many of the views, the plain one first, then the flips of one axis.
    """

    def __init__(self, network, axes, count=None, gammas=()):
        super().__init__()
        self.network, self.axes, self.gammas = network, tuple(axes), tuple(gammas)
        dims = [2 + axis for axis in axes]
        flips = [flip for size in range(len(dims) + 1) for flip in itertools.combinations(dims, size)]
        self.views = [*((flip, None) for flip in flips), *(((), gamma) for gamma in self.gammas)][:count]

    def around(self, network):
        """Another network, seen in the same views."""
        return Mirrored(network, self.axes, len(self.views), self.gammas)

    def forward(self, batch):
        total = None
        for dims, gamma in self.views:
            seen = batch if gamma is None else _powered(batch, gamma)
            outputs = self.network(seen.flip(dims) if dims else seen).float()
            outputs = outputs.flip(dims) if dims and outputs.ndim == batch.ndim else outputs
            total = outputs if total is None else total + outputs
        return total / len(self.views)

    def apart(self):
        """A network for each of the views, by itself."""
        found = [Mirrored(self.network, self.axes, gammas=self.gammas) for _ in self.views]
        for one, view in zip(found, self.views):
            one.views = [view]
        return found


def _powered(batch, gamma):
    changed = batch.float().clone()
    for channel in changed.flatten(0, 1):
        change_(channel, [(TRANSFORMS["gamma"], {"gamma": gamma, "invert": False, "retain": True})])
    return changed.to(batch.dtype)


def _forward(network, volume, starts, patch, background, windows, device, autocast):
    """Yield (outputs, starts) of `windows` windows at a time."""
    parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
    dtype = None if parameter is None else parameter.dtype
    volume = _near(volume, device)
    if torch.is_tensor(volume):  # once, as for each window that is padded a GPU would have to be waited for
        background = torch.as_tensor(background).to(volume)
    for first in range(0, len(starts), windows):
        chosen = starts[first : first + windows]
        boxes = [_read(volume, start, patch, background) for start in chosen]
        batch = (boxes[0][None] if len(boxes) == 1 else torch.stack(boxes)).to(device=device, dtype=dtype)
        with contextlib.nullcontext() if autocast is None else autocast:
            outputs = [network(batch)]
        yield outputs.pop(), chosen  # not kept here, so that their memory is free for the next ones


def _near(volume, device):
    """The volume on the GPU, if it fits there: neighbouring windows share most of their voxels."""
    if torch.is_tensor(volume) or device is None or _where_it_fits(volume.shape, torch.device(device)).type == "cpu":
        return volume
    volume = torch.from_numpy(np.require(volume, requirements="CW"))  # a copy only of what cannot be written
    return volume.to(device, non_blocking=True)


def _read(volume, start, patch, background):
    """One window (C, *patch): a view of the volume where that is a tensor and the window lies inside."""
    inside = all(0 <= begin and begin + length <= size for begin, length, size in zip(start, patch, volume.shape[1:]))
    if inside and torch.is_tensor(volume):
        return volume[(slice(None), *(slice(begin, begin + length) for begin, length in zip(start, patch)))]
    return torch.as_tensor(patches.read(volume, start, patch, background))


def _where_it_fits(shape, device):
    """`device`, or the CPU if float32 of this shape would take more than three quarters of the GPU's free memory."""
    if device.type != "cuda":
        return device
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return device if 4 * np.prod(shape, dtype=float) < 0.75 * free else torch.device("cpu")


def _divide_by_coverage(total, weights, starts, first=0):
    """Divide `total` (K, n, Y, Z), the planes from `first` on, by the sum of all windows' weights there, in place."""
    # the starts are a grid: the sum is built axis by axis, a few planes at a time, which stay in the cache of a core
    xs, ys, zs = (np.unique(starts[:, axis]).tolist() for axis in range(3))
    for low in range(first, first + total.shape[1], 4):
        planes = total[:, low - first : low - first + 4]
        cover = weights.new_zeros(planes.shape[1], *weights.shape[1:])
        for x in xs:
            begin, end = max(low, x), min(low + len(cover), x + len(weights))
            if begin < end:
                cover[begin - low : end - low].add_(weights[begin - x : end - x])
        for axis, begins in ((1, ys), (2, zs)):
            size = list(cover.shape)
            length, size[axis] = size[axis], total.shape[1 + axis]
            wider = cover.new_zeros(size)
            for begin in begins:
                wider.narrow(axis, begin, length).add_(cover)
            cover = wider
        planes.div_(cover)
