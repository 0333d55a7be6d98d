"""Linear probe and fairness of embeddings, by the protocol of FOMO26's tasks 6 and 7.

Subjects are split by class into 40% to train on, 10% to choose by and 50% to test on; heads of 13 learning rates are
trained (`metrics.heads`), and the best one on the validation part is tested. Logistic regression, whose strength is
chosen there, too, and nearest neighbours stand beside it. A tested subject without an embedding gets the worst answer.
"""

import math
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .. import metrics, report
from ..config import UserError, as_user_error, listed
from ..data import spreadsheet
from ..metrics import fairness, heads, probe
from ..runtime import files

SEEDS = (42, 43, 44, 45, 46)
METHODS = {"heads": "linear heads (FOMO26)", "logistic": "logistic regression", "neighbours": "nearest neighbours"}
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # of the logistic regression's penalty
_PARTS = (0.4, 0.1)  # to train on, to choose by
_FEW = 5  # tested subjects, below which a group says little
_MANY = 10  # groups of a number, above which it lacks edges
_BLANK = ("", "nan", "na", "n/a", "#n/a", "null", "none", "-", "?")


class Subjects(NamedTuple):
    """The lines of a table that have a class."""

    ids: tuple[str, ...]
    subjects: np.ndarray
    labels: np.ndarray  # (n,) numbers of classes
    classes: tuple[str, ...]
    groups: dict  # {variable: fairness.Groups}
    unlabelled: int  # lines that were left out
    lines: int  # of the whole table
    places: np.ndarray  # (n,) of its lines


@dataclass
class Found:
    """What a probe has found; rows are dicts of plain values."""

    facts: dict
    scores: list = field(default_factory=list)  # a row for each method, split and metric
    summary: list = field(default_factory=list)  # a row for each method and metric
    fairness: list = field(default_factory=list)  # a row for each method, metric, variable and group
    predictions: list = field(default_factory=list)  # of the first split by the heads: a row for each tested case


def read_subjects(path, target, groups=(), id_column=None, subject_column="subject"):
    """The Subjects of a CSV.

    target: the column of classes, numbered in the sorted order of their texts. groups: texts `column`, or
    `column:25|50|75` for bins of a number. id_column: default id or ptid. Blank cells (also nan, n/a, ?): a case
    without a class is left out and counted; one of an unknown group counts in no group.
    """
    rows = spreadsheet.read_rows(path, {"--target": target}, "--table")
    there = list(rows[0].cells)
    id_column = id_column or ("id" if "id" in there or "ptid" not in there else "ptid")
    asked = [text.partition(":") for text in groups]
    wanted = {"--id-column": id_column, **{f"--groups {name}": name for name, _, _ in asked}}
    spreadsheet.check_columns(path, there, wanted)
    ids = _ids(path, rows, id_column)
    kept = [place for place, (_, cells) in enumerate(rows) if cells[target].lower() not in _BLANK]
    texts = [rows[place].cells[target] for place in kept]
    names = tuple(sorted(set(texts), key=_order))
    if len(names) < 2:
        raise UserError(f"{path}: column '{target}': got {len(names)} class, wanted two or more")
    chosen = tuple(ids[place] for place in kept)
    subjects = np.array([rows[place].cells.get(subject_column) or ids[place] for place in kept])
    by_variable = {name: _groups(path, rows, kept, name, edges) for name, _, edges in asked}
    labels = np.array([names.index(text) for text in texts])
    counts = len(rows) - len(kept), len(rows)
    return Subjects(chosen, subjects, labels, names, by_variable, *counts, np.array(kept))


def _ids(path, rows, column):
    """The ids of all lines, each once."""
    lines = {}
    for line, cells in rows:
        id = cells[column]
        if not id or id in lines:
            got = f"'{id}' as in line {lines[id]}" if id else "a blank cell"
            raise UserError(f"{path}: line {line}: column '{column}': got {got}, wanted each id once")
        lines[id] = line
    return list(lines)


def _order(text):
    number = spreadsheet.number(text)
    return (0, number, text) if number is not None else (1, 0, text)


