"""Configuration: a YAML file becomes frozen dataclasses, or one clear error."""

import dataclasses
import hashlib
import os

import yaml

from . import rules
from .errors import UserError
from .reading import Sourced, build, map_leaves, override, read
from .rules import unread
from .sections import Augment, Config, Cv, Data, Eval, Finetune, Model, Optim, Task, Train, Weights, fields, show

__all__ = [
    "Augment", "Config", "Cv", "Data", "Eval", "Finetune", "Model", "Optim", "Task", "Train", "UserError", "Weights",
    "describe_keys", "fields", "fingerprint", "from_dict", "identity", "load", "show", "to_dict", "unread",
]  # fmt: skip


def load(path, overrides=()):
    """Read the YAML file `path`, with its bases, apply `key=value` overrides and check everything.

    Relative paths in a file resolve against that file, those on the command line against the working directory.
    Raises UserError, with the file and the dotted key, for anything unknown, mistyped or impossible.
    """
    values = read(path)
    for text in overrides:
        override(values, text)
    where = f"{path} and the command line" if overrides else path
    config = build(Config, values, "", os.path.dirname(os.path.abspath(path)), where)
    if config.data.cache is None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, cache=os.path.join(config.output, "cache"))
        )
    rules.check(config, where)
    return config


def from_dict(values, where):
    """The Config of `to_dict`'s nested dicts; where: the file that they are from, for errors."""
    config = build(Config, map_leaves(values, lambda value: Sourced(value, where, "")), "", "", where)
    rules.check(config, where)
    return config


def to_dict(config):
    """The config as plain nested dicts of YAML's own types."""
    plain = dataclasses.asdict(config)
    return map_leaves(plain, lambda value: list(value) if isinstance(value, tuple) else value)


def identity(config):
    """{dotted key: value} of all keys that change what a run computes; two runs with equal identities are the same run."""
    return {name: value for name, field, value in fields(config) if field.metadata["identity"]}


def fingerprint(value):
    """Short stable hash of a value made of dicts, lists and scalars."""
    text = yaml.safe_dump(value, sort_keys=True, default_flow_style=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe_keys():
    """The text of `--help`: every key, its default and one line of explanation."""
    lines = []
    for name, field, value in fields(Config()):
        meta = field.metadata
        shown = "none" if value is None else show(value)
        notes = [meta["help"]]
        if meta["choices"]:
            notes.append("one of " + " ".join(str(choice) for choice in meta["choices"]))
        if meta["only"]:
            notes.append(f"for {meta['only']}")
        lines.append(f"  {name + '=' + shown:<40} {'; '.join(notes)}")
    return "\n".join(lines)
