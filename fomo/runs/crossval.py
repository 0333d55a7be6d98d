"""Cross-validation: cases -> folds -> one training per fold -> pooled out-of-fold results."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import math
import os
import time

import torch

from .. import kinds, report, tasks
from ..config import UserError, fingerprint, one_line, to_dict
from ..data import cache, listing, loader, sources
from ..data.cases import looks_at_files
from ..evaluation import stress as evaluation_stress
from ..run_folder import RunFolder
from ..runtime import dist, interrupt
from ..runtime.log import Log, format_value
from ..runtime.progress import Progress
from ..training import optimization, tracking, views
from ..training.evaluate import evaluate
from ..training.fold import build_network, inspect, load_fold, start_from, train_fold, with_patch_that_fits
from ..training.step import make_plan
from . import audit, interim, maps, pooled, stress
from .final import make_final
from .splits import (
    check_parts,
    has_one_split,
    make_splits,
    read_or_make_splits,
    warn_of_changed_code,
    warn_of_changed_images,
    warn_of_changed_weights,
    why_not,
)

_SAVING_S = 25  # torchrun kills 30 s after it was told to stop
_ALONE_VOXELS = 10e6  # of one forward pass: two whole brains at 1 mm, some 10 GB for UNet-B in bf16


def run(config, dry_run=False, one_split=False):
    """Cross-validate a config into `<output>/<name>/`; the same call continues a run that was stopped.

    one_split: only the split that the config names (data.*_folds; pretraining has no other), or else the first fold.
    dry_run: list cases and folds, train nothing.
    """
    check(config, one_split)
    folder = RunFolder(os.path.join(config.output, config.name))
    if dist.is_main() and not dry_run:
        folder.check_free()  # before this process waits for others: they may be those of the run that goes on
    with in_group(config.train.timeout_s) as logs:
        config, decided = dist.on_main(lambda: kinds.settle(config, why_not))  # before the folder takes it for its own
        if not dry_run:
            held = []  # the folder, by the main rank, until this call ends
            dist.on_main(lambda: held.append(folder.claim(config, logs[-1])))
            logs.append(Log(folder.log_path, active=dist.is_main()))
        for event, what in decided.items():
            say = logs[-1].warn if event == "warn" else functools.partial(logs[-1], event)
            say(**what)
        with loader.explained():
            _run(config, folder, logs[-1], dry_run, one_split)


@contextlib.contextmanager
def in_group(timeout_s):
    """The process group while this lasts: a list of Logs, the last of which says what ends it, once for all ranks."""
    dist.init(timeout_s)
    logs, alone = [Log(active=dist.is_main())], False
    try:
        yield logs
    except interrupt.Interrupted as error:
        logs[-1].warn(f"{error}: everything is saved, the same command continues")
        if not getattr(error, "collective", False):  # else all know of it, and none saves
            # torchrun ends all ranks at the first exit: not while another is still saving
            deadline = time.monotonic() + _SAVING_S
            dist.wait_for_all("stopped", stop=lambda: time.monotonic() > deadline)
        raise
    except Exception as error:  # whatever ends the run stands in its log, once
        alone = dist.world_size() > 1 and not getattr(error, "collective", False)
        if not dist.speaks(error):
            raise dist.OtherRankFailed("another", getattr(error, "exit_code", 1)) from error
        logs[-1].bind(active=True).error(one_line(error))
        error.reported = True
        raise
    finally:
        logs[-1].status("")
        if not alone:  # the others may be in a collective that this rank never enters, and NCCL's end waits for them
            dist.close()


class FoldsFailed(RuntimeError):
    exit_code = 1


def check(config, one_split):
    """Raise UserError for what cannot work on this machine or with this command, before anything is touched."""
    asked = list(config.cv.folds_to_run)
    if has_one_split(config) and not one_split:
        got = f"task.type={config.task.type}, data.test_folds={list(config.data.test_folds)}"
        other = "" if tasks.kind(config).pretrains else ", or leave data.{train,val,test}_folds empty"
        raise UserError(f"cv.py: got one split ({got}), wanted folds: run train.py{other}")
    if one_split and asked not in ([], [1]):
        raise UserError(f"cv.folds_to_run: got {asked}, wanted none for train.py, which runs the first fold: run cv.py")
    if config.cv.parallel == "ddp" or config.cv.final == "refit":  # which trains on all ranks
        make_plan(config)  # the batch must divide over the ranks
    team_size(config)
    if config.eval.stress:
        evaluation_stress.check(config, tasks.build(config))
    optimization.precision(config.train.amp, dist.device())
    tasks.build(config).augmentation()
    loader.augments_on_gpu(config)
    tracking.check(config)


def _run(config, folder, log, dry_run, one_split):
    code = _announce(config, folder, log)
    task, wanted = tasks.build(config), tasks.wanted(config)
    with interrupt.graceful():
        listed = dist.on_main(lambda: sources.list_cases(config.data, wanted, log=log))
        listing.describe(config, wanted, listed, log)
        dist.on_main(lambda: audit.check(config, listed))
        trains = config.train.mode != "evaluate"
        if trains:
            listing.check_optional(config.data, listed, loader.drops_channels(config), log)
        if dry_run or trains:  # what is tested knows its classes
            inspect(task, listed)
        if config.weights.path is not None and trains:  # before all the scans are prepared
            counts = dist.on_main(lambda: try_to_start(config, task).counts())
            if dry_run:
                log("weights", **counts, path=config.weights.path)
        if dry_run:
            return _dry_run(config, task, wanted, listed, log)
        splits = dist.on_main(lambda: read_or_make_splits(config, task, listed, folder))
        numbers = _numbers(config, splits, len(listed), one_split, log)
        dist.on_main(lambda: warn_of_changed_code(folder, code, log))
        dist.on_main(lambda: warn_of_changed_weights(folder, config.weights.path if trains else None, log))
        cases = dist.on_main(lambda: sources.prepare(listed, config.data, wanted, log))
        config = dist.on_main(lambda: _of_folds(config, cases, folder, log))
        _warn_of_windows(config, cases, log)
        by_id = {case.id: case for case in cases}
        dist.on_main(lambda: warn_of_changed_images(folder, cases, log))
        failures = run_folds(config, numbers, splits, by_id, folder, log)
    finished = dist.on_main(folder.finished)
    complete = len(finished) == len(splits)
    if finished:
        dist.on_main(lambda: pooled.aggregate(config, folder, log))
        if complete:
            dist.on_main(lambda: audit.write(config, folder, cases, code, log))
        dist.on_main(lambda: report.write(folder.path))
    with interrupt.graceful():
        make_final(config, folder, splits, by_id, log)
    if complete:
        if config.eval.stress:
            stress.within(folder.config_of_folds(), folder)
            dist.on_main(lambda: report.write(folder.path))
        _run_others(config, folder, listed, log)
    if finished and not failures:
        log("report", path=folder.report_path)
    if failures:
        failed = f"fold {', '.join(str(number) for number, _ in failures)} failed and the others are finished"
        raise FoldsFailed(f"{failed}; the same command tries again: {failures[0][1]}")


def _run_others(config, folder, listed, log):
    """Run what the audit compares a finished run with, each in a run folder of its own, and audit it again."""
    runs = [
        (other, RunFolder(os.path.join(other.output, other.name))) for other in audit.others(config, folder, listed)
    ]
    left = dist.on_main(lambda: [place for place, (_, own) in enumerate(runs) if own.summary() is None])
    if not left:
        return
    log("audit", runs=[runs[place][0].name for place in left], cost="each as much as this run")
    for place in left:
        other, own = runs[place]
        held = []
        dist.on_main(lambda: held.append(own.claim(other, log)))
        _run(other, own, Log(own.log_path, active=dist.is_main()), False, has_one_split(other))
    dist.on_main(lambda: audit.add_others(folder, log))
    dist.on_main(lambda: report.write(folder.path))


def _announce(config, folder, log):
    """The `run` line, and what is doubtful about the machine or in vain in the config; returns the code's version."""
    code, device = code_version(), dist.device()
    check_ranks_agree(config, code)
    what = {"name": config.name, "task": config.task.type, "folder": folder.path}
    where = {
        "ranks": dist.world_size(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "amp": optimization.amp_of(config.train.amp, device),
    }
    where["augment_on"] = "gpu" if loader.augments_on_gpu(config) else "cpu"
    log("run", **what, **where, torch=torch.__version__, code=code, seed=config.seed)
    for message in optimization.doubts(device, config.model.name):
        log.warn(message)
    unread = kinds.unread(config)
    if unread:
        log.warn("keys that this run does not read: --help says what they are for", keys=unread)
    return code


def _of_folds(config, cases, folder, log):
    """The config with the patch that fits the cases, as the run has recorded it at its first start.

    Folds that have begun without a record, and checkpoints that are only tested, keep theirs.
    """
    if config.train.checkpoint is not None:
        return config
    saved = folder.recorded()
    if "patch" not in saved:
        fitted = config if folder.folds() else with_patch_that_fits(config, cases)
        folder.record(**saved, patch=fitted.data.patch)
    fitted = folder.config_of_folds().data.patch
    if fitted == config.data.patch:
        return config
    log("data", patch=fitted, asked=config.data.patch, reason="no case needs a larger one")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, patch=fitted))


