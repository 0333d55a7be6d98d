"""Rules that concern more than one key, whatever the task, the source and the network are."""

import re

from .sections import fields, show


def check(config, refuse):
    """Call refuse(key, got, wanted), which raises, for a combination of keys that cannot work."""
    if not re.fullmatch(r"[\w.+-]+", config.name) or set(config.name) <= {"."}:
        refuse("name", config.name, "letters, digits and . _ + - only: it names a folder")
    _check_data(config.data, refuse)
    _check_length(config, refuse)
    _check_training(config, refuse)
    _check_finetuning(config, refuse)
    _check_optimizer(config.optim, refuse)
    _check_folds(config, refuse)
    if len(set(config.eval.mirror_axes)) != len(config.eval.mirror_axes):
        refuse("eval.mirror_axes", config.eval.mirror_axes, "each axis once")
    if config.eval.views != "none" and config.eval.mirror_axes:
        refuse(
            "eval.mirror_axes", config.eval.mirror_axes, f"[] for eval.views={config.eval.views}, which chooses them"
        )


def unread(config, windows="several"):
    """Names of the keys that differ from their default and that nothing reads, because of the values of other keys.

    windows: "one" where a window is known to hold every case.
    """
    values = {name: show(value) for name, _, value in fields(config)}
    values["windows"] = windows
    for name, field, value in fields(config):
        only = field.metadata["only"]
        if value != field.default and only and not any(_holds(all_of, values) for all_of in only.split(" or ")):
            yield name


def _holds(conditions, values):
    """Whether all conditions hold, key=a|b or key!=a, with blanks between them."""
    pairs = (re.fullmatch(r"([\w.]+)(!?=)(.*)", condition).groups() for condition in conditions.split())
    return all((values[key] in wanted.split("|")) == (sign == "=") for key, sign, wanted in pairs)


def _check_data(data, refuse):
    if not data.channels:
        refuse("data.channels", (), "the channel names in network order, for example [dwi_b1000, flair]")
    if len(set(data.channels)) != len(data.channels):
        refuse("data.channels", data.channels, "each channel once")
    optional = data.optional_channels
    if unknown := [text for text in optional if text not in data.channels]:
        refuse("data.optional_channels", unknown, f"some of data.channels={show(data.channels)}, as they stand there")
    if len(set(optional)) != len(optional):
        refuse("data.optional_channels", optional, "each channel once")
    if set(optional) == set(data.channels):
        refuse("data.optional_channels", optional, "not all of data.channels: a case has at least one that all have")
    for name in ("percentiles", "window"):
        low, high = getattr(data, name)
        if low >= high:
            refuse(f"data.{name}", (low, high), "the lower one first")


def _check_training(config, refuse):
    train = config.train
    if train.ema >= 1:
        refuse("train.ema", train.ema, "less than 1")
    if train.micro_batch and train.batch_size % train.micro_batch:
        refuse("train.micro_batch", train.micro_batch, f"a divisor of train.batch_size={train.batch_size}")
    if config.augment.mix != "none" and train.batch_size < 2:
        wanted = f"at least 2 for augment.mix={config.augment.mix}: a sample is mixed with another of its batch"
        refuse("train.batch_size", train.batch_size, wanted)
    if train.checkpoint is not None and train.mode != "evaluate":
        wanted = f"none for train.mode={train.mode}: weights.path is what training starts from"
        refuse("train.checkpoint", train.checkpoint, wanted)
    if train.checkpoint is not None and config.weights.path is not None:
        refuse("weights.path", config.weights.path, "none beside train.checkpoint: one of them is what is evaluated")


def _check_finetuning(config, refuse):
    strategy, stages = config.finetune.strategy, config.finetune.frozen_stages
    if config.weights.path is not None:
        return
    if stages:
        refuse("finetune.frozen_stages", stages, "0 while weights.path is none: random stages would stay random")
    if strategy in ("head_only", "frozen_encoder"):
        wanted = "full or gradual while weights.path is none: a random encoder would stay random"
        refuse("finetune.strategy", strategy, wanted)


def _check_optimizer(optim, refuse):
    if max(optim.betas) >= 1:
        refuse("optim.betas", optim.betas, "numbers less than 1")
    if optim.momentum >= 1:
        refuse("optim.momentum", optim.momentum, "less than 1")
    if optim.lr != "auto" and optim.min_lr > optim.lr:
        refuse("optim.min_lr", optim.min_lr, f"at most optim.lr={show(optim.lr)}")
    if optim.warmup_epochs and optim.warmup_share:
        refuse("optim.warmup_share", optim.warmup_share, "0 beside optim.warmup_epochs: one of them")


def _check_length(config, refuse):
    train, finetune, optim = config.train, config.finetune, config.optim
    if train.steps is not None and train.budget_s is not None:
        refuse("train.budget_s", train.budget_s, f"none beside train.steps={train.steps}: one of them is the length")
    if train.steps is not None or train.budget_s is not None:
        return  # the number of epochs depends on the cases
    epochs, late = train.epochs, finetune.unfreeze_epoch
    if finetune.strategy in ("gradual", "decoder_first", "stagewise") and late > epochs:
        refuse("finetune.unfreeze_epoch", late, f"at most train.epochs={epochs}")
    left, since = epochs, f"train.epochs={epochs}"
    if finetune.strategy == "decoder_first":  # its second warm-up is meant
        left = epochs - late + 1
        since = f"{left}: the epochs from finetune.unfreeze_epoch={late} on"
    if optim.warmup_epochs > left:
        refuse("optim.warmup_epochs", optim.warmup_epochs, f"at most {since}")
    if optim.warmup_share * epochs > left:
        wanted = f"at most {show(left / epochs)}, as a share of {epochs} epochs"
        refuse("optim.warmup_share", optim.warmup_share, wanted)


def _check_folds(config, refuse):
    data, cv = config.data, config.cv
    if len(set(cv.folds_to_run)) != len(cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, "each fold once")
    if cv.kind == "kfold" and any(fold > cv.folds for fold in cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, f"folds from 1 to cv.folds={cv.folds}")
    parts = [fold for part in (data.train_folds, data.val_folds, data.test_folds) for fold in part]
    if len(set(parts)) != len(parts):
        refuse("data.{train,val,test}_folds", tuple(parts), "each fold in one part")
    if cv.kind == "leave_one_group_out" and data.groups is None:
        refuse("data.groups", None, "a CSV with the columns subject,group for cv.kind=leave_one_group_out")
    if cv.final == "soup" and config.weights.path is None:
        wanted = "ensemble or refit while weights.path is none: networks without a common start cannot be averaged"
        refuse("cv.final", "soup", wanted)
    if cv.final == "refit" and config.optim.schedule == "plateau":
        wanted = "another value for optim.schedule=plateau: a refit has no validation loss to follow"
        refuse("cv.final", cv.final, wanted)
