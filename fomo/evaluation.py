"""Predictions against references, both from files: masks in two folders, or tables."""

import dataclasses
import os

import numpy as np

from . import config, metrics, tables, tasks, volume
from .config import UserError
from .data import slices
from .data import table as table_module

_SUFFIXES = (".nii.gz", ".nii")


def evaluate(predictions, references, tolerance_mm=1.0, resamples=1000, seed=0, level=0.95):
    """(kind, rows, summary): per-case rows and {metric: {...}} of whatever the two places hold.

    predictions: what tools/predict.py wrote, a folder of masks, or a table. references: a folder of masks or of label.txt
    files (ID.nii.gz, or SUB/SES/seg.nii.gz and SUB/SES/label.txt for the case SUB_SES), or a CSV with the columns id and
    target (or label, or age). Missing or extra cases are a UserError, and so is a mask on another grid than its reference.
    A table of several labels (probability_LABEL) is scored by a CSV with VolumeName (or id) and a column of 0 and 1 per
    label, which may have further volumes: the summary's `not_predicted`.
    """
    table = _table_of(predictions)
    masks = _masks_in(predictions)
    if masks and table and _score_column(table):
        raise UserError(f"{predictions}: holds masks and a table of numbers, wanted one of them")
    if masks:
        rows = _mask_rows(masks, _masks_in(references), predictions, references, tolerance_mm)
        return "segmentation", rows, _mean_over_cases(rows, resamples, seed, level)
    if table is None:
        raise UserError(f"{predictions}: no masks (*.nii.gz) and no predictions.csv in it")
    return _evaluate_table(table, predictions, references, resamples, seed, level)


def write(kind, rows, summary, output):
    """evaluation_cases.csv, evaluation.csv and evaluation.json in `output`."""
    try:
        os.makedirs(output, exist_ok=True)
        tables.write_csv(os.path.join(output, "evaluation_cases.csv"), rows)
        tables.write_csv(
            os.path.join(output, "evaluation.csv"), [{"metric": name, **values} for name, values in summary.items()]
        )
        tables.write_json(
            os.path.join(output, "evaluation.json"), {"kind": kind, "cases": len(rows), "metrics": summary}
        )
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error


# ------------------------------------------------------------------------------------------ masks


def _masks_in(place):
    """{case id: path}: place/masks/*, place/* or place/SUB/SES/*."""
    if not os.path.isdir(place):
        return {}
    inside = os.path.join(place, "masks")
    if os.path.isdir(inside):
        place = inside
    found = {}
    for folder, _, names in os.walk(place):
        parts = [] if folder == place else os.path.relpath(folder, place).split(os.sep)
        for name in sorted(names):
            if name.endswith(_SUFFIXES) and not name.startswith("."):
                id = "_".join(parts) if parts else name.removesuffix(".gz").removesuffix(".nii")
                if id in found:
                    raise UserError(
                        f"{place}: two masks for the case {id}: {found[id]} and {os.path.join(folder, name)}"
                    )
                found[id] = os.path.join(folder, name)
    return found


def _mask_rows(masks, references, predictions_place, references_place, tolerance_mm):
    if not references:
        raise UserError(f"{references_place}: no masks (*.nii.gz) in it")
    _same_cases(masks, references, predictions_place, references_place)
    rows, per_class = [], []
    for id in sorted(masks):
        prediction, reference, spacing_mm = _read_pair(id, masks[id], references[id])
        rows.append(
            {
                "id": id,
                "predicted_voxels": int(np.count_nonzero(prediction)),
                "reference_voxels": int(np.count_nonzero(reference)),
            }
        )
        classes = max(2, int(prediction.max()) + 1, int(reference.max()) + 1)
        per_class.append(
            metrics.segmentation_metrics_per_class(reference, prediction, spacing_mm, classes, tolerance_mm)
        )
    nothing = np.zeros((8, 8, 8), bool)
    absent = metrics.segmentation_metrics(nothing, nothing, (1.0, 1.0, 1.0), tolerance_mm)
    labels = sorted(set().union(*per_class))
    for row, values in zip(rows, per_class):
        for label in labels:
            ending = "" if labels == [1] else f"_{label}"
            row.update({f"{name}{ending}": value for name, value in values.get(label, absent).items()})
    return rows


def _read_pair(id, prediction_path, reference_path):
    """(prediction, reference, spacing_mm) as uint8 label maps on one grid."""
    arrays = []
    for path in (prediction_path, reference_path):
        try:
            array, affine = volume.read_nifti(path)
        except ValueError as error:
            raise UserError(f"case {id}: {error}") from error
        if array.min() < 0 or array.max() > 255 or not np.array_equal(array, np.round(array)):
            raise UserError(f"case {id}: {path}: got values that are no classes, wanted whole numbers from 0 to 255")
        arrays.append((array.astype(np.uint8), affine))
    (prediction, affine), (reference, wanted) = arrays
    if prediction.shape != reference.shape:
        raise UserError(
            f"case {id}: {prediction_path} has shape {prediction.shape} and {reference_path} {reference.shape}, wanted equal ones"
        )
    distance = volume.grid_distance(reference.shape, affine, wanted)
    if distance > 0.1 * min(volume.spacing(wanted)):
        raise UserError(
            f"case {id}: {prediction_path} lies up to {distance:.3g} mm off {reference_path}, wanted the same affine"
        )
    return prediction, reference, volume.spacing(wanted)


