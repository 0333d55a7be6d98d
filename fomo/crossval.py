"""Cross-validation: cases -> folds -> one training per fold -> pooled out-of-fold results."""

import datetime
import math
import os
import time

import numpy as np
import torch
import yaml

from . import checkpoint, config as config_module, dist, engine, folds as folds_module, interrupt, metrics, nets, seeds, tables, tasks
from .config import UserError
from .data import cache, sources
from .log import Log


def run(config, dry_run=False, only_folds=None):
    """Cross-validate a config into `<output>/<name>/`; the same call continues a run that was stopped.

    only_folds: the folds (from 1) to run instead of cv.folds_to_run. dry_run: list cases and folds, train nothing.
    """
    engine.make_plan(config)  # the batch must divide over the ranks: fails before anything is touched
    engine.precision(config.train.amp, dist.device())
    dist.init(config.train.timeout_s)
    folder = os.path.join(config.output, config.name)
    log = Log(active=dist.is_main())
    try:
        if not dry_run:
            dist.on_main(lambda: open_run_folder(config, folder))
            log = Log(os.path.join(folder, "log.txt"), active=dist.is_main())
        with interrupt.graceful():
            _run(config, folder, log, dry_run, only_folds)
    except interrupt.Interrupted as error:
        log.warn(f"{error}: everything is saved, the same command continues")
        error.reported = True
        raise
    except Exception as error:  # whatever ends the run stands in its log
        if dist.is_main() and not isinstance(error, dist.OtherRankFailed):
            log.error(" ".join(str(error).split()) or repr(error))
            error.reported = True
        raise
    finally:
        dist.close()


def _run(config, folder, log, dry_run, only_folds):
    log(
        "run",
        name=config.name,
        task=config.task.type,
        folder=folder,
        ranks=dist.world_size(),
        device=str(dist.device()),
        torch=torch.__version__,
        seed=config.seed,
    )
    task = tasks.build(config)
    listed = dist.on_main(lambda: sources.list_cases(config.data, config.task))
    log("data", source=config.data.source, cases=len(listed), subjects=len({case.subject for case in listed}))
    if dry_run:
        return _dry_run(config, task, listed, log)
    splits = dist.on_main(lambda: read_or_make_splits(config, task, listed, os.path.join(folder, "splits.json")))
    wanted = only_folds or config.cv.folds_to_run or range(1, len(splits) + 1)
    if max(wanted) > len(splits):
        raise UserError(f"cv.folds_to_run: got {max(wanted)}, wanted folds from 1 to {len(splits)}")
    log("split", folds=len(splits), run=list(wanted), kind=config.cv.kind, seed=config.seed)
    cases = dist.on_main(lambda: cache.prepare(listed, config.data, config.task, log))
    by_id = {case.case.id: case for case in cases}
    for number in wanted:
        run_fold(config, number, splits[number - 1], by_id, os.path.join(folder, f"fold_{number}"), log.bind(fold=number))
    dist.on_main(lambda: aggregate(config, folder, splits, log))


def _dry_run(config, task, listed, log):
    splits = make_splits(config, task, listed)
    network = build_network(config, task, 0)
    parameters = sum(p.numel() for p in network.parameters())
    log("run", model=config.model.name, parameters=parameters, tensors=len(network.state_dict()), dry_run=True)
    if dist.is_main():
        print(yaml.safe_dump(config_module.to_dict(config), sort_keys=False), end="")
        for case in listed:
            print(f"case id={case.id} subject={case.subject} target={case.target} group={case.group}")
        for number, split in enumerate(splits, 1):
            print(f"fold {number}: " + " ".join(f"{part}={len(ids)}" for part, ids in split.items()))


# ------------------------------------------------------------------------------------- run folder


def open_run_folder(config, folder):
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


# ------------------------------------------------------------------------------------------ folds


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


def build_network(config, task, fold):
    """The network with weights that depend on the seed and the fold only."""
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(config.seed, "initialise", fold))
        return nets.build(
            model.name,
            len(config.data.channels),
            task.out_channels,
            mode=task.mode,
            width=model.width,
            deep_supervision=model.deep_supervision,
        )


