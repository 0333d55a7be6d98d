"""The run folder: the only one that knows the names of its files, and what is finished in it.

config.yaml  splits.json  log.txt  report.html
predictions.csv  predictions_volumes.csv  fold_results.csv  aggregated_results.csv  summary.json
fold_K/      split.json  best.pt  best_2.pt ...  last.pt  history.csv  results.csv  predictions.csv ...  masks/ID.nii.gz
final/       the final model, with final.json
audit/       what simple rivals reach: audit.json  facts.json  shuffled_K/, other_folds/ (runs of their own)
stress/      what changed images cost: stress.html  stress.json  stress.csv  log.txt  fold_K.jsonl
search/      how its setting was chosen: search.html  search.csv  search.json  log.txt  rung_R/setting_S/fold_K/
"""

import functools
import glob
import os
from dataclasses import replace

import yaml

from . import kinds
from .config import UserError, as_user_error, identity, show, to_dict, value_at
from .data.cases import ID_WANTED, names_a_file
from .runtime import files
from .tasks import Results

LOG, SUMMARY, AGGREGATED = "log.txt", "summary.json", "aggregated_results.csv"
TABLES = {"rows": "predictions.csv", "scans": "predictions_volumes.csv"}  # of Results
_SCORES, _FOLD_SCORES, _HISTORY = "results.csv", "fold_results.csv", "history.csv"
_LOCK, _MASKS, _SEARCH = ".lock", "masks", "search"
_AUDIT, _FACTS, _STRESS = "audit.json", "facts.json", "stress.json"


