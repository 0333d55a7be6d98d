"""Segmentation: the masks over the images, distributions of overlap and distance, agreement of the volumes."""

import math
import os

import numpy as np

from ...config import UserError
from ...data import sources
from ...data.cases import read_volume
from ...pages import page, pictures
from ...pages.case_table import case_table, outliers
from ...pages.figures.agreement import distribution, volumes
from ...pages.page import number, tag
from ...runtime import lazy
from ...space import volume
from .view import View

nifti = lazy.Module("...space.nifti", __package__)

_SHOWN = ("dice", "surface_dice", "hd95", "average_surface_distance", "sensitivity", "precision")  # of each case
_COUNTS = ("reference_voxels", "predicted_voxels", "lesions_missed", "lesions_false")


def _against_nothing(run):
    lesions = [row for row in run.rows if row["reference_voxels"] > 0]
    # of four cases or more with some overlap a resample of all cases misses all in less than 2.5%
    missed = sum(row["dice"] == 0 for row in lesions)
    some = sum(row["dice"] > 0 for row in lesions)
    shown = "Better than" if some > 3 else "Not shown to be better than"
    found = f"{missed or 'none'} {'is' if missed == 1 else 'are'} missed altogether"
    return f"{shown} an empty mask, which scores 0; of the {len(lesions)} cases with something to find, {found}."


def _notes(run):
    for metric, ending, why in (
        ("hd95", "infinite", "one mask is empty, so the distance is infinite"),
        ("dice", "undefined", "both masks are empty, so the overlap is undefined"),
    ):
        if f"{metric}_{ending}" in run.metrics:
            count = number(run.value(f"{metric}_{ending}"))
            yield f"{page.label(metric)} leaves out {count} of {len(run.rows)} cases: {why}."


def _pictures(run, listed):
    dice, hd95, reference, predicted = run.results.arrays("dice", "hd95", "reference_voxels", "predicted_voxels")
    voxel_ml, unit = _voxel_ml(run)
    undefined = f"{np.isnan(dice).sum()} of {len(dice)} cases undefined (both masks empty)."
    infinite = f"{np.isinf(hd95).sum()} of {len(hd95)} cases infinite (one mask empty), not drawn."
    sizes = volumes(reference * voxel_ml, predicted * voxel_ml, unit)
    figures = [
        page.figure(distribution(dice, "Dice", "", run.value("dice")), "Dice of each case.", undefined),
        page.figure(distribution(hd95, "HD95", "mm", run.value("hd95")), "HD95 of each case.", infinite),
        page.figure(sizes, "Volume.", "Crosses: one of the masks is empty; drawn on the axis."),
    ]
    return [page.grid(figures), tag("h3", "Best, median and worst case"), *_case_pictures(run, listed)]


def _mask_path(run, row):
    return run.fold(row["fold"]).mask(row["id"])


def _voxel_ml(run):
    """((n,) millilitres of a voxel, "ml"), from the masks' headers; (ones, "voxels") where the masks are gone."""
    paths = [_mask_path(run, row) for row in run.rows]
    if not all(map(os.path.exists, paths)):
        return np.ones(len(paths)), "voxels"
    return np.array([math.prod(volume.spacing(nifti.read_header(path).affine)) / 1000 for path in paths]), "ml"


def _case_pictures(run, listed):
    picks = chosen(run.rows)
    if not picks:
        return [page.note("No finished case has anything to find.")]
    try:
        listed = listed or sources.list_cases(run.config.data, run.task.wanted(run.config.task))
        by_id = {case.id: case for case in listed}
        gone = [row["id"] for _, row in picks if row["id"] not in by_id]
        if gone:
            raise UserError(f"{run.config.data.root}: the cases {', '.join(gone)} are not there any more")
        channels = run.config.data.channels
        shown = [(name, row, planes(by_id[row["id"]], channels, _mask_path(run, row))) for name, row in picks]
    except (UserError, ValueError) as error:
        return [page.note(f"The images cannot be shown: {error}")]
    lines = [(name, f"border-top:3px {style} {colour}") for name, colour, style in pictures.LEGEND]
    what = "In each plane the slice with most of the reference; the patient's right is on the right."
    parts = [page.legend(lines, "legend dark"), page.note(what)]
    for name, row, (channel, found) in shown:
        values = f"Dice {number(row['dice'], 3)}, HD95 {number(row['hd95'], 3)} mm, {channel}"
        parts.append(tag("p", [tag("b", f"{name.capitalize()}: {row['id']}"), f" · {values}"]))
        figures = [tag("figure", [picture, tag("figcaption", plane)]) for plane, picture in found]
        parts.append(page.grid(figures, "planes"))
    return parts


