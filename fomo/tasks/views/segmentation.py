"""Segmentation: the masks over the images, distributions of overlap and distance, agreement of the volumes."""

import math
import operator
import os

import numpy as np

from ...pages import page, pictures
from ...pages.case_table import case_table, outliers
from ...pages.figures.agreement import distribution, volumes
from ...pages.page import number, tag
from ...pages.rates import rates_table
from ...runtime import lazy
from ...space import volume
from .view import View

nifti = lazy.Module("...space.nifti", __package__)

_COUNTS = ("lesions_missed", "lesions_false")
_SHOWN = ("hd95", "surface_dice", "sensitivity", "precision", "average_surface_distance")  # of each case
_ALARMS = 3  # that are drawn


def _against_nothing(run):
    lesions = [row for row in run.rows if row["reference_voxels"] > 0]
    # of four cases or more with some overlap a resample of all cases misses all in less than 2.5%
    missed = sum(row["dice"] == 0 for row in lesions)
    some = sum(row["dice"] > 0 for row in lesions)
    shown = "Better than" if some > 3 else "Not shown to be better than"
    found = f"{missed or 'none'} {'is' if missed == 1 else 'are'} missed altogether"
    text = f"{shown} an empty mask, which scores 0; of the {len(lesions)} cases with something to find, {found}."
    _, false, _, right = _by_case(run.rows)
    return f"{text} {false} of {false + right} cases without a lesion got a mask." if false + right else text


def _by_case(rows):
    """(tp, fp, fn, tn) of the cases: whether there is a lesion at all, and whether the mask is not empty."""
    pairs = [(row["reference_voxels"] > 0, row["predicted_voxels"] > 0) for row in rows]
    return tuple(pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False)))


def _beside(run):
    tp, fp, fn, tn = _by_case(run.rows)
    shares = (("sensitivity", tp, tp + fn), ("specificity", tn, tn + fp))
    found = [f"{name} {number(hits / cases, 3)} ({hits} of {cases})" for name, hits, cases in shares if cases]
    return [f"lesion or none, by case: {', '.join(found)}"]


def _results(run):
    caption = "Is there a lesion at all? A case counts as found if its predicted mask is not empty"
    return [rates_table(*_by_case(run.rows), "cases with a lesion", "cases without a lesion", caption)]


def never_predicted(rows):
    """{class: how many cases have it}, of several classes, of those that no case was given a voxel of."""
    names = [name.removeprefix("precision_") for name in rows[0] if name.startswith("precision_")]
    found = {}
    for name in names:
        there = sum(not math.isnan(row[f"sensitivity_{name}"]) for row in rows)
        if there and all(math.isnan(row[f"precision_{name}"]) for row in rows):
            found[name] = there
    return found


def _notes(run):
    for name, count in never_predicted(run.rows).items():
        yield f"Class {name} is never predicted, though {count} of {len(run.rows)} cases have it."
    for metric, ending, why in (
        ("hd95", "infinite", "one mask is empty, so the distance is infinite"),
        ("dice", "undefined", "both masks are empty, so the overlap is undefined"),
    ):
        if f"{metric}_{ending}" in run.metrics:
            count = number(run.value(f"{metric}_{ending}"))
            yield f"{page.label(metric)} leaves out {count} of {len(run.rows)} cases: {why}."


def _pictures(run):
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
    return [page.grid(figures), tag("h3", "Best, median and worst case, and false alarms"), *_case_pictures(run)]


def _mask_path(run, row):
    return run.fold(row["fold"]).mask(row["id"])


def _voxel_ml(run):
    """((n,) millilitres of a voxel, "ml"), from the masks' headers; (ones, "voxels") where the masks are gone."""
    paths = [_mask_path(run, row) for row in run.rows]
    if not all(map(os.path.exists, paths)):
        return np.ones(len(paths)), "voxels"
    return np.array([math.prod(volume.spacing(nifti.read_header(path).affine)) / 1000 for path in paths]), "ml"


def _case_pictures(run):
    picks, radiological = chosen(run.rows), run.config.eval.radiological
    if not picks:
        return [page.note("No finished case has anything to find, or to draw.")]
    entries = [(name, row, run.entry(row["id"])) for name, row in picks]
    gone = [row["id"] for _, row, entry in entries if entry is None or not os.path.exists(_mask_path(run, row))]
    if gone:
        where = f"the cache {run.config.data.cache} or the run's masks do not have {', '.join(gone)}"
        return [page.note(f"The images cannot be shown: {where}.")]
    lines = [(name, f"border-top:3px {style} {colour}") for name, colour, style in pictures.LEGEND]
    _, alarms, _, _ = _by_case(run.rows)
    few = f" Of the {alarms} false alarms the largest ones." if alarms > _ALARMS else ""
    what = "In each plane the slice with most of the reference, if that is empty of the prediction. "
    parts = [page.legend(lines, "legend dark"), page.note(what + pictures.convention(radiological) + few)]
    for name, row, entry in entries:
        channel, found = planes(entry, _mask_path(run, row), row["id"], radiological)
        distance = f"HD95 {number(row['hd95'], 3)}" + (" mm" if math.isfinite(row["hd95"]) else "")
        values = f"Dice {number(row['dice'], 3)}, {distance}, {run.config.data.channels[channel]}"
        parts.append(tag("p", [tag("b", f"{page.capital(name)}: {row['id']}"), f" · {values}"]))
        figures = [tag("figure", [picture, tag("figcaption", plane)]) for plane, picture in found]
        parts.append(page.grid(figures, "planes"))
    return parts


