"""Test-time views: flips and powers of the images, over which outputs are averaged; chosen on validation cases.

Views are plain values, {"axes": which are flipped, in all combinations, "gammas": exponents}, kept in the checkpoint.
Candidates of eval.views=auto: none; the flip of one axis; all flips; a darker and a brighter image. The one with the
lowest mean validation loss is taken, where it is better than none by more than chance: a paired sign-flip permutation
test of the subjects' losses, two-sided, p times the number of candidates below 0.05, and the metric that selects epochs
not worse. That needs eight validation subjects or more; with fewer none is taken.
"""

import collections

import numpy as np

from .. import metrics
from ..config import UserError
from ..inference import Mirrored
from ..nets import NETWORKS
from .evaluate import evaluate

NONE = {"axes": [], "gammas": []}
_GAMMAS = [0.8, 1.25]  # beside the image as it is
_LEVEL = 0.05


def applied(network, views):
    """The network that averages over the views."""
    if not views["axes"] and not views["gammas"]:
        return network
    return Mirrored(network, views["axes"], gammas=views["gammas"])


def of_checkpoint(config, network, content, path):
    """The network with the views that the config names or, with eval.views=auto, that its checkpoint has chosen."""
    if config.eval.views == "none":
        return applied(network, {**NONE, "axes": config.eval.mirror_axes})
    if content.get("views") is None:
        raise UserError(f"{path}: eval.views: got auto, and no views were chosen for it, wanted eval.views=none")
    return applied(network, content["views"])


def candidates(config):
    """The views among which eval.views=auto chooses, but for none."""
    flat = NETWORKS[config.model.name].flat_axes
    axes = [axis for axis in range(3) if axis not in flat and config.data.patch[axis] > 1]
    flips = [[axis] for axis in axes] + ([axes] if len(axes) > 1 else [])
    return [{**NONE, "axes": own} for own in flips] + [{**NONE, "gammas": list(_GAMMAS)}]


def choose(config, task, network, cases, log):
    """The views of a network: those that the config names, or by the validation cases; a `views` line says why."""
    if config.eval.views == "none":
        return {**NONE, "axes": list(config.eval.mirror_axes)}
    before, found = evaluate(config, task, network, cases), []
    for views in candidates(config):
        after = evaluate(config, task, applied(network, views), cases)
        found.append((float(after.arrays("loss")[0].mean()), views, after))
    loss, best, after = min(found, key=lambda one: one[0])
    test = _test(before, after)
    sign = 1 if task.higher_is_better else -1
    scores = [task.score(results)[task.select] for results in (before, after)]
    p = min(1.0, test.p * len(found))
    better = test.difference > 0 and p < _LEVEL and not sign * (scores[1] - scores[0]) < 0
    chosen = best if better else dict(NONE)
    facts = {
        "candidates": len(found),
        "best": text(best),
        "val_loss": loss,
        "plain_val_loss": float(before.arrays("loss")[0].mean()),
    }
    log("views", chosen=text(chosen), **facts, p=p, cases=len(cases))
    return chosen


def _test(before, after):
    """The metrics.PairedTest of the losses of subjects: the mean of each one's cases; above 0: fewer after."""
    first, second = (results.arrays("loss")[0].astype(float) for results in (before, after))
    subject = np.unique(before.arrays("subject")[0], return_inverse=True)[1]
    count = np.bincount(subject)
    means = [np.bincount(subject, losses) / count for losses in (first, second)]
    return metrics.paired_permutation(*means)


def gain(config, task, network, cases):
    """What the views of a network have gained of the selecting metric on test cases; above 0: better than without.

    Of a segmentation both sides are on the network's grid, without post-processing.
    """
    if not isinstance(network, Mirrored):
        return 0.0
    after, before = (task.score(evaluate(config, task, one, cases))[task.select] for one in (network, network.network))
    return (after - before) * (1 if task.higher_is_better else -1)


def merge(all_views):
    """The views of one network for several (None: nothing is known of one): those that more than half have, or none."""
    if None in all_views:
        return None
    texts = collections.Counter(map(text, all_views))
    name, count = texts.most_common(1)[0]
    return next(one for one in all_views if text(one) == name) if 2 * count > len(all_views) else dict(NONE)


def text(views):
    """Views in words, for a log line."""
    names = ["flips_of_" + "".join("xyz"[axis] for axis in views["axes"])] if views["axes"] else []
    names += ["gamma_" + "_".join(f"{gamma:g}" for gamma in views["gammas"])] if views["gammas"] else []
    return "+".join(names) or "none"
