"""The classes of a target: names, weights, the loss of their softmax, and which of them a part of a split has."""

import itertools

import numpy as np

from ..config import UserError
from ..runtime import lazy

losses = lazy.Module("..losses", __package__)

SOFTMAX_LOSSES = ("cross_entropy", "focal")


def lacking(target, classes, train, val):
    """Messages about classes of a target that no training case or no validation case has.

    classes: their names. train, val: (classes,) how many cases, or voxels, are of each.
    """
    for part, counts, effect in (
        ("training", train, "not learned, and of weight 1 in the loss"),
        ("validation", val, "not seen when the epoch is chosen"),
    ):
        names = [str(name) for name, count in zip(classes, counts) if not count]
        if names:
            yield f"{target}: no {part} case of class {', '.join(names)}: {effect}"


def class_of(case, place=0):
    """(number, name) of a case's class, as its source counts and calls it; place: which of several targets."""
    number = case.target[place] if isinstance(case.target, tuple) else case.target
    return int(number), (case.labels[place] if case.labels else f"{number:g}").replace(" ", "_")


def class_names(recorded):
    """Names of classes 0 and 1 of one target; recorded: the `cases` of splits.json, which hold the table's texts."""
    names = {int(case["target"]): case["labels"][0] for case in recorded.values() if case.get("labels")}
    return [names.get(number, str(number)) for number in (0, 1)]


def known_class(case, column, classes, place=0):
    """The number of a case's class among `classes`, names in the network's order.

    It is found by its name, because another table may hold fewer classes and numbers its own. Raises UserError for a
    class that is not there.
    """
    _, name = class_of(case, place)
    if name not in classes:
        raise UserError(f"case {case.id}: target {column}: got the class '{name}', wanted one of {', '.join(classes)}")
    return classes.index(name)


def refuse(config, part, cases, lack):
    """Raise UserError: nothing can be learned from this part, or no epoch can be chosen by it."""
    stratify = "" if config.cv.stratify else "set cv.stratify=true, "
    raise UserError(f"{part} cases: got {len(cases)} {lack}: {stratify}lower cv.folds or change cv.val_fraction")


def inverse_frequency(counts):
    """(classes,) weights in inverse proportion to the counts of the classes, with mean 1 over the cases.

    A class without cases, whose weight no case uses, gets 1.
    """
    counts = np.asarray(counts)
    weights, present = np.ones(len(counts)), counts > 0
    weights[present] = counts.sum() / present.sum() / counts[present]
    return weights


def softmax_loss(section, logits, target, class_weights, smoothing=0.0):
    """(B,): the loss of one softmax; section: the config's section `task`, which names the loss."""
    if section.loss == "focal":
        return losses.focal(logits, target, class_weights, section.focal_gamma, smoothing)
    return losses.cross_entropy(logits, target, class_weights, smoothing)


def columns_of(name, columns):
    """The names of a target's classes: their probabilities stand behind its decision in the columns of a table."""
    behind = columns[columns.index(f"decision_{name}") + 1 :]
    found = itertools.takewhile(lambda column: column.startswith(f"probability_{name}_"), behind)
    return [column.removeprefix(f"probability_{name}_") for column in found]


def arrays_of(results, name):
    """(true classes (n,), decided ones (n,), probabilities (n, K), names of the K classes) of a target."""
    names = columns_of(name, list(results.rows[0]))
    labels, decisions = (column.astype(int) for column in results.arrays(f"target_{name}", f"decision_{name}"))
    probabilities = np.array([[row[f"probability_{name}_{text}"] for text in names] for row in results.rows])
    return labels, decisions, probabilities, names