def chosen(rows):
    """[(name, row)]: best, median and worst of all cases whose Dice is defined, and the largest false alarms."""
    ranked = sorted((row for row in rows if not math.isnan(row["dice"])), key=_worst_first)
    if not ranked:
        return []
    picks = [("best", ranked[-1]), ("worst", ranked[0]), ("median", ranked[(len(ranked) - 1) // 2])][: len(ranked)]
    picks = sorted(picks, key=lambda pick: -ranked.index(pick[1]))
    alarms = sorted((row for row in ranked if row["reference_voxels"] == 0), key=lambda row: -row["predicted_voxels"])
    shown = [row["id"] for _, row in picks]
    return picks + [("false alarm", row) for row in alarms if row["id"] not in shown][:_ALARMS]


def _worst_first(row):
    """A lesion that is missed is the worst, the larger the worse; then a false alarm, then a low Dice."""
    return row["dice"], -row["reference_voxels"], -row["predicted_voxels"]


def planes(entry, mask_path, alt, radiological=True):
    """(channel, `pictures.outlined` of it) of a case in the cache and the predicted mask in a file.

    The channel is the one in which the lesion stands out most. Raises ValueError for an unreadable file.
    """
    predicted, reference = entry.predicted(mask_path) > 0, np.asarray(entry.mask) > 0
    lesion = reference if reference.any() else predicted
    images = [np.asarray(image, np.float32) - value for image, value in zip(entry.image, entry.background)]
    channel = int(np.argmax([_contrast(image, lesion) for image in images]))
    spacing_mm = entry.geometry.spacing_mm
    return channel, pictures.outlined(images[channel], reference, predicted, spacing_mm, alt, radiological)


def _contrast(image, lesion):
    """Distance of the lesion's mean from the rest's, in the rest's standard deviations."""
    rest = image[(image != 0) & ~lesion]
    if not lesion.any() or len(rest) < 2 or not rest.std():
        return 0.0
    return float(abs(image[lesion].mean() - rest.mean()) / rest.std())


def cases(rows, voxel_ml=None):
    """By Dice; an undefined one is a rightly empty mask, so it goes last. voxel_ml: of each row (None: in voxels)."""
    flagged = {row["id"] for row, flag in zip(rows, outliers([row["hd95"] for row in rows])) if flag}
    sizes = {row["id"]: size for row, size in zip(rows, np.ones(len(rows)) if voxel_ml is None else voxel_ml)}
    lines = []
    for row in sorted(rows, key=lambda row: (math.isnan(row["dice"]), _worst_first(row))):
        warning = "; ".join(_warnings(row, row["id"] in flagged))
        volumes = [float(row[f"{which}_voxels"] * sizes[row["id"]]) for which in ("reference", "predicted")]
        values = [row[name] for name in (*_COUNTS, *_SHOWN)]
        lines.append((row, [row["dice"], *volumes, *values], warning))
    unit = "voxels" if voxel_ml is None else "ml"
    counted = (f"reference ({unit})", f"predicted ({unit})", "lesions missed", "false lesions")
    return case_table(["Dice", *counted, *map(page.label, _SHOWN)], lines)


def _cases(run):
    voxel_ml, unit = _voxel_ml(run)
    return cases(run.rows, voxel_ml if unit == "ml" else None)


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
    beside=_beside,
    results=_results,
    cases=_cases,
    truth=lambda row: row["reference_voxels"],
    per_case={
        "dice": (lambda row: row["dice"], True, "Dice"),
        "surface_dice": (lambda row: row["surface_dice"], True, "surface Dice"),
        "hd95": (lambda row: row["hd95"], False, "HD95"),
        "lesion_f1": (lambda row: row["lesion_f1"], True, "lesion F1"),
    },
)


def with_challenge(name):
    """The View of runs whose rows have the metrics of a challenge, too: of these higher is better."""
    names = (metric for metric in page.LABELS if metric.startswith(f"{name}_"))
    own = {metric: (operator.itemgetter(metric), True, page.label(metric)) for metric in names}
    return VIEW._replace(per_case={**VIEW.per_case, **own})
