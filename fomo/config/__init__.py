"""Configuration: a YAML file becomes frozen dataclasses, or one clear error."""

import dataclasses
import hashlib
import os

import yaml

from .errors import UserError, as_user_error, listed, one_line
from .reading import Sourced, build, map_leaves, override, read
from .rules import check, unread
from .sections import Config, Cv, Data, Eval, Task, Train, check_declared, fields, length, show


def load(path, overrides=(), choices=None):
    """The Config of a YAML file, its bases and `key=value` overrides, with types and limits checked.

    Relative paths in a file start from that file, those on the command line from the working directory.
    choices: {dotted key: allowed values} of the keys whose choices are said elsewhere.
    Raises UserError, with the file and the dotted key, for anything unknown or mistyped.
    """
    values = read(path)
    for text in overrides:
        override(values, text)
    folder = os.path.dirname(os.path.abspath(path))
    config = build(Config, values, "", folder, origin(path, overrides), choices or {})
    if config.data.cache is None:
        cache = os.path.join(config.output, "cache")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=cache))
    return config


def origin(path, overrides):
    """Where a config was written, for errors."""
    return f"{path} and the command line" if overrides else path


def overridden(config, overrides, choices=None):
    """The Config with `key=value` overrides from the command line; raises UserError as `load`."""
    values = map_leaves(to_dict(config), lambda value: Sourced(value, "", ""))
    for text in overrides:
        override(values, text)
    return build(Config, values, "", "", "the command line", choices or {})


def section_of(cls, values, prefix, choices=None):
    """A section of keys from plain values; prefix: what errors, which name no file, call them: "task.parts.lesion."."""
    return build(cls, map_leaves(values, lambda value: Sourced(value, "", "")), prefix, "", "", choices or {})


def from_dict(values, where, choices=None):
    """The Config of `to_dict`'s nested dicts; where: the file that they are from, for errors."""
    return build(Config, map_leaves(values, lambda value: Sourced(value, where, "")), "", "", where, choices or {})


def to_dict(config):
    """The config as plain nested dicts of YAML's own types."""
    plain = dataclasses.asdict(config)
    return map_leaves(plain, lambda value: list(value) if isinstance(value, tuple) else value)


def identity(config):
    """{dotted key: value} of all keys that change what a run computes; runs with equal identities are the same."""
    return {name: value for name, field, value in fields(config) if field.metadata["identity"]}


def owner(key):
    """The key of a config in whose value another one lies: augment.parameters of augment.parameters.rotate.p."""
    return ".".join(key.split(".")[:2])


def value_at(values, key):
    """The value in {dotted key: value} of a key that may lie within another one's mapping; None where it is not set."""
    found = values.get(owner(key))
    for name in key.split(".")[2:]:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def fingerprint(value):
    """Short stable hash of a value made of dicts, lists and scalars."""
    text = yaml.safe_dump(value, sort_keys=True, default_flow_style=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