def _warn_of_windows(config, cases, log):
    """Warn of keys that say how windows are put together where there is one."""
    if all(loader.in_one_window(case, config.data.patch) for case in cases):
        before = kinds.unread(config)
        if more := [name for name in kinds.unread(config, windows="one") if name not in before]:
            log.warn("keys that this run does not read: one window holds every case", keys=more)


def code_version():
    """Short hash of this package's source files."""
    digest = hashlib.sha256()

    def add(folder):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                add(entry)
            elif entry.name.endswith(".py"):
                digest.update(hashlib.sha256(entry.read_bytes()).digest())

    add(importlib.resources.files(__package__.rpartition(".")[0]))
    return digest.hexdigest()[:12]


def check_ranks_agree(config, code):
    """All ranks must run the same code on the same config, or their gradients mean nothing together."""
    for what, mine in (("config", fingerprint(to_dict(config))), ("code", code)):
        first, *others = dist.gather(mine)
        for rank, value in enumerate(others, 1):
            if value != first:
                raise UserError(f"rank {rank} has another {what} than rank 0 ({value}, {first}): start all alike")


def try_to_start(config, task):
    """The checkpoint.LoadReport of a network that starts from weights.path, some of whose stages may stay frozen."""
    network = build_network(config, task, 0)
    optimization.always_frozen(config, network)
    return start_from(config, task, network)