def _groups(path, rows, kept, name, edges):
    texts = [rows[place].cells[name].strip() for place in kept]
    texts = [None if text.lower() in _BLANK else text for text in texts]
    if not edges:
        return fairness.categories([text and text.lower() for text in texts])
    for place, text in zip(kept, texts):
        if text is not None and spreadsheet.number(text) is None:
            got = f"line {rows[place].line}: column '{name}': got {text[:40]!r}"
            raise UserError(f"{path}: {got}, wanted a number for --groups {name}:{edges}")
    numbers = [spreadsheet.number(edge) for edge in edges.split("|")]
    if None in numbers or numbers != sorted(set(numbers)):
        raise UserError(f"--groups {name}:{edges}: wanted numbers that rise, as age:25|50|75")
    return fairness.bins([np.nan if text is None else spreadsheet.number(text) for text in texts], numbers)


def read_embeddings(place, subjects):
    """(n, F) float64, NaN where a subject has none.

    place: a folder of ID.npy, or a .npy (lines, F) of the table's lines in order, in which a line of NaN is missing.
    """
    if os.path.isdir(place):
        vectors = [_vector(os.path.join(place, f"{id}.npy")) for id in subjects.ids]
        lengths = {len(vector): id for vector, id in zip(vectors, subjects.ids) if vector is not None}
        if len(lengths) != 1:
            got = listed(f"{length} numbers of {id}" for length, id in sorted(lengths.items())) or "none of them"
            raise UserError(f"{place}: wanted ID.npy of one length for the table's ids, got {got}")
        [length] = lengths
        return np.array([np.full(length, np.nan) if vector is None else vector for vector in vectors])
    array = _array(place)
    if array.ndim != 2 or len(array) != subjects.lines:
        got = f"got shape {array.shape}, wanted ({subjects.lines}, F), a row for each line of the table"
        raise UserError(f"{place}: {got}; or a folder of ID.npy")
    array = array[subjects.places].astype(float)
    broken = ~np.isfinite(array).all(1) & ~np.isnan(array).all(1)
    if broken.any():
        first = broken.argmax()
        raise UserError(f"{place}: the row of {subjects.ids[first]}: {_not_finite(array[first])}")
    if np.isnan(array).all():
        raise UserError(f"{place}: got no embedding of the table's cases, wanted some")
    return array


def _array(path):
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: got no array of numbers, wanted an embedding")
    return array


def _vector(path):
    if not os.path.exists(path):
        return None
    vector = np.squeeze(_array(path)).astype(float)
    if vector.ndim != 1:
        raise UserError(f"{path}: got shape {vector.shape}, wanted one vector")
    if not np.isfinite(vector).all():
        raise UserError(f"{path}: {_not_finite(vector)}")
    return vector


def _not_finite(vector):
    counts = {"NaN": np.isnan(vector).sum(), "infinite": np.isinf(vector).sum()}
    said = [f"{count} number{'s are' if count > 1 else ' is'} {name}" for name, count in counts.items() if count]
    return f"{' and '.join(said)} of {len(vector)}, wanted finite ones"


def split(subjects, seed):
    """{train, val, test: indices}: of each class 40%, 10% and 50% of the subjects; a subject has its first case's."""
    names, first, subject = np.unique(subjects.subjects, return_index=True, return_inverse=True)
    of_class, part_of = subjects.labels[first], np.empty(len(names), "U5")
    for number, name in enumerate(subjects.classes):
        members = np.flatnonzero(of_class == number)
        if len(members) < 4:
            wanted = "wanted 4 or more: two to train on, one to choose by and one to test"
            raise UserError(f"class {name}: got {len(members)} subjects, {wanted}{_several_classes(subjects)}")
        order = np.random.default_rng([seed, number]).permutation(members)
        train, val = (max(least, round(share * len(members))) for least, share in zip((2, 1), _PARTS))
        part_of[order] = "test"
        part_of[order[: train + val]] = "val"
        part_of[order[:train]] = "train"
    return {part: np.flatnonzero(part_of[subject] == part) for part in ("train", "val", "test")}


def _several_classes(subjects):
    """To end an error with: whose cases have several classes, of which only the first one's counts."""
    names, inverse = np.unique(subjects.subjects, return_inverse=True)
    for number, name in enumerate(names):
        if len(own := np.unique(subjects.labels[inverse == number])) > 1:
            of = listed(subjects.classes[label] for label in own)
            said = f"subject {name} has cases of the classes {of}, and counts as the first one's"
            return f"; {said} (is --subject-column the right one?)"
    return ""


