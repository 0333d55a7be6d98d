"""Who is in which part of which fold: made once, kept in splits.json, and never used for other cases."""

from .. import folds as folds_module
from .. import tasks
from ..config import UserError, as_user_error
from ..data import cache
from ..runtime import files


def has_one_split(config):
    """Whether train.py runs the config, and cv.py can't: it names the parts itself, or has nothing to test."""
    return tasks.kind(config).pretrains or _names_folds(config)


def _names_folds(config):
    return bool(config.data.train_folds or config.data.val_folds or config.data.test_folds)


def make_splits(config, task, cases):
    """[{train, val, test} of ids per fold]: stratified, grouped by subject, checked for overlap."""
    cv, seed, kind = config.cv, config.seed, _kind(config, task)
    try:
        if has_one_split(config):
            return [_one_split(config, task, cases)]
        ids, subjects, strata = _columns(config, task, cases)
        if cv.kind == "kfold":
            splits = folds_module.kfold(ids, subjects, strata, cv.folds, cv.val_fraction, seed, kind=kind)
        else:
            groups = [case.group for case in cases] if cv.kind == "leave_one_group_out" else _fold_values(config, cases)
            splits = folds_module.leave_one_group_out(ids, subjects, groups, strata, cv.val_fraction, seed, kind=kind)
    except UserError:
        raise
    except ValueError as error:
        remedy = "; lower cv.folds, or set cv.stratify=false" if cv.stratify and cv.kind == "kfold" else ""
        raise UserError(f"cv: {error}{remedy}") from error
    check_splits(config, splits, cases)
    return splits


def check_parts(config, task, splits, cases):
    """UserError where the labels of a part are too few to learn from, before any image is prepared."""
    if config.train.mode == "evaluate" or task.pretrains:
        return
    by_id = {case.id: case for case in cases}
    wanted = [1] if has_one_split(config) else config.cv.folds_to_run or range(1, len(splits) + 1)
    for number in wanted:
        if number <= len(splits):
            train, val = ([by_id[case_id] for case_id in splits[number - 1][part]] for part in ("train", "val"))
            try:
                task.check_parts(train, val)
            except UserError as error:
                raise UserError(f"fold {number}: {error}") from error


def why_not(config, cases):
    """Why the folds of a config cannot be learned from, in words; None where they can, or where there are none."""
    task = tasks.build(config)
    try:
        task.inspect(cases)
        splits = make_splits(config, task, cases)
    except UserError:  # which the run meets, too
        return None
    try:
        check_parts(config, task, splits, cases)
    except UserError as error:
        return str(error)
    return None


def check_splits(config, splits, cases):
    """ValueError for parts that are empty or overlap, in ids or in subjects, and for cases without a part."""
    subject_of = {case.id: case.subject for case in cases}
    if has_one_split(config):
        folds_module.check_split(splits[0], subject_of)
    else:
        folds_module.check(splits, subject_of)


def _columns(config, task, cases):
    """(ids, subjects, strata) of cases."""
    if task.pretrains:  # there are no labels to balance
        strata = None
    elif config.cv.stratify:
        strata = task.strata(cases)
    else:
        strata = [(0,) if task.stratum_kind == "multilabel" else 0] * len(cases)
    return [case.id for case in cases], [case.subject for case in cases], strata


def _kind(config, task):
    """The kind of the strata of `_columns`."""
    numbered = task.stratum_kind == "class_and_number"
    return "class" if numbered and not config.cv.stratify else task.stratum_kind


def _one_split(config, task, cases):
    data, parts = config.data, {"val": (), "test": ()}
    if _names_folds(config):
        there = set(_fold_values(config, cases))
        asked = {"train": data.train_folds, "val": data.val_folds, "test": data.test_folds}
        for part, folds in asked.items():
            unknown = sorted(set(folds) - there)
            if unknown:
                wanted = f"wanted values of the fold column: {', '.join(sorted(there))}"
                raise UserError(f"data.{part}_folds: got '{unknown[0]}', {wanted}")
        parts = {part: [case.id for case in cases if case.fold in asked[part]] for part in parts}
        if data.train_folds:  # cases of folds that are named nowhere are left out
            cases = [case for case in cases if any(case.fold in folds for folds in asked.values())]
    columns = _columns(config, task, cases)
    return folds_module.holdout(*columns, config.cv.val_fraction, config.seed, kind=_kind(config, task), **parts)


