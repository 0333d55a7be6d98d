"""What there is to choose from, tasks, sources, networks and augmentations, and what each choice asks of a config.

Each of these kinds declares in its own room what concerns it. Here the declarations meet the config: choices for
`--help` and for errors, rules, and the keys that nobody reads.
"""

import dataclasses
import os

from . import config as config_module
from .config import UserError, as_user_error, fields, show
from .data.sources import SOURCES
from .nets import NETWORKS, PLAIN
from .nets.checks import WHOLE_CASE
from .runtime import lazy
from .tasks import TASKS, best_fusion, best_scaling, kind
from .transforms import PRESETS

checkpoint = lazy.Module(".checkpoint", __package__)


def choices():
    """{dotted key: allowed values} of the keys that choose a kind."""
    losses = dict.fromkeys(loss for task in TASKS.values() for loss in task.losses)
    return {
        "task.type": tuple(TASKS),
        "task.loss": ("auto", *losses),
        "data.source": tuple(SOURCES),
        "model.name": tuple(NETWORKS),
        "augment.preset": tuple(PRESETS),
    }


def load(path, overrides=()):
    """The Config of a YAML file and of `key=value` overrides, checked in every way, see `config.load` and `check`."""
    config = config_module.load(path, overrides, choices())
    check(config, config_module.origin(path, overrides))
    return config


def from_dict(values, where):
    """The Config of `config.to_dict`'s nested dicts, checked; where: the file that they are from, for errors."""
    config = config_module.from_dict(values, where, choices())
    check(config, where)
    return config


def settle(config, why_not=None):
    """(the config in which nothing is `auto` that the run must keep, {event of the log: what was decided}).

    The cases decide what `Task.settle` says, the weights that it starts from how channels are put together and how
    intensities are scaled, and task, optimizer and start the learning rate. Raises UserError for cases and weights that
    cannot be read, and for keys that do not fit what was decided. why_not: of the folds, see `Task.settle`.
    """
    asked, config = config, _as_trained(config)
    settled, decided = kind(config).settle(config, why_not)
    if settled.optim.lr == "auto":
        lr, start = kind(settled).rate(settled)
        settled = dataclasses.replace(settled, optim=dataclasses.replace(settled.optim, lr=lr))
        decided["optim"] = {"lr": lr, "recommended": start}
    if settled.model.fusion == "auto" and "model.fusion" in kind(settled).options:
        fusion = best_fusion(settled)
        settled = dataclasses.replace(settled, model=dataclasses.replace(settled.model, fusion=fusion))
        if fusion == "late":
            decided["model"] = {"fusion": fusion, "meant": "the weights have one channel: each goes alone"}
    if settled.data.normalize == "auto":
        scaling = best_scaling(settled)
        settled = dataclasses.replace(settled, data=dataclasses.replace(settled.data, normalize=scaling))
        decided["data"] = {**decided.get("data", {}), "normalize": scaling}
    if settled is not asked:
        check(settled, "as the cases decide")
    return settled, decided


def _as_trained(config):
    """The config that tests train.checkpoint: what is `auto` is as it was trained, and no patch is larger than then."""
    path = config.train.checkpoint
    content = checkpoint.load(path) if path is not None and os.path.exists(path) else {}
    if "config" not in content:  # which is said when it is tested
        return config
    own, task, model = from_dict(content["config"], path), config.task, config.model
    if task.evidence == "auto":
        task = dataclasses.replace(task, evidence=own.task.evidence)
    if model.fusion == "auto":
        model = dataclasses.replace(model, fusion=own.model.fusion)
    data = dataclasses.replace(config.data, patch=tuple(map(min, config.data.patch, own.data.patch)))
    if data.normalize == "auto":
        data = dataclasses.replace(data, normalize=own.data.normalize)
    return dataclasses.replace(config, task=task, model=model, data=data)


def check(config, where):
    """Raise UserError for a combination of keys that cannot work; where: what the config is from."""

    def refuse(name, got, wanted):
        raise UserError(f"{name}: got {show(got)[:300]}, wanted {wanted}")

    with as_user_error(where, UserError):
        config_module.check(config, refuse)
        _check_source(config, refuse)
        _check_network(config, refuse)
        _check_task(config, refuse)