def worst(labels, classes):
    """(n, K): the answers that are as wrong as can be, 0 for the class and 1 / (K - 1) for the others."""
    return (1 - np.eye(classes)[labels]) / (classes - 1)


def answers(features, subjects, seed):
    """(test indices, {method: (probabilities (n, K), {name: what was chosen})}) of one split."""
    parts, labels, classes = split(subjects, seed), subjects.labels, len(subjects.classes)
    there = np.isfinite(features).all(1)
    train, val, test = (parts[name][there[parts[name]]] for name in ("train", "val", "test"))
    for name, part in (("training", train), ("validation", val)):
        if len(lacking := set(range(classes)) - set(labels[part])):
            gone = ", ".join(subjects.classes[number] for number in sorted(lacking))
            raise UserError(f"{name} subjects: none of class {gone} has an embedding (seed {seed})")
    known = features[train], labels[train]
    trained = heads.train(*known, classes, seed=seed)
    try:
        best, ranked = heads.choose(trained.probabilities(features[val]), labels[val])
    except ValueError as error:
        raise UserError(f"seed {seed}: {error}") from error
    chosen = heads.Heads(trained.weight[:, [best]], trained.bias[[best]])
    one_hot = np.eye(classes, dtype=int)[labels[val]]
    of_strength = [
        metrics.macro_auroc(one_hot, probe.linear(*known, features[val], classes, l2=l2)) for l2 in _STRENGTHS
    ]
    strength = _STRENGTHS[int(np.nanargmax(of_strength))]
    told = {
        "heads": (chosen.probabilities(features[test])[0], {"rate": heads.RATES[best], "val_auroc": ranked[best]}),
        "logistic": (probe.linear(*known, features[test], classes, l2=strength), {"l2": strength}),
        "neighbours": (probe.nearest(*known, features[test], classes), {}),
    }
    tested, found = np.searchsorted(parts["test"], test), {}
    for method, (probabilities, choice) in told.items():
        full = worst(labels[parts["test"]], classes)
        full[tested] = probabilities
        found[method] = full, choice
    return parts["test"], found


def run(features, subjects, seeds=SEEDS, resamples=1000, log=None):
    """The Found of embeddings (n, F), of several splits; intervals and groups are of the first one."""
    if len(set(seeds)) < len(seeds) or not seeds:
        raise UserError(f"--seeds: got {' '.join(map(str, seeds)) or 'none'}, wanted different numbers")
    if resamples < 1:
        raise UserError(f"--bootstrap: got {resamples}, wanted 1 or more")
    missing = ~np.isfinite(features).all(1)
    facts = {"cases": len(subjects.ids), "classes": len(subjects.classes), "features": features.shape[1]}
    facts |= {"missing": int(missing.sum()), "unlabelled": subjects.unlabelled}
    found = Found({**facts, "names": list(subjects.classes), "seeds": list(seeds), "resamples": resamples})
    if log:
        log("data", **facts)
    if log and missing.any():
        ids = listed([id for id, gone in zip(subjects.ids, missing) if gone])
        log.warn("subjects have no embedding: tested ones get the worst answer", count=facts["missing"], ids=ids)
    for place, seed in enumerate(seeds):
        test, of_methods = answers(features, subjects, seed)
        one_hot, whose = np.eye(facts["classes"], dtype=int)[subjects.labels[test]], subjects.subjects[test]
        if place == 0:
            found.predictions = _predictions(subjects, test, of_methods["heads"][0], missing)
            found.facts["unsaid"] = unsaid(features, found.predictions, subjects.classes)
            found.facts["doubts"] = doubts(subjects, test)
            for text in (*found.facts["unsaid"], *found.facts["doubts"]) if log else ():
                log.warn(text)
        for method, (scores, choice) in of_methods.items():
            line = {"method": method, "seed": seed, "tested": len(test), "missing": int(missing[test].sum())}
            rows = [_scored(line, name, one_hot, scores, whose, resamples, seed) for name in fairness.METRICS]
            found.scores += rows
            if log:
                log("probe", **line, **_shown(rows), **choice)
            if place == 0:
                _by_group(found, method, subjects, test, one_hot, scores, whose, resamples, seed, log)
    found.summary = _summary(found.scores, seeds)
    return found


