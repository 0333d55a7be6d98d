"""From YAML text to typed sections, or one error that says where."""

import dataclasses
import difflib
import math
import operator
import os
import re
import types
import typing

import yaml

from .errors import UserError, one_line
from .sections import Config, fields, show


class Sourced(typing.NamedTuple):
    """A leaf value with where it was written and the folder its relative paths start from."""

    value: object
    where: str
    folder: str


_FILE_CHARACTERS = 100_000  # the parser takes seconds for them
_BASES = 20  # files that inherit from each other
_SHOWN = 300  # characters of a value or path in an error
_CONTROL = re.compile(r"[\0-\x1f\x7f\ud800-\udfff]")  # YAML folds line breaks and refuses the rest
_LIMITS = ("low", operator.ge, "at least"), ("high", operator.le, "at most"), ("above", operator.gt, "more than")
_AS_WRITTEN = re.compile(r"[-+]?0[0-9a-zA-Z]+|.*[:_].*")  # to YAML 1.1 010 is 8, 0x1f is 31, 1:30 is 90 and 1_0 is 10


class _StrictLoader(yaml.SafeLoader):
    """YAML without arbitrary tags, repeated keys and aliases (a few lines of which can stand for billions)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise _refused("aliases (*) are not taken, `base` inherits", self.peek_event())
        return super().compose_node(parent, index)


def _refused(problem, node):
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unique_mapping(loader, node, deep=False):
    seen = set()
    for key_node, _ in node.value:
        name = loader.construct_object(key_node, deep=True)
        if not isinstance(name, str):
            raise _refused(f"key {shown(name)} is not text", key_node)
        if name in seen:
            raise _refused(f"key {shown(name)} appears twice", key_node)
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _whole_number(loader, node):
    if _AS_WRITTEN.fullmatch(node.value):
        return node.value  # text, as of a fold, a date or a time of day
    value = yaml.SafeLoader.construct_yaml_int(loader, node)
    if abs(value) >= 2**63:
        raise _refused("a whole number is beyond 64 bits", node)
    return value


def _number(loader, node):
    return node.value if _AS_WRITTEN.fullmatch(node.value) else yaml.SafeLoader.construct_yaml_float(loader, node)


def _truth(loader, node):
    """on, off, yes and no are text, as of `train.amp`."""
    return yaml.SafeLoader.construct_yaml_bool(loader, node) if node.value.lower() in ("true", "false") else node.value


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _truth)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _number)


def _parse_yaml(text, where):
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        # what the parser raises; the others than its own come from tags such as `!!bool x`
        raise UserError(f"{where}: not valid YAML: {_cut(one_line(error))}") from error


def read(path, seen=()):
    """The tree of a YAML file and its bases, each leaf with where it was written."""
    path = os.path.abspath(path)
    if path in seen:
        raise UserError(f"{path}: `base` refers back to itself by way of {_cut(' -> '.join(seen))}")
    if len(seen) > _BASES:
        raise UserError(f"{path}: got more than {_BASES} files that inherit from each other, from {seen[0]} on")
    if seen and os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe could be without end
        raise UserError(f"{seen[-1]}: base: got {_cut(path)}, which is not a file")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8; a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the config file {_cut(path)}: {why}") from error
    if len(text) > _FILE_CHARACTERS:
        raise UserError(f"{path}: got more than {_FILE_CHARACTERS} characters, wanted a config file")
    tree = _parse_yaml(text, path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: got a {type(tree).__name__}, wanted `key: value` lines")
    folder = os.path.dirname(path)
    base = tree.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: base: got {shown(base)}, wanted the path of a YAML file")
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
        raise UserError(f"command line: got {shown(text)}, wanted key=value, for example optim.lr=3e-4")
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"command line: {_cut(name)}: '{_cut(section)}' is a value, not a section")
    value = _command_line_value(value, _hint(name), f"command line: {name}")
    values[last] = Sourced(value, "command line", os.getcwd())


def _hint(name):
    """The type of the key with this dotted name; None if there is no such key."""
    hint = Config
    for part in name.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def _command_line_value(text, hint, where):
    """The value that a text on the command line stands for: YAML, or for a key of type text the text itself."""
    plain = text.strip()
    quoted = plain[:1] in ("'", '"') and plain[-1:] == plain[:1]
    if hint not in (str, str | None) or not plain or quoted or _CONTROL.search(plain):
        return _parse_yaml(text, where)
    return None if plain in ("null", "Null", "NULL") and hint is not str else plain


def shown(value):
    """A value in an error, cut where it is long."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return f"a {type(value).__name__} too long to show"


def _cut(text):
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def map_leaves(tree, function):
    return {k: map_leaves(v, function) if isinstance(v, dict) else function(v) for k, v in tree.items()}


# keys of older runs and checkpoints: {dotted key: function of its value that gives {field: value}}
_FORMER = {
    "tensorboard": lambda value: {"tracker": "tensorboard" if value in (True, "true") else "none"},
    "train.compile": lambda value: {},  # it changed no number, and was slower than the graphs
}


