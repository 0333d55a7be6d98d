"""A search for a setting: successive halving on inner validation cases, then one cross-validation of what is chosen.

    <output>/<name>/search/   search.{html,csv,json}, log.txt
             .../rung_R/setting_S/fold_K/   the history of a training, and its numbers

No test case is read. A setting's score is the mean, over the folds that are searched, of the main metric on the fold's
inner validation cases, at the best epoch; of equals the lower loss decides. Every fold starts all settings from the
same weights, and shows them the same samples. The same command goes on with a search that was stopped.
"""

import math
import os
import statistics
import time

from .. import kinds, metrics, report, tasks
from ..config import UserError, as_user_error, identity, length, one_line, show
from ..data import listing, loader, sources
from ..run_folder import RunFolder
from ..runtime import dist, files, interrupt
from ..runtime.log import Log
from ..training.fold import inspect, train_fold, with_patch_that_fits
from . import crossval, settings
from .splits import check_parts, has_one_split, make_splits, why_not


class SearchFailed(RuntimeError):
    exit_code = 1


def run(path, arguments, keep=3, folds=None, dry_run=False):
    """Search the settings of a config file and `key=v1,v2`, and run the one that is chosen into `<output>/<name>/`.

    keep: of so many settings one goes on to the next rung. folds: how many folds are searched (None: all).
    dry_run: check everything, say what it costs, train nothing.
    """
    if keep < 2:
        raise UserError(f"--keep: got {keep}, wanted 2 or more: of so many settings one goes on")
    found = settings.read(path, arguments)
    base = found[0].config
    one_split = has_one_split(base)
    for setting in found:
        crossval.check(setting.config, one_split)
        crossval.team_size(settings.shortened(setting.config, 1.0))
    folder = RunFolder(os.path.join(base.output, base.name))
    if dist.is_main() and not dry_run:
        folder.check_free()
    with crossval.in_group(base.train.timeout_s) as logs:
        if not dry_run:
            held = []  # the folder, by the main rank
            dist.on_main(lambda: held.append(folder.claim_search(logs[-1])))
            logs.append(Log(folder.search.log_path, active=dist.is_main()))
        with interrupt.graceful(), loader.explained():
            search = _Search(found, settings.plan(len(found), keep), folder, folds, logs[-1])
            dist.on_main(search.begin_or_go_on if not dry_run else lambda: None)
            chosen = _run(search, dry_run)
        if not dry_run:
            dist.on_main(lambda: held[0].close())  # for the run that comes
    if chosen is not None:
        crossval.run(chosen.config, one_split=one_split)


class _Search:
    """What is searched and how far it is; `record` is what search.json holds."""

    def __init__(self, found, rungs, folder, folds, log):
        self.settings, self.rungs, self.folder, self.log = found, rungs, folder.search, log
        self.base, self.folds = found[0].config, folds
        self.task, self.record = tasks.build(self.base), None

    def begin_or_go_on(self):
        """Raise UserError where the folder holds another search."""
        own = {name: show(value) for name, value in identity(self.base).items()}
        for key in self.settings[0].values:
            own.pop(key, None)  # one within another key's mapping is in all settings' values
        shown = [setting.text for setting in self.settings]
        asked = {"config": own, "settings": shown, "rungs": [list(rung) for rung in self.rungs], "folds": self.folds}
        record = self.folder.record()
        if record is None:
            self.folder.write_record({"asked": asked, "settings": len(shown), "rungs": []})
            return
        there = record["asked"]
        changed = [name for name in own if there["config"].get(name) != own[name]]
        changed += [name for name in ("settings", "rungs", "folds") if there.get(name) != asked[name]]
        if changed:
            got = f"{self.folder.path} holds a search of other settings ({', '.join(changed[:5])})"
            raise UserError(f"{got}: choose another `name`, or restore them to continue it")

    def rank(self, rows):
        """The rows of a rung, the best first; those that have failed or are undefined come last."""
        sign = -1 if self.task.higher_is_better else 1

        def place(row):
            bad = bool(row["error"]) or math.isnan(row["score"])
            return (bad, 0.0 if bad else sign * row["score"], 0.0 if bad else row["loss"], row["setting"])

        return sorted(rows, key=place)