def unsaid(features, predictions, classes):
    """Texts: why the F1 of the heads is low, where some class of embeddings (n, F) is said of no tested case."""
    said = [name for name in classes if any(row["prediction"] == name for row in predictions)]
    if len(said) == len(classes):
        return []
    vectors = features[np.isfinite(features).all(1)]
    common = vectors.mean(0)
    shared, own = np.linalg.norm(common), np.linalg.norm(vectors - common, axis=1).mean()
    return [
        f"the linear heads say only {listed(map(repr, said))} of {len(classes)} classes, so their F1 is low however "
        "well they rank: the challenge chooses them by AUROC, which an offset of all answers does not change, and what "
        f"all embeddings share (norm {shared:.3g}, beside {own:.3g} of what tells them apart) acts as such an offset"
    ]


def doubts(subjects, test):
    """Texts: why the groups of the Subjects may say little of fairness; test: indices of the tested cases."""
    found, whose, labels = [], subjects.subjects[test], subjects.labels[test]
    pairs, defined = False, False
    for variable, groups in subjects.groups.items():
        of = groups._replace(codes=groups.codes[test])
        members, unknown = of.members(), len(np.unique(whose[of.codes < 0]))
        said = [_without_edges(variable, groups.names)]
        if unknown:
            said.append(f"{unknown} of {len(np.unique(whose))} tested subjects have no value, and are in no group")
        if len(members) < 2:
            got = f"one group ({next(iter(members))})" if members else "no group"
            said.append(f"{got} is tested, so it has no disparity, and is in no fairness score")
        sizes = {name: len(np.unique(whose[own])) for name, own in members.items()}
        few = [name for name, count in sizes.items() if count < _FEW]
        single = [name for name, own in members.items() if len(np.unique(labels[own])) < 2]
        said.append(_of_groups(few, sizes, f"have fewer than {_FEW} tested subjects"))
        said.append(_of_groups(single, sizes, "have tested subjects of one class only, and no AUROC"))
        found += [f"{variable}: {text}" for text in said if text]
        pairs, defined = pairs or len(members) > 1, defined or len(members) - len(single) > 1
    if subjects.groups and not defined:
        which = "AUROC is" if pairs else "AUROC and that by F1 are"
        found.append(f"the fairness score by {which} undefined: no variable has two tested groups with a value")
    return found


def _without_edges(variable, names):
    """The doubt about groups that are single numbers, or None."""
    numbers = [spreadsheet.number(name) for name in names]
    if len(numbers) <= _MANY or None in numbers:
        return None
    edges = "|".join(dict.fromkeys(f"{edge:.3g}" for edge in np.quantile(numbers, (0.25, 0.5, 0.75))))
    return f"{len(numbers)} groups of a number without edges: did you mean {variable}:{edges}?"


def _of_groups(names, sizes, what):
    """The doubt about some of the groups, or None where it is of none."""
    shown = listed([f"{name} ({sizes[name]})" for name in names])
    return f"{len(names)} of {len(sizes)} groups {what}: {shown}" if names else None


def _shown(rows):
    """{metric: value, metric_low: ..., metric_high: ...} of rows, for the log."""
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {row["metric"] + end: row[key] for row in rows for end, key in ends}


def _scored(line, name, one_hot, scores, whose, resamples, seed):
    interval = metrics.bootstrap_ci(fairness.METRICS[name], one_hot, scores, resamples, seed, groups=whose)
    return {**line, "metric": name, "value": interval.value, "low": interval.low, "high": interval.high}


