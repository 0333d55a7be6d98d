"""Cross-validation: cases -> folds -> one training per fold -> pooled out-of-fold results."""

import importlib.resources
import math
import os
import time

import torch
import yaml

from .. import checkpoint, inference, nets, report, tasks
from .. import config as config_module
from ..config import UserError
from ..data import cache, listing, loader, sources
from ..run_folder import (
    has_one_split,
    make_splits,
    open_folder,
    read_or_make_splits,
    results_path,
    warn_of_changed_images,
)
from ..runtime import dist, files, interrupt, seeds
from ..runtime.log import Log
from ..runtime.progress import Progress
from ..training import loop, optimization, selection, tracking
from . import maps, results, soup


def run(config, dry_run=False, one_split=False):
    """Cross-validate a config into `<output>/<name>/`; the same call continues a run that was stopped.

    one_split: only the split that the config names (data.*_folds; pretraining has no other), or else the first fold.
    dry_run: list cases and folds, train nothing.
    """
    if has_one_split(config) and not one_split:
        raise UserError(
            f"cv.py: got one split (task.type={config.task.type}, data.test_folds={list(config.data.test_folds)}), wanted folds: run "
            "train.py" + ("" if config.task.pretrains else ", or leave data.{train,val,test}_folds empty")
        )
    if one_split and config.cv.folds_to_run not in ((), (1,)):
        raise UserError(
            f"cv.folds_to_run: got {list(config.cv.folds_to_run)}, wanted none for train.py, which runs the first fold: run cv.py"
        )
    if config.cv.parallel == "ddp" or config.cv.final == "refit":  # which trains on all ranks
        loop.make_plan(config)  # the batch must divide over the ranks: fails before anything is touched
    team_size(config)
    optimization.precision(config.train.amp, dist.device())
    loader.augmentation(config)
    loader.augments_on_gpu(config)
    tracking.check(config)
    dist.init(config.train.timeout_s)
    folder = os.path.join(config.output, config.name)
    log, alone = Log(active=dist.is_main()), False
    try:
        if not dry_run:
            held = []  # the folder, by the main rank, until this call ends
            dist.on_main(lambda: held.append(open_folder(config, folder, log)))
            log = Log(os.path.join(folder, "log.txt"), active=dist.is_main())
        _run(config, folder, log, dry_run, one_split)
    except interrupt.Interrupted as error:
        log.warn(f"{error}: everything is saved, the same command continues")
        # torchrun ends all ranks at the first exit: not while another is still saving
        deadline = time.monotonic() + _SAVING_S
        dist.wait_for_all("stopped", stop=lambda: time.monotonic() > deadline)
        raise
    except Exception as error:  # whatever ends the run stands in its log, once
        alone = dist.world_size() > 1 and not getattr(error, "collective", False)
        if not dist.speaks(error):
            raise dist.OtherRankFailed("another", getattr(error, "exit_code", 1)) from error
        log.bind(active=True).error(" ".join(str(error).split()) or repr(error))
        error.reported = True
        raise
    finally:
        log.status("")
        if (
            not alone
        ):  # others may be in a collective that this rank will never enter, and NCCL's end would wait for them
            dist.close()


_SAVING_S = 25  # torchrun kills 30 s after it was told to stop


def code_version():
    """Short hash of this package's source files."""

    def sources_in(folder):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from sources_in(entry)
            elif entry.name.endswith(".py"):
                yield entry.read_text(encoding="utf-8")

    return config_module.fingerprint(list(sources_in(importlib.resources.files(__package__.rpartition(".")[0]))))


def check_ranks_agree(config, code):
    """All ranks must run the same code on the same config, or their gradients mean nothing together."""
    for what, mine in (("config", config_module.fingerprint(config_module.to_dict(config))), ("code", code)):
        seen = dist.gather(mine)
        others = [rank for rank, value in enumerate(seen) if value != seen[0]]
        if others:
            raise UserError(
                f"rank {others[0]} has another {what} than rank 0 ({seen[others[0]]}, {seen[0]}): start all alike"
            )