def build(cls, values, prefix, folder, where, choices):
    """The dataclass `cls` from a tree.

    folder: where the relative paths of defaults start.
    where: where the tree was written, for errors.
    choices: {dotted key: allowed values}, besides those that stand with the key.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    result = {}
    for name, value in values.items():
        if prefix + name in _FORMER:
            result |= _FORMER[prefix + name](value.value)
            continue
        if name not in known:
            names = [key for key, _, _ in fields(Config())]
            alike = [key for key in names if key.split(".")[-1] == name.split(".")[-1]]
            meant = _meant(prefix + name, names, alike) or "; --help lists all keys"
            raise UserError(f"{_at(_where(value, where))}unknown key {shown(prefix + name)}{meant}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                if value.value is None:
                    continue  # a section written with nothing in it
                raise UserError(f"{value.where}: {prefix}{name}: got {shown(value.value)}, wanted a section of keys")
            result[name] = build(hints[name], value, f"{prefix}{name}.", folder, where, choices)
        elif isinstance(value, dict) and dict in typing.get_args(hints[name]):
            result[name] = map_leaves(value, lambda leaf: leaf.value)  # checked by the room that it is for
        elif isinstance(value, dict):
            at, wanted = _at(_where(value, where)), _type_name(hints[name])
            raise UserError(f"{at}{prefix}{name}: got a section, wanted {wanted}")
        else:
            result[name] = _leaf(value, hints[name], known[name].metadata, prefix + name, choices.get(prefix + name))
    for name, field in known.items():
        if field.metadata.get("path") and name not in result and field.default is not None:
            result[name] = os.path.normpath(os.path.join(folder, field.default))
    return cls(**result)


def _where(value, whole):
    """Where a leaf, or the first leaf of a section, was written; whole: where the tree was, for an empty section."""
    while isinstance(value, dict):
        if not value:
            return whole
        value = next(iter(value.values()))
    return value.where


def _at(where):
    """How an error begins; where: "" if whoever asked says where the keys are from."""
    return f"{where}: " if where else ""


def _meant(given, known, otherwise=()):
    """What may have been meant, the most similar of the `known` names or the first of the others, to end an error."""
    close = difflib.get_close_matches(given, known, n=1) or otherwise
    return f"; did you mean '{close[0]}'?" if close else ""


def _leaf(sourced, hint, meta, name, choices):
    """The value of a leaf, converted to its type and checked against its limits."""
    where, choices = f"{_at(sourced.where)}{name}", choices or meta["choices"]
    value = _convert(sourced.value, hint, where)
    for item in value if isinstance(value, tuple) else () if value is None else (value,):
        if choices and item not in choices:
            wanted = ", ".join(choices) + _meant(item, choices)
            raise UserError(f"{where}: got {shown(item)}, wanted one of {wanted}")
        for limit, kept, words in _LIMITS:
            if meta[limit] is not None and not isinstance(item, str) and not kept(item, meta[limit]):
                raise UserError(f"{where}: got {_cut(show(item))}, wanted {words} {show(meta[limit])}")
    if meta["path"] and value is not None:
        value = os.path.normpath(os.path.join(sourced.folder, os.path.expanduser(value)))
    return value


def _is_union(hint):
    """Whether it is a type or none, or a type or some words."""
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _type_name(hint):
    names = {
        type(None): "none",
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        dict: "a section of keys",
    }
    options = typing.get_args(hint)
    if _is_union(hint):
        return " or ".join(_type_name(option) for option in options)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(options)
    if typing.get_origin(hint) is tuple:
        count = "a list" if options[-1] is Ellipsis else f"a list of {len(options)}"
        return f"{count} (each {_type_name(options[0])})"
    return names[hint]


def _convert(value, hint, where, wanted=None):
    """`value` as the type `hint`. An int may become a float or text, `1e-4` (text in YAML) a float, `none` None."""
    wrong = UserError(f"{where}: got {shown(value)} ({type(value).__name__}), wanted {wanted or _type_name(hint)}")
    options = typing.get_args(hint)
    if _is_union(hint):
        words = (None, "none") if type(None) in options else typing.get_args(options[1])
        if value in words:
            return None if None in words else value
        return _convert(value, options[0], where, None if None in words else _type_name(hint))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise UserError(f"{where}: got {len(value)} values {shown(value)}, wanted {len(options)}")
        return tuple(_convert(item, options[0], where) for item in value)
    if hint is float and not isinstance(value, bool) and "_" not in str(value):  # to Python 1_0 is 10, as to YAML
        return _number(value, where, wrong)
    if hint is str and type(value) is int:
        return str(value)  # a name made of digits, as of a fold
    if type(value) is not hint:
        raise wrong
    return value


def _number(value, where, wrong):
    """The float that a value is or says; wrong: the error where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number):
        raise UserError(f"{where}: got {shown(value)}, wanted a finite number")
    return number
