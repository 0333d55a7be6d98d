"""A trained network from its checkpoint."""

import dataclasses

from .. import kinds, tasks
from ..config import UserError, one_line


def restore(content, path, config=None, needs=()):
    """(config, task, network) of the checkpoint `path`, whose content is given, on the CPU.

    config: instead of the checkpoint's own. needs: what it must hold besides what every checkpoint holds.
    Raises UserError if something is not there, if nothing was fitted on validation cases yet (thresholds, corrections),
    if `config` prepares images in another way or asks something else, or if the weights do not fit it.
    """
    lacking = ", ".join(name for name in ("model", "config", "task", *needs) if name not in content)
    if lacking:
        raise UserError(f"{path}: no {lacking} in it, wanted best.pt as this version of train.py or cv.py writes it")
    if not content.get("calibrated"):
        wanted = "wanted best.pt of a fold that is trained to its end"
        raise UserError(f"{path}: nothing was fitted on validation cases for it yet, {wanted}")
    model = content["config"]["model"]
    model.setdefault("head", "linear")  # all were, before there was a choice
    if model.get("deep_supervision") == "auto":  # which once was true
        model["deep_supervision"] = any("decoder.ds_out_conv" in name for name in content["model"])
    own = kinds.from_dict(content["config"], path)
    config = config or own
    if config.model.deep_supervision == "auto":
        same = dataclasses.replace(config.model, deep_supervision=own.model.deep_supervision)
        config = dataclasses.replace(config, model=same)
    task = _task(config, content, path)
    asked = tasks.meaning(config, task)
    for name, trained in tasks.meaning(own, _task(own, content, path)).items():
        if asked.get(name) != trained:
            now = f"and the config has {asked.get(name)}: restore it, or take another checkpoint"
            raise UserError(f"{path}: was trained with {name}={trained}, {now}")
    network = tasks.build_network(config, task)
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit the config: {one_line(error)[:300]}") from error
    return config, task, network


def _task(config, content, path):
    task = tasks.build(config)
    if lacking := sorted(set(task.state) - set(content["task"])):
        got = f"no {', '.join(lacking)} in what was fitted, as an earlier version of this project writes it"
        raise UserError(f"{path}: {got}: use that version, or train again")
    task.state = content["task"]
    return task