def _dry_run(config, task, wanted, listed, log):
    if looks_at_files(config.data, len(listed)):
        dist.on_main(lambda: cache.check_headers(listed))
    splits = make_splits(config, task, listed)
    check_parts(config, task, splits, listed)
    network = build_network(config, task, 0)
    parameters = sum(p.numel() for p in network.parameters())
    if dist.is_main():
        for case in listed:
            known = {name: getattr(case, name) for name in ("id", "subject", "target", "labels", "group", "fold")}
            said = (f"{name}={format_value(value)}" for name, value in known.items() if value not in (None, ()))
            print(f"case {' '.join(said)}")
        by_id = {case.id: case for case in listed}
        for number, split in enumerate(splits, 1):
            for part, ids in split.items():
                counts = listing.counts(wanted, [by_id[case_id] for case_id in ids])
                print(f"fold {number} {part}: cases={len(ids)} " + " ".join(f"{k}={v:.4g}" for k, v in counts.items()))
    log("run", model=config.model.name, parameters=parameters, tensors=len(network.state_dict()), dry_run=True)


def _numbers(config, splits, cases, one_split, log):
    """Numbers of the folds to run, and the `split` line; cases: how many there are."""
    numbers = [1] if one_split else list(config.cv.folds_to_run) or list(range(1, len(splits) + 1))
    if max(numbers) > len(splits):
        raise UserError(f"cv.folds_to_run: got {max(numbers)}, wanted folds from 1 to {len(splits)}")
    log("split", folds=len(splits), run=numbers, kind=config.cv.kind, seed=config.seed)
    unused = cases - sum(map(len, splits[0].values()))
    if unused:
        log.warn("cases are left out: their fold is in none of data.{train,val,test}_folds", cases=unused, of=cases)
    return numbers


