"""Segmentation: the masks over the images, distributions of overlap and distance, agreement of the volumes."""

import math
import os

import nibabel
import numpy as np

from ...config import UserError
from ...data import sources
from ...pages import page, pictures
from ...pages.case_table import columns_of, finish, outliers
from ...pages.figures.segmentation import distribution, volumes
from ...pages.page import number, tag
from ...space import volume
from .view import View


def _against_nothing(run):
    lesions = [row for row in run.rows if row["reference_voxels"] > 0]
    missed = sum(row["dice"] == 0 for row in lesions)
    _, low, _ = run.with_interval("dice")
    shown = "Better than" if low > 0 else "Not shown to be better than"
    found = f"{missed or 'none'} {'is' if missed == 1 else 'are'} missed altogether"
    return f"{shown} an empty mask, which scores 0; of the {len(lesions)} cases with something to find, {found}."


def _notes(run):
    found = []
    for name, why in (
        ("hd95_infinite", "one mask is empty, so the distance is infinite"),
        ("dice_undefined", "both masks are empty, so the overlap is undefined"),
    ):
        if name in run.metrics:
            metric, count = page.label(name.rpartition("_")[0]), number(run.metrics[name]["pooled"])
            found.append(f"{metric} leaves out {count} of {len(run.rows)} cases: {why}.")
    return found


def _pictures(run, listed):
    dice, hd95, reference, predicted = columns_of(run.rows, "dice", "hd95", "reference_voxels", "predicted_voxels")
    millilitres, unit = _voxel_ml(run)
    lost = int(np.isinf(hd95).sum())
    pictures = [
        page.figure(
            distribution(dice, "Dice", "", run.metrics["dice"]["pooled"]),
            "Dice of each case.",
            f"{int(np.isnan(dice).sum())} of {len(dice)} cases undefined (both masks empty).",
        ),
        page.figure(
            distribution(hd95, "HD95", "mm", run.metrics["hd95"]["pooled"]),
            "HD95 of each case.",
            f"{lost} of {len(hd95)} cases infinite (one mask empty), not drawn.",
        ),
        page.figure(
            volumes(reference * millilitres, predicted * millilitres, unit),
            "Volume.",
            "Crosses: one of the masks is empty; drawn on the axis.",
        ),
    ]
    return [page.grid(pictures), tag("h3", "Best, median and worst case"), *_case_pictures(run, listed)]


def _voxel_ml(run):
    """((n,) millilitres of a voxel, "ml"), from the masks' headers; (ones, "voxels") where the masks are gone."""
    paths = [pictures.mask_path(run.folder, row) for row in run.rows]
    if not all(os.path.exists(path) for path in paths):
        return np.ones(len(paths)), "voxels"
    return np.array([math.prod(volume.spacing(nibabel.load(path).affine)) / 1000 for path in paths]), "ml"


def _case_pictures(run, listed):
    picks = pictures.chosen(run.rows)
    if not picks:
        return [page.note("No finished case has anything to find.")]
    try:
        if listed is None:
            listed = sources.list_cases(run.config.data, run.config.task)
        by_id = {case.id: case for case in listed}
        gone = [row["id"] for _, row in picks if row["id"] not in by_id]
        if gone:
            raise UserError(f"{run.config.data.root}: the cases {', '.join(gone)} are not there any more")
        shown = [
            (
                name,
                row,
                pictures.planes(by_id[row["id"]], run.config.data.channels, pictures.mask_path(run.folder, row)),
            )
            for name, row in picks
        ]
    except (UserError, ValueError) as error:
        return [page.note(f"The images cannot be shown: {error}")]
    items = []
    for name, colour, style in pictures.LEGEND:
        swatch = tag("i", style=f"border-top:3px {style} {colour}")
        items.append(tag("li", [swatch, name]))
    parts = [
        tag("ul", items, class_="legend dark"),
        page.note("In each plane the slice with most of the reference; the patient's right is on the right."),
    ]
    for name, row, (channel, planes) in shown:
        values = f"Dice {number(row['dice'], 3)}, HD95 {number(row['hd95'], 3)} mm, {channel}"
        parts.append(tag("p", [tag("b", f"{name.capitalize()}: {row['id']}"), f" · {values}"]))
        parts.append(
            page.grid([tag("figure", [picture, tag("figcaption", plane)]) for plane, picture in planes], "planes")
        )
    return parts


_SHOWN = ("dice", "surface_dice", "hd95", "average_surface_distance", "sensitivity", "precision")


def cases(rows):
    """By Dice; an undefined one is a rightly empty mask, so it goes last."""
    flagged = {row["id"] for row, flag in zip(rows, outliers([row["hd95"] for row in rows])) if flag}
    ranked = sorted(rows, key=lambda row: (math.isnan(row["dice"]), row["dice"], -row["reference_voxels"]))
    others = {
        "reference_voxels": "reference voxels",
        "predicted_voxels": "predicted voxels",
        "lesions_missed": "lesions missed",
        "lesions_false": "false lesions",
    }
    found = []
    for row in ranked:
        values = [row[name] for name in (*_SHOWN, *others)]
        found.append((row, values, "; ".join(_warnings(row, row["id"] in flagged))))
    return finish([*map(page.label, _SHOWN), *others.values()], found)


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
    if outlier:
        warnings.append("outlier by HD95")
    return warnings


VIEW = View(
    title="Masks",
    verdict=_against_nothing,
    notes=_notes,
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