def _run(config, folder, log, dry_run, one_split):
    code = code_version()
    check_ranks_agree(config, code)
    log(
        "run",
        name=config.name,
        task=config.task.type,
        folder=folder,
        ranks=dist.world_size(),
        device=str(dist.device()),
        amp=optimization.amp_of(config.train.amp, dist.device()),
        augment_on="gpu" if loader.augments_on_gpu(config) else "cpu",
        torch=torch.__version__,
        code=code,
        seed=config.seed,
    )
    for message in optimization.doubts(dist.device()):
        log.warn(message)
    unread = list(config_module.unread(config))
    if unread:
        log.warn("keys that this run does not read: --help says what they are for", keys=unread)
    task = tasks.build(config)
    listed = dist.on_main(lambda: sources.list_cases(config.data, config.task, log=log))
    listing.describe(config, listed, log)
    if dry_run or config.train.mode != "evaluate":  # what is tested knows its classes
        inspect(task, listed)
    if config.weights.path is not None and config.train.mode != "evaluate":  # before all the scans are prepared
        counts = dist.on_main(lambda: start_from(config.weights, task, build_network(config, task, 0)).counts())
        if dry_run:
            log("weights", **counts, path=config.weights.path)
    if dry_run:
        return _dry_run(config, task, listed, log)
    splits = dist.on_main(lambda: read_or_make_splits(config, task, listed, os.path.join(folder, "splits.json")))
    wanted = (1,) if one_split else config.cv.folds_to_run or range(1, len(splits) + 1)
    if max(wanted) > len(splits):
        raise UserError(f"cv.folds_to_run: got {max(wanted)}, wanted folds from 1 to {len(splits)}")
    log("split", folds=len(splits), run=list(wanted), kind=config.cv.kind, seed=config.seed)
    unused = len(listed) - sum(map(len, splits[0].values()))
    if unused:
        log.warn(
            "cases are left out: their fold is in none of data.train_folds, val_folds and test_folds",
            cases=unused,
            of=len(listed),
        )
    cases = dist.on_main(lambda: cache.prepare(listed, config.data, config.task, log))
    by_id = {case.case.id: case for case in cases}
    if config.data.source != "slices":  # which are read as they are
        entries = {case_id: os.path.basename(case.folder) for case_id, case in by_id.items()}
        dist.on_main(lambda: warn_of_changed_images(os.path.join(folder, "splits.json"), entries, log))
    with interrupt.graceful():
        failures = run_folds(config, list(wanted), splits, by_id, folder, log)
    finished = dist.on_main(lambda: [n for n in range(1, len(splits) + 1) if os.path.exists(results_path(folder, n))])
    if finished:
        dist.on_main(lambda: results.aggregate(config, folder, splits, finished, log))
        dist.on_main(lambda: report.write(folder, listed))
    with interrupt.graceful():
        make_final(config, folder, splits, by_id, log)
    if failures:
        numbers = ", ".join(str(number) for number, _ in failures)
        raise FoldsFailed(
            f"fold {numbers} failed and the others are finished; the same command tries again: {failures[0][1]}"
        )


class FoldsFailed(RuntimeError):
    exit_code = 1


def run_folds(config, numbers, splits, by_id, folder, log):
    """Run the folds, on all ranks together or each team of ranks its own; returns [(fold, message)] of those that failed."""
    open_folds = dist.on_main(lambda: [n for n in numbers if not os.path.exists(results_path(folder, n))])
    mode, reason = choose_parallel(config, open_folds)
    log("split", parallel=mode, reason=reason, finished=[n for n in numbers if n not in open_folds])
    if config.train.mode == "evaluate" and not open_folds:
        log.warn("nothing to test: these folds have their results; another `name` tests a train.checkpoint again")
    failures, progress = [], Progress()
    size = team_size(config)
    lanes = 1 if mode == "ddp" else dist.world_size() // size

    def attempt(number, log):
        log = log.bind(fold=number)
        progress.begin_fold(math.ceil((len(open_folds) - 1 - open_folds.index(number)) / lanes))
        fold_folder = os.path.join(folder, f"fold_{number}")
        try:
            run_fold(config, number, splits[number - 1], by_id, fold_folder, log, progress)
        except Exception as error:  # this fold's own; the others go on, unless other ranks don't know of it
            if getattr(error, "ends_run", False) or (dist.world_size() > 1 and not getattr(error, "collective", False)):
                raise
            log.error(" ".join(str(error).split()) or repr(error), kind=type(error).__name__)
            failures.append((number, isinstance(error, dist.OtherRankFailed), str(error)))

    if mode == "ddp":
        for number in open_folds:
            attempt(number, log)
    else:
        with dist.teams(size):
            for number in dist.hand_out(open_folds, "folds"):
                fold_folder = os.path.join(folder, f"fold_{number}")
                dist.on_main(lambda: os.makedirs(fold_folder, exist_ok=True))
                attempt(number, log.bind(os.path.join(fold_folder, "log.txt"), active=dist.is_main()))
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
    world, asked, teams = dist.world_size(), config.cv.parallel, dist.world_size() // team_size(config)
    if asked != "auto":
        return asked, "as configured"
    if teams > 1 and config.train.batch_size % world:  # however few are open: with ddp it could not go on
        return "folds", f"batch {config.train.batch_size} does not divide over {world} ranks"
    if teams == 1 or len(open_folds) < teams:
        return "ddp", f"{len(open_folds)} open folds for {world} ranks"
    own = config.train.batch_size * teams // world
    voxels = min(config.train.micro_batch or own, own) * math.prod(config.data.patch)
    if voxels > _ALONE_VOXELS:
        return "ddp", f"{voxels / 1e6:.3g} million voxels a pass are many for one device"
    return "folds", f"{len(open_folds)} open folds for {world} ranks and {voxels / 1e6:.3g} million voxels a pass"


