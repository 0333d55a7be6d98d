"""The network of a fold: made from the seed or from pretrained weights, trained, calibrated; or read to be tested."""

import dataclasses
import functools
import os

import torch

from .. import checkpoint, kinds, nets, tasks
from ..config import UserError
from ..data import listing
from ..runtime import dist, seeds
from . import optimization, tracking, views
from .evaluate import evaluate
from .head import start_head
from .loop import fit
from .restore import restore


def train_fold(config, parts, fold, log, progress=None):
    """(task, network, best.pt): trained on parts["train"]; the best epoch is chosen, and calibrated, on parts["val"].

    parts: of prepared cases; of parts["test"] only the subjects matter.
    fold: its FoldFolder. progress: the clock of the run.
    """
    task, network = _trained(config, parts, fold, log, progress)
    return task, *_calibrated(config, task, network, parts["val"], fold, log)


def train_on_all(config, cases, merged, chosen, fold, log):
    """Train for all epochs on all prepared cases, none of which is held back; the last epoch is best.pt of `fold`.

    merged: {key: value} of the task's state in the place of what would be fitted on validation cases; chosen: its
        views, likewise.
    """
    task, _ = _trained(config, {"train": cases, "val": []}, fold, log)
    own = {name: task.state[name] for name in task.training_state}

    def finish():
        fitted = {"task": {**merged, **own}, "calibrated": True, "views": chosen}
        checkpoint.save(fold.best, {**checkpoint.load(fold.best), **fitted})

    dist.on_main(finish)


def _trained(config, parts, fold, log, progress=None):
    """(task, network) of a training whose best epoch is in best.pt: without validation cases the last one."""
    task = tasks.build(config)
    inspect(task, [case for cases in parts.values() for case in cases])
    for text, count in listing.missing(config.data, parts["train"]).items():
        if count == len(parts["train"]):
            log.warn("no training case has an optional channel, of which the network learns nothing", channel=text)
    for message in dist.together(lambda: task.fit(parts["train"], parts["val"] or parts["train"])):
        log.warn(message)
    network, head_is_new = build_network(config, task, fold.number), True
    if config.weights.path is not None:
        report = dist.together(lambda: start_from(config, task, network))
        nets.add_to_head(network, report.new)  # what the file does not bring is never frozen
        head_is_new = any(name.startswith(network.head_prefixes) for name in report.new)
        log("weights", **report.said(), path=config.weights.path)
        for message in report.doubts:
            log.warn(message, path=config.weights.path)
        tested = {case.subject for case in parts.get("test", ())}
        checkpoint.warn_of_known(tested, report.subjects, config.weights.path, log)
    elif config.finetune.strategy != "full":
        log.warn(f"finetune.strategy={config.finetune.strategy} freezes random weights: weights.path is none")
    if head_is_new and not dist.on_main(lambda: os.path.exists(fold.last) or os.path.exists(fold.previous)):
        start_head(config, task, network, parts["train"], log)
    with tracking.sink(config, fold) as sink:
        fit(config, task, network, parts["train"], parts["val"], fold, log.bind(sink=sink), progress)
    return task, network


def load_fold(config, parts, fold, log):
    """(task, network, checkpoint) to test: train.checkpoint, or the fold's own best.pt."""
    path = config.train.checkpoint or fold.best
    if dist.on_main(lambda: not os.path.exists(path)):
        raise UserError(f"{path}: no such file: train first (train.mode=both), or name another (train.checkpoint)")
    best = dist.together(lambda: checkpoint.load(path))
    _, task, network = restore(best, path, config, needs=("subjects", "epoch"))
    optimization.lay_out(network, dist.device())
    checkpoint.warn_of_known({case.subject for case in parts["test"]}, best["subjects"], path, log)
    loaded = checkpoint.LoadReport(tuple(best["model"]), (), (), (), (), family="fomo", part="")
    log("weights", **loaded.said(), path=path)
    return task, views.of_checkpoint(config, network, best, path), best


def with_patch_that_fits(config, cases):
    """The config, its patch no larger along any axis than the largest prepared case needs: more would be in vain."""
    largest = [max(lengths) for lengths in zip(*(case.shape for case in cases))]
    patch = nets.NETWORKS[config.model.name].no_larger(config.data.patch, largest)
    if patch == config.data.patch:
        return config
    fitted = dataclasses.replace(config, data=dataclasses.replace(config.data, patch=patch))
    kinds.check(fitted, "with the patch that fits the cases")
    return fitted


def inspect(task, cases):
    """Let the task see the labels of all cases, before its network is built."""
    task.inspect([case for case in cases if case.target is not None])


def build_network(config, task, number):
    """The network with random weights, which depend on the seed and the number of the fold alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(config.seed, "initialise", number))
        return tasks.build_network(config, task)


def start_from(config, task, network):
    """Fill the network with the weights of weights.path and return the checkpoint.LoadReport."""
    weights, model = config.weights, config.model
    load = functools.partial(checkpoint.load_weights, path=weights.path, stem=weights.stem, part=weights.part)
    try:
        return task.load(network, load)
    except UserError as error:
        ratio = getattr(error, "width_ratio", None)
        width = model.width or nets.NETWORKS[model.name].arguments.get("width")
        if ratio is None or width is None:
            raise
        wanted = f"model.width={round(ratio * width)}"
        raise UserError(f"{weights.path}: these look like weights of {wanted}, and the network has {width}") from error


def _calibrated(config, task, network, val_cases, fold, log):
    """(network to evaluate, best.pt): every kept checkpoint gets what the task fits on the validation cases."""
    kept = fold.kept(config.train.keep_best)
    for path in reversed(dist.on_main(lambda: list(filter(os.path.exists, kept)))):  # best.pt last: it is tested
        best = checkpoint.load(path)
        network.load_state_dict(best["model"])
        task.state = best["task"]
        chosen = views.choose(config, task, network, val_cases, log.bind(path=path))
        evaluated = views.applied(network, chosen)
        for message in task.calibrate(lambda: evaluate(config, task, evaluated, val_cases)):
            log.warn(message, path=path)
        content = {**best, "task": task.state, "calibrated": True, "views": chosen}
        dist.on_main(lambda: checkpoint.save(path, content))
        if config.train.name_best:
            select = f"val_{task.select}"
            score = f"_{select}_{best['scores'][select]:.4f}" if select in best["scores"] else ""
            dist.on_main(lambda: fold.link(path, f"epoch_{best['epoch']:03d}{score}.pt"))
    return evaluated, best
