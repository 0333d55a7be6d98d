"""Predictions against references, both from files: masks in two folders, or tables."""

import math
import os

from .. import config, metrics, tasks
from ..config import UserError, as_user_error
from ..runtime import files
from ..runtime.log import Log
from ..tasks import Results
from . import masks, places, tables
from .places import Columns

_USUAL = Columns()
COVERS = "ci_low to ci_high: 95%, about the models that answered (of several folds their mean) on new cases like these"


def evaluate(
    predictions,
    references,
    tolerance_mm=1.0,
    resamples=1000,
    seed=0,
    columns=_USUAL,
    log=None,
    challenge=None,
    part=None,
):
    """(kind, rows, summary): the task's name, per-case rows and {metric: {...}} of whatever the two places hold.

    predictions: what tools/predict.py wrote, a run folder, a folder of masks, or a table. The task that made them says
        how the references are read; where neither settings.json nor a run names it, the columns do.
    references: a folder of masks or of label.txt files (ID.nii.gz, or SUB/SES/seg.nii.gz and SUB/SES/label.txt for the
        case SUB_SES; SUB/label.txt for all of SUB), a data set with such folders `labels` and `labels_masked`, or a CSV
        with the columns id and target (or what the networks learned, or else label, or age), or those that `columns`
        names. Classes are 0 and 1, or as the networks call them; a mask with a voxel above 0 stands for class 1.
        For masks: a CSV with the columns id and mask, or the target of `columns`: paths that start from its folder.
        For several labels (probability_LABEL): a CSV of VolumeName (or id) and a column of 0 and 1 per label. Its
        further volumes are counted in the summary's `not_predicted`.
        For several targets (decision_TARGET, probability_TARGET_CLASS): one of id and class names, a column per target.
    log: a runtime.log.Log, or None.
    part: of several tasks on one encoder (task.type=multitask) the one that is scored, as if it were alone.
    challenge: a name of `metrics.CHALLENGES`: masks are scored as there, too, in columns that begin with it.

    Missing and extra cases, masks on another grid and references of other classes are a UserError. Decisions that a
    table of probabilities lacks are made at 0.5: the summary's `decided_at_half` counts them. Intervals are over the
    subjects: of a column `subject` of either table, or the folders SUB, or the patients in the names of CT volumes.
    Where none of these knows all, they are over the cases, and the log warns.
    The column `missing` of predictions, of channels that a case lacks, stays, and `lacking_a_channel` counts them.
    """
    _check_options(references, tolerance_mm, resamples, columns)
    known, log = places.known_of(predictions), Log(active=False) if log is None else log
    table, found = places.table_of(predictions), places.masks_of(predictions)
    if part is not None or known.parts:
        known, table, found = _of_part(part, known, table, found, predictions)
    request = places.Request(predictions, references, columns, known, tolerance_mm, resamples, log, challenge)
    if found and table and tables.first_scored(table):
        raise UserError(f"{predictions}: holds masks and a table of numbers, wanted one of them")
    if not found and table is None:
        raise UserError(f"{predictions}: no masks (*.nii.gz) and no predictions.csv in it")
    if challenge and not found:
        log("evaluate", challenge=challenge, own_metrics="none", meant="of tables it has the same as this project")
    section, rows, counts = masks.pair(found, table, request) if found else tables.pair(table, request)
    counts |= _lacking(table, rows, log)
    rows = _with_folds(table, rows)
    task = tasks.build(config.Config(seed=seed, task=section, eval=config.Eval(bootstrap=resamples)))
    summarize, hidden = _SUMMARIES.get(task.reads, (_of_targets, None))
    with as_user_error(predictions, ValueError):  # of the metrics
        scores = task.score(Results(rows))
        summary = summarize(task, rows, scores, task.intervals_of(scores, Results(rows), resamples, seed))
    shown = [{name: value for name, value in row.items() if name != hidden} for row in rows]
    return type(task).__name__.lower(), shown, {**summary, **counts}


