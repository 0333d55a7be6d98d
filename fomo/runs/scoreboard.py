"""One checkpoint, all tasks: several checkpoints and random weights go through the same recipes, and are ranked.

    <output>/<checkpoint>/<task>/     the cross-validation of a task, as cv.py leaves it
             <checkpoint>/embeddings/ a vector per scan, and probe/ what it tells
             scoreboard.{json,csv,html}, differences.csv

Running it again continues: what is finished is not run again. A task that fails is missing, with its reason, and counts
as the last place; the others go on. What a folder holds of another config, of other weights or of more checkpoints or
tasks is refused before anything is run or written.
"""

import functools
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from .. import config as config_module
from .. import kinds, tasks
from ..config import UserError, as_user_error, listed, one_line
from ..evaluation import probe
from ..prediction import embeddings, members
from ..prediction.challenge import FEATURES
from ..run_folder import RunFolder
from ..runtime import dist, files, interrupt
from . import challenge, crossval
from .board import Board

RANDOM = "random"
_SEED = 0  # of random embeddings
_PREPARED = ("spacing_mm", "crop", "normalize")  # keys of data in which a task should follow a pretraining


class TasksFailed(RuntimeError):
    exit_code = 1


@dataclass(frozen=True)
class Contestant:
    """A checkpoint, or random weights in the network of another one."""

    name: str
    path: str | None
    origin: embeddings.Origin | None  # of the network; None: that of each config

    @functools.cached_property
    def sha256(self):
        """Of its file, as vectors and runs record it; of random weights their seed and network."""
        return files.sha256(self.path) if self.path else self.origin.random(_SEED)

    def overrides(self):
        """Texts `key=value` that start a task's config from it."""
        found = [f"weights.path={self.path or 'none'}"]
        if self.origin is not None:
            found += [f"model.name={self.origin.name}", f"model.width={self.origin.width or 'none'}"]
        return found if self.path else [*found, "finetune.strategy=full"]  # nothing random is frozen


class Probed(NamedTuple):
    """What tasks 6 and 7 are asked about: arguments of tools/embed.py and tools/probe.py."""

    table: str
    target: str
    groups: tuple[str, ...] = ()
    column: str | None = None
    features: str = FEATURES
    seeds: tuple[int, ...] = probe.SEEDS
    subject_column: str = "subject"


def contestants(paths):
    """The Contestants of checkpoints, and random weights as the last one, in the network of the first."""
    found, names = [], _names(paths)
    for path, name in zip(paths, names):
        file = members.find_checkpoint(path)
        found.append(Contestant(name, os.path.abspath(file), embeddings.origin(file)))
    return [*found, Contestant(RANDOM, None, found[0].origin if found else None)]


def _names(paths):
    """A name for each checkpoint: its file's, or of best.pt and the like the run's, with a number where it is taken."""
    names = []
    for path in paths:
        parts = [re.sub(r"\.(pt|pth|ckpt)$", "", part) for part in os.path.abspath(path).split(os.sep) if part]
        plain = [part for part in parts if not re.fullmatch(r"best(_\d+)?|last|final|fold_\d+", part)]
        base = re.sub(r"[^\w.+-]", "_", plain[-1] if plain else "checkpoint")
        taken = {RANDOM, *names}
        number = next(n for n in range(1, len(paths) + 2) if (base if n == 1 else f"{base}_{n}") not in taken)
        names.append(base if number == 1 else f"{base}_{number}")
    return names


class Asked(NamedTuple):
    """A task's config: its file, and what must be known of it before a checkpoint is."""

    path: str
    own_cache: bool  # whether it names a cache
    ranked: challenge.Ranked


