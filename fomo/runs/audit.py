"""The shortcut audit of a finished run: facts of its cases, rivals that know no more, and runs to compare it with.

RUN/audit/audit.json     what evaluation.audit has found, the scores of groups, and those of the other runs
          facts.json     the facts of each case, which are read once
          shuffled_K/    the same network on shuffled labels: a run folder
          other_folds/   the same network with the other kind of folds, by groups or not
"""

import hashlib
import json
import math
import os
from dataclasses import replace

import numpy as np

from .. import metrics, run_folder, tasks
from ..config import UserError, as_user_error, listed, to_dict
from ..config.sections import Audit
from ..data import sources
from ..evaluation import audit
from ..run_folder import RunFolder
from ..training.fold import inspect
from . import units

_BY_GROUPS = ("leave_one_group_out", "fold_column")
_SHOWN = ("value", "low", "high", "gain", "gain_low", "gain_high", "p", "p_chance", "finds")


def columns_of(config, listed):
    """{column: {case id: text or None}} of where cases are from; UserError for audit.columns that are not there."""
    found = {}
    if any(case.group is not None for case in listed):
        found["group"] = {case.id: case.group for case in listed}
    if config.cv.kind == "fold_column":
        found["fold"] = {case.id: case.fold for case in listed}
    asked, targets = list(config.audit.columns), config.task.targets
    if unfit := [name for name in asked if name in targets]:
        raise UserError(f"audit.columns: got {unfit[0]}, which is learned (task.targets), wanted other columns")
    return found | sources.of(config.data).besides(config.data, asked, targets)


def check(config, listed):
    """Raise UserError, before anything is trained, for what the audit of a run cannot do."""
    if not tasks.kind(config).is_audited():
        return
    columns_of(config, listed)
    if config.audit.other_folds:
        _other_folds(config, listed)


def others(config, folder, listed):
    """[(name, Config)] of the runs that audit.shuffled and audit.other_folds ask for, in the audit's folder."""
    if not tasks.kind(config).is_audited() or config.train.mode != "both":
        return []
    plain = replace(
        config,
        output=folder.audit,
        audit=Audit(rivals=False),
        cv=replace(config.cv, final="none", parallel="auto", folds_to_run=()),
        eval=replace(config.eval, saliency=0, stress=False),
    )
    found = []
    for seed in range(1, config.audit.shuffled + 1):
        found.append(replace(plain, name=f"shuffled_{seed}", data=replace(plain.data, shuffle_labels=seed)))
    if config.audit.other_folds:
        kind = _other_folds(config, listed)
        found.append(replace(plain, name="other_folds", cv=replace(plain.cv, kind=kind)))
    return found


def _other_folds(config, listed):
    """The kind of folds that a run is compared with."""
    if config.cv.kind in _BY_GROUPS:
        return "kfold"
    if config.data.groups is not None:
        return _BY_GROUPS[0]
    if all(case.fold is not None for case in listed):
        return _BY_GROUPS[1]
    wanted = "data.groups, or a fold column (data.fold_column)"
    raise UserError(f"audit.other_folds: got true and cases without groups, wanted {wanted}")


def write(config, folder, cases, code, log):
    """Audit a finished RunFolder, with the prepared cases of its folds; code: its version.

    Where nothing that it depends on has changed since the last time, what was found then stands.
    """
    task, recorded = tasks.build(config), folder.recorded()
    if not task.is_audited() or not config.audit.rivals:
        return
    if not all(split["train"] for split in recorded["folds"]):
        return log("audit", left_out="no rivals: there are no training cases that they could learn from")
    inspect(task, cases)
    items = units.units_of(cases)
    results = units.of_results(run_folder.joined([fold.results() for fold in folder.all_folds()]))
    columns = _of_units(columns_of(config, [case.case for case in cases]), items)
    known, splits = _facts(config, folder, items, columns, log), units.of_splits(recorded["folds"], items)
    key = _hash([code, to_dict(config), results.rows, [one.target for one in items], known, columns, splits])
    found = folder.audited()
    fresh = found is None or found.get("key") != key
    if fresh:
        found = {"key": key, "audits": [_audit(*one, known, splits, columns) for one in task.audited(items, results)]}
    found["attention"] = _attention(folder)
    for one in found["audits"]:
        one["runs"] = _scores_of_others(folder, one)
    folder.write_audit(found)
    if fresh:
        _say(found, log)
    else:
        log("audit", kept="nothing that it depends on has changed")