class RunFolder:
    """A run folder, begun or not; nothing is read or written before it is asked for."""

    def __init__(self, path):
        self.path = os.fspath(path)
        inside = functools.partial(os.path.join, self.path)
        self.config_path, self.splits_path = inside("config.yaml"), inside("splits.json")
        self.log_path, self.report_path, self.summary_path = inside(LOG), inside("report.html"), inside(SUMMARY)

    @property
    def is_run(self):
        """Whether a run has begun in it: it has a config and folds."""
        return os.path.exists(self.config_path) and self.has_splits

    @property
    def has_splits(self):
        return os.path.exists(self.splits_path)

    def check_begun(self):
        """Raise UserError unless a run has begun in it."""
        if not os.path.exists(self.config_path):
            raise UserError(f"{self.path}: got no config.yaml in it, wanted the folder of a run, <output>/<name>")
        if not self.has_splits:
            raise UserError(f"{self.path}: got no splits.json in it, so the run has not begun: wait for its first fold")

    def check_free(self):
        """Raise UserError if another process holds the folder, see `claim`; where there is no lock, nothing is made."""
        if os.path.exists(os.path.join(self.path, _LOCK)):
            with as_user_error(f"cannot write the run folder {self.path}, choose another `output`", OSError):
                _lock(self.path, None).close()

    def claim(self, config, log):
        """Create the folder, or accept one that was begun by the same config; any other is left alone.

        Returns a file that keeps other processes out of it as long as it is open.
        """
        own = [name for name in self._inside() if name in (_LOCK, _SEARCH) or name.startswith(".config.yaml.")]
        if set(self._inside()) - set(own) and not os.path.exists(self.config_path):  # own: a killed start leaves them
            raise UserError(f"{self.path} is not a run folder (no config.yaml): choose another `name` or `output`")
        self.search.check_chosen(config)
        with as_user_error(f"cannot write the run folder {self.path}, choose another `output`", OSError):
            os.makedirs(self.path, exist_ok=True)
            held = _lock(self.path, log)
            if not self.has_splits:  # nothing is begun, whatever config came first
                files.write_text(self.config_path, yaml.safe_dump(to_dict(config), sort_keys=False))
        old, new = identity(self.config()), identity(config)
        changed = [f"{name}={old.get(name)!r} there, {new[name]!r} now" for name in new if old.get(name) != new[name]]
        if changed:
            shown = "; ".join(changed[:3]) + ("; ..." if changed[3:] else "")
            remedy = "choose another `name`, or restore the keys to continue that run"
            raise UserError(f"{self.path} holds a run of another config ({shown}): {remedy}")
        return held

    def claim_search(self, log):
        """Create the folder of a search, whose run will be beside it; returns a file as `claim`."""
        if set(self._inside()) - {_LOCK, _SEARCH} and not self.search.record():
            raise UserError(f"{self.path} holds something that no search has begun: choose another `name` or `output`")
        with as_user_error(f"cannot write the run folder {self.path}, choose another `output`", OSError):
            os.makedirs(self.search.path, exist_ok=True)
            return _lock(self.path, log)

    def _inside(self):
        return os.listdir(self.path) if os.path.isdir(self.path) else []

    def config(self):
        """The Config of the run."""
        return kinds.load(self.config_path)

    def config_of_folds(self):
        """The Config that the folds are trained with: that of the run, and the patch that fits its cases."""
        config, patch = self.config(), self.recorded().get("patch")
        return config if patch is None else replace(config, data=replace(config.data, patch=tuple(patch)))

    def recorded(self):
        """The content of splits.json: `cases` {id: facts}, `folds` [{part: ids}]; once prepared `entries`, `patch`."""
        return files.read_json(self.splits_path, "cases", "folds")

    def record(self, **content):
        """Write splits.json, see `recorded`."""
        files.write_json(self.splits_path, content)

    def fold(self, number):
        """The FoldFolder of a fold, from 1."""
        return FoldFolder(os.path.join(self.path, f"fold_{number}"), number)

    @property
    def final(self):
        """The folder of the final model, which is trained like a fold where it is trained at all."""
        return FinalFolder(os.path.join(self.path, "final"))

    @property
    def stress(self):
        """The folder of what changed images cost."""
        return os.path.join(self.path, "stress")

    @property
    def audit(self):
        """The folder of the shortcut audit, and of the runs that belong to it."""
        return os.path.join(self.path, "audit")

    def write_audit(self, content):
        """Write what the audit has found, see `evaluation.audit`."""
        os.makedirs(self.audit, exist_ok=True)
        files.write_json(os.path.join(self.audit, _AUDIT), content)

    def audited(self):
        """What `write_audit` has written, with null for NaN; None before, and of an older version."""
        path = os.path.join(self.audit, _AUDIT)
        found = files.read_json(path) if os.path.exists(path) else {}
        return found if "audits" in found else None

    def write_facts(self, facts):
        """Keep {case id: what `data.facts` says, and its key} for the next time."""
        os.makedirs(self.audit, exist_ok=True)
        files.write_json(os.path.join(self.audit, _FACTS), facts)

    def facts(self):
        """What `write_facts` has kept; {} before."""
        path = os.path.join(self.audit, _FACTS)
        return files.read_json(path) if os.path.exists(path) else {}

    def write_stress(self, content):
        """Write what a stress test has found, see `runs.stress`."""
        files.write_json(os.path.join(self.stress, _STRESS), content)

    def stressed(self):
        """What `write_stress` has written, with null for NaN; None before."""
        path = os.path.join(self.stress, _STRESS)
        return files.read_json(path, "worst", "rows", "changes") if os.path.exists(path) else None

    @property
    def search(self):
        """The SearchFolder of how the run's setting was chosen, begun or not."""
        return SearchFolder(os.path.join(self.path, _SEARCH))

    def all_folds(self):
        """The FoldFolders of all folds of the run, begun or not."""
        return [self.fold(number) for number in range(1, len(self.recorded()["folds"]) + 1)]

    def folds(self):
        """The FoldFolders that are there, in order."""
        names = [name[5:] for name in self._inside() if name.startswith("fold_")]
        return [self.fold(number) for number in sorted(int(name) for name in names if name.isdecimal())]

    def finished(self):
        """Numbers of the finished folds of the run."""
        return [fold.number for fold in self.all_folds() if fold.is_finished]

    @property
    def is_open(self):
        """Whether a fold of the run is not finished."""
        return len(self.finished()) < len(self.all_folds())

    def write_results(self, results, tables):
        """Write the tables of all folds together; tables: {name: rows}, the task's own."""
        _write_results(self.path, results, tables)

    def write_scores(self, fold_rows, aggregated, summary):
        """Write the scores of the folds, what they give together, and the summary, which comes last."""
        files.write_csv(os.path.join(self.path, _FOLD_SCORES), fold_rows)
        files.write_csv(os.path.join(self.path, AGGREGATED), aggregated)
        files.write_json(self.summary_path, summary)

    def summary(self):
        """The content of summary.json; None before it is written."""
        path = self.summary_path
        return files.read_json(path, "folds_done", "metrics") if os.path.exists(path) else None


