"""Configuration: a YAML file becomes frozen dataclasses, or one clear error.

Every key of every section is a field below, with its default, its help and its limits in one place;
`--help`, the README's table and the checks are all generated from them.
"""

import dataclasses
import difflib
import hashlib
import math
import os
import re
import types
import typing
from dataclasses import dataclass

import yaml


class UserError(ValueError):
    """The user's configuration or data is wrong: the command prints the message as one line and exits with code 2."""

    exit_code = 2


def key(default, help, *, choices=None, low=None, high=None, above=None, path=False, identity=True):
    """A field of a section.

    choices: the allowed values (of each element, for a tuple). low, high: inclusive limits; above: exclusive lower
    limit. path: relative values resolve against the file that names them. identity=False: the value does not change
    what a run computes, so it may differ when an existing run folder is continued.
    """
    metadata = dict(
        help=help, choices=choices, low=low, high=high, above=above, path=path, identity=identity
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Task:
    type: str = key("classification", "what is learned", choices=("classification", "segmentation", "regression"))
    classes: int = key(2, "number of classes, background included (classification, segmentation)", low=2)
    loss: str = key(
        "auto",
        "auto: cross_entropy, dice_ce or huber, by task",
        choices=("auto", "cross_entropy", "focal", "dice_ce", "huber", "mse"),
    )
    class_weights: str = key(
        "none", "weights of the classes in the loss, from the training cases", choices=("none", "inverse_frequency")
    )
    label_scaling: str = key(
        "standard", "regression targets are standardised with the training fold's mean and deviation", choices=("standard", "none")
    )


@dataclass(frozen=True)
class Data:
    source: str = key("phantom", "where the cases come from", choices=("fomo1", "fomo2", "fomo3", "phantom"))
    root: str | None = key(None, "folder of the data set (phantom: where it is generated)", path=True)
    cache: str | None = key(None, "folder of the preprocessed cases (none: <output>/cache)", path=True, identity=False)
    channels: tuple[str, ...] = key((), "channel names in network order; 'a|b': the one that the case has")
    patch: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) that the network sees at once")
    spacing_mm: tuple[float, float, float] | None = key(
        (1.0, 1.0, 1.0), "resample to this voxel size (none: keep each case's own)", above=0.0
    )
    crop: bool = key(True, "crop to the box of non-zero voxels")
    normalize: str = key("zscore", "intensities, per channel", choices=("zscore", "percentile", "window", "none"))
    percentiles: tuple[float, float] = key((0.5, 99.5), "normalize=percentile: these map to 0 and 1", low=0.0, high=100.0)
    window: tuple[float, float] = key((-1000.0, 400.0), "normalize=window: these intensities map to 0 and 1 (CT: HU)")
    cache_dtype: str = key("float32", "number type of the cached images", choices=("float32", "float16"))
    prepare_workers: int = key(2, "processes that preprocess (0: this one)", low=0, identity=False)
    foreground_fraction: float = key(0.5, "share of training patches centred on foreground (segmentation)", low=0.0, high=1.0)
    crop_position: str = key("random", "training patch of a whole-case task", choices=("random", "center"))
    phantom_cases: int = key(60, "number of phantom cases", low=4)
    phantom_size: int = key(48, "phantom volume: voxels along the longest axis", low=16)
    groups: str | None = key(None, "CSV with the columns subject,group (cv.kind=leave_one_group_out)", path=True)


@dataclass(frozen=True)
class Model:
    name: str = key("unet_b", "network", choices=("unet_b", "unet_xl", "unet_b_lw_dec", "unet_xl_lw_dec"))
    width: int | None = key(None, "channels of the first level (none: the network's own, 32 or 64)", low=1)
    deep_supervision: bool = key(False, "segmentation: losses on the coarser levels as well")


@dataclass(frozen=True)
class Weights:
    path: str | None = key(None, "pretrained checkpoint to start from (none: random)", path=True)
    stem: str = key("repeat", "rule for a first layer with other input channels", choices=("repeat", "mean", "reinit"))
    trust: bool = key(False, "unpickle a file that holds more than tensors and plain data; it can run code")


