"""Model soups: several fine-tuned networks with a common start become one, by the mean of their weights.

Wortsman et al., ICML 2022. Uniform: the mean of all. Greedy: from the best on, each is added if the mean does not get worse.
"""

import numpy as np
import torch

from ..config import UserError
from ..space import postprocess

_HEADS = ("decoder.fc", "fc", "classifier.1")  # output layers of the networks with one output per case


def average(checkpoints):
    """One checkpoint with the mean weights of `checkpoints` (dicts of best.pt), which must be fine-tuned from one file.

    Regression heads that were trained on targets of different scaling are brought to that of the first one before. What
    each fold fitted on its own validation cases (threshold, bias correction, post-processing) is averaged as well: no other
    cases are unseen by all folds.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for section in ("task", "data", "model", "weights"):
            changed = sorted(k for k, v in first["config"][section].items() if other["config"][section].get(k) != v)
            if changed:
                raise UserError(f"soup: the checkpoints differ in {section}.{changed[0]}, wanted folds of one run")
    if first["config"]["weights"]["path"] is None:
        raise UserError(
            "soup: the folds started from different random weights (weights.path was none): use them as an ensemble"
        )
    models = [_in_units_of(first["task"], checkpoint) for checkpoint in checkpoints]
    mean = {}
    for name, value in models[0].items():
        values = torch.stack([model[name] for model in models])
        mean[name] = values.double().mean(0).to(value.dtype) if value.is_floating_point() else value
    state = {**first["task"], **_fitted([checkpoint["task"] for checkpoint in checkpoints])}
    folds = [checkpoint["fold"] for checkpoint in checkpoints]
    return {
        "model": mean,
        "config": first["config"],
        "fold": 0,
        "step": 0,
        "epoch": 0,
        "task": state,
        "subjects": sorted({subject for checkpoint in checkpoints for subject in checkpoint["subjects"]}),
        "calibrated": all(checkpoint.get("calibrated", False) for checkpoint in checkpoints),
        "scores": {},
        "soup": folds,
    }


def greedy(checkpoints, score):
    """The greedy soup. checkpoints: best first. score: checkpoint -> number, higher is better; returns (soup, its score)."""
    chosen, soup = checkpoints[:1], average(checkpoints[:1])
    best = score(soup)
    for checkpoint in checkpoints[1:]:
        trial = average([*chosen, checkpoint])
        value = score(trial)
        if value >= best:
            chosen, soup, best = [*chosen, checkpoint], trial, value
    return soup, best


def _in_units_of(reference, checkpoint):
    """The weights of `checkpoint`, its last layer changed so that its output o means o * scale + mean of `reference`."""
    own, model = checkpoint["task"], checkpoint["model"]
    if "scale" not in own:
        return model
    ratio = own["scale"] / reference["scale"]
    shift = (own["mean"] - reference["mean"]) / reference["scale"]
    weight, bias = next((f"{head}.weight", f"{head}.bias") for head in _HEADS if f"{head}.weight" in model)
    return {**model, weight: model[weight] * ratio, bias: model[bias] * ratio + shift}


def _fitted(states):
    """What was fitted on validation cases, for all folds together."""
    result = {}
    if "threshold" in states[0]:
        result["threshold"] = float(np.mean([state["threshold"] for state in states]))
    if states[0].get("bias_correction") is not None:
        # (p - intercept) / slope is linear in p: the mean of these lines, written as one
        slopes, intercepts = np.array([state["bias_correction"] for state in states]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = 1 / np.mean(1 / slopes)
            result["bias_correction"] = [float(slope), float(slope * np.mean(intercepts / slopes))]
    if states[0].get("thresholds") is not None:
        levels = [[state["thresholds"][level] for state in states] for level in states[0]["thresholds"]]
        means = [
            {name: np.mean([one[name] for one in level], axis=0).tolist() for name in ("all", "each")}
            for level in levels
        ]
        result["thresholds"] = dict(zip(states[0]["thresholds"], means))
    if "pooling" in states[0]:
        chosen = [state["pooling"] for state in states]
        result["pooling"] = max(chosen, key=chosen.count)  # that of most folds, of equals the first
    if "postprocess" in states[0]:
        result["postprocess"] = postprocess.merge([state["postprocess"] for state in states])
    return result
