"""The run folder: whose it is (config.yaml), who is in which fold (splits.json), and which folds are finished."""

import os

import yaml

from . import config as config_module
from . import folds as folds_module
from . import tables
from .config import UserError


def results_path(folder, number):
    """results.csv of a fold: written last, it says that the fold is finished."""
    return os.path.join(folder, f"fold_{number}", "results.csv")


def open_folder(config, folder):
    """Create the run folder, or accept one that was made by the same config; any other is left alone."""
    path = os.path.join(folder, "config.yaml")
    if os.path.exists(path):
        old, new = config_module.identity(config_module.load(path)), config_module.identity(config)
        changed = [f"{name}={old.get(name)!r} there, {new[name]!r} now" for name in new if old.get(name) != new[name]]
        if changed:
            raise UserError(
                f"{folder} holds a run of another config ({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): "
                "choose another `name`, or restore the keys to continue that run"
            )
        return
    if os.path.isdir(folder) and os.listdir(folder):
        raise UserError(f"{folder} exists and is not a run folder (no config.yaml): choose another `name` or `output`")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            yaml.safe_dump(config_module.to_dict(config), file, sort_keys=False)
        os.replace(path + ".tmp", path)
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error}; choose another `output`") from error


def make_splits(config, task, cases):
    """[{train, val, test} of ids per fold]: stratified, grouped by subject, checked for overlap."""
    ids = [case.id for case in cases]
    subjects = [case.subject for case in cases]
    cv = config.cv
    strata = [case.target if task.stratum_kind == "continuous" else int(case.target) for case in cases]
    if not cv.stratify:
        strata = [0] * len(cases)
    try:
        if cv.kind == "leave_one_group_out":
            groups = [case.group for case in cases]
            splits = folds_module.leave_one_group_out(
                ids, subjects, groups, strata, cv.val_fraction, config.seed, kind=task.stratum_kind
            )
        else:
            splits = folds_module.kfold(
                ids, subjects, strata, cv.folds, cv.val_fraction, config.seed, kind=task.stratum_kind
            )
    except ValueError as error:
        remedy = "; lower cv.folds, or set cv.stratify=false" if cv.stratify else ""
        raise UserError(f"cv: {error}{remedy}") from error
    folds_module.check(splits, dict(zip(ids, subjects)))
    return splits


def read_or_make_splits(config, task, cases, path):
    """The splits of splits.json, made and written there the first time; they are never reused for other cases."""
    now = {case.id: {"subject": case.subject, "target": case.target} for case in cases}
    if not os.path.exists(path):
        splits = make_splits(config, task, cases)
        tables.write_json(path, {"cases": now, "folds": splits})
        return splits
    saved = tables.read_json(path)
    if saved["cases"] != now:
        changed = sorted(i for i in saved["cases"].keys() | now.keys() if saved["cases"].get(i) != now.get(i))
        raise UserError(
            f"{path} was made for other cases ({len(changed)} differ: {', '.join(changed[:5])}): "
            "restore the data to continue this run, or choose another `name`"
        )
    try:
        folds_module.check(saved["folds"], {case.id: case.subject for case in cases})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return saved["folds"]
