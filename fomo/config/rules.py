"""Rules that concern more than one key."""

import re

from .errors import UserError
from .sections import show


def check(config):
    """Raise UserError for a combination of keys that cannot work."""
    data, task, cv, train, optim = config.data, config.task, config.cv, config.train, config.optim

    def refuse(name, got, wanted):
        raise UserError(f"config: {name}: got {show(got)}, wanted {wanted}")

    if not re.fullmatch(r"[\w.+-]+", config.name) or set(config.name) <= {"."}:
        refuse("name", config.name, "letters, digits and . _ + - only: it names a folder")
    if data.source != "phantom" and data.root is None:
        refuse("data.root", None, f"the folder of the {data.source} data set, for example data.root=/data/{data.source}")
    if not data.channels:
        refuse("data.channels", (), "the channel names in network order, for example [dwi_b1000, flair]")
    if len(set(data.channels)) != len(data.channels):
        refuse("data.channels", data.channels, "each channel once")
    for size in data.patch:
        if size < 16 or size % 16:
            refuse("data.patch", data.patch, "multiples of 16 (the network halves each axis four times)")
    if set(data.patch) == {16}:
        refuse("data.patch", data.patch, "at least one axis of 32: one voxel at the bottleneck cannot be normalised")
    if data.percentiles[0] >= data.percentiles[1]:
        refuse("data.percentiles", data.percentiles, "the lower one first")
    if data.window[0] >= data.window[1]:
        refuse("data.window", data.window, "the lower one first")
    losses = {
        "classification": ("auto", "cross_entropy", "focal"),
        "segmentation": ("auto", "dice_ce", "cross_entropy"),
        "regression": ("auto", "huber", "mse"),
    }[task.type]
    if task.loss not in losses:
        refuse("task.loss", task.loss, f"one of {', '.join(losses)} for task.type={task.type}")
    if task.class_weights != "none" and task.type == "regression":
        refuse("task.class_weights", task.class_weights, "none for task.type=regression")
    if task.type == "classification" and task.classes != 2:
        refuse("task.classes", task.classes, "2 for task.type=classification")
    if train.balanced and task.type != "classification":
        refuse("train.balanced", train.balanced, f"false for task.type={task.type}")
    if config.model.deep_supervision and task.type != "segmentation":
        refuse("model.deep_supervision", True, f"false for task.type={task.type}")
    if config.model.name.endswith("lw_dec") and task.type != "segmentation":
        refuse("model.name", config.model.name, f"unet_b or unet_xl for task.type={task.type} (the light decoder has no head)")
    if config.finetune.strategy == "gradual" and config.finetune.unfreeze_epoch > train.epochs:
        refuse("finetune.unfreeze_epoch", config.finetune.unfreeze_epoch, f"at most train.epochs={train.epochs}")
    if config.finetune.strategy == "head_only" and config.weights.path is None:
        refuse("finetune.strategy", "head_only", "full or gradual while weights.path is none: a random encoder would stay random")
    if train.ema >= 1:
        refuse("train.ema", train.ema, "less than 1")
    if max(optim.betas) >= 1:
        refuse("optim.betas", optim.betas, "numbers less than 1")
    if len(set(config.eval.mirror_axes)) != len(config.eval.mirror_axes):
        refuse("eval.mirror_axes", config.eval.mirror_axes, "each axis once")
    if config.eval.postprocess != "none" and task.type != "segmentation":
        refuse("eval.postprocess", config.eval.postprocess, f"none for task.type={task.type}")
    if cv.final == "soup" and config.weights.path is None:
        refuse("cv.final", "soup", "ensemble or refit while weights.path is none: networks without a common start cannot be averaged")
    if optim.min_lr > optim.lr:
        refuse("optim.min_lr", optim.min_lr, f"at most optim.lr={show(optim.lr)}")
    if optim.warmup_epochs > train.epochs:
        refuse("optim.warmup_epochs", optim.warmup_epochs, f"at most train.epochs={train.epochs}")
    if train.micro_batch and train.batch_size % train.micro_batch:
        refuse("train.micro_batch", train.micro_batch, f"a divisor of train.batch_size={train.batch_size}")
    if len(set(cv.folds_to_run)) != len(cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, "each fold once")
    if cv.kind == "kfold" and any(fold > cv.folds for fold in cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, f"folds from 1 to cv.folds={cv.folds}")
    if cv.kind == "leave_one_group_out" and data.groups is None:
        refuse("data.groups", None, "a CSV with the columns subject,group for cv.kind=leave_one_group_out")
