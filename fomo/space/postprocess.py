"""Post-processing of predicted masks: hole filling, smallest component, largest component."""

import numpy as np
import scipy

NONE = {"fill_holes": False, "minimum_mm3": 0.0, "largest": False}
CANDIDATES = tuple(
    {"fill_holes": fill, "minimum_mm3": minimum, "largest": largest}
    for largest in (False, True)
    for minimum in ((0.0,) if largest else (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0))
    for fill in (False, True)
)  # the first changes nothing


def apply(mask, spacing_mm, fill_holes=False, minimum_mm3=0.0, largest=False):
    """The label map `mask` (X, Y, Z) uint8 with each class above 0 cleaned up, as a new array, in this order:

    fill_holes: background that is enclosed by one class becomes that class.
    minimum_mm3: components (neighbours by face, edge or corner) of a smaller volume become background.
    largest: only the largest component stays.
    """
    if mask.ndim != 3:
        raise ValueError(f"mask: got shape {mask.shape}, wanted (X, Y, Z)")
    result = mask.copy()
    if not (fill_holes or minimum_mm3 or largest):
        return result
    for label in np.unique(mask[mask > 0]):
        box = scipy.ndimage.find_objects((mask == label).view(np.uint8))[0]
        inside = mask[box] == label
        if fill_holes:
            filled = scipy.ndimage.binary_fill_holes(inside)
            result[box][filled & (mask[box] == 0)] = label
            inside = (result[box] == label) & filled
        if minimum_mm3 or largest:
            components, _ = scipy.ndimage.label(inside, np.ones((3, 3, 3)))
            voxels = np.bincount(components.ravel())
            voxels[0] = 0
            # 10 voxels of 1 mm are 10 mm3, whatever the rounding
            keep = voxels * np.prod(spacing_mm) >= minimum_mm3 * (1 - 1e-6)
            if largest:
                keep &= np.arange(len(voxels)) == voxels.argmax()
            result[box][inside & ~keep[components]] = 0
    return result


def merge(choices):
    """One choice for an ensemble: the median of the sizes, and else what more than half of the folds chose."""
    most = {name: sum(choice[name] for choice in choices) * 2 > len(choices) for name in ("fill_holes", "largest")}
    return {**most, "minimum_mm3": float(np.median([choice["minimum_mm3"] for choice in choices]))}