def _mean_over_cases(rows, resamples, seed, level):
    """Of each metric the mean over the cases where it is finite, with its interval and the counts of the rest."""
    summary = {}
    for name in [name for name in rows[0] if name not in ("id", "predicted_voxels", "reference_voxels")]:
        values = np.array([row[name] for row in rows], float)
        facts = metrics.summarize(values)
        finite = values[np.isfinite(values)]
        interval = (
            metrics.bootstrap_ci(np.mean, finite, resamples=resamples, seed=seed, level=level)
            if len(finite) and resamples
            else None
        )
        summary[name] = {
            "value": facts["mean"],
            "ci_low": interval.low if interval else float("nan"),
            "ci_high": interval.high if interval else float("nan"),
            **{key: facts[key] for key in ("std", "median", "minimum", "maximum", "n", "undefined", "infinite")},
        }
    return summary


# ----------------------------------------------------------------------------------------- tables


def _evaluate_table(table, predictions, references, resamples, seed, level):
    column = _score_column(table)
    if column is None and any(name.startswith("probability_") for name in table[0]):
        return _multilabel(table, predictions, references, resamples, seed)
    if column is None:
        raise UserError(
            f"{predictions}: got the columns {', '.join(table[0])[:500]}, wanted id and probability, or id and prediction"
        )
    targets = _targets(references)
    found = {}
    for row in table:
        if row["id"] in found:
            raise UserError(f"{predictions}: two rows for the case {row['id']}")
        found[row["id"]] = row
    _same_cases(found, targets, predictions, references)
    ids = sorted(found)
    labels = np.array([targets[id] for id in ids])
    scores = np.array([_number(found[id][column], predictions, id) for id in ids])
    try:
        if column == "probability":
            return _classification(ids, labels, scores, found, predictions, references, resamples, seed, level)
        rows = [
            {"id": id, "target": y, "prediction": p, "error": p - y}
            for id, y, p in zip(ids, labels.tolist(), scores.tolist())
        ]

        def summarize(values):
            shown = ("mae", "mse", "r2", "pearson")
            return _with_intervals(
                metrics.regression_metrics(labels, values), shown, labels, values, resamples, seed, level
            )

        summary = summarize(scores)
        if "corrected" in table[0]:
            corrected = np.array([_number(found[id]["corrected"], predictions, id) for id in ids])
            rows = [{**row, "corrected": value} for row, value in zip(rows, corrected.tolist())]
            summary.update({f"corrected_{name}": values for name, values in summarize(corrected).items()})
        return "regression", rows, summary
    except ValueError as error:
        raise UserError(f"{predictions}: {error}") from error