_ALONE_VOXELS = 10e6  # of one forward pass: two whole brains at 1 mm, some 10 GB for UNet-B in bf16


def inspect(task, cases):
    """Let the task see what the labels of all cases are, before its network is built."""
    task.inspect([case for case in cases if case.target is not None])


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


def build_network(config, task, fold):
    """The network with weights that depend on the seed and the fold only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(config.seed, "initialise", fold))
        return tasks.build_network(config, task)


def run_fold(config, number, split, by_id, folder, log, progress):
    """Train, select on val, report on test; results.csv is written last and says that the fold is finished."""
    parts = {part: [by_id[case_id] for case_id in ids] for part, ids in split.items()}
    log("fold", finished=False, **{part: len(cases) for part, cases in parts.items()})
    start = time.perf_counter()
    dist.on_main(lambda: os.makedirs(folder, exist_ok=True))
    if config.train.mode == "evaluate":
        task, network, best = load_fold(config, parts, folder, log)
    else:
        task, network, best = train_fold(config, number, parts, folder, log, progress)
    if config.train.mode == "train":
        log("fold", finished=True, epoch=best["epoch"], tested=False, seconds=time.perf_counter() - start)
        return
    log.status(f"testing fold {number}")
    testing = time.perf_counter()
    rows = loop.evaluate(config, task, network, parts[config.task.tested_part], folder)
    progress.test_took(time.perf_counter() - testing)
    log.status("")
    rows = [{"id": row["id"], "subject": row["subject"], "fold": number, **row} for row in rows]
    scores = task.score(rows)
    if scores.get("empty_predictions"):  # segmentation only
        log.warn("predicted masks are empty", cases=scores["empty_predictions"], of=len(rows))
    if config.eval.saliency:
        dist.on_main(lambda: maps.write(config, task, network, parts["test"], rows, folder))
    if dist.is_main():
        results.write_rows(folder, task, rows, task.volumes(rows))
        files.write_csv(
            os.path.join(folder, "results.csv"), [{"metric": name, "value": value} for name, value in scores.items()]
        )
    log("fold", finished=True, epoch=best["epoch"], **scores, seconds=time.perf_counter() - start)


def load_fold(config, parts, folder, log):
    """(task, network, checkpoint) to test: train.checkpoint, or the fold's own best.pt."""
    path = config.train.checkpoint or os.path.join(folder, "best.pt")
    if dist.on_main(lambda: not os.path.exists(path)):
        raise UserError(
            f"{path}: no such file: train first (train.mode=both), or name another checkpoint (train.checkpoint)"
        )
    best = dist.together(lambda: checkpoint.load(path))
    _, task, network = tasks.restore(best, path, config, needs=("subjects", "epoch"))
    optimization.lay_out(network, dist.device())
    checkpoint.warn_of_known({case.case.subject for case in parts["test"]}, best["subjects"], path, log)
    log("weights", loaded=len(best["model"]), new=0, adapted=0, ignored=0, path=path)
    return task, inference.Mirrored(network, config.eval.mirror_axes) if config.eval.mirror_axes else network, best


def train_fold(config, number, parts, folder, log, progress=None):
    """(task, network, best.pt): trained on parts["train"]; the best epoch is chosen, and calibrated, on parts["val"]."""
    task = tasks.build(config)
    inspect(task, [cached.case for cases in parts.values() for cached in cases])
    for message in dist.together(lambda: task.fit(parts["train"], parts["val"])):
        log.warn(message)
    network = build_network(config, task, number)
    if config.weights.path is not None:
        report = dist.together(lambda: start_from(config.weights, task, network))
        nets.add_to_head(network, report.new)  # what the file does not bring is never frozen
        log("weights", **report.counts(), path=config.weights.path)
        checkpoint.warn_of_known(
            {case.case.subject for case in parts.get("test", ())}, report.subjects, config.weights.path, log
        )
    elif config.finetune.strategy != "full":
        log.warn(f"finetune.strategy={config.finetune.strategy} freezes random weights: weights.path is none")
    with tracking.event_files(config, folder) as sink:
        loop.fit(config, task, network, parts["train"], parts["val"], folder, number, log.bind(sink=sink), progress)
    evaluated = inference.Mirrored(network, config.eval.mirror_axes) if config.eval.mirror_axes else network
    kept = dist.on_main(
        lambda: [path for path in selection.places(folder, config.train.keep_best) if os.path.exists(path)]
    )
    for path in reversed(kept):  # best.pt at last, which is tested
        best = checkpoint.load(path)
        network.load_state_dict(best["model"])
        task.state = best["task"]
        for message in task.calibrate(lambda: loop.evaluate(config, task, evaluated, parts["val"])):
            log.warn(message, path=path)
        content = {**best, "task": task.state, "calibrated": True}
        dist.on_main(lambda: checkpoint.save(path, content))
    return task, evaluated, best