def run(paths, configs, output, log, overrides=(), probed=None):
    """Run what is not finished, and write the scoreboard; returns the path of its page.

    configs: files of tasks. overrides: `key=value` for all of them. probed: a Probed for tasks 6 and 7, or None.
    Raises TasksFailed, after all else is done, where one has failed. UserError, before anything is touched, where the
    output holds what this would replace.
    """
    asked, entrants, output = _asked(configs, overrides), contestants(paths), os.path.abspath(output)
    _check_board(asked, entrants, probed, output)
    for one in entrants:
        for of_task in asked.items():
            _check_run(one, *of_task, output, overrides)
    if probed is not None:
        _check_probes(entrants, probed, output)
    with as_user_error(f"cannot write to {output}", OSError):
        os.makedirs(output, exist_ok=True)
    runs, failed = {}, {}
    for task, of_task in asked.items():
        for one in entrants:
            place = os.path.join(output, one.name, task)
            try:
                _cross_validate(one, task, _config(one, task, of_task, output, overrides), log)
                runs[one.name, task] = place
            except interrupt.Interrupted:
                raise
            except Exception as error:  # this task's own: the others go on, unless other ranks don't know of it
                if dist.world_size() > 1 and not getattr(error, "collective", False):
                    raise
                failed[one.name, task] = one_line(error)
                log.warn("task failed", checkpoint=one.name, task=task, error=failed[one.name, task])
    page = None
    if dist.is_main():  # the other ranks are done
        page = _board(entrants, asked, runs, probed, output, failed, log)
    if failed:
        (name, task), message = next(iter(failed.items()))
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        raise TasksFailed(f"{task} of {name}: {message}{more}; the others are done, the same command tries again")
    return page


def _board(entrants, asked, runs, probed, output, failed, log):
    """Make the embeddings, and write the scoreboard; adds to `failed`."""
    found = {}
    for one in entrants if probed is not None else ():
        try:
            found[one.name] = _probe(one, entrants[0], probed, os.path.join(output, one.name), log)
        except interrupt.Interrupted:
            raise
        except Exception as error:  # of whatever kind: the tasks that are done are shown
            failed[one.name, "embeddings"] = one_line(error)
            log.warn("task failed", checkpoint=one.name, task="embeddings", error=one_line(error))
    board = Board([one.name for one in entrants], failed, {one.name: one.path for one in entrants})
    for task, of_task in asked.items():
        board.add_runs(task, of_task.ranked, {name: place for (name, of), place in runs.items() if of == task})
    if probed is not None:
        board.add_probes(found, bool(probed.groups))
    board.finish()
    for row in board.scores:
        log("score", **{key: row[key] for key in ("checkpoint", "task", "metric", "value", "low", "high", "rank")})
    for row in board.ranking:
        log("rank", checkpoint=row["checkpoint"], overall=row["overall"], **row["tasks"])
    page = board.write(output)
    log("report", path=page)
    return page


def _asked(configs, overrides):
    """{name of the run: Asked} of the tasks' configs."""
    found = {}
    for path in configs:
        config = config_module.load(path, overrides, kinds.choices())
        if config.name in found:
            raise UserError(f"{path} and {found[config.name].path}: got the name {config.name} twice, wanted two names")
        kind = tasks.kind(config)
        if kind.pretrains:
            raise UserError(f"{path}: got task.type={config.task.type}, wanted a task that is tested")
        task = tasks.build(config)
        ranked = challenge.ranked_as(config.name, task.select, task.higher_is_better)
        own_cache = config.data.cache != os.path.join(config.output, "cache")
        found[config.name] = Asked(path, own_cache, ranked)
    return found


def _config(one, name, asked, output, overrides):
    """The config of a task from a checkpoint."""
    shared = [] if asked.own_cache else [f"data.cache={os.path.join(output, 'cache')}"]
    place = [f"output={os.path.join(output, one.name)}", f"name={name}"]
    scored = [f"eval.challenge={asked.ranked.scored_as}"] if asked.ranked.scored_as != "none" else []
    return kinds.load(asked.path, [*one.overrides(), *overrides, *shared, *scored, *place])


def _cross_validate(one, name, config, log):
    """Run or continue a task from a checkpoint; nothing is done where it is finished."""
    finished = _is_finished(RunFolder(os.path.join(config.output, name)))
    log("scoreboard", checkpoint=one.name, task=name, finished=finished)
    if not finished:
        _warn_of_preparation(one, config, name, log)
        crossval.run(config)