def chosen(rows):
    """[(name, row)]: best, median and worst Dice of the cases whose reference is not empty."""
    ranked = sorted((row for row in rows if row["reference_voxels"] > 0), key=lambda row: row["dice"])
    if not ranked:
        return []
    picks = [("best", ranked[-1]), ("worst", ranked[0]), ("median", ranked[(len(ranked) - 1) // 2])][: len(ranked)]
    return sorted(picks, key=lambda pick: -pick[1]["dice"])


def planes(case, channels, mask_path):
    """(channel, `pictures.outlined` of it) of a Case and the predicted mask, read from their files.

    The channel is the one in which the lesion stands out most. Raises ValueError for unreadable or missing files.
    """
    predicted, affine = nifti.read_nifti(mask_path)
    reference, *images = (read_volume(source, like=affine)[0] for source in (case.mask, *case.files))
    channel = int(np.argmax([_contrast(image, reference > 0) for image in images]))
    image, ras_affine = volume.to_ras(images[channel], affine)
    masks = (volume.to_ras(mask, affine)[0] > 0 for mask in (reference, predicted))
    there = [text for text, source in zip(channels, case.images) if source is not None]
    return there[channel], pictures.outlined(image, *masks, volume.spacing(ras_affine), case.id)


def _contrast(image, lesion):
    """Distance of the lesion's mean from the rest's, in the rest's standard deviations."""
    rest = image[(image != 0) & ~lesion]
    if not lesion.any() or len(rest) < 2 or not rest.std():
        return 0.0
    return float(abs(image[lesion].mean() - rest.mean()) / rest.std())


def cases(rows):
    """By Dice; an undefined one is a rightly empty mask, so it goes last."""
    flagged = {row["id"] for row, flag in zip(rows, outliers([row["hd95"] for row in rows])) if flag}
    lines = []
    for row in sorted(rows, key=lambda row: (math.isnan(row["dice"]), row["dice"], -row["reference_voxels"])):
        warning = "; ".join(_warnings(row, row["id"] in flagged))
        lines.append((row, [row[name] for name in _SHOWN + _COUNTS], warning))
    counted = ("reference voxels", "predicted voxels", "lesions missed", "false lesions")
    return case_table([*map(page.label, _SHOWN), *counted], lines)


def _warnings(row, outlier):
    if row["reference_voxels"] == 0:
        return ["false alarm"] if row["predicted_voxels"] else []
    if row["predicted_voxels"] == 0:
        return ["empty prediction"]
    warnings = ["no overlap"] if row["dice"] == 0 else []
    # with several classes the counts of each stand in columns of their own
    missed = sum(value for name, value in row.items() if name.startswith("lesions_missed_")) or row["lesions_missed"]
    if missed > 0:
        warnings.append(f"{number(missed)} missed lesion{'s' if missed != 1 else ''}")
    return warnings + ["outlier by HD95"] * outlier


VIEW = View(
    title="Masks",
    verdict=_against_nothing,
    notes=lambda run: list(_notes(run)),
    pictures=_pictures,
    cases=lambda run: cases(run.rows),
    truth=lambda row: row["reference_voxels"],
    per_case={
        "dice": (lambda row: row["dice"], True, "Dice"),
        "surface_dice": (lambda row: row["surface_dice"], True, "surface Dice"),
        "hd95": (lambda row: row["hd95"], False, "HD95"),
        "lesion_f1": (lambda row: row["lesion_f1"], True, "lesion F1"),
    },
)
