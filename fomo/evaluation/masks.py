"""Predicted masks beside reference masks: a row per case, with the metrics of each class that is somewhere.

As a challenge scores them there are columns more, called by its name; their mean over the classes has no class's name.
"""

import os

import numpy as np

from .. import config, metrics
from ..config import UserError, as_user_error, listed
from ..data.cases import Volume, read_volume, rounded
from ..space import volume
from . import places


def pair(masks, table, request):
    """(the task's section of a config, rows, {}) of predicted masks {id: File}; table: beside them, or None."""
    references = _references(request)
    request.check_same_cases(masks, references)
    folders = ({id: file.subject for id, file in files.items()} for files in (references, masks))
    rows = request.begin_rows(sorted(masks), table.subjects() if table else {}, *folders)
    per_class, predicted, wanted = [], set(), set()
    score = _scoring(request)
    for row in rows:
        id = row["id"]
        prediction, reference, spacing_mm = _read_pair(id, masks[id].path, references[id].path)
        row["predicted_voxels"], row["reference_voxels"] = map(int, map(np.count_nonzero, (prediction, reference)))
        labels = _labels_in(prediction), _labels_in(reference)
        _check_classes(labels[1], request.known.classes, f"case {id}: {references[id].path}")
        predicted, wanted = predicted | labels[0], wanted | labels[1]
        per_class.append({k: score(reference == k, prediction == k, spacing_mm) for k in set.union(*labels)})
    if request.known.classes is None and predicted and wanted and not predicted & wanted:
        got, other = (listed(map(str, sorted(labels))) for labels in (wanted, predicted))
        said = f"got masks of the labels {got}, and those of {request.predictions} have {other}"
        raise UserError(f"{request.references}: {said}: wanted the same classes")
    if predicted ^ wanted:
        sides = {"predictions": sorted(predicted - wanted), "references": sorted(wanted - predicted)}
        request.log.warn("classes of the masks that only one side has: do both number them alike?", **sides)
    _fill(rows, per_class, predicted | wanted, score, request)
    return config.Task(type=request.known.task_for("mask")), rows, {}


def _references(request):
    """{case id: File} of the masks of a folder, or of those that a table names: by default in its column `mask`."""
    path, columns = request.references, request.columns
    if not os.path.isfile(path):
        if found := places.masks_in(path):
            return found
        raise UserError(f"{path}: got no masks in it, wanted ID.nii.gz or SUB/SES/seg.nii.gz")
    table = places.Table(path, (columns.id or "id",), flag="--id-column")
    column, subjects = columns.target or "mask", table.subjects(columns.subject)
    if column not in table.columns:
        table.refuse(f"wanted {column}, the paths of the masks (--column NAME), or the folder of the masks instead")
    if blank := [id for id, cells in table.cells.items() if not cells[column]]:
        raise UserError(f"{path}: case {blank[0]}: column '{column}': got a blank cell, wanted the path of its mask")
    folder = os.path.dirname(os.path.abspath(path))
    return {id: places.File(os.path.join(folder, cells[column]), subjects[id]) for id, cells in table.cells.items()}


def _fill(rows, per_class, there, score, request):
    """Put the metrics of all classes into the rows.

    per_class: [{class: {metric: value}}] of the classes of each case; there: those of all; score: see `_scoring`.
    """
    nothing = np.zeros((8, 8, 8), bool)
    absent = score(nothing, nothing, (1.0, 1.0, 1.0))
    known = range(1, request.known.classes or 2) if request.challenge else ()  # which scores absent ones, too
    classes, names = sorted({*there, *known}) or [1], request.known.class_names
    for row, found in zip(rows, per_class):
        scores = [found.get(k, absent) for k in classes]
        for k, values in zip(classes, scores):
            ending = "" if classes == [1] else f"_{names[k - 1] if k <= len(names) else k}"
            row.update({f"{name}{ending}": value for name, value in values.items()})
        if request.challenge and len(classes) > 1:
            own = [name for name in absent if name.startswith(f"{request.challenge}_")]
            row.update({name: float(np.mean([values[name] for values in scores])) for name in own})


def _scoring(request):
    """Function (reference, prediction, spacing_mm) -> {metric: value} of the masks of one class."""

    def score(reference, prediction, spacing_mm):
        found = metrics.segmentation_metrics(reference, prediction, spacing_mm, request.tolerance_mm)
        return {**found, **(challenge(reference, prediction, spacing_mm) if challenge else {})}

    challenge = metrics.CHALLENGES.get(request.challenge)
    return score


def _check_classes(labels, classes, where):
    """UserError for labels of a reference that the networks do not tell apart; classes: how many they do, or None."""
    unknown = [str(label) for label in sorted(labels) if classes is not None and label >= classes]
    if unknown:
        wanted = f"wanted whole numbers below {classes}, the classes of the predictions"
        raise UserError(f"{where}: got the labels {', '.join(unknown)}, {wanted}")


def _labels_in(array):
    """The set of what is above 0 in a uint8 array."""
    return set((np.flatnonzero(np.bincount(array.ravel(order="K"), minlength=256)[1:]) + 1).tolist())


def _read_pair(id, *paths):
    """(prediction, reference, spacing_mm) as uint8 label maps on one grid."""
    with as_user_error(f"case {id}", ValueError):
        prediction, affine = read_volume(Volume(paths[0]))
        reference, wanted = read_volume(Volume(paths[1]), like=affine)  # as it may be stored flipped
    arrays = rounded(prediction), rounded(reference)  # as in training
    for path, array in zip(paths, arrays):
        if array.min() < 0 or array.max() > 255 or not np.array_equal(array, np.round(array)):
            raise UserError(f"case {id}: {path}: got values that are no classes, wanted whole numbers from 0 to 255")
    if prediction.shape != reference.shape:
        shapes = f"{paths[0]} has shape {prediction.shape} and {paths[1]} {reference.shape}"
        raise UserError(f"case {id}: {shapes}, wanted equal ones")
    distance, spacing_mm = volume.grid_distance(reference.shape, affine, wanted), volume.spacing(wanted)
    if distance > 0.1 * min(spacing_mm):
        raise UserError(f"case {id}: {paths[0]} lies up to {distance:.3g} mm off {paths[1]}, wanted the same affine")
    return *(array.astype(np.uint8) for array in arrays), spacing_mm