def _check_source(config, refuse):
    data, task, source = config.data, kind(config), SOURCES[config.data.source]
    named = f"data.source={data.source}"
    keys, wanted = source.needs
    if keys and all(_value(config, key) is None for key in keys):
        refuse(keys[0], None, wanted)
    if data.csv is not None and not source.reads_csv:
        refuse("data.csv", data.csv, f"none for {named}")
    if source.one_channel and len(data.channels) != 1:
        refuse("data.channels", data.channels, f"one name for {named}, for example [mri]: each scan is a case")
    _check_labels(config, task, source, refuse)
    for name, owners in _options(SOURCES).items():
        if data.source not in owners and _changed(config, name):
            refuse(name, _value(config, name), f"another value for {named}: it is for {' or '.join(owners)}")
    if data.normalize == "imagenet" and source.geometry:
        slices = [name for name, other in SOURCES.items() if not other.geometry]
        refuse("data.normalize", "imagenet", f"another value for {named}: it is for {' or '.join(slices)}")
    source.check(config, refuse)
    _check_targets(config, task, source, refuse)


def _check_labels(config, task, source, refuse):
    """Whether the source has labels of the kind that the task reads."""
    if ("nothing" if task.pretrains else task.reads) in source.gives:
        return
    if source.gives == ("nothing",):
        wanted = f"a source with labels for task.type={config.task.type}, for example table"
        refuse("data.source", config.data.source, wanted)
    fit = [name for name, other in TASKS.items() if other.reads in source.gives and not other.pretrains]
    refuse("task.type", config.task.type, f"{' or '.join(fit)} for data.source={config.data.source}")


def _check_targets(config, task, source, refuse):
    targets, (least, most, text) = config.task.targets, task.columns
    if source.columns(config.data):
        if not least <= len(targets) <= most:
            refuse("task.targets", targets, f"{text} (task.type={config.task.type}, columns of the table)")
    elif targets:
        refuse("task.targets", targets, f"none for data.source={config.data.source}: its layout says what is learned")
    if len({name.replace(" ", "_") for name in targets}) != len(targets):
        wanted = "each column once, of a name of its own ('_' is like a blank: results are named by it)"
        refuse("task.targets", targets, wanted)


def _check_network(config, refuse):
    model, network, asked = config.model, NETWORKS[config.model.name], f"task.type={config.task.type}"
    flat = network.sees == "slice" or not SOURCES[config.data.source].geometry
    if flat and kind(config).pretrains and kind(config).mode not in WHOLE_CASE:
        whole = " or ".join(name for name, task in TASKS.items() if task.pretrains and task.mode in WHOLE_CASE)
        refuse(
            "task.type", config.task.type, f"{whole} for slices: a 2D network has one output per slice, and no image"
        )
    for name, got, wanted in (
        ("data.patch", config.data.patch, network.patch_problem(model.name, config.data.patch)),
        ("eval.windows", config.eval.windows, network.windows_problem(model.name, config.eval.windows)),
        ("model.width", model.width, network.width_problem(model.name, model.width)),
        ("model.name", model.name, network.mode_problem(kind(config).mode, asked, NETWORKS)),
    ):
        if wanted is not None:
            refuse(name, got, wanted)
    values = {option: getattr(model, option) for option in PLAIN}
    values = {option: value for option, value in values.items() if value != "auto"}  # which the network decides
    for option, wanted in network.option_problems(model.name, values, NETWORKS):
        refuse(f"model.{option}", values[option], wanted)
    if model.channel_dropout and kind(config).head_of(model) == "multistage":
        wanted = f"0 for model.head=multistage, whose statistics dropped maps would change (model.head={model.head})"
        refuse("model.channel_dropout", model.channel_dropout, f"{wanted}: or set model.head=linear, or mlp")
    if config.train.checkpoint_activations and not network.recomputes:
        wanted = f"false for model.name={model.name}, {asked}"
        refuse("train.checkpoint_activations", True, wanted)


