"""Volumes: orientation, resampling, normalisation, and the way back to the native grid.

Arrays are (X, Y, Z), or (C, X, Y, Z) where said. Affines are (4, 4), from voxel indices to world mm, RAS+ as in
nibabel. `preprocess` is the one path from a scan to what a network sees; `to_native` is the way back.
"""

import functools
import math
from dataclasses import asdict, dataclass

import numpy as np
import scipy  # which imports its parts when they are used

_LARGEST_AXIS, _LARGEST = 8192, 2**26  # voxels that a volume may be resampled to, however small it is
_SMALLEST_AXIS = 4  # voxels that its longest axis must keep
VOXEL_MM = 0.01, 100.0  # edges of a voxel of a body, from its smallest animal's to a thick slice
_SHEAR_DEGREES = 1.0


def check_affine(affine, where):
    """Raise ValueError unless `affine` is a finite, invertible (4, 4) matrix of a box of plausible voxels.

    Its edges must have VOXEL_MM, and meet at right angles: a sheared volume (an uncorrected gantry tilt, an affine
    registration in a header) has no voxel size, by which distances are measured and grids resampled.
    """
    from nibabel import orientations

    with np.errstate(all="ignore"):
        sound = affine.shape == (4, 4) and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
    # NaN: an axis that is too short beside the others
    if not sound or np.isnan(orientations.io_orientation(affine)).any():
        raise ValueError(f"{where}: got the affine {np.asarray(affine).tolist()}, wanted an invertible (4, 4) matrix")
    sizes = spacing(affine)
    if not VOXEL_MM[0] <= min(sizes) <= max(sizes) <= VOXEL_MM[1]:
        got, limits = _by(f"{size:.4g}" for size in sizes), "{:g} to {:g} mm".format(*VOXEL_MM)
        raise ValueError(f"{where}: got voxels of {got} mm, wanted {limits}: is the unit of its header right?")
    axes = affine[:3, :3] / sizes
    shear = math.degrees(math.asin(min(1, np.abs(axes.T @ axes - np.eye(3)).max())))
    if shear > _SHEAR_DEGREES:
        got = f"axes that are {shear:.3g} degrees off right angles (gantry tilt? a registration in the header?)"
        raise ValueError(f"{where}: got {got}, wanted a box: resample it onto one")


