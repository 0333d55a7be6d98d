"""The settings that a search compares, and for how long each of them is trained: successive halving.

All settings are trained for a part of the length; the better ones go on to a longer training, until few are left, which
are trained for the whole length.
"""

import dataclasses
import itertools
import re
from typing import NamedTuple

from .. import kinds, tasks
from ..config import Config, UserError, fields, identity, owner, show, value_at

# keys that say who is scored, on what and for how long, which must be the same in all settings; or what is done after
# training, which each fold chooses by itself
_FIXED = (
    *("name", "seed", "cv.", "eval.", "task.type", "task.targets", "task.classes", "task.class_names"),
    *("train.epochs", "train.steps", "train.budget_s", "train.mode", "train.checkpoint", "train.keep_best"),
    *("data.train_folds", "data.val_folds", "data.test_folds", "data.source", "data.phantom_"),
)
_MOST = 1000


class Setting(NamedTuple):
    """One combination of values; number: from 1; values: {key: value in print}."""

    number: int
    values: dict
    config: Config

    @property
    def text(self):
        return " ".join(f"{key}={value}" for key, value in self.values.items())


class Rung(NamedTuple):
    """A round of trainings: how many settings take part, each for which share of the whole length."""

    number: int
    settings: int
    share: float


def read(path, arguments):
    """The Settings of a config file and `key=v1,v2,...`, each of them checked as a run's config is.

    A key with one value is that of all settings. Settings that differ only in keys that neither reads are one. Raises
    UserError, also for keys that must not be searched.
    """
    searched, fixed, seen = {}, [], set()
    for text in arguments:
        key, equals, values = text.partition("=")
        found = split_values(values)
        if key in seen:
            raise UserError(f"command line: got {key} twice, wanted its values behind one another: {key}=v1,v2")
        seen.add(key)
        if not equals or len(found) == 1:
            fixed.append(text)
        else:
            searched[key] = _checked(key, found)
    if not searched:
        raise UserError("command line: got no key with several values, wanted one, for example optim.lr=1e-4,3e-4,1e-3")
    count = 1
    for values in searched.values():
        count *= len(values)
    if count > _MOST:
        raise UserError(f"command line: got {count} settings, wanted at most {_MOST}: search fewer values or keys")
    kept, unread = _different(path, fixed, searched)
    if never := [key for key in searched if all(key in keys for keys in unread)]:
        raise UserError(f"command line: {never[0]}: no setting reads it (--help says what it is for): leave it out")
    if len(kept) < 2:
        raise UserError("command line: all values make one and the same setting, wanted two or more that differ")
    _check_trained(path, kept[0].config)
    return kept


def _different(path, fixed, searched):
    """(the Settings that differ, the keys that each combination does not read)."""
    kept, known, unread, default = [], set(), [], dict(_values(Config()))
    for combination in itertools.product(*searched.values()):
        config = kinds.load(path, [*fixed, *(f"{key}={value}" for key, value in zip(searched, combination))])
        own, unread_here = identity(config), set(kinds.unread(config))
        unread.append({key for key in searched if owner(key) in unread_here})
        given = {key: value_at(own, key) for key in searched}
        what = tuple(repr(default[owner(key)] if key in unread[-1] else value) for key, value in given.items())
        if what not in known:
            known.add(what)
            values = {key: show(value) for key, value in given.items()}
            kept.append(Setting(len(kept) + 1, values, config))
    return kept, unread


def _values(config):
    return ((name, value) for name, _, value in fields(config))


def split_values(text):
    """The values of a list "v1,v2": commas in brackets or quotes are part of a value."""
    parts, depth = [""], 0
    for piece in re.findall(r"""'[^']*'|"[^"]*"|.""", text, re.DOTALL):  # what is quoted is one piece
        depth += (piece in "[{") - (piece in "]}")
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def _checked(key, values):
    """The values of a searched key; UserError for a key that is not to be searched, and for lists with holes."""
    known, whole = {name: field for name, field, _ in fields(Config())}, owner(key)
    of_part = whole == "task.parts" and (
        key == whole or key.endswith((".type", ".targets", ".classes", ".class_names"))
    )
    if of_part or key in known and any(key == name or (name[-1] in "._" and key.startswith(name)) for name in _FIXED):
        wanted = "one value: settings are compared on the same cases, by the same metric and for the same length"
        raise UserError(f"command line: {key}: got {len(values)} values, wanted {wanted}")
    if whole in known and not known[whole].metadata["identity"]:
        raise UserError(
            f"command line: {key}: got {len(values)} values, wanted one: it does not change what is learned"
        )
    if "" in values:
        raise UserError(f"command line: {key}: got an empty value, wanted {key}=v1,v2 without blanks between them")
    return values


def _check_trained(path, config):
    kind = tasks.kind(config)
    if kind.pretrains:
        got = f"task.type={config.task.type}"
        raise UserError(f"{path}: got {got}, wanted a task that is tested: a pretraining has no error to choose by")
    if config.train.mode == "evaluate":
        raise UserError(f"{path}: train.mode: got evaluate, wanted both or train: a search trains")


def plan(settings, keep):
    """The Rungs for so many settings, of which one of `keep` goes on each time; the last one has the whole length."""
    counts = [settings]
    while counts[-1] > keep:
        counts.append(-(-counts[-1] // keep))
    last = len(counts) - 1
    return [Rung(place + 1, count, float(keep) ** (place - last)) for place, count in enumerate(counts)]


def cost(rungs, folds):
    """What the Rungs cost, in trainings of one fold for the whole length."""
    return sum(rung.settings * rung.share for rung in rungs) * folds


def shortened(config, share):
    """The config of a trial: a training of this share of the length; what is counted in epochs shrinks with it."""
    train, optim, finetune = config.train, config.optim, config.finetune
    if train.budget_s is not None:
        length = {"budget_s": train.budget_s * share}
    elif train.steps is not None:
        length = {"steps": max(1, round(train.steps * share))}
    else:
        length = {"epochs": max(1, round(train.epochs * share))}
        share = length["epochs"] / train.epochs

    def fewer(epochs):
        return None if epochs is None else max(1, round(epochs * share))

    return dataclasses.replace(
        config,
        tracker="none",
        train=dataclasses.replace(train, patience=fewer(train.patience), keep_best=1, **length),
        optim=dataclasses.replace(
            optim, warmup_epochs=optim.warmup_epochs * share, plateau_patience=fewer(optim.plateau_patience)
        ),
        finetune=dataclasses.replace(
            finetune, unfreeze_epoch=fewer(finetune.unfreeze_epoch), unfreeze_every=fewer(finetune.unfreeze_every)
        ),
        cv=dataclasses.replace(config.cv, parallel="folds", final="none"),
        eval=dataclasses.replace(config.eval, views="none"),
    )
