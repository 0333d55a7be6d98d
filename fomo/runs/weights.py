"""How much each run counts in an ensemble, searched on validation cases that none of its networks was trained on.

The networks of the k-th fold of all runs answer the cases that stand in the validation part of that fold in all runs;
test parts are not opened. Folds of one run have no such cases: each was trained on the others'.

Half of the weight stays equal. The other half is given away in steps, each to the run that improves the metric most, as
long as one does (Caruana et al., ICML 2004). Whether that is more than chance is asked of cases that have not chosen:
weights from four fifths of the subjects answer the last fifth. Unless the metric of all these answers is better than
with equal weights (p < 0.05, swaps of whole subjects, `metrics.paired_swap`), the weights stay equal.
"""

import os

import numpy as np

from .. import checkpoint, metrics, tasks
from ..config import UserError
from ..data import sources
from ..prediction.members import choose_device, load_members
from ..run_folder import RunFolder
from ..runtime import files
from ..training.evaluate import evaluate

_STEPS = 4  # for each run: as many units stay equal as are given away
_GROUPS = 5
_FEWEST = 2 * _GROUPS  # subjects
_LEVEL = 0.05


def search(metric, labels, said):
    """(R,) weights of R runs, with mean 1, that are best on some cases; metric(labels, values): higher is better.

    labels: (n, K). said: (R, n, K), what each run says of them.
    """
    counts = np.full(len(said), float(_STEPS))
    best = metric(labels, said.mean(0))
    for _ in range(_STEPS * len(said)):
        trials = counts + np.eye(len(said))
        values = [metric(labels, _weighted(said, trial)) for trial in trials]
        place = int(np.argmax(values))
        if not values[place] > best:  # NaN: undefined on these cases
            break
        counts, best = trials[place], values[place]
    return counts / counts.mean()


def choose(metric, labels, said, subjects, seed=0):
    """(weights (R,), the metrics.Comparison of equal and searched weights on cases that have not chosen them).

    subjects: (n,) of each case; with fewer than 10 the weights are equal, and there is no comparison (None).
    """
    equal, names = np.ones(len(said)), np.unique(subjects)
    if len(names) < _FEWEST:
        return equal, None
    group_of = dict(zip(np.random.default_rng(seed).permutation(names), np.arange(len(names)) % _GROUPS))
    group, answers = np.array([group_of[subject] for subject in subjects]), np.empty(labels.shape)
    for own in range(_GROUPS):
        there = group == own
        answers[there] = _weighted(said[:, there], search(metric, labels[~there], said[:, ~there]))
    test = metrics.paired_swap(metric, labels, said.mean(0), answers, groups=subjects, seed=seed)
    better = test.difference > 0 and test.p < _LEVEL
    return (search(metric, labels, said) if better else equal), test


def _weighted(said, weights):
    return np.average(said, axis=0, weights=weights)


def export(paths, output, log):
    """Write the networks of all folds of several finished runs into the new folder `output`, each with its weight."""
    folders = [RunFolder(path) for path in paths]
    checkpoints = _checkpoints(folders)
    members = load_members([path for own in checkpoints for path in own], choose_device())
    blend, select = members[0].task.blend, members[0].task.select
    if blend is None:
        wanted = " or ".join(name for name, task in tasks.TASKS.items() if task.blend)
        got = f"got runs of task.type={members[0].config.task.type}, whose networks count equally"
        raise UserError(f"--weights: {got}, wanted {wanted}")
    folds = len(checkpoints[0])
    own = [members[start : start + folds] for start in range(0, len(members), folds)]
    answers = [_answers(folder, of_run, log) for folder, of_run in zip(folders, own)]
    labels, said, subjects = _in_common(answers, blend, paths)
    weights, test = choose(blend.metric, labels, said, subjects)
    facts = {"cases": len(labels), "subjects": len(set(subjects)), "weights": weights.round(3).tolist()}
    if test is None:
        log.warn(f"too few subjects in common to weigh the runs, wanted {_FEWEST}: all count equally", **facts)
    else:
        kept = {"kept": "equal" if (weights == 1).all() else "searched", "gain": test.difference, "p": test.p}
        scores = {f"val_{select}": abs(test.first), f"weighted_{select}": abs(test.second)}  # errors are negated there
        log("checkpoint", **facts, **scores, **kept)
    with files.new_folder(output) as folder:
        for run, weight in enumerate(weights.tolist()):
            for fold, path in enumerate(checkpoints[run], start=1):
                content = {**checkpoint.load(path), "weight": weight}
                checkpoint.save(os.path.join(folder, f"run_{run + 1}_fold_{fold}.pt"), content)
    log("checkpoint", path=output, networks=len(members))


def _checkpoints(folders):
    """[best.pt of each fold] of each run."""
    found = []
    for folder in folders:
        folder.check_begun()
        if folder.is_open:
            raise UserError(f"{folder.path}: a fold is not finished: run cv.py or train.py again")
        found.append([fold.best for fold in folder.all_folds()])
    if len(found) < 2:
        why = "the folds of one run have no validation case in common: each was trained on the others'"
        raise UserError(f"--weights: got one run, wanted two or more with the same folds ({why})")
    for folder, own in zip(folders, found):
        if len(own) != len(found[0]):
            got = f"got a run of {len(own)} folds, and {folders[0].path} has {len(found[0])}"
            raise UserError(f"{folder.path}: {got}: wanted runs with the same folds")
    return found


def _answers(folder, members, log):
    """{(fold, id): row} of the validation cases, or of their scans, of each fold of a run, by the fold's network."""
    config, splits = folder.config_of_folds(), folder.recorded()["folds"]
    wanted, used = tasks.wanted(config), {case_id for split in splits for case_id in split["val"]}
    listed = [case for case in sources.list_cases(config.data, wanted) if case.id in used]
    if gone := used - {case.id for case in listed}:
        raise UserError(f"{folder.path}: case {min(gone)} of its validation parts is not in the data: restore it")
    cases = {case.id: case for case in sources.prepare(listed, config.data, wanted, log)}
    found = {}
    for number, (member, split) in enumerate(zip(members, splits), start=1):
        results = evaluate(config, member.task, member.network, [cases[case_id] for case_id in split["val"]])
        found |= {(number, row["id"]): row for row in results.scans or results.rows}
        score = {f"val_{member.task.select}": member.task.score(results)[member.task.select]}
        log("checkpoint", path=member.path, cases=len(split["val"]), **score)
    return found


def _in_common(answers, blend, paths):
    """(labels (n, K), what each run says (R, n, K), subjects (n,)) of the validation cases that all runs have."""
    common = sorted(set.intersection(*map(set, answers)))
    if not common:
        why = "no case is in the validation part of the same fold of all runs"
        raise UserError(f"--weights: {why}: wanted runs of the same data, seed and cv keys ({', '.join(paths)})")

    def values(of_run, columns):
        return np.array([[of_run[place][column] for column in columns] for place in common], float)

    labels = values(answers[0], blend.targets)
    for path, of_run in zip(paths, answers):
        if not np.array_equal(values(of_run, blend.targets), labels):
            raise UserError(f"--weights: {path} has other labels than {paths[0]}: wanted runs of the same data")
    said = np.stack([values(of_run, blend.columns) for of_run in answers])
    return labels, said, np.array([answers[0][place]["subject"] for place in common])