def _of_part(part, known, table, found, predictions):
    """(Known, Table, masks) of one of several tasks."""
    if part not in known.parts:
        wanted = f"one of {', '.join(known.parts)}" if known.parts else "none: they are of one task"
        raise UserError(f"--part: got {part or 'none'}, wanted {wanted} for {predictions}")
    own = known.parts[part]
    return own, table.of_part(part) if table else None, found if own.reads == "mask" else {}


def _with_folds(table, rows):
    """The rows with the fold whose model has predicted each, where the table says it of all: as that of a run does."""
    folds = {} if table is None else {id: cells.get("fold") for id, cells in table.cells.items()}
    known = all(folds.get(row["id"]) for row in rows)
    return [{**row, "fold": folds[row["id"]]} for row in rows] if known else rows


def _lacking(table, rows, log):
    """Of the summary: how many cases were answered without an optional channel; their rows and the log say which."""
    if table is None or "missing" not in table.columns:
        return {}
    for row in rows:
        row["missing"] = table.cells[row["id"]]["missing"] if row["id"] in table.cells else ""
    count = sum(bool(row["missing"]) for row in rows)
    if count:
        log.warn("cases were answered without an optional channel", cases=count, of=len(rows))
    return {"lacking_a_channel": {"value": count, "n": len(rows)}}


def write(kind, rows, summary, output):
    """Write evaluation_cases.csv, evaluation.csv and evaluation.json into the folder `output`."""
    path = os.path.join(output, "evaluation")
    with as_user_error(f"cannot write to {output}"):
        os.makedirs(output, exist_ok=True)
        files.write_csv(f"{path}_cases.csv", rows)
        files.write_csv(f"{path}.csv", [{"metric": name, **values} for name, values in summary.items()])
        content = {"kind": kind, "cases": len(rows), "intervals": COVERS, "metrics": summary}
        files.write_json(f"{path}.json", content)


def printed(values):
    """The values of a metric that are there; one without an interval has no limits to print."""
    return {k: v for k, v in values.items() if not (k in ("ci_low", "ci_high") and math.isnan(v))}


def _check_options(references, tolerance_mm, resamples, columns):
    if resamples < 0:
        raise UserError(f"--bootstrap: got {resamples}, wanted 0 (no intervals) or more")
    if not 0 <= tolerance_mm < math.inf:
        raise UserError(f"--tolerance-mm: got {tolerance_mm:g}, wanted a number of mm, 0 or more")
    for flag, name in zip(("--column", "--id-column", "--subject-column"), columns):
        if name is not None and not os.path.isfile(references):
            raise UserError(f"{flag}: got {name}, and {references} is no table to have one")


def _limits(interval):
    return {"ci_low": interval.low if interval else math.nan, "ci_high": interval.high if interval else math.nan}


def _of_targets(task, rows, scores, intervals):
    return {name: {"value": value, **_limits(intervals.get(name)), "n": len(rows)} for name, value in scores.items()}


def _of_masks(task, rows, scores, intervals):
    """Of each metric the mean over the cases where it is finite, its interval, the spread and the other counts."""
    summary = {}
    for name in filter(rows[0].__contains__, scores):
        facts = metrics.summarize([row[name] for row in rows])
        spread = {key: facts[key] for key in ("std", "median", "minimum", "maximum", "n", "undefined", "infinite")}
        summary[name] = {"value": facts["mean"], **_limits(intervals.get(name)), **spread}
    return summary


def _of_labels(task, rows, scores, intervals):
    """What a run reports of its volumes, and the AUROC of each label."""
    summary = {}
    for name, value in scores.items():
        limits = _limits(intervals[name]) if name in intervals else {}
        summary[name.removeprefix("volume_")] = {"value": value, "n": len(rows), **limits}
    for line in task.tables(Results(rows)).get("labels", ()):
        limits = {f"ci_{end}": line[f"auroc_{end}"] for end in ("low", "high") if f"auroc_{end}" in line}
        values = {"value": line["auroc"], **limits, "n": line["n"], "positives": line["positives"]}
        summary[f"auroc_{line['label'].replace(' ', '_')}"] = values
    return summary


_SUMMARIES = {"mask": (_of_masks, "subject"), "flags": (_of_labels, "threshold")}  # and the column that is not shown