def _by_group(found, method, subjects, test, one_hot, scores, whose, resamples, seed, log):
    """Add the rows of the groups, the disparities and the fairness score of one method."""
    groups = {name: one._replace(codes=one.codes[test]) for name, one in subjects.groups.items()}
    if not groups:
        return
    for name, metric in fairness.METRICS.items():
        by_group = fairness.ByGroup(metric, groups)
        values = metrics.bootstrap_ci(by_group, one_hot, scores, resamples, seed, groups=whose)
        p = fairness.permutation(metric, groups, one_hot, scores, whose, resamples, seed)
        extremes = by_group.extremes(one_hot, scores)
        for key, interval in values.items():
            kind, variable, group = (*key, "", "")[:3]
            row = {"method": method, "metric": name, "kind": kind, "variable": variable, "group": group}
            high = min(interval.high, 1.0) if kind == "fairness" else interval.high
            row |= {"value": interval.value, "low": interval.low, "high": high, "p": math.nan}
            if kind == "group":
                row["cases"] = int(groups[variable].members()[group].sum())
            if kind == "disparity":
                row |= {"p": p[variable], "cases": int((groups[variable].codes >= 0).sum())}
                row["group"] = " over ".join(extremes.get(variable, ()))
                row["undefined"] = sum(
                    math.isnan(one.value) for other, one in values.items() if other[:2] == ("group", variable)
                )
            if kind == "fairness":
                row["group"] = ", ".join(extremes)
            found.fairness.append(row)
            if log and kind != "group":
                log("fairness", **{key: value for key, value in row.items() if value != ""})


def _predictions(subjects, test, scores, missing):
    rows = []
    for place, probabilities in zip(test, scores):
        names = zip(subjects.classes, probabilities.tolist())
        row = {"id": subjects.ids[place], "subject": str(subjects.subjects[place])}
        said = subjects.classes[probabilities.argmax()]
        row |= {"target": subjects.classes[subjects.labels[place]], "prediction": said}
        rows.append({**row, "missing": int(missing[place]), **{f"probability_{name}": value for name, value in names}})
    return rows


def _summary(scores, seeds):
    """Of each method and metric the first split with its interval over subjects, and mean and SD over the splits.

    The mean has no interval: splits share their subjects, and Student's t over 5 of them left out chance in 13 to 27%
    of 600 data sets without signal (100 subjects); Nadeau and Bengio's corrected one (2003) is wider than one split's.
    """
    rows = []
    for method in METHODS:
        for name in fairness.METRICS:
            own = [row for row in scores if (row["method"], row["metric"]) == (method, name)]
            over = metrics.summarize([row["value"] for row in own])
            first = {key: own[0][key] for key in ("value", "low", "high")}
            splits = {"mean": over["mean"], "sd": over["std"], "splits": len(seeds)}
            rows.append({"method": method, "metric": name, **first, **splits})
    return rows


def inputs(embeddings, output, table, target, groups=(), id_column=None, subject_column="subject", seeds=SEEDS):
    """{name: value} of what a probe in the folder `output` is made of; paths as they lie from there."""
    with as_user_error(f"cannot read {table}", OSError):
        of_table = f"{os.path.basename(table)} (sha256 {files.sha256(table)[:12]})"
    asked = {"target": target, "groups": list(groups), "table": of_table}
    place = os.path.relpath(os.path.abspath(embeddings), os.path.abspath(output))
    return {**asked, "embeddings": place, "id": id_column, "subject": subject_column, "seeds": list(seeds)}


def refuse_another(output, given, remedy):
    """Raise UserError where a folder holds the probe of other `inputs` than the given ones; remedy: what to do."""
    path = os.path.join(output, "probe.json")
    if not os.path.exists(path):
        return
    there = files.read_json(path).get("inputs") or {}
    for name, value in given.items():
        if there.get(name) != value:
            old = f"{name}={there[name]}" if name in there else "what it does not say"
            raise UserError(f"{output}: holds a probe of {old}, got {name}={value}: {remedy}")


def write(found, output, title, given):
    """probe.json, the CSVs of the rows and probe.html in a folder; returns the path of the page. given: its `inputs`"""
    with as_user_error(f"cannot write to {output}"):
        os.makedirs(output, exist_ok=True)
        tables = {"probe": found.scores, "fairness": found.fairness, "predictions": found.predictions}
        for name, rows in tables.items():
            path = os.path.join(output, f"{name}.csv")
            if rows:
                files.write_csv(path, rows)
            elif os.path.exists(path):  # of the probe that is replaced
                os.remove(path)
        content = {"title": title, "inputs": given, **found.facts, "summary": found.summary, "fairness": found.fairness}
        files.write_json(os.path.join(output, "probe.json"), content)
    return report.write_probe(found, METHODS, os.path.join(output, "probe.html"), title)