def _run(search, dry_run):
    """The Setting that is chosen; None of a dry run."""
    record = None if dry_run else dist.on_main(search.folder.record)
    if record is not None and "chosen" in record:
        search.log("search", finished=True, left="nothing: the chosen setting is run")
        return search.settings[record["setting"] - 1]
    base, wanted = search.base, tasks.wanted(search.base)
    listed = dist.on_main(lambda: sources.list_cases(base.data, wanted, log=search.log))
    listing.describe(base, wanted, listed, search.log)
    inspect(search.task, listed)
    splits = dist.on_main(lambda: make_splits(base, search.task, listed))
    check_parts(base, search.task, splits, listed)
    numbers = list(base.cv.folds_to_run) or list(range(1, len(splits) + 1))
    if search.folds is not None and not 1 <= search.folds <= len(numbers):
        raise UserError(f"--folds: got {search.folds}, wanted 1 to {len(numbers)}, the folds of the run")
    numbers = numbers[: search.folds]
    for setting in search.settings:  # before any of them is trained
        if setting.config.weights.path is not None:
            with as_user_error(f"setting {setting.number} ({setting.text})", UserError):
                dist.on_main(lambda: crossval.try_to_start(setting.config, search.task).counts())
    _say_cost(search, numbers, len(splits), dry_run)
    if dry_run:
        return None
    parts = {n: {part: splits[n - 1][part] for part in ("train", "val")} for n in numbers}
    trials = _Trials(search, listed, parts)
    rows = []
    for rung in search.rungs:
        rows += _run_rung(search, rung, trials)
    dist.on_main(lambda: _finish(search, rows))
    return search.settings[dist.on_main(search.folder.record)["setting"] - 1]


def _say_cost(search, numbers, folds, dry_run):
    """What will be trained, and what that costs beside one cross-validation."""
    trainings = sum(rung.settings for rung in search.rungs) * len(numbers)
    times = settings.cost(search.rungs, len(numbers)) / folds
    facts = {"settings": len(search.settings), "rungs": len(search.rungs), "folds": numbers, "trainings": trainings}
    search.log("search", **facts, cost_in_cross_validations=times, metric=search.task.select)
    for rung in search.rungs:
        own = length(settings.shortened(search.base, rung.share).train)
        search.log("search", rung=rung.number, settings=rung.settings, length=own)
    if dry_run and dist.is_main():
        for setting in search.settings:
            print(f"setting {setting.number}: {setting.text}")


class _Trials:
    """The trainings of a search: each knows the training and validation cases of a fold, and no test case.

    parts: {number of a fold: {"train", "val"} of ids}.
    """

    def __init__(self, search, listed, parts):
        self.search, self.parts = search, parts
        self._cases = {}  # {data and task sections: prepared cases by id}
        self._ids = {case_id for part in parts.values() for ids in part.values() for case_id in ids}
        self._known = {case.id: (case.subject, case.target) for case in listed}

    def prepare(self, setting):
        """The prepared cases, by id, that a setting's trainings read."""
        config, log = kinds.settle(setting.config, why_not)[0], self.search.log
        key = show([str(config.data), str(config.task)])
        if key not in self._cases:
            wanted = tasks.wanted(config)
            listed = dist.on_main(lambda: sources.list_cases(config.data, wanted))
            if {case.id: (case.subject, case.target) for case in listed} != self._known:
                raise UserError(f"setting {setting.number} ({setting.text}) is of other cases, wanted the same in all")
            listing.check_optional(config.data, listed, loader.drops_channels(config), log)
            used = [case for case in listed if case.id in self._ids]
            cases = dist.on_main(lambda: sources.prepare(used, config.data, wanted, log))
            self._cases[key] = {case.id: case for case in cases}
        return self._cases[key]

    def train(self, rung, setting, number, log):
        """Train a setting in a fold; its numbers are kept in the folder."""
        by_id, begun = self.prepare(setting), time.perf_counter()
        parts = {part: [by_id[case_id] for case_id in ids] for part, ids in self.parts[number].items()}
        config, _ = kinds.settle(setting.config, why_not)
        config = settings.shortened(with_patch_that_fits(config, list(by_id.values())), rung.share)
        place = rung.number, setting.number, number
        fold, select = self.search.folder.trial(*place), self.search.task.select
        dist.on_main(fold.make)
        log = log.bind(fold.log_path, active=dist.is_main(), rung=rung.number, setting=setting.number, fold=number)
        log("search", values=setting.text)
        _, _, best = train_fold(config, parts, fold, log)
        scores, seconds = best["scores"], time.perf_counter() - begun
        found = {"score": scores[f"val_{select}"], "loss": scores["val_loss"], "epoch": best["epoch"]}
        found["seconds"] = seconds
        dist.on_main(lambda: self.search.folder.finish(found, *place))
        log("search", finished=True, **{f"val_{select}": found["score"]}, epoch=best["epoch"], seconds=seconds)


