"""From YAML text to typed sections, or one error that says where."""

import dataclasses
import difflib
import math
import os
import re
import types
import typing

import yaml

from .errors import UserError
from .sections import Config, fields, show


class Sourced(typing.NamedTuple):
    """A leaf value with where it was written and the folder its relative paths start from."""

    value: object
    where: str
    folder: str


class _StrictLoader(yaml.SafeLoader):
    """YAML without arbitrary tags and without silently repeated keys."""


def _unique_mapping(loader, node, deep=False):
    seen = set()
    for key_node, _ in node.value:
        name = loader.construct_object(key_node, deep=True)
        if not isinstance(name, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is not text", key_node.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{name}' appears twice", key_node.start_mark)
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _parse_yaml(text, where):
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def read(path, seen=()):
    """The tree of a YAML file and its bases, each leaf with where it was written."""
    path = os.path.abspath(path)
    if path in seen:
        raise UserError(f"{path}: `base` refers back to itself by way of {' -> '.join(seen)}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {error}") from error
    tree = _parse_yaml(text, path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: got a {type(tree).__name__}, wanted `key: value` lines")
    folder = os.path.dirname(path)
    base = tree.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base: got {base!r}, wanted the path of a YAML file")
    inherited = read(os.path.join(folder, base), (*seen, path)) if base else {}
    return _merge(inherited, map_leaves(tree, lambda value: Sourced(value, path, folder)))


def _merge(below, above):
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def override(values, text):
    """Set `key=value` of the command line in a tree."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise UserError(f"command line: got '{text}', wanted key=value, for example optim.lr=3e-4")
    *sections, last = name.split(".")
    tree = values
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"command line: {name}: '{section}' is a value, not a section")
    where = "command line"
    tree[last] = Sourced(_parse_yaml(value, f"{where}: {name}"), where, os.getcwd())


def map_leaves(tree, function):
    return {k: map_leaves(v, function) if isinstance(v, dict) else function(v) for k, v in tree.items()}



def build(cls, values, prefix, folder):
    """The dataclass `cls` from a tree; folder: what the defaults' relative paths start from."""
    known = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    result = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{_where(value)}: unknown key '{prefix}{name}'{_nearest(prefix + name)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                if value.value is None:
                    continue  # a section written with nothing in it
                raise UserError(f"{value.where}: {prefix}{name}: got {value.value!r}, wanted a section of keys")
            result[name] = build(hints[name], value, f"{prefix}{name}.", folder)
        elif isinstance(value, dict) and dict in typing.get_args(hints[name]):
            result[name] = map_leaves(value, lambda leaf: leaf.value)  # checked by the room that it is for
        elif isinstance(value, dict):
            raise UserError(f"{_where(value)}: {prefix}{name}: got a section, wanted {_type_name(hints[name])}")
        else:
            result[name] = _leaf(value, hints[name], known[name].metadata, prefix + name)
    for name, field in known.items():
        if field.metadata.get("path") and name not in result and field.default is not None:
            result[name] = os.path.normpath(os.path.join(folder, field.default))
    return cls(**result)


def _where(value):
    while isinstance(value, dict):
        if not value:
            return "config"
        value = next(iter(value.values()))
    return value.where


def _nearest(name):
    names = [known for known, _, _ in fields(Config())]
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.split(".")[-1] == name.split(".")[-1]]
    return f"; did you mean '{close[0]}'?" if close else "; --help lists all keys"


def _leaf(sourced, hint, meta, name):
    where = f"{sourced.where}: {name}"
    value = _convert(sourced.value, hint, where)
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    for item in items:
        if meta["choices"] and item not in meta["choices"]:
            close = difflib.get_close_matches(str(item), [str(choice) for choice in meta["choices"]], n=1)
            hint_text = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"{where}: got {item!r}, wanted one of {', '.join(map(str, meta['choices']))}{hint_text}")
        for limit, broken, words in (
            (meta["low"], lambda x, limit: x < limit, "at least"),
            (meta["high"], lambda x, limit: x > limit, "at most"),
            (meta["above"], lambda x, limit: x <= limit, "more than"),
        ):
            if limit is not None and broken(item, limit):
                raise UserError(f"{where}: got {show(item)}, wanted {words} {show(limit)}")
    if meta["path"] and value is not None:
        value = os.path.normpath(os.path.join(sourced.folder, os.path.expanduser(value)))
    return value


def _type_name(hint):
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a section of keys"}
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join("none" if option is type(None) else _type_name(option) for option in options)
    if typing.get_origin(hint) is tuple:
        count = "a list" if options[-1] is Ellipsis else f"a list of {len(options)}"
        return f"{count} (each {_type_name(options[0])})"
    return names[hint]


def _convert(value, hint, where):
    """`value` as the type `hint`; ints become floats, `1e-4` (text, to YAML) a float, `none` None. Nothing else bends."""
    wrong = UserError(f"{where}: got {value!r} ({type(value).__name__}), wanted {_type_name(hint)}")
    if isinstance(hint, types.UnionType):
        if value is None or value == "none":
            return None
        return _convert(value, typing.get_args(hint)[0], where)
    if typing.get_origin(hint) is tuple:
        options = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise wrong
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise UserError(f"{where}: got {len(value)} values {value!r}, wanted {len(options)}")
        return tuple(_convert(item, options[0], where) for item in value)
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        if not math.isfinite(number):
            raise UserError(f"{where}: got {value!r}, wanted a finite number")
        return number
    if type(value) is not hint:
        raise wrong
    return value
