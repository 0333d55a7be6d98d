"""What frozen features tell of a task: a ridge regression on each stage and statistic of an encoder.

It sees each case as it is and as other scans might show it, as the regression does that starts a head. Each subject is
answered by a regression on all others. Its strength is chosen by the same errors, so that the best of many lines is a
little too good; with fewer than 40 subjects differences of .1 in r2 mean nothing.
"""

import dataclasses

import numpy as np

from .. import kinds, metrics, nets, tasks
from ..config import UserError
from ..data import listing, sources
from ..training import fold
from ..training.head import linear_fit, multistage, statistics


def run(config, dry_run, log):
    """Log a line for each start (random weights, weights.path), stage and statistic; only the cache is written.

    The labels are asked for, also where task.evidence=auto would learn from masks.
    """
    if config.task.evidence == "auto":
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, evidence="none"))
    config, decided = kinds.settle(config)
    for event, what in decided.items():
        log(event, **what)
    wanted = tasks.wanted(config)
    kind, head = tasks.kind(config), nets.NETWORKS[config.model.name].best_head
    if kind.mode == "segmentation" or not kind.head_targets or head != "multistage":
        got = f"task.type={config.task.type} task.evidence={config.task.evidence} model.name={config.model.name}"
        raise UserError(f"{got}: wanted one output per case (task.evidence=none), and a U-Net")
    listed = sources.list_cases(config.data, wanted, log=log)
    listing.describe(config, wanted, listed, log)
    if dry_run:
        return
    cases = [case for case in sources.prepare(listed, config.data, wanted, log) if case.target is not None]
    config = fold.with_patch_that_fits(config, cases)
    task = tasks.build(config)
    fold.inspect(task, cases)
    task.fit(cases, cases)
    for start in ("random", "weights") if config.weights.path is not None else ("random",):
        network = fold.build_network(config, task, 1)
        if start == "weights":
            report = fold.start_from(config, task, network)
            log("weights", **report.said(), path=config.weights.path)
        for stage, statistic, features, found in _probes(config, task, network, cases):
            log("probe", start=start, stage=stage, statistic=statistic, features=features, **found)


def _probes(config, task, network, cases):
    """Yield (stage, statistic, how many features, scores): of all together, of each stage, and of what it has."""
    head, numbers = multistage(network), task.mode == "regression"
    if head is None:
        raise UserError(f"model.head: got {config.model.head}, wanted multistage or auto")
    values, subjects = statistics(config, network, cases), [case.subject for case in cases]
    targets = np.array([np.atleast_1d(case.target) for case in cases] if numbers else task.head_targets(cases), float)
    depths, of_kinds = np.array(head.depths), np.array(head.kinds)
    chosen = [("all", "all", np.full(len(depths), True))]
    chosen += [(depth, "all", depths == depth) for depth in np.unique(depths)]
    chosen += [(d, kind, (depths == d) & (of_kinds == kind)) for d, kind in dict.fromkeys(zip(head.depths, head.kinds))]
    for stage, statistic, which in chosen:
        own = np.unique(np.array(head.groups)[which], return_inverse=True)[1]
        try:
            fit = linear_fit(values[..., which], targets, own, depths[which], subjects)
        except ValueError as error:
            raise UserError(f"{len(cases)} cases: {error}") from error
        yield stage, statistic, int(which.sum()), _scores(targets, fit.left_out, numbers)


def _scores(targets, answers, numbers):
    """{name: value} of the answers (n, K) about cases that were left out; numbers: whether the targets are."""
    r2 = 1 - np.mean((answers - targets) ** 2) / max(np.mean((targets - targets.mean(0)) ** 2), 1e-12)
    if not numbers:
        return {"r2": r2, "auroc": np.nanmean([metrics.auroc(*pair) for pair in zip(targets.T.astype(int), answers.T)])}
    mae = np.abs(answers - targets).mean()
    each = [np.corrcoef(*pair)[0, 1] for pair in zip(targets.T, answers.T)]
    return {"r2": r2, "mae": mae, "pearson": np.mean(each)}  # of several numbers the means