def _check_run(one, name, asked, output, overrides):
    """Raise UserError where a task's run has begun from other weights, or by another config."""
    folder = RunFolder(os.path.join(output, one.name, name))
    if not folder.is_run:
        return
    if one.path and folder.recorded().get("weights", "") not in ("", one.sha256):
        raise UserError(f"{folder.path} began from other weights than {one.path} holds now: choose another --output")
    config = _config(one, name, asked, output, overrides)
    old, new = map(config_module.identity, (folder.config(), config))
    changed = [key for key, value in new.items() if value != "auto" and old.get(key) != value]
    if changed:
        got = f"{folder.path} holds a run of another config ({listed(changed)})"
        raise UserError(f"{got}: choose another --output, or restore these keys")


def _check_board(asked, entrants, probed, output):
    """Raise UserError where the scoreboard of the folder has values of a checkpoint or task that is not asked for."""
    path = os.path.join(output, "scoreboard.json")
    if not os.path.exists(path):
        return
    scores = [row for row in files.read_json(path, "scores")["scores"] if row["value"] is not None]
    probes = () if probed is None else ("task6", *(("task7",) if probed.groups else ()))
    named = {"checkpoint": {one.name for one in entrants}, "task": {*asked, *probes}}
    gone = [text for kind, names in named.items() for text in {row[kind] for row in scores} - names]
    if gone:
        got = f"{path} has {', '.join(sorted(gone))}, too, which would be lost"
        raise UserError(f"{got}: name all that it has and what is new, or choose another --output")


def _check_probes(entrants, probed, output):
    """Raise UserError where tasks 6 and 7 cannot be run, or the folder holds vectors or probes of other inputs."""
    subjects, remedy = _subjects(probed), "choose another --output"
    embeddings.cases_of_table(probed.table, probed.column)
    for seed in probed.seeds:
        probe.split(subjects, seed)
    if entrants[0].path is None:
        raise UserError("--cases: got no checkpoint, wanted one: random embeddings are of its network")
    for one in entrants:
        place = os.path.join(output, one.name)
        about = {"sha256": one.sha256, "features": probed.features}
        embeddings.refuse_others(os.path.join(place, "embeddings"), about, remedy)
        probe.refuse_another(os.path.join(place, "probe"), _inputs(probed, place), remedy)


def _is_finished(folder):
    summary = folder.summary() if folder.is_run else None
    return summary is not None and len(summary["folds_done"]) == len(folder.recorded()["folds"])


def _warn_of_preparation(one, config, task, log):
    """An encoder that sees images scaled otherwise than in its pretraining may show no signal."""
    if one.path is None:
        return
    known = one.origin.prepared
    other = {
        key: known[key] for key in _PREPARED if key in known and getattr(config.data, key) not in (known[key], "auto")
    }
    if other:
        said = {f"data.{key}": config_module.show(value) for key, value in other.items()}
        texts = [f"{key}={value}" for key, value in said.items()]
        log.warn("the checkpoint was pretrained on scans of another preparation", task=task, pretrained=texts)


def _probe(one, first, probed, place, log):
    """(Found, Subjects) of a contestant's embeddings, which are made where they are not there."""
    source = one if one.path else first
    seed = None if one.path else _SEED
    embedder = embeddings.load_embedder(source.path, members.choose_device(), probed.features, random_seed=seed)
    folder = os.path.join(place, "embeddings")
    # scans that cannot be used are logged, and get the worst answer
    embeddings.embed_to_folder(embedder, embeddings.cases_of_table(probed.table, probed.column), folder, log)
    subjects = _subjects(probed)
    features, own_log = probe.read_embeddings(folder, subjects), log.bind(checkpoint=one.name)
    found = probe.run(features, subjects, probed.seeds, log=own_log)
    title = f"Linear probe of {one.name}: {probed.target}"
    probe.write(found, os.path.join(place, "probe"), title, _inputs(probed, place))
    return found, subjects


def _subjects(probed):
    return probe.read_subjects(probed.table, probed.target, probed.groups, subject_column=probed.subject_column)


def _inputs(probed, place):
    asked = probed.table, probed.target, probed.groups, None, probed.subject_column, probed.seeds
    return probe.inputs(os.path.join(place, "embeddings"), os.path.join(place, "probe"), *asked)