def start_from(weights, task, network):
    """Fill the network with pretrained weights; returns the checkpoint.LoadReport."""

    def load(part):
        return checkpoint.load_weights(part, weights.path, stem=weights.stem, trust=weights.trust)

    return task.load(network, load)


# ------------------------------------------------------------------------------------ final model


def make_final(config, folder, splits, by_id, log):
    """final/ in the run folder, for tools/predict.py, by cv.final, once all folds are finished; final.json says what it is.

    ensemble: every fold's best.pt; soup: the mean of their weights; refit: one more training, on all cases but the first
    fold's test part, which chooses the epoch.
    """
    kind, final = config.cv.final, os.path.join(folder, "final")
    done = os.path.join(final, "final.json")
    finished = dist.on_main(lambda: all(os.path.exists(results_path(folder, n)) for n in range(1, len(splits) + 1)))
    if kind == "none" or not finished:
        return
    made = dist.on_main(
        lambda: files.read_json(done, "kind", "finished") if os.path.exists(done) else {"kind": kind, "finished": False}
    )
    if made["kind"] != kind:
        raise UserError(
            f"cv.final: got {kind}, and {final} holds the {made['kind']}: delete that folder to make another"
        )
    if made["finished"]:
        return
    dist.on_main(lambda: os.makedirs(final, exist_ok=True))
    dist.on_main(lambda: files.write_json(done, made))
    if kind == "refit":
        ids = {"train": sorted(splits[0]["train"] + splits[0]["val"]), "val": splits[0]["test"]}
        parts = {part: [by_id[case_id] for case_id in ids[part]] for part in ids}
        log("fold", fold=0, final=kind, **{part: len(cases) for part, cases in parts.items()})
        train_fold(config, 0, parts, final, log.bind(fold=0))
    else:
        dist.on_main(lambda: _write_final(kind, folder, len(splits), final))
    dist.on_main(lambda: _finish_final(kind, final, done))
    log("fold", finished=True, final=kind, path=final)


def _finish_final(kind, final, done):
    files.write_json(done, {"kind": kind, "finished": True})
    for name in ("last.pt", "last.previous.pt"):  # only to continue from; what is left is what prediction needs
        if os.path.exists(os.path.join(final, name)):
            os.remove(os.path.join(final, name))


def _write_final(kind, folder, folds, final):
    paths = {number: os.path.join(folder, f"fold_{number}", "best.pt") for number in range(1, folds + 1)}
    if kind == "ensemble":
        for number, path in paths.items():
            checkpoint.save(os.path.join(final, f"fold_{number}.pt"), checkpoint.load(path))
    else:
        checkpoint.save(
            os.path.join(final, "soup.pt"), soup.average([checkpoint.load(path) for path in paths.values()])
        )


def make_soup(folder, kind, log):
    """The soup of a finished run's folds as a checkpoint; kind: uniform or greedy.

    Greedy looks at the inner validation cases of all folds together. Each of them was in the training part of other folds,
    so its score is optimistic and says nothing about new cases; it is only logged.
    """
    config = config_module.load(os.path.join(folder, "config.yaml"))
    splits = files.read_json(os.path.join(folder, "splits.json"), "folds")["folds"]
    for number in range(1, len(splits) + 1):
        if not os.path.exists(results_path(folder, number)):
            raise UserError(f"{folder}: fold {number} is not finished: run cv.py again")
    folds = [checkpoint.load(os.path.join(folder, f"fold_{number}", "best.pt")) for number in range(1, len(splits) + 1)]
    if kind == "uniform":
        return soup.average(folds)
    task, device = tasks.build(config), dist.device()
    sign = 1 if task.higher_is_better else -1
    listed = [
        case
        for case in sources.list_cases(config.data, config.task)
        if any(case.id in split["val"] for split in splits)
    ]
    cases = cache.prepare(listed, config.data, config.task, log)
    task.state = folds[0]["task"]
    network = build_network(config, task, 0)
    optimization.lay_out(network, device)

    def score(content):
        network.load_state_dict(content["model"])
        task.state = content["task"]
        value = task.score(loop.evaluate(config, task, network, cases))[task.select]
        log("epoch", soup=content["soup"], cases=len(cases), **{f"val_{task.select}": value})
        return sign * value

    best_first = sorted(folds, key=lambda content: -sign * content["scores"][f"val_{task.select}"])
    return soup.greedy(best_first, score)[0]