def spacing(affine):
    """Voxel size (sx, sy, sz) in mm along the array's axes."""
    return tuple(float(size) for size in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


def grid_distance(shape, affine, other):
    """Largest distance in mm between voxels of the same index in two grids of `shape`; 0 when the affines agree."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    points = np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm(((affine - other) @ points)[:3], axis=0).max())


def to_ras(array, affine):
    """(array, affine) with axes permuted and flipped to run most like right, anterior, superior; no interpolation."""
    return to_axes_of(np.eye(4), array, affine)


def to_axes_of(other, array, affine):
    """(array, affine) with axes permuted and flipped to run most like those of the affine `other`; no interpolation."""
    from nibabel import affines, orientations

    turn = (other[:3, :3] / spacing(other)).T @ (affine[:3, :3] / spacing(affine))
    ornt = orientations.io_orientation(affines.from_matvec(turn))
    return orientations.apply_orientation(array, ornt), affine @ orientations.inv_ornt_aff(ornt, array.shape)


def resample(array, shape, order):
    """`array` (..., X, Y, Z) on a grid of `shape` (x, y, z) voxels over the same field of view (voxel edges aligned).

    order: 3 (cubic B-spline) or 1 (linear), both in float32, or 0 (nearest) in the array's dtype. There is no smoothing
    before downsampling. The result is that of scipy.ndimage.zoom(mode="nearest", grid_mode=True), by a product with a
    small matrix for each axis.
    """
    if order not in (0, 1, 3):
        raise ValueError(f"order: got {order}, wanted 0 (nearest), 1 (linear) or 3 (cubic)")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: got {shape}, wanted three positive sizes")
    before = array.shape[-3:]
    if tuple(shape) == before:
        return array
    if order == 0:
        index = [(2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, before)]
        return array[(..., *np.ix_(*index))]
    array = np.asarray(array, dtype=np.float32)
    # the axis that shrinks most goes first: less work for the others
    for axis in sorted(range(3), key=lambda axis: shape[axis] / before[axis]):
        old, new = before[axis], shape[axis]
        if old != new:
            matrix = _interpolation(old, new, order)
            lead, rest = array.shape[: axis - 3], array.shape[array.ndim - 2 + axis :]
            product = matrix @ array.reshape(-1, old, math.prod(rest)) if rest else array @ matrix.T
            array = product.reshape(*lead, new, *rest)
    return array


@functools.lru_cache(maxsize=64)
def _interpolation(old, new, order):
    """The matrix (new, old) of one axis: scipy's own spline of unit impulses."""
    matrix = scipy.ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    matrix[np.abs(matrix) < 1e-9] = 0  # the spline's tails: products are slow with denormal numbers
    return matrix.astype(np.float32)


def resample_labels(array, shape):
    """Class numbers `array` (X, Y, Z) on another grid; each structure keeps its place and its volume.

    A structure is a connected component of all classes above 0. It takes as many voxels as have its volume: those where
    the linear interpolation of its mask is largest. Voxels that tie are taken all or none, whichever is nearer to the
    volume (equal: all). So a lesion on one thick slice does not shrink, as it would where the interpolation has to
    exceed a half. Of each of its voxels the class with the largest interpolation; ties: the lower class. A structure
    that is smaller than half a voxel vanishes.

    Spheres of 2.5 to 4 mm on four kinds of voxels, resampled to 1x1x1, 1x1x1.5 and 2x2x2 mm: mean volume .97 to 1.02 of
    what it was (where a half decides .64 to 1.30); of .9x.9x5 mm voxels the least is .75 (instead of none).
    """
    if tuple(shape) == array.shape:
        return array
    matrices = [_interpolation(old, new, 1) for old, new in zip(array.shape, shape)]
    scale = math.prod(shape) / array.size
    result, best = np.zeros(shape, array.dtype), np.zeros(shape, np.float32)
    parts, _ = scipy.ndimage.label(array, np.ones((3, 3, 3)))
    for number, box in enumerate(scipy.ndimage.find_objects(parts), start=1):
        labels = np.where(parts[box] == number, array[box], 0)
        wanted = np.count_nonzero(labels) * scale
        if wanted < 0.5:
            continue
        rows = [np.flatnonzero(matrix[:, part].any(axis=1)) for matrix, part in zip(matrices, box)]
        place = tuple(slice(own[0], own[-1] + 1) for own in rows)
        weights = [matrix[own, part] for matrix, own, part in zip(matrices, place, box)]
        share = _product(labels > 0, weights)
        taken = _largest(share, wanted) & (share > best[place])
        kinds, most = np.zeros(share.shape, array.dtype), np.full(share.shape, 1e-6, np.float32)
        for label in np.unique(labels[labels > 0]):
            own = _product(labels == label, weights)
            wins = own > most + 1e-6
            kinds[wins], most[wins] = label, own[wins]
        result[place][taken], best[place][taken] = kinds[taken], share[taken]
    return result


def _product(mask, weights):
    """`mask` (X, Y, Z) times a matrix (new, old) of each axis."""
    found = mask.astype(np.float32)
    for matrix in weights:
        found = np.tensordot(found, matrix, axes=(0, 1))  # the new axis comes last: after three turns all are in order
    return found


def _largest(share, wanted):
    """Where `share` is among its largest values, about `wanted` of them; equal ones all or none.

    Of ties, as half of a border's voxels are where the grid halves, those first that have more around them.
    """
    around = scipy.ndimage.uniform_filter(share, 3, mode="constant")
    key = np.where(share > 1e-4, np.round(share + 0.01 * around, 5), 0)
    values, counts = np.unique(key[key > 0], return_counts=True)
    totals = np.cumsum(counts[::-1])  # of those at or above each value, from the largest down
    last = int(np.argmin(np.abs(totals - wanted) - 1e-9 * np.arange(len(totals))))
    return key >= values[::-1][last]


def nonzero_box(arrays):
    """((x0, x1), (y0, y1), (z0, z1)): smallest box of the voxels where any of `arrays` is not 0; None without any."""
    filled = functools.reduce(np.logical_or, [array != 0 for array in arrays])
    found = scipy.ndimage.find_objects(filled.view(np.uint8))
    return tuple((part.start, part.stop) for part in found[0]) if found else None


def normalize(array, kind="zscore", percentiles=(0.5, 99.5), window=(-1000.0, 400.0)):
    """float32 `array` with intensities on a common scale. ValueError for a volume that is constant, or would be.

    kind: `zscore` (mean 0 and standard deviation 1 over all voxels), `zscore_nonzero` (the same over the voxels that
    are not 0; the others stay 0, as bright as the mean), `percentile` (the two `percentiles` become 0 and 1, clipped),
    `window` (the two intensities of `window` become 0 and 1, clipped) or `none` (as it is).
    """
    array = np.asarray(array, dtype=np.float32)
    if array.min() == array.max():
        raise ValueError(f"constant volume: every voxel is {array.flat[0]:g}")
    if kind == "none":
        return array
    if kind == "zscore_nonzero":
        inside = array != 0
        result = np.zeros_like(array)
        result[inside] = _standardised(array[inside])
        return result
    if kind == "zscore":
        return _standardised(array)
    if kind not in ("percentile", "window"):
        raise ValueError(f"kind: got {kind!r}, wanted zscore, zscore_nonzero, percentile, window or none")
    low, high = np.percentile(array, percentiles) if kind == "percentile" else window
    if high <= low:
        raise ValueError(f"constant volume: {kind} maps {low:g} to 0 and {high:g} to 1")
    result = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
    if result.min() == result.max():
        got = f"intensities from {array.min():g} to {array.max():g}"
        made = f"which the {kind} from {low:g} to {high:g} makes {result.flat[0]:g}"
        raise ValueError(f"constant volume: got {got}, {made}")
    return result


def _standardised(values):
    mean, scale = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    if not scale:
        raise ValueError(f"constant volume: every voxel that is not 0 is {values[0]:g}")
    return ((values - np.float32(mean)) / np.float32(scale)).astype(np.float32)


@dataclass(frozen=True)
class Geometry:
    """How a volume was brought to the network's grid, for the way back."""

    native_shape: tuple  # (X, Y, Z) of the file
    native_affine: tuple  # four rows
    orientation: tuple  # per native axis: (RAS axis, 1 or -1), as nibabel's io_orientation
    box: tuple  # ((x0, x1), ...) kept of the volume in RAS order
    spacing_before_mm: tuple  # in RAS order
    spacing_mm: tuple  # after resampling, exact
    shape: tuple  # after resampling

    @property
    def native_box(self):
        """Three slices: the part of the native array that is kept."""
        kept = []
        for size, (axis, sign) in zip(self.native_shape, self.orientation):
            start, stop = self.box[axis]
            kept.append(slice(start, stop) if sign > 0 else slice(size - stop, size - start))
        return tuple(kept)

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**{name: _tupled(value) for name, value in values.items()})


