"""Input checks shared by the metrics: every error names the argument, what was got and what was wanted."""

import numpy as np


def fail(name, got, wanted):
    raise ValueError(f"{name}: got {got}, wanted {wanted}")


def mask(values, name):
    """`values`, bool or integers 0 and 1, as a bool array: no probabilities, no label maps."""
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "iu":
        fail(name, f"dtype {array.dtype}", "a bool mask (or integers 0 and 1)")
    if array.size and (array.min() < 0 or array.max() > 1):
        got = f"integers from {array.min()} to {array.max()}"
        fail(name, got, "0 and 1 only (one class of a label map: labels == k)")
    return array.astype(bool)


def mask_pair(reference, prediction):
    """Two bool masks of one shape."""
    reference, prediction = mask(reference, "reference"), mask(prediction, "prediction")
    same_shape(prediction, "prediction", reference, "reference")
    return reference, prediction


def label_pair(reference, prediction, classes):
    """Two integer label maps of one shape with values in 0..classes-1."""
    whole_number(classes, "classes", 1)
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    for array, name in ((reference, "reference"), (prediction, "prediction")):
        if array.dtype.kind not in "iub":
            fail(name, f"dtype {array.dtype}", "integer labels")
        _below(array, name, classes)
    same_shape(prediction, "prediction", reference, "reference")
    return reference, prediction


def _below(array, name, classes):
    if array.size and (array.min() < 0 or array.max() >= classes):
        fail(name, f"labels from {array.min()} to {array.max()}", f"0 to {classes - 1} (classes={classes})")


def same_shape(array, name, other, other_name):
    if array.shape != other.shape:
        fail(name, f"shape {array.shape}", f"{other.shape}, the shape of {other_name}")


def spacing(spacing_mm, dimensions):
    """`spacing_mm` as a float64 array of positive numbers, one per axis."""
    values = np.asarray(spacing_mm)
    if values.dtype.kind not in "iuf" or values.shape != (dimensions,):
        fail("spacing_mm", repr(spacing_mm), f"{dimensions} numbers, the voxel size along each axis")
    if not (np.isfinite(values).all() and (values > 0).all()):
        fail("spacing_mm", repr(spacing_mm), "finite numbers greater than 0")
    return values.astype(np.float64)


def number(value, name, low, high=np.inf):
    """`value` as a finite float from `low` to `high`, inclusive."""
    array = np.asarray(value)
    is_finite = array.ndim == 0 and array.dtype.kind in "iuf" and np.isfinite(array)
    if not is_finite or not low <= array <= high:
        limit = "" if high == np.inf else f" and at most {high:g}"
        fail(name, repr(value), f"a finite number of at least {low:g}{limit}")
    return float(value)


def whole_number(value, name, low):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        fail(name, repr(value), f"a whole number of at least {low}")
    return int(value)


def choice(value, name, options):
    if value not in options:
        fail(name, repr(value), "one of " + ", ".join(map(repr, options)))


def _cases(values, name, dimensions, kinds, wanted):
    """`values` as an array with one of the dtype `kinds`, with `dimensions` axes and at least one case."""
    array = np.asarray(values)
    if array.dtype.kind not in kinds:
        fail(name, f"dtype {array.dtype}", wanted)
    if array.ndim != dimensions or len(array) == 0:
        fail(name, f"shape {array.shape}", f"{dimensions} axes, cases first, and at least one case")
    return array


def real(values, name, dimensions=1, finite=True):
    """`values` as a float array (float32 stays) with `dimensions` axes and at least one case."""
    array = _cases(values, name, dimensions, "iufb", "real numbers")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if finite and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        fail(name, f"{len(bad)} non-finite cases (first at index {bad[0]})", "finite numbers")
    return array


def class_labels(values, classes, name="labels"):
    """`values` as an int64 vector with values in 0..classes-1."""
    array = _cases(values, name, 1, "iub", "integer class labels")
    _below(array, name, classes)
    return array.astype(np.int64)


def labels_and_scores(labels, scores, dimensions=1, name="scores"):
    """Labels of exactly 0 and 1, of any real dtype, as bool, and finite scores of one shape."""
    array = _cases(labels, "labels", dimensions, "iufb", "labels 0 and 1")  # tables come back as floats
    labels = array == 1
    wrong = array[~(labels | (array == 0))]
    if wrong.size:
        fail("labels", f"the value {wrong[0]}", "labels 0 and 1")
    scores = real(scores, name, dimensions)
    same_shape(scores, name, labels, "labels")
    return labels, scores


def labels_and_probabilities(labels, probabilities):
    labels, probabilities = labels_and_scores(labels, probabilities, name="probabilities")
    probability_range(probabilities)
    return labels, probabilities


def probability_range(probabilities):
    if probabilities.min() < 0 or probabilities.max() > 1:
        fail("probabilities", f"values from {probabilities.min():g} to {probabilities.max():g}", "0 to 1")


def real_pair(first, second, first_name, second_name):
    """Two finite float64 vectors of one length."""
    first, second = real(first, first_name).astype(np.float64), real(second, second_name).astype(np.float64)
    same_shape(second, second_name, first, first_name)
    return first, second


def ratio(numerator, denominator):
    """numerator / denominator as a float; NaN where the denominator is 0."""
    return float(numerator / denominator) if denominator else float("nan")


def mean_of_defined(values):
    """Mean of those values that are not NaN, as a float; NaN where all are."""
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
