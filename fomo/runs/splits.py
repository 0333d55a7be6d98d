"""The run folder: whose it is (config.yaml), who is in which fold (splits.json), and which folds are finished."""

import os

import yaml

from . import config as config_module
from . import folds as folds_module
from .config import UserError
from .runtime import files


def results_path(folder, number):
    """results.csv of a fold: written last, it says that the fold is finished."""
    return os.path.join(folder, f"fold_{number}", "results.csv")


def open_folder(config, folder, log):
    """Create the run folder, or accept one that was begun by the same config; any other is left alone.

    Returns a file that keeps other processes out of it as long as it is open.
    """
    path = os.path.join(folder, "config.yaml")
    there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if there - {_LOCK} and "config.yaml" not in there:
        raise UserError(f"{folder} exists and is not a run folder (no config.yaml): choose another `name` or `output`")
    try:
        os.makedirs(folder, exist_ok=True)
        held = _lock(folder, log)
        if "splits.json" not in there:  # nothing is begun, whatever config came first
            files.write_text(path, yaml.safe_dump(config_module.to_dict(config), sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error}; choose another `output`") from error
    old, new = config_module.identity(config_module.load(path)), config_module.identity(config)
    changed = [f"{name}={old.get(name)!r} there, {new[name]!r} now" for name in new if old.get(name) != new[name]]
    if changed:
        raise UserError(
            f"{folder} holds a run of another config ({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): "
            "choose another `name`, or restore the keys to continue that run"
        )
    return held


_LOCK = ".lock"


def _lock(folder, log):
    path = os.path.join(folder, _LOCK)
    file = open(path, "a")
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: flock's would live on in its workers
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f"{folder}: another process is training into it: wait for it, or stop it (if it was on a machine that died, delete {path})"
        ) from error
    except (ImportError, OSError) as error:
        log.warn(f"{path}: no locks here ({error}): do not start this run twice at once")
    return file


def has_one_split(config):
    """Whether the config names the parts itself, or has nothing to test (pretraining): train.py runs it, cv.py can't."""
    return config.task.pretrains or _names_folds(config)


def _names_folds(config):
    return bool(config.data.train_folds or config.data.val_folds or config.data.test_folds)


def _by_fold_column(config):
    return config.cv.kind == "fold_column" or _names_folds(config)


def make_splits(config, task, cases):
    """[{train, val, test} of ids per fold]: stratified, grouped by subject, checked for overlap."""
    cv, seed, kind = config.cv, config.seed, task.stratum_kind
    try:
        if has_one_split(config):
            return [_one_split(config, task, cases)]
        ids, subjects, strata = _columns(config, task, cases)
        if cv.kind == "kfold":
            splits = folds_module.kfold(ids, subjects, strata, cv.folds, cv.val_fraction, seed, kind=kind)
        else:
            groups = [case.group for case in cases] if cv.kind == "leave_one_group_out" else _fold_values(config, cases)
            splits = folds_module.leave_one_group_out(ids, subjects, groups, strata, cv.val_fraction, seed, kind=kind)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        remedy = "; lower cv.folds, or set cv.stratify=false" if cv.stratify and cv.kind == "kfold" else ""
        raise UserError(f"cv: {error}{remedy}") from error
    check_splits(config, splits, cases)
    return splits


def check_splits(config, splits, cases):
    """ValueError for parts that are empty or overlap, in ids or in subjects, and for cases without a part."""
    subject_of = {case.id: case.subject for case in cases}
    if has_one_split(config):
        folds_module.check_split(splits[0], subject_of)
    else:
        folds_module.check(splits, subject_of)


def _columns(config, task, cases):
    """(ids, subjects, strata) of cases."""
    strata = task.strata(cases)
    if not config.cv.stratify:
        strata = [(0,) if task.stratum_kind == "multilabel" else 0] * len(cases)
    return [case.id for case in cases], [case.subject for case in cases], strata


def _one_split(config, task, cases):
    data, parts = config.data, {"val": (), "test": ()}
    if _names_folds(config):
        values = dict(zip([case.id for case in cases], _fold_values(config, cases)))
        asked = {"train": data.train_folds, "val": data.val_folds, "test": data.test_folds}
        for part, folds in asked.items():
            unknown = sorted(set(folds) - set(values.values()))
            if unknown:
                there = ", ".join(sorted(set(values.values())))
                raise UserError(f"data.{part}_folds: got '{unknown[0]}', wanted values of the fold column: {there}")
        parts = {part: [name for name, fold in values.items() if fold in asked[part]] for part in parts}
        if data.train_folds:  # cases of folds that are named nowhere are left out
            named = {*data.train_folds, *data.val_folds, *data.test_folds}
            cases = [case for case in cases if case.fold in named]
    if config.task.pretrains:
        ids, subjects, strata = [case.id for case in cases], [case.subject for case in cases], None
    else:
        ids, subjects, strata = _columns(config, task, cases)
    return folds_module.holdout(
        ids, subjects, strata, config.cv.val_fraction, config.seed, kind=task.stratum_kind, **parts
    )


def _fold_values(config, cases):
    values = [case.fold for case in cases]
    if None in values:
        raise UserError(
            f"data.source={config.data.source}: the cases have no fold, wanted a fold column (data.fold_column) "
            "for data.*_folds and cv.kind=fold_column"
        )
    return values


def read_or_make_splits(config, task, cases, path):
    """The splits of splits.json, made and written there the first time; they are never reused for other cases."""
    now = {case.id: {"subject": case.subject, "target": _plain(case.target)} for case in cases}
    for case in cases:
        if case.labels:  # a class that is renamed may keep its number
            now[case.id]["labels"] = list(case.labels)
    for name, decides in (("group", config.cv.kind == "leave_one_group_out"), ("fold", _by_fold_column(config))):
        for case in cases if decides else ():
            now[case.id][name] = getattr(case, name)
    if not os.path.exists(path):
        splits = make_splits(config, task, cases)
        files.write_json(path, {"cases": now, "folds": splits})
        return splits
    saved = files.read_json(path, "cases", "folds")
    if not any("labels" in case for case in saved["cases"].values()):  # begun before they were kept
        for case in now.values():
            case.pop("labels", None)
    if saved["cases"] != now:
        changed = sorted(i for i in saved["cases"].keys() | now.keys() if saved["cases"].get(i) != now.get(i))
        raise UserError(
            f"{path} was made for other cases ({len(changed)} differ: {', '.join(changed[:5])}): "
            "restore the data to continue this run, or choose another `name`"
        )
    try:
        check_splits(config, saved["folds"], cases)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return saved["folds"]


def warn_of_changed_images(path, entries, log):
    """entries: {id: name of the cache entry}, which says what a case was made from. splits.json keeps those of the first start."""
    saved = files.read_json(path)
    if "entries" not in saved:
        files.write_json(path, {**saved, "entries": entries})
        return
    changed = [case_id for case_id, entry in entries.items() if saved["entries"][case_id] != entry]
    if changed:
        log.warn(
            "files of cases were replaced or moved since this run began, and finished folds have seen the old ones",
            cases=len(changed),
            example=changed[0],
        )


def _plain(target):
    return list(target) if isinstance(target, tuple) else target  # as JSON gives it back
