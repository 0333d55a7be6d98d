"""Model soups: several fine-tuned networks with a common start become one, by the mean of their weights.

Wortsman et al., ICML 2022. Uniform: the mean of all. Greedy: from the best on, each is added if the mean does not get
worse.
"""

import torch

from .. import kinds, nets, tasks
from ..config import UserError
from ..nets import image_head, multihead
from ..training import views


def average(checkpoints):
    """One checkpoint with the mean weights of `checkpoints`, contents of best.pt of folds that started from one file.

    Before, their output layers are brought to the target's units in the first one. What each fold has fitted on its
    validation cases (a threshold, a bias correction) is merged as the task says: no case is new to all folds.
    """
    first = checkpoints[0]
    if old := [checkpoint["fold"] for checkpoint in checkpoints if "subjects" not in checkpoint]:
        raise UserError(f"soup: best.pt of fold {old[0]} names no subjects: an older version wrote it, train it again")
    _check_alike(first["config"], [checkpoint["config"] for checkpoint in checkpoints[1:]])
    config = kinds.from_dict(first["config"], "soup")
    task, head = tasks.kind(config), nets.NETWORKS[config.model.name].head
    states = [checkpoint["task"] for checkpoint in checkpoints]
    units = [task.units(state) for state in states]
    models = [_in_units(checkpoint["model"], head, own, units[0]) for checkpoint, own in zip(checkpoints, units)]
    for layer in filter(None, (head, multihead.HEAD)):
        models = image_head.scaled_alike(models, layer)
    mean = {}
    for name, value in models[0].items():
        values = torch.stack([model[name] for model in models])
        mean[name] = values.double().mean(0).to(value.dtype) if value.is_floating_point() else value
    content = {"model": mean, "config": first["config"], "fold": 0, "step": 0, "epoch": 0, "scores": {}}
    content["task"] = merged(task, states)
    content["subjects"] = sorted({subject for checkpoint in checkpoints for subject in checkpoint["subjects"]})
    content["calibrated"] = all(checkpoint.get("calibrated", False) for checkpoint in checkpoints)
    content["views"] = views.merge([checkpoint.get("views") for checkpoint in checkpoints])
    return content | {"soup": [checkpoint["fold"] for checkpoint in checkpoints]}


def greedy(checkpoints, score):
    """(soup, its score). checkpoints: the best first. score: function of a checkpoint, higher is better."""
    chosen, soup = checkpoints[:1], average(checkpoints[:1])
    best = score(soup)
    for checkpoint in checkpoints[1:]:
        trial = average([*chosen, checkpoint])
        value = score(trial)
        if value >= best:
            chosen, soup, best = [*chosen, checkpoint], trial, value
    return soup, best


def _check_alike(first, others):
    for other in others:
        for section in ("task", "data", "model", "weights"):
            changed = sorted(k for k, v in first[section].items() if other[section].get(k) != v)
            if changed:
                raise UserError(f"soup: the checkpoints differ in {section}.{changed[0]}, wanted folds of one run")
    if first["weights"]["path"] is None:
        raise UserError("soup: the folds started from different random weights (weights.path=none): use an ensemble")


def merged(task, states):
    """The state of one network for those of several, of which only training's own keys may differ; task: its class."""
    own = task.merge(states)
    for key, value in states[0].items():
        if key not in (*own, *task.training_state) and any(state[key] != value for state in states):
            why = f"the folds have learned other values of '{key}', and {task.__name__}.merge does not say their mean"
            raise UserError(f"cv.final, soup: {why}: use an ensemble (cv.final=ensemble)")
    return {**states[0], **own}


def _in_units(model, head, own, wanted):
    """The weights, with a head whose outputs have the units `wanted`, (mean, scale), and no longer their `own`."""
    if own is None:
        return model
    weight, bias = (model[f"{head}.{name}"] for name in ("weight", "bias"))
    (own_mean, own_scale), (mean, scale) = (
        [torch.as_tensor(value, dtype=torch.float64, device=bias.device).reshape(-1) for value in pair]
        for pair in (own, wanted)
    )
    ratio, shift = own_scale / scale, (own_mean - mean) / scale
    scaled = {f"{head}.weight": weight * ratio[:, None], f"{head}.bias": bias * ratio + shift}
    return {**model, **{name: value.to(bias.dtype) for name, value in scaled.items()}}