def _hash(content):
    """Of plain values, however many."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _audit(name, task, cases, results, known, splits, columns):
    """What `evaluation.audit` finds of a task, or of a part of it that has this name."""
    found = audit.audit(task, results, cases, known, splits)
    return {"part": name, **found, "groups": audit.by_group(task, results, columns)}


def add_others(folder, log):
    """Put the scores of the other runs, which have ended, into the audit of a RunFolder."""
    if (found := folder.audited()) is not None:
        for one in found["audits"]:
            one["runs"] = _scores_of_others(folder, one)
            _say_others(one, log)
        folder.write_audit(found)


def _of_units(columns, items):
    """{column: {id of a unit: text or None}}: those of its first case."""
    return {name: {one.id: of_case.get(one.parts[0].id) for one in items} for name, of_case in columns.items()}


def _facts(config, folder, items, columns, log):
    """[{kind: {fact: value}}] of each unit; those of its files are kept in the folder."""
    kept, found = folder.facts(), {}
    fresh = [one for one in items if kept.get(one.id, {}).get("key") != one.key()]
    if fresh:
        log("audit", reads="facts of the files", cases=len(fresh))
    todo = {one.id for one in fresh}
    for one in items:
        with as_user_error(f"case {one.id}: audit (audit.rivals=false leaves it out)", (OSError, ValueError)):
            own = one.facts(config.data.channels) if one.id in todo else kept[one.id]["facts"]
        found[one.id] = {"key": one.key(), "facts": own}
    if todo:
        folder.write_facts(found)
    constant = config.cv.kind in _BY_GROUPS  # in each test part: it can tell nothing there
    besides = {} if constant else {f"{name} of the subject": of_unit for name, of_unit in columns.items()}
    return [
        {**found[one.id]["facts"], **{name: {name: of_unit.get(one.id)} for name, of_unit in besides.items()}}
        for one in items
    ]


def _attention(folder):
    """{cases, inside, chance}: means over the cases with a mask whose Grad-CAM maps are stored; None without any."""
    found = []
    for path in (path for fold in folder.all_folds() for path in fold.saliencies()):
        with np.load(path, allow_pickle=False) as stored:
            if "inside" in stored.files and np.isfinite(stored["inside"][0]):
                found.append((float(stored["inside"][0]), float(stored["chance"])))
    if not found:
        return None
    inside, chance = np.mean(found, axis=0).tolist()
    return {"cases": len(found), "inside": inside, "chance": chance}


def _scores_of_others(folder, found):
    """[{name, value, low, high}] of the other runs that are finished; within folds, as the metric says, where it is."""
    several, metric = [], "_".join(filter(None, (found["part"], found["metric"])))
    for name in sorted(os.listdir(folder.audit)) if os.path.isdir(folder.audit) else ():
        inside = RunFolder(os.path.join(folder.audit, name))
        summary = inside.summary() if inside.is_run else None
        if summary is None or len(summary["folds_done"]) < summary["folds"]:
            continue
        measured = summary["metrics"]
        own = measured.get(metric) or measured[metric.removesuffix(metrics.WITHIN)]
        value, low, high = (
            math.nan if own[key] is None else own[key] for key in ("pooled", "pooled_low", "pooled_high")
        )
        several.append({"name": name, "value": value, "low": low, "high": high})
    return several


def _say(found, log):
    """A line for each rival and other run, and a warning for what may be a shortcut."""
    for one in found["audits"]:
        part = {"part": one["part"]} if one["part"] else {}
        values = {name: one[name] for name in ("metric", "value", "low", "high", "cases")}
        log("audit", **part, **values)
        for rival in one["rivals"]:
            log("audit", **part, rival=rival["name"], **{name: rival[name] for name in _SHOWN})
        if one["constant"]:
            log("audit", **part, constant=one["constant"], reason="equal in all cases: no rival is made of it")
        for warning in _warnings(one):
            log.warn((f"{one['part']}: " if one["part"] else "") + warning)
    if found["attention"]:
        log("audit", reads="Grad-CAM inside the masks", **found["attention"])
    for one in found["audits"]:
        _say_others(one, log)


def _warnings(found):
    """Of each rival that is as good as the network; of several answers one line for all that only they show."""
    metric, why = found["metric"], "it may have learned a shortcut, see Shortcuts in the report"
    suspects = [rival for rival in found["rivals"] if rival["finds"] == audit.AS_MUCH]
    for rival in [rival for rival in suspects if rival["name"] != audit.ALL] or suspects:
        reached = f"{metric} {rival['value']:.3g}, the network {found['value']:.3g}"
        yield f"{rival['name']} alone: {reached}: {why}"
    told = [one for one in found["answers"] if one["finds"] == audit.AS_MUCH]
    if told:
        said = (f"{one['name']} by {one['rival']} ({one['rival_value']:.3g}, not {one['value']:.3g})" for one in told)
        yield f"told as well without looking: {listed(said)}: {why}"


def _say_others(found, log):
    metric = found["metric"]
    for run in found["runs"]:
        log("audit", run=run["name"], **{name: run[name] for name in ("value", "low", "high")})
        if run["name"].startswith("shuffled") and "auroc" in metric and run["low"] > 0.5:
            log.warn(f"on shuffled labels the network reaches {metric} {run['value']:.3g}: it has seen the labels")
