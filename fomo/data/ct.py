"""One chest CT into axial slices: chooses slices and makes their pixels.

A slice is (X, Y) in RAS order (x to the patient's right, y to the front). A window of Hounsfield units is mapped to
0..1 (uint8: 0..255). The whole field of view is kept. Air on two sides makes it square, then it is averaged down (or
interpolated up) to `size` pixels.

The body is the largest connected region above -500 HU, its holes filled in each slice. Slices in which it is smaller
than a quarter of its largest cross-section are not taken. The lungs are the air within the body.
"""

from dataclasses import asdict, dataclass

import numpy as np
import scipy

from ..config import UserError
from ..space import volume
from ..transforms import axes

STRATEGIES = ("multi_slice", "best_slice", "anatomical", "uniform")
UNITS = ("auto", "hu", "stored", "twice")
DTYPES = ("float16", "uint8")
_COARSE_MM = 4.0  # of the grid on which body and lungs are found
_SMALLEST_CM2 = 20.0  # cross-section of a body, also of a child's
# shares of the lungs' height: bases, ventricles, left atrium and hila, carina, aortic arch, apices
_LEVELS = (0.10, 0.28, 0.45, 0.60, 0.73, 0.90)


@dataclass(frozen=True)
class Settings:
    strategy: str = "multi_slice"
    slices: int = 16  # per volume: multi_slice and uniform
    size: int = 224
    window: tuple[float, float] = (-1000.0, 400.0)
    dtype: str = "float16"
    neighbours: int = 0  # slices on each side that are stored with each slice
    neighbour_mm: float | None = None  # their distance; None: adjacent
    units: str = "auto"

    def __post_init__(self):
        for name, wanted in (("strategy", STRATEGIES), ("units", UNITS), ("dtype", DTYPES)):
            if getattr(self, name) not in wanted:
                raise UserError(f"{name}: got {getattr(self, name)!r}, wanted one of {', '.join(wanted)}")
        for name, least in (("slices", 1), ("size", 16), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: got {getattr(self, name)}, wanted at least {least}")
        if self.window[0] >= self.window[1]:
            raise UserError(f"window: got {self.window[0]:g} {self.window[1]:g}, wanted the lower one first")
        if self.neighbour_mm is not None and not self.neighbour_mm > 0:
            raise UserError(f"neighbour_mm: got {self.neighbour_mm:g}, wanted more than 0")

    def to_dict(self):
        return {**asdict(self), "window": list(self.window)}

    @classmethod
    def from_dict(cls, values):
        return cls(**{**values, "window": tuple(values["window"])})


def take_slices(array, affine, settings):
    """[(slice index, relative position, pixels)] of a CT volume (X, Y, Z) with its affine, from below to above.

    The index is of the volume in RAS order; the position is 0 at the lowest slice with body and 1 at the highest.
    pixels: (X, Y), or (2n+1, X, Y) with the neighbours from below to above. Raises ValueError for values that are no
    Hounsfield units and for a volume without a body.
    """
    array, affine = volume.to_ras(in_hounsfield(array, settings.units), affine)
    spacing_mm = volume.spacing(affine)
    body_cm2, lung_cm2 = _cross_sections(array, spacing_mm)
    most = body_cm2.max()
    if most < _SMALLEST_CM2:
        found = f"the largest region above -500 HU measures {most:.3g} cm2 in a slice"
        raise ValueError(f"no body found: {found}, wanted {_SMALLEST_CM2:g}")
    inside = np.flatnonzero(body_cm2 >= most / 4)
    step = 1 if settings.neighbour_mm is None else max(1, round(settings.neighbour_mm / spacing_mm[2]))
    around = np.arange(-settings.neighbours, settings.neighbours + 1) * step
    result = []
    for index in _choose(inside, lung_cm2, settings):
        places = np.clip(index + around, 0, array.shape[2] - 1)
        pixels = np.stack([_pixels(array[:, :, z], spacing_mm, settings) for z in places])
        position = (index - inside[0]) / max(1, inside[-1] - inside[0])
        result.append((int(index), float(position), pixels if settings.neighbours else pixels[0]))
    return result


def in_hounsfield(array, units="auto"):
    """`array` in Hounsfield units; ValueError where its values do not look like that.

    units: what the values are: `auto` (Hounsfield units), `stored` (the scanner's values, HU + 1024), `twice` (the
    intercept was applied twice, HU - 1024); or `hu`, which is not checked.
    """
    if units == "hu":
        return array
    array = array + {"auto": 0, "stored": -1024, "twice": 1024}[units]
    sample = array[tuple(slice(None, None, max(1, size // 96)) for size in array.shape)]

    def looks_like(offset):
        """Whether 3% are soft tissue and 3% air after `offset` is subtracted."""
        tissue = np.mean((sample >= offset - 200) & (sample <= offset + 300))
        air = np.mean((sample >= offset - 1100) & (sample <= offset - 500))
        return min(tissue, air) >= 0.03

    if looks_like(0):
        return array
    if looks_like(1024):
        found = "stored values without the rescale intercept, wanted Hounsfield units (or --units stored)"
    elif looks_like(-1024):
        found = "rescaled twice, wanted Hounsfield units (or --units twice)"
    else:
        found = "neither air nor soft tissue where Hounsfield units have them (extracted with --units hu: not checked)"
    seen = f"values from {array.min():.6g} to {array.max():.6g}, median {np.median(sample):.6g}"
    raise ValueError(f"got {seen}: {found}")


def _cross_sections(array, spacing_mm):
    """(area of the body, of the lungs) in cm2 in each axial slice of (X, Y, Z) Hounsfield units in RAS order."""
    step = [max(1, int(_COARSE_MM / size)) for size in spacing_mm[:2]]
    solid = array[:: step[0], :: step[1]] > -500
    regions, count = scipy.ndimage.label(solid)
    if not count:
        return np.zeros(array.shape[2]), np.zeros(array.shape[2])
    body = regions == 1 + np.bincount(regions.ravel())[1:].argmax()
    filled = np.stack([scipy.ndimage.binary_fill_holes(body[:, :, z]) for z in range(body.shape[2])], axis=2)
    pixel_cm2 = step[0] * step[1] * spacing_mm[0] * spacing_mm[1] / 100
    return filled.sum((0, 1)) * pixel_cm2, (filled & ~solid).sum((0, 1)) * pixel_cm2


def _choose(inside, lung_cm2, settings):
    """Slice indices, ascending and each once, out of `inside`, the slices with body.

    uniform: the middles of equal stretches of the body.
    multi_slice: the same, drawn towards the middle, where they are twice as dense.
    best_slice: the slice with the most lung.
    anatomical: six levels of the lungs.
    """
    if settings.strategy == "best_slice":
        return [inside[np.argmax(lung_cm2[inside])]]
    if settings.strategy == "anatomical":
        most = lung_cm2[inside].max()
        if most < _SMALLEST_CM2:
            found = f"at most {most:.3g} cm2 in a slice"
            raise ValueError(f"no lungs found: {found}, wanted {_SMALLEST_CM2:g} for anatomical")
        lungs = inside[lung_cm2[inside] >= most / 10]
        levels = [lungs[0] + level * (lungs[-1] - lungs[0]) for level in _LEVELS]
        return np.unique([lungs[np.abs(lungs - level).argmin()] for level in levels])
    places = 2 * (np.arange(settings.slices) + 0.5) / settings.slices - 1  # from -1 to 1
    if settings.strategy == "multi_slice":
        places = (places + places**3) / 2
    places = (places + 1) / 2 * len(inside) - 0.5
    return inside[np.unique(np.clip(np.round(places).astype(int), 0, len(inside) - 1))]


def _pixels(pixels, spacing_mm, settings):
    """(size, size) in settings.dtype of one axial slice in Hounsfield units."""
    low, high = settings.window
    pixels = np.clip((pixels - np.float32(low)) / np.float32(high - low), 0, 1)
    side = max(n * mm for n, mm in zip(pixels.shape, spacing_mm))
    missing = [max(0, round(side / mm) - n) for n, mm in zip(pixels.shape, spacing_mm)]
    pixels = np.pad(pixels, [(n // 2, n - n // 2) for n in missing])  # the window's lower end: air
    matrices = [axes.resize(size, settings.size).astype(np.float32) for size in pixels.shape]
    pixels = np.clip(matrices[0] @ pixels @ matrices[1].T, 0, 1)
    return np.round(255 * pixels).astype(np.uint8) if settings.dtype == "uint8" else pixels.astype(np.float16)
