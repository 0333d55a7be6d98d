"""What the experiments share: runs that are done once, and a table of arms with intervals over seeds and test cases."""

import os
import resource

import nibabel
import numpy as np

from fomo import kinds
from fomo.metrics import auroc, dice
from fomo.run_folder import RunFolder
from fomo.runs import crossval

RESAMPLES = 2000


def run(content):
    """The finished first fold of nested dicts as in a config; one that is finished is not run again."""
    config = kinds.from_dict(content, "the experiment")
    fold = RunFolder(os.path.join(config.output, config.name)).fold(1)
    if not fold.is_finished:
        crossval.run(config, one_split=True)
    return fold


def cpu_s():
    """CPU-seconds of this process, of all its threads, and of its children that have ended."""
    spent = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def dice_row(case, mask):
    """The row of a case {id, mask: its file}: Dice of a predicted mask on the grid of the file."""
    return {"id": case["id"], "dice": dice(nibabel.load(case["mask"]).get_fdata() > 0, mask)}


def report(task, results):
    """Print of each arm {name: rows of each seed} the mean over seeds, and its difference from the first arm.

    The 95% intervals are over the test cases, the same resampled ones for all arms, and the seeds' mean.
    """
    first = next(iter(results.values()))
    cases = len(first[0])
    draws = np.vstack([np.arange(cases), np.random.default_rng(0).integers(cases, size=(RESAMPLES, cases))])
    base = None
    for arm, runs in results.items():
        each = np.array([metric(task, rows, draws) for rows in runs])
        values = each.mean(0)
        base = values if base is None else base
        texts = [f"seeds={','.join(f'{value:.4g}' for value in each[:, 0])}", _interval("value", values)]
        if base is not values:
            texts.append(_interval("minus_first", values - base))
        print(f"result task={task} arm={arm!r} cases={cases}", *texts, flush=True)


def _interval(name, values):
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return f"{name}={values[0]:.4g} [{low:.4g}, {high:.4g}]"


def metric(task, rows, draws):
    """(len(draws),): mean absolute error, mean Dice of the cases that have a mask, or AUROC, of resampled cases."""
    if task == "regression":
        return np.abs([float(row["prediction"]) - float(row["target"]) for row in rows])[draws].mean(1)
    if task == "segmentation":
        return np.nanmean(np.array([float(row["dice"]) for row in rows])[draws], axis=1)
    labels = np.array([int(float(row["target"])) for row in rows])
    scores = np.array([float(row["probability"]) for row in rows])
    return np.array([auroc(labels[draw], scores[draw]) for draw in draws])
