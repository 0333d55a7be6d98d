"""Who was in the study: cases, subjects, classes or range, voxel sizes, missing channels, of all and of each fold."""

import collections

import numpy as np

from ..pages import page
from ..pages.page import number
from ..space import volume

_MOST = 2000  # cases whose voxel sizes are read
_KINDS = 2  # of voxels that are named one by one


def cohort(run):
    """The table, of the cases that are tested: those of a fold are its test part."""
    facts, tested = run.recorded["cases"], run.task.tested_part()
    parts = [(f"fold {n}, {tested} part", split[tested]) for n, split in enumerate(run.splits, start=1)]
    if len(parts) > 1:
        parts.insert(0, ("all", [id for _, ids in parts for id in ids]))
    titles, describe = _labels(run)
    sizes, missing = _voxel_sizes(run, facts), {row["id"]: row["missing"] for row in run.rows if row.get("missing")}
    columns = ["", "cases", "subjects", *titles, *["voxels (mm)"] * bool(sizes), *["missing channels"] * bool(missing)]
    rows = []
    for name, ids in parts:
        if ids := [id for id in ids if id in facts]:
            row = [name, len(ids), len({facts[id].get("subject") for id in ids}), *describe([facts[id] for id in ids])]
            row += [_sizes_in_words([sizes[id] for id in ids if id in sizes])] * bool(sizes)
            rows.append(row + [_lacking_in_words(missing, ids)] * bool(missing))
    if not rows:
        return None
    return page.table(columns, rows, "The cases; voxels are those of the files, before they are resampled")


def _lacking_in_words(missing, ids):
    lacking = collections.Counter(text for id in ids for text in missing.get(id, "").split(", ") if text)
    return ", ".join(f"{text}: {count}" for text, count in lacking.items())


def _labels(run):
    """(titles, function that gives their values for some cases' facts) of what the task reads."""
    if run.task.reads == "number":
        return ["lowest", "mean", "highest"], lambda some: _range([one.get("target") for one in some])
    names = {"mask": ("without a lesion", "with a lesion"), "class": tuple(f"class {name}" for name in run.classes)}
    names = names.get(run.task.reads, ())
    if len(names) != 2:
        return [], lambda some: []
    return list(names), lambda some: [sum(one.get("target") == value for one in some) for value in (0, 1)]


def _range(values):
    values = np.array([value for value in values if isinstance(value, (int, float))], float)
    return [float(f(values)) for f in (np.min, np.mean, np.max)] if len(values) else [None] * 3


def _voxel_sizes(run, facts):
    """{case id: (x, y, z) mm of the voxels of its files}, of those in the cache."""
    if len(facts) > _MOST:
        return {}
    found = {}
    for id in facts:  # one open file at a time
        if run.has_entry(id) and (entry := run.entry(id)) is not None:
            found[id] = tuple(round(mm, 2) for mm in volume.spacing(entry.geometry.native_affine))
    return found


def _sizes_in_words(sizes):
    kinds = collections.Counter(sizes).most_common()
    if len(kinds) <= _KINDS:
        return "; ".join(" × ".join(f"{mm:g}" for mm in size) + f" ({count})" for size, count in kinds)
    ends = zip(np.min(sizes, axis=0).tolist(), np.max(sizes, axis=0).tolist())
    return " × ".join(number(low, 3) if low == high else f"{number(low, 3)} to {number(high, 3)}" for low, high in ends)