class FoldFolder:
    """The folder of a fold, or of another training (number 0)."""

    def __init__(self, path, number):
        self.path, self.number = os.fspath(path), number
        inside = functools.partial(os.path.join, self.path)
        self.best, self.last, self.previous = inside("best.pt"), inside("last.pt"), inside("last.previous.pt")
        self.log_path, self.masks = inside(LOG), inside(_MASKS)
        self.rows_path, self._scans_path = inside(TABLES["rows"]), inside(TABLES["scans"])
        self._history, self._scores, self._split = inside(_HISTORY), inside(_SCORES), inside("split.json")
        self.neighbours = inside("neighbours.npz")

    def make(self):
        """Create the folder where it is missing."""
        os.makedirs(self.path, exist_ok=True)

    def start(self, split):
        """Create the folder of a fold, and keep what its parts are, {part: ids}."""
        self.make()
        if self.split() is None:
            files.write_json(self._split, split)

    def split(self):
        """The parts with which the fold has begun; None before it."""
        return files.read_json(self._split) if os.path.exists(self._split) else None

    @property
    def is_finished(self):
        """Whether it is tested: results.csv is written last."""
        return os.path.exists(self._scores)

    def tracked(self, tracker):
        """The folder of a tracker, see training/tracking.py."""
        return os.path.join(self.path, tracker)

    def kept(self, count):
        """Paths of the checkpoints of the `count` best epochs, the best first."""
        return [self.best, *(os.path.join(self.path, f"best_{n}.pt") for n in range(2, count + 1))]

    def link(self, path, name):
        """Let the fold's file `path` be found by another name, too; UserError where there are no links."""
        place = os.path.join(self.path, name)
        with as_user_error(f"train.name_best: cannot make the link {place}", OSError):
            if os.path.lexists(place):
                os.remove(place)
            os.symlink(os.path.basename(path), place)

    def mask(self, id, new=False):
        """The predicted mask of a case; new: its folder is made."""
        return self._of_case(_MASKS, id, ".nii.gz", new)

    def saliency(self, id, new=False):
        """The stored maps of where the network looks in a case; new: their folder is made."""
        return self._of_case("saliency", id, ".npz", new)

    def saliencies(self):
        """The paths of all stored maps."""
        return _found(os.path.join(self.path, "saliency"), "*.npz")

    def reconstruction(self, id, new=False):
        """The stored planes of a case that a masked autoencoder has restored; new: their folder is made."""
        return self._of_case("reconstructions", id, ".npz", new)

    def evidence(self, id, new=False):
        """The stored planes of a case and of what its probability was made of; new: their folder is made."""
        return self._of_case("evidence", id, ".npz", new)

    def _of_case(self, folder, id, ending, new):
        check_id(self.path, id)
        folder = os.path.join(self.path, folder)
        if new:
            os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, id + ending)

    def write_history(self, rows):
        files.write_csv(self._history, rows)

    def history(self):
        """A row per epoch; [] before the first."""
        return _rows(self._history, self._remedy)

    def write_results(self, results, tables, scores):
        """Write the tables of a tested fold; results.csv comes last and says that the fold is finished."""
        _write_results(self.path, results, tables)
        files.write_csv(self._scores, [{"metric": name, "value": value} for name, value in scores.items()])

    def results(self):
        """The Results of a finished fold."""
        return Results(files.read_numbers(self.rows_path, self._remedy), _rows(self._scans_path, self._remedy))

    def scores(self):
        """{metric: value} of a finished fold."""
        return {row["metric"]: row["value"] for row in files.read_numbers(self._scores, self._remedy)}

    @property
    def _remedy(self):
        return f"restore it, or delete {self.path} and run again"