@dataclass(frozen=True)
class Finetune:
    strategy: str = key("full", "what is trained", choices=("full", "gradual", "head_only"))
    unfreeze_epoch: int = key(10, "gradual: first epoch (from 1) in which the encoder is trained", low=1)
    layer_decay: float = key(1.0, "learning-rate factor per stage away from the head", above=0.0, high=1.0)


@dataclass(frozen=True)
class Optim:
    lr: float = key(1e-4, "peak learning rate of AdamW", above=0.0)
    weight_decay: float = key(3e-5, "decoupled weight decay; not on norms and biases", low=0.0)
    betas: tuple[float, float] = key((0.9, 0.999), "AdamW's averaging factors", low=0.0, high=1.0)
    schedule: str = key("cosine", "learning rate over the steps", choices=("cosine", "plateau", "constant"))
    warmup_epochs: float = key(0.0, "linear warm-up", low=0.0)
    cosine_stretch: float = key(1.15, "the cosine reaches min_lr after this multiple of the epochs", low=1.0)
    min_lr: float = key(1e-9, "lowest learning rate", low=0.0)
    plateau_factor: float = key(0.5, "plateau: factor after plateau_patience epochs without a better val_loss", above=0.0, high=1.0)
    plateau_patience: int = key(5, "plateau: epochs to wait", low=1)
    clip_norm: float | None = key(None, "largest gradient norm (none: no clipping)", above=0.0)


@dataclass(frozen=True)
class Train:
    epochs: int = key(100, "epochs of steps_per_epoch steps", low=1)
    batch_size: int = key(2, "samples per optimizer step, over all ranks", low=1)
    micro_batch: int | None = key(None, "samples per forward pass on one rank (none: all); less accumulates gradients", low=1)
    steps_per_epoch: int | None = key(None, "optimizer steps per epoch (none: as many as see every case once)", low=1)
    amp: str = key(
        "auto", "auto: bf16 where the GPU has it, else fp16; off on the CPU", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = key(False, "torch.compile the network")
    workers: int = key(2, "loader processes per rank (0: the training process)", low=0, identity=False)
    balanced: bool = key(False, "classification: draw the classes equally often")
    ema: float = key(0.0, "decay of an exponential average of the weights, used for evaluation (0: off)", low=0.0, high=1.0)
    patience: int | None = key(10, "stop after this many epochs without a better val_loss (none: never)", low=1)
    min_delta: float = key(0.001, "smallest improvement of val_loss that counts for patience", low=0.0)
    log_every: int = key(10, "steps between train lines", low=1, identity=False)
    save_every_s: int = key(600, "seconds between saves within an epoch", low=1, identity=False)
    timeout_s: int = key(3600, "longest wait for another rank, as while rank 0 preprocesses", low=1, identity=False)


@dataclass(frozen=True)
class Augment:
    preset: str = key("all", "augmentation of the training patches", choices=("none", "basic", "all", "strong"))


@dataclass(frozen=True)
class Cv:
    kind: str = key("kfold", "how the folds are made", choices=("kfold", "leave_one_group_out"))
    folds: int = key(5, "number of folds (leave_one_group_out: one per group)", low=2)
    val_fraction: float = key(0.2, "share of each fold's training subjects held back to select on", above=0.0, high=0.9)
    stratify: bool = key(True, "equal shares of each class (or of the range of the target) in all folds")
    folds_to_run: tuple[int, ...] = key((), "folds (from 1) to run now (empty: all)", low=1, identity=False)


@dataclass(frozen=True)
class Eval:
    overlap: float = key(0.5, "overlap of neighbouring windows when a case is larger than the patch", low=0.0, high=0.95)
    windows: int = key(2, "windows per forward pass", low=1, identity=False)
    pool_windows: str = key(
        "mean", "whole-case tasks: how the windows of one case are pooled", choices=("mean", "max")
    )
    threshold: str = key(
        "youden",
        "classification: decision threshold; half (0.5) or chosen on the inner validation cases",
        choices=("half", "youden", "f1"),
    )
    bootstrap: int = key(1000, "resamples of the pooled intervals (0: none)", low=0)
    surface_tolerance_mm: float = key(1.0, "tolerance of the surface Dice", above=0.0)


@dataclass(frozen=True)
class Config:
    name: str = key("run", "name of the run folder")
    output: str = key("runs", "folder of the run folders", path=True)
    seed: int = key(0, "seed of every random draw", low=0)
    task: Task = Task()
    data: Data = Data()
    model: Model = Model()
    weights: Weights = Weights()
    finetune: Finetune = Finetune()
    optim: Optim = Optim()
    train: Train = Train()
    augment: Augment = Augment()
    cv: Cv = Cv()
    eval: Eval = Eval()


def load(path, overrides=()):
    """Read the YAML file `path`, with its bases, apply `key=value` overrides and check everything.

    Relative paths in a file resolve against that file, those on the command line against the working directory.
    Raises UserError, with the file and the dotted key, for anything unknown, mistyped or impossible.
    """
    values = _read(path, ())
    for text in overrides:
        _override(values, text)
    config = _build(Config, values, "", os.path.dirname(os.path.abspath(path)))
    if config.data.cache is None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=os.path.join(config.output, "cache")))
    _check_combinations(config)
    return config