def _check_task(config, refuse):
    section, task = config.task, kind(config)
    shown = "task.evidence" in task.options and section.evidence != "none"
    named = f"task.type={section.type}" + (f" task.evidence={section.evidence}" if shown else "")
    losses = ("auto", *task.losses)
    if section.loss not in losses:
        refuse("task.loss", section.loss, f"one of {', '.join(losses)} for {named}")
    foreign = {name: task.instead.get(name, "") for name in _options(TASKS) if name not in task.options}
    if task.pretrains:
        tested = ("data.test_folds", "eval.mirror_axes", "eval.views", "cv.final")
        foreign.update(dict.fromkeys(tested, ": pretraining tests nothing"))
    for name, why in foreign.items():
        # as a network is without the option
        plain = name.startswith("model.") and _value(config, name) == PLAIN.get(name.removeprefix("model."))
        if _changed(config, name) and not plain:
            refuse(name, _value(config, name), f"{show(_default(name))} for {named}{why}")
    data = config.data
    untested = config.train.mode == "train"
    if (data.train_folds or data.val_folds) and not (data.test_folds or untested or task.pretrains):
        wanted = (
            "the folds to test on, beside data.train_folds and data.val_folds, or train.mode=train, which tests none"
        )
        refuse("data.test_folds", (), wanted)
    task.check(config, refuse)
    _check_unshuffled(config, task, named, refuse)


def _check_unshuffled(config, task, named, refuse):
    """Refuse shuffled labels where these are masks, or there are none."""
    masks = task.reads == "mask" or config.task.evidence == "mask" or task.wanted(config.task).mask
    if not (task.pretrains or masks):
        return
    for name in ("data.shuffle_labels", "audit.shuffled"):
        if _changed(config, name):
            refuse(name, _value(config, name), f"0 for {named}: its labels are masks, or it has none")


def _options(kinds):
    """{key: names of the kinds that take it} of the keys that not all of them take."""
    keys = dict.fromkeys(key for one in kinds.values() for key in one.options)
    return {key: [name for name, one in kinds.items() if key in one.options] for key in keys}


def _value(config, name):
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _default(name):
    return _value(config_module.Config(), name)


def _changed(config, name):
    return _value(config, name) != _default(name)


def _readers():
    """{key: {"task.type": names, "data.source": names}} of the keys that not all tasks, or not all sources, read."""
    found = {}
    of_tasks = {name: (key for task in (one, *one.variants) for key in task.own_keys()) for name, one in TASKS.items()}
    of_sources = {name: one.own_keys for name, one in SOURCES.items()}
    for chooser, kinds in (("task.type", of_tasks), ("data.source", of_sources)):
        for name, keys in kinds.items():
            for key in dict.fromkeys(keys):
                found.setdefault(key, {}).setdefault(chooser, []).append(name)
    return found


def _condition(chooser, names, all_of_them):
    """The `names` of a choice, as key=a|b or, of all but one, as key!=a."""
    others = [name for name in all_of_them if name not in names]
    return f"{chooser}!={others[0]}" if len(others) == 1 else f"{chooser}={'|'.join(names)}"


def unread(config, windows="several"):
    """Names of the keys that differ from their default and that nothing reads, given the other keys.

    Of a list that is read in part: the key, and what of it is not. windows: "one" where one holds every case.
    """
    read = {"task.type": kind(config).own_keys(), "data.source": SOURCES[config.data.source].own_keys}
    left = set(config_module.unread(config, windows))
    for name, choosers in _readers().items():
        if _changed(config, name) and any(name not in read[chooser] for chooser in choosers):
            left.add(name)
    flat = NETWORKS[config.model.name].flat_axes
    in_vain = [f"eval.mirror_axes={axis}" for axis in config.eval.mirror_axes if axis in flat]
    return [name for name, _, _ in fields(config) if name in left] + in_vain


def describe_keys():
    """The text of `--help`: every key, its default and one line of explanation."""
    allowed, readers, lines = choices(), _readers(), []
    for name, field, value in fields(config_module.Config()):
        meta = field.metadata
        notes = [meta["help"]]
        one_of = allowed.get(name) or meta["choices"]
        if one_of:
            notes.append("one of " + " ".join(str(choice) for choice in one_of))
        conditions = [_condition(chooser, names, allowed[chooser]) for chooser, names in readers.get(name, {}).items()]
        conditions += [meta["only"]] if meta["only"] else []
        if conditions:
            notes.append("for " + " ".join(conditions))
        lines.append(f"  {name + '=' + show(value):<40} {'; '.join(notes)}")
    return "\n".join(lines)