def _run_rung(search, rung, trials):
    """The rows of a rung, a dict per setting, after all of its trainings; on all ranks."""
    done = dist.on_main(search.folder.record)["rungs"]
    if rung.number <= len(done):
        return [_read_row(row) for row in done[rung.number - 1]]
    numbers = range(1, len(search.settings) + 1)
    if rung.number > 1:
        numbers = [row["setting"] for row in done[-1] if row["goes_on"]]
    entrants = [one for one in search.settings if one.number in numbers]
    for setting in entrants:  # on all ranks together, before they part
        trials.prepare(setting)
    places = [(one, fold) for one in entrants for fold in trials.parts]
    left = dist.on_main(
        lambda: [i for i, (one, k) in enumerate(places) if not search.folder.result(rung.number, one.number, k)]
    )
    search.log("search", rung=rung.number, settings=len(entrants), finished=len(places) - len(left), of=len(places))
    failed = _train_all(search, rung, trials, [places[i] for i in left])
    return dist.on_main(lambda: _end_rung(search, rung, entrants, list(trials.parts), failed))


def _train_all(search, rung, trials, places):
    """Train each (Setting, number of a fold) on a team of ranks; returns {number: error} of those that failed."""
    failed = {}
    with dist.teams(crossval.team_size(settings.shortened(search.base, 1.0))):
        for setting, number in dist.hand_out(places, f"search_{rung.number}"):
            try:
                with loader.explained():
                    trials.train(rung, setting, number, search.log)
            except interrupt.Interrupted:
                raise
            except Exception as error:  # this setting's own: it comes last, and the others go on
                if dist.world_size() > 1 and not getattr(error, "collective", False):
                    raise
                failed[setting.number] = one_line(error)
                about = {"rung": rung.number, "setting": setting.number, "fold": number}
                search.log.bind(active=True).warn("a training failed", **about, error=one_line(error))
    dist.wait_for_all(f"search_{rung.number}_done", stop=interrupt.requested)
    interrupt.stop_if_requested()
    return {number: error for part in dist.gather(failed) for number, error in part.items()}


def _end_rung(search, rung, entrants, folds, failed):
    """The rows of a rung whose trainings are done; search.json keeps them, with who goes on."""
    rows = [_row(search, rung, one, folds, failed.get(one.number, "")) for one in entrants]
    rows = search.rank(rows)
    defined = [row for row in rows if not row["error"] and not math.isnan(row["score"])]
    if not defined:
        why = next((row["error"] for row in rows if row["error"]), f"{search.task.select} is undefined in all of them")
        raise SearchFailed(f"no setting of rung {rung.number} has a score; the same command tries again: {why}")
    goes_on = search.rungs[rung.number].settings if rung.number < len(search.rungs) else 1
    for row in defined[:goes_on]:
        row["goes_on"] = True
    record = search.folder.record()
    search.folder.write_record({**record, "rungs": [*record["rungs"], rows]})
    return [_read_row(row) for row in rows]


def _row(search, rung, setting, folds, error):
    """The row of a setting in a rung: means over the folds, and their standard deviation."""
    found = [search.folder.result(rung.number, setting.number, fold) for fold in folds]
    found = [result for result in found if result is not None]
    scores = [math.nan if result["score"] is None else result["score"] for result in found]
    row = {"rung": rung.number, "setting": setting.number, **setting.values}
    row["length"] = length(settings.shortened(setting.config, rung.share).train)
    row["score"] = statistics.fmean(scores) if scores and not error else math.nan
    row["sd"] = metrics.deviation(scores)
    row["loss"] = statistics.fmean(result["loss"] for result in found) if found else math.nan
    row["seconds"] = sum(result["seconds"] for result in found)
    return {**row, "folds": len(found), "goes_on": False, "error": error}


def _read_row(row):
    """A row as search.json gives it back, undefined numbers as NaN."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def _finish(search, rows):
    """Write the table and the page, and keep which setting is chosen."""
    best = next(row for row in rows if row["rung"] == len(search.rungs) and row["goes_on"])
    chosen = search.settings[best["setting"] - 1]
    record = {**search.folder.record(), "chosen": chosen.values, "setting": chosen.number}
    metric = search.task.select
    files.write_csv(search.folder.table_path, rows)
    one_split = has_one_split(search.base)
    facts = report.Search(
        search.base.name, metric, search.task.higher_is_better, list(chosen.values), chosen, one_split
    )
    page = report.write_search(facts, rows, search.folder.page_path)
    search.folder.write_record(record)  # last: the search is finished
    search.log("search", finished=True, chosen=chosen.number, values=chosen.text, settings=len(search.settings))
    search.log("report", path=page)
