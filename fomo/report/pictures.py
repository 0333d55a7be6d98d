"""What each task shows of its cases: curves, plots, outlines of masks."""

import math
import os

import nibabel
import numpy as np

from .. import volume
from ..config import UserError
from ..data import sources
from . import figures, page, slices
from .page import number, tag

_TARGETS = {"fomo3": "age (years)", "phantom": "age (years)"}  # of data.source


def _columns(run, *names):
    return [np.array([row[name] for row in run.rows]) for name in names]


def confusion(run):
    """The 2x2 table of decisions, each fold's at its own threshold."""
    tp, fp, fn, tn = (int(run.metrics[name]["pooled"]) for name in ("tp", "fp", "fn", "tn"))

    def cell(count, of, shade):
        share = f"{100 * count / of:.0f}% of {of}" if of else "none there"
        opacity = 0.06 + 0.34 * (count / of if of else 0)
        return tag(
            "td",
            [str(count), tag("small", share)],
            style=f"background:rgba({shade},{opacity:.2f})",
            data_value=repr(float(count)),
        )

    right, wrong = "58,143,196", "213,94,0"
    rows = [
        tag("tr", [tag("th", "class 1", scope="row"), cell(tp, tp + fn, right), cell(fn, tp + fn, wrong)]),
        tag("tr", [tag("th", "class 0", scope="row"), cell(fp, fp + tn, wrong), cell(tn, fp + tn, right)]),
    ]
    head = tag(
        "tr",
        [tag("th", "label", scope="col"), tag("th", "decided 1", scope="col"), tag("th", "decided 0", scope="col")],
    )
    rule = run.config.eval.threshold
    where = "at 0.5" if rule == "half" else f"at its own threshold, chosen on its inner validation cases ({rule})"
    table = tag("table", [tag("thead", head), tag("tbody", rows)], class_="confusion")
    return page.figure(table, "Confusion matrix.", f"Each fold decides {where}.")


def _classification(run, listed):
    labels, scores = _columns(run, "target", "probability")
    labels = labels.astype(int)
    if len(np.unique(labels)) < 2:
        return [
            confusion(run),
            page.note("The finished folds have cases of one class only: there are no curves to draw."),
        ]
    value = {name: run.metrics[name]["pooled"] for name in ("auroc", "average_precision", "ece")}
    subjects = [row["subject"] for row in run.rows]
    pictures = [
        page.figure(
            figures.roc(labels, scores, subjects, run.config.seed, value["auroc"]),
            "ROC.",
            "All out-of-fold cases; pointwise bootstrap band over subjects.",
        ),
        page.figure(
            figures.precision_recall(labels, scores, value["average_precision"]),
            "Precision and recall.",
            "Chance is the share of positive cases.",
        ),
        page.figure(
            figures.calibration(labels, scores, value["ece"]),
            "Calibration.",
            f"Dots below the diagonal: probabilities too high. Size: number of cases; ECE {number(value['ece'], 3)}.",
        ),
        page.figure(figures.score_histogram(labels, scores), "Scores.", "Class 1 upwards, class 0 downwards."),
    ]
    return [page.grid([*pictures, confusion(run)])]


def target_name(run):
    """What a regression predicts, with its unit where the data set gives it."""
    return _TARGETS.get(run.config.data.source, "value")


def _regression(run, listed):
    targets, predictions = _columns(run, "target", "prediction")
    unit = target_name(run)
    short = "years" if "years" in unit else "target's unit"
    series = [("predicted", predictions)]
    if all(math.isfinite(row.get("corrected", math.nan)) for row in run.rows):
        series.append(("bias-corrected", _columns(run, "corrected")[0]))
    slopes = [(legend, figures.line(targets, values - targets)[0]) for legend, values in series]
    text = "; ".join(f"{legend} {number(slope, 2)}" for legend, slope in slopes)
    pictures = [
        page.figure(
            figures.predicted_over_true(targets, series, unit),
            "Predicted over true.",
            "Above the line: predicted too high.",
        ),
        page.figure(
            figures.residuals(targets, series, unit, short),
            "Error over true value.",
            f"A falling line is the pull towards the mean. Slope: {text}.",
        ),
        page.figure(figures.error_histogram(predictions - targets, short), "Errors.", "Before bias correction."),
    ]
    return [page.grid(pictures)]


def _segmentation(run, listed):
    dice, hd95, reference, predicted = _columns(run, "dice", "hd95", "reference_voxels", "predicted_voxels")
    millilitres, unit = _voxel_ml(run)
    lost = int(np.isinf(hd95).sum())
    pictures = [
        page.figure(
            figures.distribution(dice, "Dice", "", run.metrics["dice"]["pooled"]),
            "Dice of each case.",
            f"{int(np.isnan(dice).sum())} of {len(dice)} cases undefined (both masks empty).",
        ),
        page.figure(
            figures.distribution(hd95, "HD95", "mm", run.metrics["hd95"]["pooled"]),
            "HD95 of each case.",
            f"{lost} of {len(hd95)} cases infinite (one mask empty), not drawn.",
        ),
        page.figure(
            figures.volumes(reference * millilitres, predicted * millilitres, unit),
            "Volume.",
            "Crosses: one of the masks is empty; drawn on the axis.",
        ),
    ]
    return [page.grid(pictures), tag("h3", "Best, median and worst case"), *_case_pictures(run, listed)]


def _voxel_ml(run):
    """((n,) millilitres of a voxel, "ml"), from the masks' headers; (ones, "voxels") where the masks are gone."""
    paths = [slices.mask_path(run.folder, row) for row in run.rows]
    if not all(os.path.exists(path) for path in paths):
        return np.ones(len(paths)), "voxels"
    return np.array([math.prod(volume.spacing(nibabel.load(path).affine)) / 1000 for path in paths]), "ml"


def _case_pictures(run, listed):
    picks = slices.chosen(run.rows)
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
            (name, row, slices.planes(by_id[row["id"]], run.config.data.channels, slices.mask_path(run.folder, row)))
            for name, row in picks
        ]
    except (UserError, ValueError) as error:
        return [page.note(f"The images cannot be shown: {error}")]
    items = []
    for name, colour, style in slices.LEGEND:
        swatch = tag("i", style=f"border-top:3px {style} {colour}")
        items.append(tag("li", [swatch, name]))
    parts = [
        tag("ul", items, class_="legend dark"),
        page.note("In each plane the slice with most of the reference; the patient's right is on the right."),
    ]
    for name, row, (channel, pictures) in shown:
        values = f"Dice {number(row['dice'], 3)}, HD95 {number(row['hd95'], 3)} mm, {channel}"
        parts.append(tag("p", [tag("b", f"{name.capitalize()}: {row['id']}"), f" · {values}"]))
        parts.append(
            page.grid([tag("figure", [picture, tag("figcaption", plane)]) for plane, picture in pictures], "planes")
        )
    return parts


PICTURES = {"classification": _classification, "regression": _regression, "segmentation": _segmentation}