def preprocess(arrays, affine, *, spacing_mm=None, crop=True, mask=None, names=None, **scale):
    """(image float32 (C, X, Y, Z), mask uint8 (X, Y, Z) or None, Geometry) from the channels of one scan.

    arrays: the channels (X, Y, Z), all on the grid of `affine`; mask: class numbers on the same grid.
    names: of the channels, for errors. scale: the arguments of `normalize`.

    The steps are RAS orientation, crop to the box of the voxels where any channel is not 0, `normalize`, and resampling
    to `spacing_mm` (None: none). Channels are resampled by a cubic spline and limited to their own range, since the
    spline overshoots at edges. The mask is resampled by `resample_labels`. ValueError for unequal shapes and for a
    constant channel.
    """
    from nibabel import orientations

    arrays = list(arrays)
    names = names or [f"arrays[{channel}]" for channel in range(len(arrays))]
    for array in (*arrays, *([] if mask is None else [mask])):
        if array.shape != arrays[0].shape or array.ndim != 3:
            got = f"{_by(arrays[0].shape)} and {_by(array.shape)} voxels"
            raise ValueError(f"arrays: got {got}, wanted equal 3D shapes")
    native_shape = arrays[0].shape
    ornt = orientations.io_orientation(affine)
    arrays = [orientations.apply_orientation(array, ornt) for array in arrays]
    before = spacing(affine @ orientations.inv_ornt_aff(ornt, native_shape))
    box = (crop and nonzero_box(arrays)) or tuple((0, n) for n in arrays[0].shape)  # all zero: normalize says so
    inside = tuple(slice(*limits) for limits in box)
    cropped = tuple(stop - start for start, stop in box)
    shape = cropped if spacing_mm is None else _resampled(cropped, before, spacing_mm, names[0])
    image = np.empty((len(arrays), *shape), dtype=np.float32)
    for channel, array in enumerate(arrays):
        try:
            array = normalize(array[inside], **scale)
        except ValueError as error:
            raise ValueError(f"{names[channel]}: {error}") from error
        np.clip(resample(array, shape, order=3), array.min(), array.max(), out=image[channel])
    if mask is not None:
        mask = resample_labels(orientations.apply_orientation(mask, ornt)[inside].astype(np.uint8), shape)
    geometry = Geometry(
        native_shape=tuple(int(n) for n in native_shape),
        native_affine=_tupled(np.asarray(affine, dtype=np.float64).tolist()),
        orientation=_tupled(ornt.astype(int).tolist()),
        box=box,
        spacing_before_mm=before,
        spacing_mm=tuple(n * old / new for n, old, new in zip(cropped, before, shape)),
        shape=shape,
    )
    return image, mask, geometry