def run_folds(config, numbers, splits, by_id, folder, log):
    """Run the folds of a RunFolder that are not finished, on all ranks together or each team of ranks its own.

    Returns [(fold, message)] of those that failed.
    """
    open_folds = dist.on_main(lambda: [n for n in numbers if not folder.fold(n).is_finished])
    mode, reason = choose_parallel(config, open_folds)
    log("split", parallel=mode, reason=reason, finished=[n for n in numbers if n not in open_folds])
    if config.train.mode == "evaluate" and not open_folds:
        log.warn("nothing to test: these folds have their results; another `name` tests a train.checkpoint again")
    elif not open_folds:
        log("run", left="nothing: all these folds are finished", hint="another `name` runs them again")
    failures, progress, size, pages = [], Progress(), team_size(config), interim.Pages(folder)
    lanes = 1 if mode == "ddp" else dist.world_size() // size

    def attempt(fold, log):
        log = log.bind(fold=fold.number)
        progress.folds_after = math.ceil((len(open_folds) - 1 - open_folds.index(fold.number)) / lanes)
        try:
            with loader.explained():
                run_fold(config, splits[fold.number - 1], by_id, fold, log, progress)
            if dist.is_main():
                pages.write(log)
        except Exception as error:  # this fold's own; the others go on, unless other ranks don't know of it
            if getattr(error, "ends_run", False) or (dist.world_size() > 1 and not getattr(error, "collective", False)):
                raise
            log.error(one_line(error), kind=type(error).__name__)
            failures.append((fold.number, isinstance(error, dist.OtherRankFailed), one_line(error)))

    if mode == "ddp":
        for number in open_folds:
            attempt(folder.fold(number), log)
    else:
        with dist.teams(size):
            for number in dist.hand_out(open_folds, "folds"):
                fold = folder.fold(number)
                dist.on_main(fold.make)
                attempt(fold, log.bind(fold.log_path, active=dist.is_main()))
        dist.wait_for_all("folds_done", stop=interrupt.requested)
        if interrupt.requested():  # no collective: ranks that stop within a fold enter none
            raise interrupt.Interrupted("stopped by a signal")
    messages = {}
    for number, _, message in sorted(failure for part in dist.gather(failures) for failure in part):
        messages.setdefault(number, message)  # of the rank that failed, not of one that heard of it
    return list(messages.items())


def team_size(config):
    """Ranks that share a fold when the folds run in parallel."""
    world = dist.world_size()
    size = min(config.cv.ranks_per_fold, world)
    for name, value in (("ranks", world), ("train.batch_size", config.train.batch_size)):
        if config.cv.parallel != "ddp" and value % size:
            raise UserError(f"cv.ranks_per_fold: got {size}, wanted a divisor of {name}={value}")
    return size


def choose_parallel(config, open_folds):
    """(ddp or folds, why)."""
    world, teams = dist.world_size(), dist.world_size() // team_size(config)
    if config.cv.parallel != "auto":
        return config.cv.parallel, "as configured"
    if teams > 1 and config.train.batch_size % world:  # however few are open: with ddp it could not go on
        return "folds", f"batch {config.train.batch_size} does not divide over {world} ranks"
    if teams == 1 or len(open_folds) < teams:
        return "ddp", f"{len(open_folds)} open folds for {world} ranks"
    own = config.train.batch_size * teams // world
    voxels = min(config.train.micro_batch or own, own) * math.prod(config.data.patch)
    if voxels > _ALONE_VOXELS:
        return "ddp", f"{voxels / 1e6:.3g} million voxels a pass are many for one device"
    return "folds", f"{len(open_folds)} open folds for {world} ranks and {voxels / 1e6:.3g} million voxels a pass"


def run_fold(config, split, by_id, fold, log, progress):
    """Train, select on val, report on test, in a FoldFolder; results.csv comes last and says that it is finished."""
    start = time.perf_counter()
    parts = {part: [by_id[case_id] for case_id in ids] for part, ids in split.items()}
    log("fold", finished=False, **{part: len(cases) for part, cases in parts.items()})
    dist.on_main(lambda: fold.start(split))
    if config.train.mode == "evaluate":
        task, network, best = load_fold(config, parts, fold, log)
    else:
        task, network, best = train_fold(config, parts, fold, log, progress)
    if config.train.mode == "train":
        return log("fold", finished=True, epoch=best["epoch"], tested=False, seconds=time.perf_counter() - start)
    log.status(f"testing fold {fold.number}")
    testing, tested = time.perf_counter(), parts[task.tested_part()]
    found = evaluate(config, task, network, tested, fold)
    progress.test_s = time.perf_counter() - testing
    log.status("")
    found = found._replace(rows=_numbered(found.rows, fold), scans=_numbered(found.scans, fold))
    scores = task.score(found)
    for message, count in task.doubts(scores, found.rows):
        log.warn(message, cases=count, of=len(found.rows))
    if config.eval.views == "auto":
        scores["views_gain"] = views.gain(config, task, network, tested)
        log("views", test=task.select, gain=scores["views_gain"], cases=len(tested))
    if config.eval.saliency:
        dist.on_main(lambda: maps.write(config, task, network, tested, found.rows, fold))
    if dist.is_main():
        fold.write_results(found, task.tables(found), scores)
    log("fold", finished=True, epoch=best["epoch"], **scores, seconds=time.perf_counter() - start)


def _numbered(rows, fold):
    """The rows with the number of their fold behind the subject."""
    return [{"id": row["id"], "subject": row["subject"], "fold": fold.number, **row} for row in rows]