def _classification(ids, labels, scores, found, predictions, references, resamples, seed, level):
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{references}: got targets besides 0 and 1 for a table of probabilities")
    decided = "decision" in found[ids[0]]
    decisions = np.array([_number(found[id]["decision"], predictions, id) for id in ids]) if decided else scores >= 0.5
    rows = [
        {"id": id, "target": int(y), "probability": p, "decision": int(d)}
        for id, y, p, d in zip(ids, labels, scores.tolist(), decisions)
    ]
    counts = [int(np.sum((decisions == d) & (labels == y))) for d, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
    labels = labels.astype(int)
    values = {
        "auroc": metrics.auroc(labels, scores),
        "average_precision": metrics.average_precision(labels, scores),
        **metrics.decision_metrics(*counts),
        "brier": metrics.brier(labels, scores),
        "ece": metrics.ece(labels, scores),
    }
    return (
        "classification",
        rows,
        _with_intervals(values, ("auroc", "average_precision"), labels, scores, resamples, seed, level),
    )


def _multilabel(table, predictions, references, resamples, seed):
    """Of several labels: what a run reports of its volumes, and the AUROC of each label; patients are drawn together."""
    columns = _read_csv(references)
    key = next((name for name in ("VolumeName", "id") if name in columns[0]), None)
    labels = [name for name in columns[0] if f"probability_{name.replace(' ', '_')}" in table[0]]
    if key is None or not labels:
        raise UserError(f"{references}: got the columns {', '.join(columns[0])[:500]}, wanted VolumeName (or id) and a column per label")
    lacking = {name for name in table[0] if name.startswith("probability_")} - {f"probability_{name.replace(' ', '_')}" for name in labels}
    if lacking:
        raise UserError(f"{references}: no column for {', '.join(sorted(lacking))[:200]} of {predictions}")
    wanted = {slices.stem(row[key]): row for row in columns}
    section = config.Task(type="multilabel", targets=tuple(labels))
    task = tasks.build(dataclasses.replace(config.Config(), seed=seed, task=section, eval=config.Eval(bootstrap=resamples)))
    rows = []
    for found in table:
        id = slices.stem(found["id"])
        if id not in wanted:
            raise UserError(f"{references}: no line for {found['id']} of {predictions}")
        row = {"id": found["id"], "subject": slices.patient_of(id) or id, "scan": None, "threshold": 0.5}
        for label, name in zip(labels, task.names):
            target, p = _number(wanted[id][label], references, id), _number(found[f"probability_{name}"], predictions, id)
            if target not in (0, 1):
                raise UserError(f"{references}: {id}: {label}: got {target:g}, wanted 0 or 1")
            row.update({f"target_{name}": int(target), f"probability_{name}": p, f"decision_{name}": int(found.get(f"decision_{name}") or p >= 0.5)})
        rows.append(row)
    summary = {name.removeprefix("volume_"): {"value": value, "n": len(rows)} for name, value in task.score(rows).items()}
    if resamples:
        interval = task.intervals(rows, resamples, seed)["volume_auroc_macro"]
        summary["auroc_macro"].update(ci_low=interval.low, ci_high=interval.high)
    for row, name in zip(task.tables(rows)["labels"], task.names):
        limits = {f"ci_{end}": row[f"auroc_{end}"] for end in ("low", "high")} if resamples else {}
        summary[f"auroc_{name}"] = {"value": row["auroc"], **limits, "n": row["n"], "positives": row["positives"]}
    summary["not_predicted"] = {"value": len(wanted) - len(rows), "n": len(wanted)}
    return "multilabel", [{k: v for k, v in row.items() if k not in ("scan", "threshold")} for row in rows], summary


def _with_intervals(values, names, labels, scores, resamples, seed, level):
    summary = {}
    for name, value in values.items():
        summary[name] = {"value": value, "ci_low": float("nan"), "ci_high": float("nan"), "n": len(labels)}
        if name in names and resamples:
            interval = metrics.bootstrap_ci(getattr(metrics, name), labels, scores, resamples, seed, level=level)
            summary[name].update(ci_low=interval.low, ci_high=interval.high)
    return summary


def _table_of(place):
    """Rows of the CSV `place`, or of place/predictions_volumes.csv or else place/predictions.csv; None when there is none."""
    path = place
    if os.path.isdir(place):
        volumes = os.path.join(place, "predictions_volumes.csv")
        path = volumes if os.path.exists(volumes) else os.path.join(place, "predictions.csv")
    if not os.path.isfile(path):
        return None
    rows = _read_csv(path)
    if not rows or "id" not in rows[0]:
        raise UserError(
            f"{path}: got the columns {', '.join(rows[0])[:500] if rows else 'none'}, wanted id and a line per case"
        )
    return rows


def _score_column(table):
    return next((name for name in ("probability", "prediction") if name in table[0]), None)


def _targets(place):
    """{case id: number} of a CSV, or of a folder's label.txt files."""
    if os.path.isdir(place):
        targets = {}
        for folder, _, names in os.walk(place):
            if "label.txt" in names:
                id = "_".join(os.path.relpath(folder, place).split(os.sep))
                path = os.path.join(folder, "label.txt")
                try:
                    with open(path, encoding="utf-8") as file:
                        targets[id] = _number(file.read(), path, id)
                except (OSError, UnicodeDecodeError) as error:
                    raise UserError(f"cannot read the label {path}: {error}") from error
        if targets:
            return targets
        place = os.path.join(place, "targets.csv")
    rows = _read_csv(place)
    column = next((name for name in ("target", "label", "age") if rows and name in rows[0]), None)
    if column is None or "id" not in rows[0]:
        raise UserError(f"{place}: got the columns {', '.join(rows[0])[:500] if rows else 'none'}, wanted id and target")
    return {row["id"]: _number(row[column], place, row["id"]) for row in rows}


def _read_csv(path):
    return [row.cells for row in table_module.read_rows(path, {}, "table")]


def _number(text, path, id):
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise UserError(f"{path}: case {id}: got {text[:80]!r}, wanted a number") from None
    if not np.isfinite(value):
        raise UserError(f"{path}: case {id}: got {text}, wanted a finite number")
    return value


def _same_cases(found, wanted, found_place, wanted_place):
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise UserError(f"{found_place}: {len(missing)} cases of {wanted_place} are missing: {', '.join(missing[:5])}")
    if extra:
        raise UserError(f"{found_place}: {len(extra)} cases are not in {wanted_place}: {', '.join(extra[:5])}")