def to_dict(config):
    """The config as plain nested dicts of YAML's own types."""
    plain = dataclasses.asdict(config)
    return _map_leaves(plain, lambda value: list(value) if isinstance(value, tuple) else value)


def identity(config):
    """{dotted key: value} of all keys that change what a run computes; two runs with equal identities are the same run."""
    return {name: value for name, field, value in fields(config) if field.metadata["identity"] and name != "output"}


def fields(config, prefix=""):
    """Yield (dotted name, dataclass field, value) of every key of a config or section."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def fingerprint(value):
    """Short stable hash of a value made of dicts, lists and scalars."""
    text = yaml.safe_dump(value, sort_keys=True, default_flow_style=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe_keys():
    """The text of `--help`: every key, its default and one line of explanation."""
    lines = []
    for name, field, value in fields(Config()):
        meta = field.metadata
        shown = "none" if value is None else _show(value)
        notes = [meta["help"]]
        if meta["choices"]:
            notes.append("one of " + " ".join(str(choice) for choice in meta["choices"]))
        lines.append(f"  {name + '=' + shown:<40} {'; '.join(notes)}")
    return "\n".join(lines)


def _show(value):
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(_show(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _map_leaves(tree, function):
    return {k: _map_leaves(v, function) if isinstance(v, dict) else function(v) for k, v in tree.items()}


# ---------------------------------------------------------------------------------------- reading


class _Sourced(typing.NamedTuple):
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


def _read(path, seen):
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
    inherited = _read(os.path.join(folder, base), (*seen, path)) if base else {}
    return _merge(inherited, _map_leaves(tree, lambda value: _Sourced(value, path, folder)))


def _merge(below, above):
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _override(values, text):
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
    tree[last] = _Sourced(_parse_yaml(value, f"{where}: {name}"), where, os.getcwd())


# --------------------------------------------------------------------------------------- checking


def _build(cls, values, prefix, folder):
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
            result[name] = _build(hints[name], value, f"{prefix}{name}.", folder)
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
                raise UserError(f"{where}: got {_show(item)}, wanted {words} {_show(limit)}")
    if meta["path"] and value is not None:
        value = os.path.normpath(os.path.join(sourced.folder, os.path.expanduser(value)))
    return value


def _type_name(hint):
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
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


def _check_combinations(config):
    """Rules that concern more than one key."""
    data, task, cv, train, optim = config.data, config.task, config.cv, config.train, config.optim

    def refuse(name, got, wanted):
        raise UserError(f"config: {name}: got {_show(got)}, wanted {wanted}")

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
    if optim.min_lr > optim.lr:
        refuse("optim.min_lr", optim.min_lr, f"at most optim.lr={_show(optim.lr)}")
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
