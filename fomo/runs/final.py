"""The final model of a finished run, for prediction: all its folds, their soup, or one more training."""

import statistics
from dataclasses import replace

from .. import checkpoint, tasks
from ..config import UserError
from ..data import sources
from ..run_folder import RunFolder
from ..runtime import dist
from ..training import optimization, views
from ..training.evaluate import evaluate
from ..training.fold import build_network, train_on_all
from . import soup


def make_final(config, folder, splits, by_id, log):
    """Make the final model that cv.final asks for in a RunFolder, once all folds are finished.

    ensemble: every fold's best.pt. soup: the mean of their weights. refit: one more training, on all cases, for the
    median of the folds' best epochs; what the folds have fitted on validation cases is merged, as for a soup.
    by_id: {id: prepared case}.
    """
    kind, final = config.cv.final, folder.final
    if kind == "none" or config.train.mode == "evaluate" or len(dist.on_main(folder.finished)) < len(splits):
        return
    made = dist.on_main(final.made) or {"kind": kind, "finished": False}
    if made["kind"] != kind:
        raise UserError(f"cv.final: got {kind}, and {final.path} holds the {made['kind']}: delete that folder")
    if made["finished"]:
        return
    dist.on_main(lambda: final.begin(kind))
    if kind == "refit":
        ids = sorted(case_id for part in splits[0].values() for case_id in part)
        _refit(config, [by_id[case_id] for case_id in ids], folder.all_folds(), final, log)
    else:
        dist.on_main(lambda: _put_together(kind, folder.all_folds(), final))
    dist.on_main(lambda: final.finish(kind))
    log("fold", finished=True, final=kind, path=final.path)


def _refit(config, cases, folds, final, log):
    best = dist.on_main(lambda: [_without_weights(checkpoint.load(fold.best)) for fold in folds])
    merged = soup.merged(tasks.kind(config), [content["task"] for content in best])
    epochs = max(1, round(statistics.median(content["epoch"] for content in best)))
    length = {"epochs": epochs, "steps": None, "budget_s": None, "patience": None}
    warmup = min(config.optim.warmup_epochs, epochs)
    optim, train = replace(config.optim, warmup_epochs=warmup), replace(config.train, **length)
    log("fold", fold=0, final="refit", epochs=epochs, train=len(cases))
    chosen = views.merge([content.get("views") for content in best])
    train_on_all(replace(config, optim=optim, train=train), cases, merged, chosen, final, log.bind(fold=0))


def _without_weights(content):
    return {name: content[name] for name in ("task", "epoch", "views") if name in content}


def _put_together(kind, folds, final):
    if kind == "soup":
        return checkpoint.save(final.member("soup"), soup.average([checkpoint.load(fold.best) for fold in folds]))
    for fold in folds:
        checkpoint.save(final.member(f"fold_{fold.number}"), checkpoint.load(fold.best))


def make_soup(path, kind, log):
    """The soup of the folds of the finished run in the folder `path`, as a checkpoint; kind: uniform or greedy.

    Greedy looks at the inner validation cases of all folds together. Other folds were trained on each of them, so the
    score is optimistic and says nothing about new cases; it is only logged.
    """
    folder = RunFolder(path)
    config, folds = folder.config_of_folds(), folder.all_folds()
    for fold in folds:
        if not fold.is_finished:
            raise UserError(f"{path}: fold {fold.number} is not finished: run cv.py again")
    checkpoints = [checkpoint.load(fold.best) for fold in folds]
    if kind == "uniform":
        return soup.average(checkpoints)
    task, wanted = tasks.build(config), tasks.wanted(config)
    sign = 1 if task.higher_is_better else -1
    used = {case_id for split in folder.recorded()["folds"] for case_id in split["val"]}
    listed = [case for case in sources.list_cases(config.data, wanted) if case.id in used]
    cases = sources.prepare(listed, config.data, wanted, log)
    task.state = checkpoints[0]["task"]
    network = build_network(config, task, 0)
    optimization.lay_out(network, dist.device())

    def score(content):
        network.load_state_dict(content["model"])
        task.state = content["task"]
        value = task.score(evaluate(config, task, network, cases))[task.select]
        log("epoch", soup=content["soup"], cases=len(cases), **{f"val_{task.select}": value})
        return sign * value

    best_first = sorted(checkpoints, key=lambda content: -sign * content["scores"][f"val_{task.select}"])
    return soup.greedy(best_first, score)[0]