def _fold_values(config, cases):
    values = [case.fold for case in cases]
    if None in values:
        wanted = "wanted a fold column (data.fold_column) for data.*_folds and cv.kind=fold_column"
        raise UserError(f"data.source={config.data.source}: the cases have no fold, {wanted}")
    return values


def read_or_make_splits(config, task, cases, folder):
    """The splits of a RunFolder, made and written there the first time; UserError if they are of other cases."""
    now = {case.id: _facts(config, case) for case in cases}
    if not folder.has_splits:
        splits = make_splits(config, task, cases)
        check_parts(config, task, splits, cases)  # before they are kept: the next start may have other keys
        _check_begun(folder, splits)
        folder.record(cases=now, folds=splits)
        return splits
    saved = folder.recorded()
    if not any("labels" in case for case in saved["cases"].values()):  # begun before they were kept
        for case in now.values():
            case.pop("labels", None)
    if saved["cases"] != now:
        changed = sorted(i for i in saved["cases"].keys() | now.keys() if saved["cases"].get(i) != now.get(i))
        differ = f"{len(changed)} differ: {', '.join(changed[:5])}"
        remedy = "restore the data to continue this run, or choose another `name`"
        raise UserError(f"{folder.splits_path} was made for other cases ({differ}): {remedy}")
    with as_user_error(folder.splits_path, ValueError):
        check_splits(config, saved["folds"], cases)
    check_parts(config, task, saved["folds"], cases)
    _check_begun(folder, saved["folds"])
    return saved["folds"]


def _check_begun(folder, splits):
    """Refuse splits that are not those with which the folds have begun that are in a RunFolder."""
    for fold in (fold for fold in folder.folds() if 0 < fold.number <= len(splits)):
        begun, split = fold.split(), splits[fold.number - 1]
        changed = [] if begun is None else [part for part in split if begun.get(part) != split[part]]
        if changed:
            got = f"{folder.splits_path}: fold {fold.number} has begun with other cases in {' and '.join(changed)}"
            raise UserError(f"{got}: restore the file to continue, or delete {fold.path} to train it anew")


def _facts(config, case):
    """What must stay as it is while a run goes on, as JSON gives it back."""
    target = list(case.target) if isinstance(case.target, tuple) else case.target
    facts = {"subject": case.subject, "target": target}
    if case.labels:  # a class that is renamed may keep its number
        facts["labels"] = list(case.labels)
    if config.cv.kind == "leave_one_group_out":
        facts["group"] = case.group
    if config.cv.kind == "fold_column" or _names_folds(config):
        facts["fold"] = case.fold
    return facts


def warn_of_changed_code(folder, code, log):
    """Warn where a run that has begun goes on with another version of the code."""
    saved = folder.recorded()
    if "code" not in saved:
        folder.record(**saved, code=code)
    elif saved["code"] != code and folder.folds():
        said = "the code has changed since this run began: its folds are of different versions"
        log.warn(said, then=saved["code"], now=code)


def warn_of_changed_weights(folder, path, log):
    """Warn where the file that folds start from has another content than at the first start; path: None without one."""
    if path is None:
        return
    saved, now = folder.recorded(), files.sha256(path)
    if "weights" not in saved:
        folder.record(**saved, weights=now)
    elif saved["weights"] != now:
        log.warn("weights.path has changed since this run began: its folds start from different weights", path=path)


def warn_of_changed_images(folder, cases, log):
    """Warn where prepared cases have other voxels than at the first start, wherever their files lie now."""
    images = {case.id: cache.voxels(case.checksums) for case in cases if getattr(case, "checksums", ())}
    if not images:
        return
    saved = folder.recorded()
    if "images" not in saved:
        return folder.record(**saved, images=images)
    changed = [case_id for case_id, voxels in images.items() if saved["images"][case_id] != voxels]
    if changed:
        what = "files of cases have changed since this run began, and finished folds have seen the old ones"
        log.warn(what, cases=len(changed), example=changed[0])
