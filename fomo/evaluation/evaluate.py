"""Predictions against references, both from files: masks in two folders, or tables."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from .. import config, metrics, tasks
from ..config import UserError
from ..data import slice_files
from ..runtime import files
from ..runtime.log import Log
from . import scored


def evaluate(predictions, references, tolerance_mm=1.0, resamples=1000, seed=0, columns=scored.Columns(), log=None):
    """(kind, rows, summary): per-case rows and {metric: {...}} of whatever the two places hold.

    predictions: what tools/predict.py wrote, a run folder, a folder of masks, or a table. references: a folder of masks or of
    label.txt files (ID.nii.gz, or SUB/SES/seg.nii.gz and SUB/SES/label.txt for the case SUB_SES; SUB/label.txt for all of
    SUB), a data set with such folders `labels` and `labels_masked`, or a CSV with the columns id and target (or what the
    networks learned, as settings.json beside the predictions says, or else label, or age), or those that `columns` names.
    Classes are 0 and 1, or the names that the networks have for them. For a table of probabilities a mask of the layouts is a
    label, too: 1 if it has a voxel above 0. Missing or extra cases are a UserError, and so are a mask on another grid than
    its reference, and references of other classes.
    A table of several labels (probability_LABEL) is scored by a CSV with VolumeName (or id) and a column of 0 and 1 per
    label, which may have further volumes: the summary's `not_predicted`. One of several targets (decision_TARGET and its
    probability_TARGET_CLASS) is scored by a CSV with id and a column of class names per target. Where a table of
    probabilities has no column of decisions (or no decision_LABEL), they are made at 0.5: the summary's `decided_at_half`
    counts them.
    Intervals are over the subjects: of a column `subject` of either table, or else the folders SUB, or the patients of CT
    volumes by their names. Where none of these knows all, they are over the cases, and `log` (fomo.log's Log) warns.
    """
    if resamples < 0:
        raise UserError(f"--bootstrap: got {resamples}, wanted 0 (no intervals) or more")
    if not 0 <= tolerance_mm < np.inf:
        raise UserError(f"--tolerance-mm: got {tolerance_mm:g}, wanted a number of mm, 0 or more")
    for flag, name in (
        ("--column", columns.target),
        ("--id-column", columns.id),
        ("--subject-column", columns.subject),
    ):
        if name is not None and not os.path.isfile(references):
            raise UserError(f"{flag}: got {name}, and {references} is no table to have one")
    how = _How(columns, resamples, seed, Log(active=False) if log is None else log)
    table = scored.table_of(predictions)
    masks = scored.predicted_masks(predictions)
    if masks and table and _score_column(table):
        raise UserError(f"{predictions}: holds masks and a table of numbers, wanted one of them")
    if masks:
        wanted = scored.masks_in(references)
        rows = _mask_rows(masks, wanted, predictions, references, tolerance_mm)
        folders = scored.subjects_of_files(wanted), scored.subjects_of_files(masks)
        return (
            "segmentation",
            rows,
            _mean_over_cases(
                rows, _subjects([row["id"] for row in rows], how, scored.subjects_of(table or {}), *folders), how
            ),
        )
    if table is None:
        raise UserError(f"{predictions}: no masks (*.nii.gz) and no predictions.csv in it")
    try:
        return _evaluate_table(table, predictions, references, how)
    except UserError:
        raise
    except ValueError as error:  # of the metrics
        raise UserError(f"{predictions}: {error}") from error


def write(kind, rows, summary, output):
    """evaluation_cases.csv, evaluation.csv and evaluation.json in `output`."""
    try:
        os.makedirs(output, exist_ok=True)
        files.write_csv(os.path.join(output, "evaluation_cases.csv"), rows)
        files.write_csv(
            os.path.join(output, "evaluation.csv"), [{"metric": name, **values} for name, values in summary.items()]
        )
        files.write_json(
            os.path.join(output, "evaluation.json"), {"kind": kind, "cases": len(rows), "metrics": summary}
        )
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error


class _How(NamedTuple):
    columns: scored.Columns  # of the references
    resamples: int
    seed: int
    log: Log


def _subjects(ids, how, of_predictions, of_references, *others):
    """The subjects of `ids`, of the first {id: subject} that knows all; where none does, the ids themselves, and `how.log` warns.

    The predictions' come first, unless the references' column of subjects was named.
    """
    known = [of_references, of_predictions] if how.columns.subject else [of_predictions, of_references]
    found = next(
        ([subject_of[id] for id in ids] for subject_of in (*known, *others) if all(map(subject_of.get, ids))), None
    )
    if found is None and how.resamples:
        how.log.warn(
            "intervals are over cases, which are too narrow where a subject has several: "
            "no column `subject` (--subject-column), no folders SUB/SES say whose they are"
        )
    return list(ids) if found is None else found


def _summary(values, n, intervals):
    """{metric: {value, ci_low, ci_high, n}} of {metric: value} and, of some of them, {metric: Interval}."""
    nan = float("nan")
    limits = {name: (intervals[name].low, intervals[name].high) if name in intervals else (nan, nan) for name in values}
    return {
        name: {"value": value, "ci_low": limits[name][0], "ci_high": limits[name][1], "n": n}
        for name, value in values.items()
    }


def _task(how, **section):
    """The task of a config section `task`, whose scores and intervals are those of a run."""
    return tasks.build(
        dataclasses.replace(
            config.Config(), seed=how.seed, task=config.Task(**section), eval=config.Eval(bootstrap=how.resamples)
        )
    )


# ------------------------------------------------------------------------------------------ masks


def _mask_rows(masks, references, predictions_place, references_place, tolerance_mm):
    if not references:
        raise UserError(f"{references_place}: no masks (*.nii.gz) in it")
    learned = scored.learned_by(predictions_place)
    scored.check_same_cases(masks, references, predictions_place, references_place, learned)
    classes = learned.classes
    rows, per_class, predicted, wanted = [], [], set(), set()
    for id in sorted(masks):
        prediction, reference, spacing_mm = scored.read_pair(id, masks[id].path, references[id].path)
        of_case = _labels_in(prediction), _labels_in(reference)
        if classes is not None and max(of_case[1], default=0) >= classes:
            got = ", ".join(str(label) for label in sorted(of_case[1]) if label >= classes)
            raise UserError(
                f"case {id}: {references[id].path}: got the labels {got}, wanted whole numbers below {classes}, the classes of the predictions"
            )
        predicted, wanted = predicted | of_case[0], wanted | of_case[1]
        rows.append(
            {
                "id": id,
                "predicted_voxels": int(np.count_nonzero(prediction)),
                "reference_voxels": int(np.count_nonzero(reference)),
            }
        )
        per_class.append(
            {
                label: metrics.segmentation_metrics(reference == label, prediction == label, spacing_mm, tolerance_mm)
                for label in set.union(*of_case)
            }
        )
    if classes is None and predicted and wanted and not predicted & wanted:
        got, other = (", ".join(map(str, sorted(labels)[:5])) for labels in (wanted, predicted))
        raise UserError(
            f"{references_place}: got masks of the labels {got}, and those of {predictions_place} have {other}: wanted the same classes"
        )
    nothing = np.zeros((8, 8, 8), bool)
    absent = metrics.segmentation_metrics(nothing, nothing, (1.0, 1.0, 1.0), tolerance_mm)
    labels = sorted(predicted | wanted) or [1]
    for row, values in zip(rows, per_class):
        for label in labels:
            ending = "" if labels == [1] else f"_{label}"
            row.update({f"{name}{ending}": value for name, value in values.get(label, absent).items()})
    return rows


def _labels_in(array):
    """The set of what is above 0 in a uint8 array."""
    return set((np.flatnonzero(np.bincount(array.ravel(order="K"), minlength=256)[1:]) + 1).tolist())


def _mean_over_cases(rows, subjects, how):
    """Of each metric the mean over the cases where it is finite, with its interval and the counts of the rest."""
    summary = {}
    for name in [name for name in rows[0] if name not in ("id", "predicted_voxels", "reference_voxels")]:
        values = np.array([row[name] for row in rows], float)
        facts = metrics.summarize(values)
        kept, interval = np.isfinite(values), None
        if kept.any() and how.resamples:
            groups = [subject for subject, keep in zip(subjects, kept) if keep]
            interval = metrics.bootstrap_ci(
                np.mean, values[kept], resamples=how.resamples, seed=how.seed, groups=groups
            )
        summary[name] = {
            "value": facts["mean"],
            "ci_low": interval.low if interval else float("nan"),
            "ci_high": interval.high if interval else float("nan"),
            **{key: facts[key] for key in ("std", "median", "minimum", "maximum", "n", "undefined", "infinite")},
        }
    return summary


# ----------------------------------------------------------------------------------------- tables


def _evaluate_table(table, predictions, references, how):
    there, score = scored.columns_of(table), _score_column(table)
    several = [name.removeprefix("decision_") for name in there if name.startswith("decision_")]
    several = [
        name for name in several if f"probability_{name}" not in there and tasks.multitarget.classes_of(name, there)
    ]
    if score is None and several:
        return _multitarget(table, several, predictions, references, how)
    if score is None and any(name.startswith("probability_") for name in there):
        if how.columns.target is not None:
            raise UserError(
                f"--column: got {how.columns.target}, and {predictions} has several labels, each with its own column"
            )
        return _multilabel(table, predictions, references, how)
    if score is None:
        raise UserError(
            f"{predictions}: got the columns {', '.join(there)[:500]}, wanted id and probability, or id and prediction"
        )
    learned = scored.learned_by(predictions)
    targets, subjects = scored.targets_of(references, table, how.columns, learned, score == "probability", how.log)
    scored.check_same_cases(table, targets, predictions, references, learned)
    ids = sorted(table)
    labels = np.array([targets[id] for id in ids])
    scores = np.array([scored.number(table[id][score], predictions, id) for id in ids])
    rows = [
        {"id": id, "subject": subject, "target": y}
        for id, subject, y in zip(ids, _subjects(ids, how, scored.subjects_of(table), subjects), labels.tolist())
    ]
    if score == "probability":
        return _classification(rows, labels, scores, table, predictions, references, how)
    return _regression(rows, labels, scores, table, predictions, how)


def _classification(rows, labels, scores, table, predictions, references, how):
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{references}: got targets besides 0 and 1 for a table of probabilities")
    decided = "decision" in scored.columns_of(table)
    decisions = scores >= 0.5
    if decided:
        decisions = [scored.zero_or_one(table[row["id"]]["decision"], predictions, row["id"]) for row in rows]
    rows = [
        {**row, "target": int(row["target"]), "probability": p, "decision": int(d)}
        for row, p, d in zip(rows, scores.tolist(), decisions)
    ]
    task = _task(how, type="classification")
    intervals = task.intervals(rows, how.resamples, how.seed) if how.resamples else {}
    summary = _summary(task.score(rows), len(rows), intervals)
    return "classification", rows, {**summary, **_at_half(0 if decided else len(rows), len(rows))}


def _regression(rows, labels, scores, table, predictions, how):
    rows = [{**row, "prediction": p, "error": p - row["target"]} for row, p in zip(rows, scores.tolist())]
    values = metrics.regression_metrics(labels, scores)
    if "corrected" in scored.columns_of(table):
        corrected = [
            scored.number(table[row["id"]]["corrected"], predictions, row["id"], undefined=True) for row in rows
        ]
        rows = [{**row, "corrected": value} for row, value in zip(rows, corrected)]
        # undefined: the correction was fitted to predictions that did not vary
        of_corrected = (
            dict.fromkeys(values, float("nan"))
            if np.isnan(corrected).any()
            else metrics.regression_metrics(labels, np.array(corrected))
        )
        values.update({f"corrected_{name}": value for name, value in of_corrected.items()})
    intervals = _task(how, type="regression").intervals(rows, how.resamples, how.seed) if how.resamples else {}
    return "regression", rows, _summary(values, len(rows), intervals)


def _at_half(count, of):
    """Of the summary: how many decisions were made here, at 0.5, because the table has none."""
    return {"decided_at_half": {"value": count, "n": of}} if count else {}


def _multilabel(table, predictions, references, how):
    """Of several labels: what a run reports of its volumes, and the AUROC of each label."""
    wanted = scored.read_table(
        references, [how.columns.id] if how.columns.id else ("VolumeName", "id"), slice_files.stem, "--id-column"
    )
    columns, named = scored.columns_of(table), scored.columns_of(wanted)
    labels = [name for name in named if f"probability_{name.replace(' ', '_')}" in columns]
    lacking = {name for name in columns if name.startswith("probability_")} - {
        f"probability_{name.replace(' ', '_')}" for name in labels
    }
    if lacking:
        raise UserError(
            f"{references}: got the columns {', '.join(named)[:500]}, and none for {', '.join(sorted(lacking))[:200]} of {predictions}"
        )
    ids = {}  # by the volume's name without suffix
    for id in table:
        if ids.setdefault(slice_files.stem(id), id) != id:
            raise UserError(
                f"{predictions}: got {ids[slice_files.stem(id)]} and {id}, which are one volume, wanted a line for each"
            )
    unknown = [id for name, id in ids.items() if name not in wanted]
    if unknown:
        raise UserError(f"{references}: no line for {unknown[0]} of {predictions} (and for {len(unknown) - 1} more)")
    task = _task(how, type="multilabel", targets=tuple(labels))
    undecided = [name for name in task.names if f"decision_{name}" not in columns]
    common = "threshold" in columns  # the one of all labels together: in the tables of a run
    of_table, of_references = scored.subjects_of(table), scored.subjects_of(wanted, references, how.columns.subject)
    of_predictions, patients = (
        {name: of_table[id] for name, id in ids.items()},
        {name: slice_files.patient_of(name) for name in ids},
    )
    rows = []
    for (key, id), subject in zip(ids.items(), _subjects(list(ids), how, of_predictions, of_references, patients)):
        found = table[id]
        threshold = scored.number(found["threshold"], predictions, id) if common else 0.5
        row = {"id": id, "subject": subject, "scan": None, "threshold": threshold}
        for label, name in zip(labels, task.names):
            target, p = (
                scored.zero_or_one(wanted[key][label], references, f"{id}: {label}"),
                scored.number(found[f"probability_{name}"], predictions, id),
            )
            decision = (
                p >= 0.5
                if name in undecided
                else scored.zero_or_one(found[f"decision_{name}"], predictions, f"{id}: {label}")
            )
            row.update({f"target_{name}": target, f"probability_{name}": p, f"decision_{name}": int(decision)})
        rows.append(row)
    scores = {name: value for name, value in task.score(rows).items() if common or not name.endswith("_common")}
    summary = {name.removeprefix("volume_"): {"value": value, "n": len(rows)} for name, value in scores.items()}
    if how.resamples:
        interval = task.intervals(rows, how.resamples, how.seed)["volume_auroc_macro"]
        summary["auroc_macro"].update(ci_low=interval.low, ci_high=interval.high)
    for row, name in zip(task.tables(rows)["labels"], task.names):
        limits = {f"ci_{end}": row[f"auroc_{end}"] for end in ("low", "high")} if how.resamples else {}
        summary[f"auroc_{name}"] = {"value": row["auroc"], **limits, "n": row["n"], "positives": row["positives"]}
    summary["not_predicted"] = {"value": len(wanted) - len(rows), "n": len(wanted)}
    summary.update(_at_half(len(undecided) * len(rows), len(labels) * len(rows)))
    return "multilabel", [{k: v for k, v in row.items() if k not in ("scan", "threshold")} for row in rows], summary


def _multitarget(table, targets, predictions, references, how):
    """Of one or several targets with a softmax each: what a run reports of them."""
    wanted, asked = scored.read_table(references, (how.columns.id or "id",), flag="--id-column"), how.columns.target
    scored.check_same_cases(table, wanted, predictions, references, scored.learned_by(predictions))
    named = {name.replace(" ", "_"): name for name in scored.columns_of(wanted)}
    if asked is not None:
        if len(targets) > 1 or asked not in named.values():
            raise UserError(
                f"--column: got {asked}, wanted a column of {references} for the one target of {predictions}: {', '.join(targets)}"
            )
        named = {targets[0]: asked}
    lacking = [name for name in targets if name not in named]
    if lacking:
        got = ", ".join(scored.columns_of(wanted))[:500]
        raise UserError(
            f"{references}: got the columns {got}, and none for {', '.join(lacking)[:200]} of {predictions}"
        )
    classes = {name: tasks.multitarget.classes_of(name, scored.columns_of(table)) for name in targets}
    ids, rows = sorted(table), []
    of_references = scored.subjects_of(wanted, references, how.columns.subject)
    for id, subject in zip(ids, _subjects(ids, how, scored.subjects_of(table), of_references)):
        row = {"id": id, "subject": subject}
        for name in targets:
            text = wanted[id][named[name]].replace(" ", "_")
            if text not in classes[name]:
                raise UserError(
                    f"{references}: case {id}: {named[name]}: got {text[:80]!r}, wanted one of the classes {', '.join(classes[name])}"
                )
            decision = scored.number(table[id][f"decision_{name}"], predictions, id)
            if decision not in range(len(classes[name])):
                raise UserError(
                    f"{predictions}: case {id}: decision_{name}: got {decision:g}, wanted the number of a class, below {len(classes[name])}"
                )
            row.update({f"target_{name}": classes[name].index(text), f"decision_{name}": int(decision)})
            columns = [f"probability_{name}_{text}" for text in classes[name]]
            row.update({column: scored.number(table[id][column], predictions, id) for column in columns})
        rows.append(row)
    task = _task(
        how, targets=tuple(targets), classes=max(3, *map(len, classes.values()))
    )  # 3: also one target of two classes has a softmax
    intervals = task.intervals(rows, how.resamples, how.seed) if how.resamples else {}
    return "multitarget", rows, _summary(task.score(rows), len(rows), intervals)


def _score_column(table):
    return next((name for name in ("probability", "prediction") if name in scored.columns_of(table)), None)