def run_fold(config, number, split, by_id, folder, log):
    """Train, select on val, report on test; nothing to do when the fold is finished."""
    results_path = os.path.join(folder, "results.csv")
    parts = {part: [by_id[case_id] for case_id in ids] for part, ids in split.items()}
    log("fold", **{part: len(cases) for part, cases in parts.items()}, finished=os.path.exists(results_path))
    if dist.on_main(lambda: os.path.exists(results_path)):
        return
    start = time.perf_counter()
    dist.on_main(lambda: os.makedirs(os.path.join(folder, "masks") if config.task.type == "segmentation" else folder, exist_ok=True))
    task = tasks.build(config)
    task.fit(parts["train"])
    network = build_network(config, task, number)
    if config.weights.path is not None:
        weights = config.weights
        report = dist.together(
            lambda: checkpoint.load_weights(network, weights.path, stem=weights.stem, trust=weights.trust)
        )
        log("weights", **report.counts(), path=weights.path)
    engine.fit(config, task, network, parts["train"], parts["val"], folder, number, log)

    # ---- the best epoch: calibrated on val, reported on test
    best_path = os.path.join(folder, "best.pt")
    best = checkpoint.load(best_path)
    network.load_state_dict(best["model"])
    task.state = best["task"]
    task.calibrate(engine.evaluate(config, task, network, parts["val"]))
    dist.on_main(lambda: checkpoint.save(best_path, {**best, "task": task.state}))
    rows = engine.evaluate(config, task, network, parts["test"], folder)
    rows = [{"id": row["id"], "subject": row["subject"], "fold": number, **row} for row in rows]
    scores = task.score(rows)
    empty = scores.get("empty_predictions", 0)
    if empty:
        log.warn("predicted masks are empty", cases=empty, of=len(rows))
    if dist.is_main():
        tables.write_csv(os.path.join(folder, "predictions.csv"), rows)
        tables.write_csv(results_path, [{"metric": name, "value": value} for name, value in scores.items()])
    log("fold", finished=True, epoch=best["epoch"], **scores, seconds=time.perf_counter() - start)


# ---------------------------------------------------------------------------------------- results


def aggregate(config, folder, splits, log):
    """Tables over the finished folds: each fold, mean and spread over the folds, and all out-of-fold cases together."""
    task = tasks.build(config)
    rows, fold_rows = [], []
    for number, split in enumerate(splits, 1):
        fold_folder = os.path.join(folder, f"fold_{number}")
        if not os.path.exists(os.path.join(fold_folder, "results.csv")):
            continue
        fold_part = [_parse(row) for row in tables.read_csv(os.path.join(fold_folder, "predictions.csv"))]
        if [row["id"] for row in fold_part] != sorted(split["test"]):
            raise UserError(f"{fold_folder}/predictions.csv does not hold the fold's test cases: delete {fold_folder} and run again")
        fold_rows.append({"fold": number, "cases": len(fold_part), **task.score(fold_part)})
        rows += fold_part
    pooled = task.score(rows)
    intervals = task.intervals(rows, config.eval.bootstrap, config.seed) if config.eval.bootstrap else {}
    aggregated = []
    for name in pooled:
        values = np.array([row.get(name, math.nan) for row in fold_rows], float)
        defined = values[np.isfinite(values)]
        over_folds = metrics.t_interval(values)
        aggregated.append(
            {
                "metric": name,
                "mean": defined.mean() if len(defined) else math.nan,
                "std": defined.std(ddof=1) if len(defined) > 1 else math.nan,
                "ci_low": over_folds.low,
                "ci_high": over_folds.high,
                "folds": len(defined),
                "pooled": pooled[name],
                "pooled_low": intervals[name].low if name in intervals else math.nan,
                "pooled_high": intervals[name].high if name in intervals else math.nan,
                "cases": len(rows),
            }
        )
    rows.sort(key=lambda row: row["id"])
    tables.write_csv(os.path.join(folder, "predictions.csv"), rows)
    tables.write_csv(os.path.join(folder, "fold_results.csv"), fold_rows)
    tables.write_csv(os.path.join(folder, "aggregated_results.csv"), aggregated)
    summary = {
        "name": config.name,
        "task": config.task.type,
        "finished": datetime.datetime.now().isoformat(timespec="seconds"),
        "folds_done": [row["fold"] for row in fold_rows],
        "folds": len(splits),
        "cases": len(rows),
        "headline": task.select,
        "metrics": {row["metric"]: {k: v for k, v in row.items() if k != "metric"} for row in aggregated},
    }
    tables.write_json(os.path.join(folder, "summary.json"), summary)
    shown = {}
    for name in dict.fromkeys([task.select, *intervals]):
        shown[name] = pooled[name]
        if name in intervals:
            shown[f"{name}_low"], shown[f"{name}_high"] = intervals[name].low, intervals[name].high
    log("cv", folds=len(fold_rows), of=len(splits), cases=len(rows), **shown)


def _parse(row):
    return {name: value if name in ("id", "subject") else float(value) for name, value in row.items()}