def _resampled(shape, before_mm, after_mm, name):
    """The shape of a volume with other voxel sizes.

    ValueError for a huge one, and for one of which nothing is left: a header may have a wrong voxel size.
    """
    sizes = [n * old / new for n, old, new in zip(shape, before_mm, after_mm)]
    explodes = max(sizes) > max(_LARGEST_AXIS, *shape) or math.prod(sizes) > max(_LARGEST, 64 * math.prod(shape))
    if explodes or max(sizes) < _SMALLEST_AXIS <= max(shape):
        got = f"{_by(shape)} voxels of {_by(f'{size:.4g}' for size in before_mm)} mm"
        made = f"{_by(f'{n:.4g}' for n in sizes)} voxels of {_by(after_mm)} mm"
        wanted = "wanted a voxel size (of the file, or spacing_mm) that fits"
        raise ValueError(f"{name}: spacing_mm: got {got}, which would be {made}, {wanted}")
    return tuple(max(1, round(n)) for n in sizes)


def to_native(array, geometry, order=1):
    """`array` (..., X, Y, Z) on the network's grid, brought back to the grid of the file: the inverse of `preprocess`.

    For masks give class probabilities and take the argmax of the result, or give class numbers with order=0. The result
    is 0 outside the cropped box.
    """
    if array.shape[-3:] != geometry.shape:
        raise ValueError(f"array: got shape {_by(array.shape)}, wanted (..., {', '.join(map(str, geometry.shape))})")
    shape, lead = [stop - start for start, stop in geometry.box], array.shape[:-3]
    axes, signs = zip(*geometry.orientation)
    kept = order == 0 or list(geometry.shape) == shape
    result = np.zeros((*lead, *geometry.native_shape), array.dtype if kept else np.float32)
    for index in np.ndindex(lead):  # one after another: many classes do not fit twice
        # a native axis is the RAS axis of its pair, walked backwards where the sign is -1
        turned = resample(array[index], shape, order).transpose(axes)
        result[index][geometry.native_box] = turned[tuple(slice(None, None, sign) for sign in signs)]
    return result


def to_grid(mask, geometry):
    """The mask (X, Y, Z) of a file on the network's grid, of each voxel the nearest one: for pictures, say."""
    from nibabel import orientations

    if mask.shape != tuple(geometry.native_shape):
        raise ValueError(f"mask: got shape {_by(mask.shape)}, wanted {_by(geometry.native_shape)}")
    turned = orientations.apply_orientation(mask, np.array(geometry.orientation))
    return resample(turned[tuple(slice(*limits) for limits in geometry.box)], geometry.shape, order=0)


def _by(shape):
    return "x".join(map(str, shape))


def _tupled(value):
    return tuple(_tupled(item) for item in value) if isinstance(value, (list, tuple)) else value