class FinalFolder(FoldFolder):
    """The folder of the final model; final.json says what it is and whether it is finished."""

    def __init__(self, path):
        super().__init__(path, 0)
        self._made = os.path.join(self.path, "final.json")

    def made(self):
        """{kind, finished} of the final model; None before it is begun."""
        return files.read_json(self._made, "kind", "finished") if os.path.exists(self._made) else None

    def begin(self, kind):
        """Create the folder, and say what it will hold."""
        self.make()
        files.write_json(self._made, {"kind": kind, "finished": False})

    def finish(self, kind):
        """Say that the final model is complete, and delete what only a training that goes on needs."""
        files.write_json(self._made, {"kind": kind, "finished": True})
        for path in filter(os.path.exists, (self.last, self.previous)):
            os.remove(path)

    def member(self, name):
        """The path of one of its checkpoints."""
        return os.path.join(self.path, f"{name}.pt")

    def checkpoints(self):
        """The paths of those that predict together: best.pt, or else all; None while it is not finished."""
        made = self.made()
        if made is not None and not made["finished"]:
            return None
        return [self.best] if os.path.exists(self.best) else _found(self.path, "*.pt")


class SearchFolder:
    """The folder of a search for a setting, begun or not."""

    def __init__(self, path):
        self.path = os.fspath(path)
        inside = functools.partial(os.path.join, self.path)
        self.log_path, self.table_path, self.page_path = inside(LOG), inside("search.csv"), inside("search.html")
        self._record = inside("search.json")

    def record(self):
        """The content of search.json: `asked`, `settings` (how many), `rungs`; once finished `chosen` {key: value}."""
        return files.read_json(self._record, "asked", "settings", "rungs") if os.path.exists(self._record) else None

    def write_record(self, record):
        files.write_json(self._record, record)

    def trial(self, rung, setting, fold):
        """The FoldFolder of a training: of a rung, a setting and a fold, each from 1."""
        return FoldFolder(os.path.join(self.path, f"rung_{rung}", f"setting_{setting}", f"fold_{fold}"), fold)

    def result(self, *trial):
        """What `finish` has kept of a training; None before it is finished."""
        path = self._result(*trial)
        return files.read_json(path, "score", "loss", "seconds") if os.path.exists(path) else None

    def finish(self, result, *trial):
        """Keep the numbers of a training, and delete its checkpoints."""
        fold = self.trial(*trial)
        files.write_json(self._result(*trial), result)
        for path in filter(os.path.exists, (fold.best, fold.last, fold.previous)):
            os.remove(path)

    def _result(self, *trial):
        return os.path.join(self.trial(*trial).path, "result.json")

    def check_chosen(self, config):
        """Raise UserError for a run of another setting than the search beside it has chosen."""
        record = self.record()
        if record is None:
            return
        if "chosen" not in record:
            raise UserError(
                f"{self.path}: the search is not finished: run tools/search.py again, or choose another `name`"
            )
        now = identity(config)
        for name, value in record["chosen"].items():
            own = show(value_at(now, name))
            if value not in ("auto", own):  # auto: it is decided by now
                got = f"{self.path} has chosen {name}={value}, got {own}"
                raise UserError(f"{got}: restore the key, or choose another `name`")


def check_id(place, id):
    """Raise Damaged unless an id from a table in a folder, which anyone can edit, names a file and no other place."""
    if not names_a_file(id):
        raise files.Damaged(place, f"the id {id[:80]!r}, wanted {ID_WANTED}")


def joined(parts):
    """One Results of the rows and scans of several, in their order."""
    return Results(*([row for part in parts for row in getattr(part, name)] for name in TABLES))


def _write_results(folder, results, tables):
    found = {name: getattr(results, part) for part, name in TABLES.items() if getattr(results, part)}
    own = {f"{name}.csv": rows for name, rows in tables.items()}
    if taken := own.keys() & {*TABLES.values(), _SCORES, _FOLD_SCORES, _HISTORY, AGGREGATED}:
        raise ValueError(f"tables: got {', '.join(sorted(taken))}, wanted names that no other table of a run has")
    found |= own
    for name, rows in found.items():
        files.write_csv(os.path.join(folder, name), rows)


def _rows(path, remedy):
    return files.read_numbers(path, remedy) if os.path.exists(path) else []


def _found(folder, pattern):
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


def _lock(folder, log):
    path = os.path.join(folder, _LOCK)
    file = open(path, "a")
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: flock's would live on in its workers
    except (BlockingIOError, PermissionError) as error:
        file.close()
        remedy = f"wait for it, or stop it (if it was on a machine that died, delete {path})"
        raise UserError(f"{folder}: another process is training into it: {remedy}") from error
    except (ImportError, OSError) as error:
        if log is not None:
            log.warn(f"{path}: no locks here ({error}): do not start this run twice at once")
    return file
